//! Metrics, in base units, with bounded labels. One registry per process part, so that tests do not share one.

use super::counters::{CounterSpec, Counters};
use super::openmetrics::{self, Exemplars};
use crate::job::TraceId;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{
    Counter, Encoder, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Every metric that there is. The names are the product's interface: dashboards depend on them.
#[derive(Debug)]
#[allow(missing_docs, reason = "each metric's help text, below, is its description")]
pub struct Metrics {
    registry: Registry,
    pub jobs_submitted_total: IntCounter,
    pub jobs_ended_total: IntCounterVec,
    /// 1 while the agent claims jobs.
    pub takes_jobs: IntGauge,
    pub jobs_running: IntGauge,
    pub jobs_queued: IntGauge,
    pub jobs_dead_letters: IntGauge,
    pub jobs_stuck_total: IntCounter,
    pub slots: IntGauge,
    pub claims_total: IntCounter,
    pub claimed_jobs_total: IntCounter,
    job_duration_seconds: HistogramVec,
    cell_acquire_seconds: Histogram,
    pub log_bytes_total: IntCounterVec,
    pub log_frames_total: IntCounter,
    pub viewers: IntGauge,
    pub http_requests_total: IntCounterVec,
    pub connections: IntGauge,
    pub connections_refused_total: IntCounter,
    pub audit_lost_total: IntCounter,
    pub tls_certificate_expiry: IntGauge,
    pub wire_skipped_bytes_total: IntCounter,
    pub reattach_total: IntCounter,
    pub swept_total: IntCounter,
    pub agents_quarantined: IntGauge,
    pub retention_removed_total: IntCounterVec,
    pub retention_removed_bytes_total: IntCounter,
    pub output_bytes: IntGauge,
    pub ssh_connections: IntGauge,
    pub ssh_channels: IntGauge,
    pub ssh_hosts: IntGaugeVec,
    pub ssh_plain_hosts: IntGaugeVec,
    pub backend_up: IntGaugeVec,
    /// Whether a backend refuses this agent, by its name.
    pub backend_refuses: IntGaugeVec,
    pub kind_away: IntGaugeVec,
    pub ends_undelivered: IntGauge,
    pub spans_exported_total: IntCounter,
    pub spans_dropped_total: IntCounterVec,
    pub disk_free_bytes: IntGauge,
    pub disk_floor_bytes: IntGauge,
    custom: Counters,
    exemplars: Exemplars,
}

/// From a millisecond to a minute: cells start in tenths of a second.
const START_BUCKETS: &[f64] = &[0.001, 0.005, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];
/// From a tenth of a second to a day.
const JOB_BUCKETS: &[f64] = &[0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0];
const JOB_DURATION: &str = "jobcell_job_duration_seconds";
const CELL_ACQUIRE: &str = "jobcell_cell_acquire_seconds";

impl Metrics {
    /// All at zero. Panics only if two have one name, which a test sees.
    pub fn new() -> Self {
        Self::with_counters(&[])
    }

    /// The same, and what jobs say in their outputs.
    pub fn with_counters(specs: &[CounterSpec]) -> Self {
        let registry = Registry::new();
        let add = |metric: Box<dyn Collector>| registry.register(metric).expect("every metric has its own name");
        let counter = |name: &str, help: &str| {
            let metric = IntCounter::new(name, help).expect("a valid name");
            add(Box::new(metric.clone()));
            metric
        };
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let metric = IntCounterVec::new(Opts::new(name, help), labels).expect("a valid name");
            add(Box::new(metric.clone()));
            metric
        };
        let gauge = |name: &str, help: &str| {
            let metric = IntGauge::new(name, help).expect("a valid name");
            add(Box::new(metric.clone()));
            metric
        };
        let job_duration_seconds = HistogramVec::new(
            HistogramOpts::new(JOB_DURATION, "From a job's start to its end").buckets(JOB_BUCKETS.to_vec()),
            &["verdict"],
        )
        .expect("a valid name");
        add(Box::new(job_duration_seconds.clone()));
        let cell_acquire_seconds = Histogram::with_opts(
            HistogramOpts::new(CELL_ACQUIRE, "From asking for a cell to a warden that waits in it")
                .buckets(START_BUCKETS.to_vec()),
        )
        .expect("a valid name");
        add(Box::new(cell_acquire_seconds.clone()));
        let build = IntGaugeVec::new(Opts::new("jobcell_build_info", "Always 1"), &["version"]).expect("a valid name");
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        add(Box::new(build));
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let metric = IntGaugeVec::new(Opts::new(name, help), labels).expect("a valid name");
            add(Box::new(metric.clone()));
            metric
        };
        add(Box::new(Process::new()));
        Self {
            jobs_submitted_total: counter("jobcell_jobs_submitted_total", "Jobs taken in"),
            jobs_ended_total: counters("jobcell_jobs_ended_total", "Attempts ended, by whose doing", &["verdict"]),
            takes_jobs: gauge(
                "jobcell_takes_jobs",
                "1 while the agent claims jobs, 0 while something keeps it from that",
            ),
            jobs_running: gauge("jobcell_jobs_running", "Attempts that the agent holds"),
            jobs_queued: gauge("jobcell_jobs_queued", "Jobs that wait"),
            jobs_dead_letters: gauge(
                "jobcell_jobs_dead_letters",
                "Jobs given up for want of tries, not replayed since",
            ),
            jobs_stuck_total: counter("jobcell_jobs_stuck_total", "Held jobs that did not get on and were ended"),
            slots: gauge("jobcell_slots", "Jobs that can run at the same time"),
            claims_total: counter("jobcell_claims_total", "Claims that brought jobs"),
            claimed_jobs_total: counter("jobcell_claimed_jobs_total", "Jobs that claims brought"),
            job_duration_seconds,
            cell_acquire_seconds,
            log_bytes_total: counters("jobcell_log_bytes_total", "Bytes of job output stored", &["stream"]),
            log_frames_total: counter("jobcell_log_frames_total", "Frames of job output stored"),
            viewers: gauge("jobcell_viewers", "Live log streams open"),
            http_requests_total: counters("jobcell_http_requests_total", "HTTP requests answered", &["route", "code"]),
            connections: gauge("jobcell_connections", "Open connections of clients"),
            connections_refused_total: counter(
                "jobcell_connections_refused_total",
                "Connections turned away because all places were taken",
            ),
            audit_lost_total: counter("jobcell_audit_lost_total", "Lines of the audit log that were not written"),
            tls_certificate_expiry: gauge(
                "jobcell_tls_certificate_expiry_timestamp_seconds",
                "When the API's certificate is over, in seconds since 1970; 0 without TLS",
            ),
            wire_skipped_bytes_total: counter(
                "jobcell_wire_skipped_bytes_total",
                "Bytes from wardens that were no frame",
            ),
            reattach_total: counter("jobcell_reattach_total", "Links to wardens that were made again"),
            swept_total: counter("jobcell_swept_total", "Cells that nobody wanted and the agent removed"),
            agents_quarantined: gauge("jobcell_agents_quarantined", "Agents that an operator does not trust with jobs"),
            retention_removed_total: counters(
                "jobcell_retention_removed_total",
                "Ended jobs, and outputs of ended jobs, that were not to be kept any longer",
                &["what"],
            ),
            retention_removed_bytes_total: counter(
                "jobcell_retention_removed_bytes_total",
                "Bytes of output that were not to be kept any longer",
            ),
            output_bytes: gauge("jobcell_output_bytes", "Bytes of output of ended jobs that are kept, about"),
            ssh_connections: gauge("jobcell_ssh_connections", "Open connections to hosts"),
            ssh_channels: gauge("jobcell_ssh_channels", "Channels on them"),
            ssh_hosts: gauges(
                "jobcell_ssh_hosts",
                "Hosts that jobs went to, by whether they get more: admit, probe or refuse",
                &["breaker"],
            ),
            ssh_plain_hosts: gauges(
                "jobcell_ssh_plain_hosts",
                "Hosts and logins whose jobs run in plain mode because no warden can stay there: unfit until the host is changed, not_now for a while",
                &["why"],
            ),
            kind_away: gauges(
                "jobcell_kind_away",
                "1 while jobs for this kind of cell (docker or ssh) are not taken and others are",
                &["kind"],
            ),
            backend_up: gauges(
                "jobcell_backend_up",
                "1 while a backend answers claims, 0 after one that failed",
                &["backend"],
            ),
            backend_refuses: gauges(
                "jobcell_backend_refuses",
                "1 while a backend answers claims with a refusal that time does not mend: the agent's key, its name, its version",
                &["backend"],
            ),
            ends_undelivered: gauge("jobcell_ends_undelivered", "Ends of jobs that their backends have not got yet"),
            spans_exported_total: counter("jobcell_spans_exported_total", "Spans that the collector has taken"),
            spans_dropped_total: counters(
                "jobcell_spans_dropped_total",
                "Spans that nobody will see, by why",
                &["reason"],
            ),
            disk_free_bytes: gauge("jobcell_disk_free_bytes", "Room on the disk of the agent's data directory"),
            disk_floor_bytes: gauge(
                "jobcell_disk_floor_bytes",
                "What is to stay free there: with less, no jobs are taken",
            ),
            custom: Counters::new(
                specs,
                counters(
                    "jobcell_custom_dropped_total",
                    "Outputs of jobs that a counter has not taken: no number, or one series too many",
                    &["counter", "reason"],
                ),
                &registry,
            ),
            exemplars: Exemplars::default(),
            registry,
        }
    }

    /// Adds what a try has given back to the counters that are about it.
    pub fn count_outputs(&self, outputs: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) {
        self.custom.add(outputs, labels);
    }

    /// A job took so long; `trace` is where that can be looked at.
    pub fn observe_job(&self, verdict: &str, seconds: f64, trace: Option<TraceId>) {
        self.job_duration_seconds.with_label_values(&[verdict]).observe(seconds);
        if let Some(trace) = trace {
            self.exemplars.keep(JOB_DURATION, verdict, JOB_BUCKETS, seconds, trace);
        }
    }

    /// The same of a cell that was asked for.
    pub fn observe_acquire(&self, seconds: f64, trace: Option<TraceId>) {
        self.cell_acquire_seconds.observe(seconds);
        if let Some(trace) = trace {
            self.exemplars.keep(CELL_ACQUIRE, "", START_BUCKETS, seconds, trace);
        }
    }

    /// So many spans are gone, for this reason.
    pub fn spans_dropped(&self, reason: &'static str, spans: usize) {
        self.spans_dropped_total.with_label_values(&[reason]).inc_by(spans as u64);
    }

    /// The text that Prometheus scrapes.
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics cannot be written");
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// The same as OpenMetrics, with examples.
    pub fn render_openmetrics(&self) -> String {
        openmetrics::render(&self.registry.gather(), &self.exemplars)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// The process itself, read from /proc at every scrape.
struct Process {
    cpu: Counter,
    /// Held by who moves the counter on.
    scrape: Mutex<()>,
    resident: Gauge,
    files: Gauge,
    began: Gauge,
}

impl Process {
    fn new() -> Self {
        let gauge = |name: &str, help: &str| Gauge::new(name, help).expect("a valid name");
        Self {
            cpu: Counter::new("process_cpu_seconds_total", "Processor time of this process").expect("a valid name"),
            scrape: Mutex::default(),
            resident: gauge("process_resident_memory_bytes", "Resident memory of this process"),
            files: gauge("process_open_fds", "Open files of this process"),
            began: gauge("process_start_time_seconds", "When this process was started, in seconds since 1970"),
        }
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        let gauges = [&self.resident, &self.files, &self.began];
        self.cpu.desc().into_iter().chain(gauges.into_iter().flat_map(Collector::desc)).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // Fields as in proc(5): utime and stime are the 14th and 15th, in hundredths of a second; behind the name, which may
        // have spaces, counting starts at the third.
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ').collect();
        let ticks = |at: usize| fields.get(at - 3).and_then(|field| field.parse::<f64>().ok()).unwrap_or_default();
        let moved = self.scrape.lock().unwrap_or_else(PoisonError::into_inner);
        self.cpu.inc_by(((ticks(14) + ticks(15)) / 100.0 - self.cpu.get()).max(0.0));
        drop(moved);
        self.resident.set(ticks(24) * 4096.0);
        // The 22nd counts from the boot.
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let boot = stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<f64>().ok());
        self.began.set(boot.map_or(0.0, |boot| boot + ticks(22) / 100.0));
        #[expect(clippy::cast_precision_loss, reason = "a count of files")]
        self.files.set(std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count) as f64);
        let gauges = [&self.resident, &self.files, &self.began];
        self.cpu.collect().into_iter().chain(gauges.into_iter().flat_map(Collector::collect)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_has_its_own_name_and_the_process_is_measured() {
        let metrics = Metrics::new();
        metrics.jobs_ended_total.with_label_values(&["failed"]).inc();
        let text = metrics.render();
        assert!(text.contains("jobcell_jobs_ended_total{verdict=\"failed\"} 1"), "{text}");
        let resident =
            text.lines().find_map(|line| line.strip_prefix("process_resident_memory_bytes ")).expect("there");
        assert!(resident.parse::<f64>().expect("a number") > 100_000.0);
    }
}

//! Metrics as OpenMetrics 1.0 has them: the same numbers as in Prometheus's older text, and beside the buckets of a histogram an example of what fell
//! into them, by the id of its trace.
//!
//! Owns the examples, one for each bucket, and which of the two texts a scraper gets. It must never make a series of its own: labels are those of the
//! registry, and an example is no series.

use crate::job::{TraceId, UnixMillis};
use prometheus::proto::{LabelPair, MetricFamily, MetricType};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};

/// What the older text is.
pub const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
/// What this one is.
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Whether a scraper with this `Accept` would rather have OpenMetrics. Whoever does not name it gets the older text.
pub fn wanted(accept: &str) -> bool {
    let (mut new, mut old) = (0.0, 0.0);
    for range in accept.split(',') {
        let mut parts = range.split(';').map(|part| part.trim().to_ascii_lowercase());
        let kind = parts.next().unwrap_or_default();
        let (mut quality, mut version) = (1.0, None);
        for part in parts {
            match part.split_once('=') {
                Some(("q", number)) => quality = number.trim().parse::<f64>().unwrap_or(0.0),
                Some(("version", number)) => version = Some(number.trim().trim_matches('"').to_owned()),
                _ => {}
            }
        }
        match kind.as_str() {
            // 0.0.1 was a draft.
            "application/openmetrics-text" if version.is_none_or(|version| version == "1.0.0") => {
                new = f64::max(new, quality);
            }
            "text/plain" => old = f64::max(old, quality),
            _ => {}
        }
    }
    new > 0.0 && new >= old
}

/// The last observation of a bucket whose trace is kept somewhere.
#[derive(Debug, Clone)]
struct Example {
    trace: TraceId,
    value: f64,
    at: UnixMillis,
}

/// Of each histogram and value of its label, the examples of its buckets by their upper bounds.
#[derive(Debug, Default)]
pub(super) struct Exemplars(Mutex<BTreeMap<(&'static str, String), Vec<Example>>>);

impl Exemplars {
    /// Keeps it in place of the one that its bucket has. `label` is the value of the histogram's only label, and has a bounded set of values as that has.
    pub(super) fn keep(&self, name: &'static str, label: &str, bounds: &[f64], value: f64, trace: TraceId) {
        let bucket = |value: f64| bounds.iter().position(|bound| value <= *bound).unwrap_or(bounds.len());
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let examples = all.entry((name, label.to_owned())).or_default();
        examples.retain(|other| bucket(other.value) != bucket(value));
        examples.push(Example { trace, value, at: UnixMillis::now() });
    }

    /// The one between two bounds, ready to be put behind a sample.
    fn within(&self, name: &str, labels: &[LabelPair], above: f64, to: f64) -> Option<String> {
        let label = labels.first().map(LabelPair::value).unwrap_or_default();
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, examples) = all.iter().find(|((of, value), _)| *of == name && value == label)?;
        let Example { trace, value, at } = examples.iter().find(|one| one.value > above && one.value <= to)?;
        let (seconds, millis) = (at.as_u64() / 1000, at.as_u64() % 1000);
        Some(format!(" # {{trace_id=\"{trace}\"}} {} {seconds}.{millis:03}", number(*value)))
    }
}

/// As OpenMetrics wants it: bounds of buckets always have a point.
fn number(value: f64) -> String {
    match value {
        value if value == f64::INFINITY => "+Inf".to_owned(),
        value if value == f64::NEG_INFINITY => "-Inf".to_owned(),
        value if value.is_nan() => "NaN".to_owned(),
        value => format!("{value:?}"),
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\n', "\\n").replace('"', "\\\"")
}

/// `{a="b",c="d"}`, or nothing.
fn labels(pairs: &[LabelPair], bound: Option<f64>) -> String {
    let own = pairs.iter().map(|pair| format!("{}=\"{}\"", pair.name(), escaped(pair.value())));
    let all: Vec<String> = own.chain(bound.map(|bound| format!("le=\"{}\"", number(bound)))).collect();
    if all.is_empty() { String::new() } else { format!("{{{}}}", all.join(",")) }
}

/// The whole text.
pub(super) fn render(families: &[MetricFamily], exemplars: &Exemplars) -> String {
    let mut text = String::new();
    for family in families {
        // Writing to a text cannot fail.
        let _ = write_family(&mut text, family, exemplars);
    }
    text.push_str("# EOF\n");
    text
}

fn write_family(text: &mut String, family: &MetricFamily, exemplars: &Exemplars) -> std::fmt::Result {
    let full = family.name();
    // A family is named without what its kind puts behind the names of its samples.
    let (name, kind, suffix) = match family.get_field_type() {
        MetricType::COUNTER => (full.strip_suffix("_total").unwrap_or(full), "counter", "_total"),
        MetricType::HISTOGRAM => (full, "histogram", ""),
        _ => match full.strip_suffix("_info") {
            Some(name) => (name, "info", "_info"),
            None => (full, "gauge", ""),
        },
    };
    writeln!(text, "# TYPE {name} {kind}")?;
    if let Some(unit) = ["seconds", "bytes"].into_iter().find(|unit| name.ends_with(&format!("_{unit}"))) {
        writeln!(text, "# UNIT {name} {unit}")?;
    }
    writeln!(text, "# HELP {name} {}", escaped(family.help()))?;
    for metric in family.get_metric() {
        let pairs = metric.get_label();
        if family.get_field_type() != MetricType::HISTOGRAM {
            let value =
                if kind == "counter" { metric.get_counter().get_value() } else { metric.get_gauge().get_value() };
            // As in the older text: whole numbers without a point.
            writeln!(text, "{name}{suffix}{} {value}", labels(pairs, None))?;
            continue;
        }
        let histogram = metric.get_histogram();
        let bounded = histogram.get_bucket().iter().map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()));
        let mut below = f64::NEG_INFINITY;
        for (bound, count) in
            bounded.filter(|(bound, _)| bound.is_finite()).chain([(f64::INFINITY, histogram.get_sample_count())])
        {
            let example = exemplars.within(full, pairs, below, bound).unwrap_or_default();
            writeln!(text, "{name}_bucket{} {count}{example}", labels(pairs, Some(bound)))?;
            below = bound;
        }
        writeln!(text, "{name}_sum{} {}", labels(pairs, None), number(histogram.get_sample_sum()))?;
        writeln!(text, "{name}_count{} {}", labels(pairs, None), histogram.get_sample_count())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Metrics;

    #[test]
    fn who_names_it_gets_it_unless_the_older_text_is_liked_better() {
        let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let newer = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=1.0.0;q=0.4,*/*;q=0.1";
        for yes in
            [prometheus, newer, "application/openmetrics-text", "Application/OpenMetrics-Text; version=\"1.0.0\""]
        {
            assert!(wanted(yes), "{yes}");
        }
        for no in [
            "",
            "*/*",
            "text/plain",
            "application/openmetrics-text;version=0.0.1",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=x",
            "application/openmetrics-text;q=0.2, text/plain;q=0.5",
        ] {
            assert!(!wanted(no), "{no}");
        }
    }

    #[test]
    fn each_bucket_keeps_its_last_example_and_there_are_no_more_than_buckets() {
        let metrics = Metrics::new();
        let trace = |byte| TraceId([byte; 16]);
        metrics.observe_job("succeeded", 0.5, None);
        for (seconds, byte) in [(0.3, 1), (0.4, 2), (30.0, 3), (1e9, 4)] {
            metrics.observe_job("succeeded", seconds, Some(trace(byte)));
        }
        metrics.observe_job("failed", 0.05, Some(trace(5)));
        metrics.observe_acquire(0.2, Some(trace(6)));
        let text = metrics.render_openmetrics();
        let of = |start: &str| {
            text.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{start}: {text}"))
        };
        let succeeded = "jobcell_job_duration_seconds_bucket{verdict=\"succeeded\",le=";
        let last = of(&format!("{succeeded}\"0.5\"}} 3 # {{trace_id=\"{}\"}} 0.4 ", trace(2)));
        assert!(last.rsplit_once(' ').is_some_and(|(_, at)| at.parse::<f64>().is_ok_and(|at| at > 1.7e9)), "{last}");
        of(&format!("{succeeded}\"60.0\"}} 4 # {{trace_id=\"{}\"}} 30.0 ", trace(3)));
        of(&format!("{succeeded}\"+Inf\"}} 5 # {{trace_id=\"{}\"}} 1000000000.0 ", trace(4)));
        assert!(!of(&format!("{succeeded}\"1.0\"}}")).contains('#'), "{text}");
        of(&format!(
            "jobcell_job_duration_seconds_bucket{{verdict=\"failed\",le=\"0.1\"}} 1 # {{trace_id=\"{}\"}} 0.05 ",
            trace(5)
        ));
        of(&format!("jobcell_cell_acquire_seconds_bucket{{le=\"0.2\"}} 1 # {{trace_id=\"{}\"}} 0.2 ", trace(6)));
        assert!(!text.contains(&trace(1).to_string()), "{text}");
        // The older text has no examples: it would be no such text with them.
        assert!(!metrics.render().contains("trace_id"));
    }

    #[test]
    fn kinds_have_the_names_of_this_format() {
        let metrics = Metrics::new();
        metrics.log_bytes_total.with_label_values(&["a\"b\\c\nd"]).inc_by(3);
        let text = metrics.render_openmetrics();
        for wanted in [
            "# TYPE jobcell_log_bytes counter\n# UNIT jobcell_log_bytes bytes\n# HELP jobcell_log_bytes Bytes",
            "jobcell_log_bytes_total{stream=\"a\\\"b\\\\c\\nd\"} 3\n",
            "# TYPE jobcell_build info\n",
            concat!("jobcell_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1\n"),
            "# TYPE jobcell_slots gauge\n",
            "# TYPE process_cpu_seconds counter\n# UNIT process_cpu_seconds seconds\n",
            "jobcell_cell_acquire_seconds_sum 0.0\njobcell_cell_acquire_seconds_count 0\n",
        ] {
            assert!(text.contains(wanted), "{wanted} in {text}");
        }
        assert!(text.ends_with("\n# EOF\n") && text.matches("# EOF").count() == 1, "{text}");
    }
}

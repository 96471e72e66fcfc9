//! Where spans go and which: one setting of ours, and the variables that OpenTelemetry has for every program. Pure.

use crate::job::{TraceContext, TraceId};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// What is appended to a collector's address for all signals.
const TRACES: &str = "/v1/traces";
/// Spans that may wait, as OpenTelemetry has it, and the most that are granted.
const QUEUE: (usize, usize) = (2048, 65_536);
/// Spans of one request.
const BATCH: (usize, usize) = (512, 8192);
/// Most that a span waits for others.
const DELAY: Duration = Duration::from_secs(5);
/// For a request to be answered.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The longest of either.
const LONGEST: Duration = Duration::from_secs(60);

/// Which traces are told.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampler {
    /// Whoever began a trace decides for all of it.
    pub by_parent: bool,
    /// Of those that nobody has decided on, this part.
    pub ratio: f64,
}

impl Default for Sampler {
    fn default() -> Self {
        Self { by_parent: true, ratio: 1.0 }
    }
}

impl Sampler {
    /// Whether this trace is told. By its last 56 bits, which are random in a job's own id too.
    pub fn takes(self, trace: TraceId, context: Option<&TraceContext>) -> bool {
        if let Some(context) = context.filter(|_| self.by_parent) {
            return context.is_sampled();
        }
        let random = trace.0[9..].iter().fold(0u64, |all, byte| all << 8 | u64::from(*byte));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 2^56")]
        let below = (self.ratio * (1u64 << 56) as f64) as u64;
        random < below
    }

    fn named(name: &str, ratio: Option<&str>) -> Option<Self> {
        let (by_parent, kind) = match name.strip_prefix("parentbased_") {
            Some(kind) => (true, kind),
            None => (false, name),
        };
        let ratio = match kind {
            "always_on" => 1.0,
            "always_off" => 0.0,
            "traceidratio" => match ratio {
                None => 1.0,
                Some(text) => text.trim().parse::<f64>().ok().filter(|ratio| (0.0..=1.0).contains(ratio))?,
            },
            _ => return None,
        };
        Some(Self { by_parent, ratio })
    }
}

/// Where spans go, and how.
#[derive(Clone, PartialEq)]
pub struct OtlpSettings {
    /// The collector's address for traces.
    pub url: String,
    /// The authorities that are believed at https://; the system's where none are named.
    pub ca_file: Option<PathBuf>,
    /// What goes with every request; it may have a secret in it.
    pub headers: Vec<(String, String)>,
    /// For a request to be answered.
    pub timeout: Duration,
    /// Most that a span waits for others.
    pub delay: Duration,
    /// Spans that may wait.
    pub queue: usize,
    /// Spans of one request.
    pub batch: usize,
    /// Which traces.
    pub sampler: Sampler,
    /// Who tells, from the environment: `service.name` and others.
    pub resource: Vec<(String, String)>,
}

impl fmt::Debug for OtlpSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OtlpSettings").field("url", &self.url).field("sampler", &self.sampler).finish_non_exhaustive()
    }
}

/// Why an address cannot be one of a collector, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unusable {
    /// What is wrong.
    pub reason: String,
    /// What to do.
    pub fix: &'static str,
}

fn address(url: &str) -> Result<String, Unusable> {
    let url = url.trim().trim_end_matches('/');
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let host = rest.map(|rest| rest.split(['/', '?', '#']).next().unwrap_or_default());
    if host.is_none_or(|host| host.is_empty() || host.contains('@')) || url.contains(char::is_whitespace) {
        let reason = format!("`{}` is not a collector's address", crate::job::shown(url));
        return Err(Unusable { reason, fix: "write http://host:4318, or https://host:4318" });
    }
    Ok(url.to_owned())
}

/// `key=value` pairs with commas between them, percent-encoded.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=')?;
        let key = key.trim();
        (!key.is_empty()).then(|| Some((key.to_owned(), decoded(value.trim())?)))?
    };
    text.split(',').filter(|part| !part.trim().is_empty()).map(pair).collect()
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, left @ ..] = rest {
        match (first, left) {
            (b'%', [high, low, left @ ..]) => {
                let digit = |byte: &u8| char::from(*byte).to_digit(16);
                bytes.push(u8::try_from(digit(high)? << 4 | digit(low)?).ok()?);
                rest = left;
            }
            (b'%', _) => return None,
            (byte, _) => {
                bytes.push(*byte);
                rest = left;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

impl OtlpSettings {
    /// Reads them; none when nobody names a collector. `endpoint` is our own setting and comes before the variables, which complete it. Also what
    /// of the variables was not understood: as their standard wants it, such a one is as good as absent. Errors: our own setting is no address.
    pub fn read(endpoint: &str, env: &BTreeMap<String, String>) -> Result<(Option<Self>, Vec<String>), Unusable> {
        let mut ignored = Vec::new();
        let text = |name: &str| env.get(name).map(|text| text.trim()).filter(|text| !text.is_empty());
        let either = |name: &str| {
            let (own, all) = (format!("OTEL_EXPORTER_OTLP_TRACES_{name}"), format!("OTEL_EXPORTER_OTLP_{name}"));
            text(&own).map(|text| (own, text)).or_else(|| text(&all).map(|text| (all, text)))
        };
        let own = if endpoint.is_empty() { None } else { Some(address(endpoint)? + TRACES) };
        let url = own.or_else(|| {
            let (name, url, path) =
                match (text("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"), text("OTEL_EXPORTER_OTLP_ENDPOINT")) {
                    // The one for traces alone is taken as it is.
                    (Some(url), _) => ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", url, ""),
                    (None, Some(url)) => ("OTEL_EXPORTER_OTLP_ENDPOINT", url, TRACES),
                    (None, None) => return None,
                };
            match address(url) {
                Ok(url) => Some(url + path),
                Err(Unusable { reason, fix }) => {
                    ignored.push(format!("{name} {reason}; {fix}"));
                    None
                }
            }
        });
        let Some(url) = url else { return Ok((None, ignored)) };
        if text("OTEL_SDK_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true"))
            || text("OTEL_TRACES_EXPORTER").is_some_and(|text| text == "none")
        {
            return Ok((None, ignored));
        }
        if let Some((name, protocol)) = either("PROTOCOL").filter(|(_, protocol)| *protocol != "http/protobuf") {
            ignored.push(format!(
                "{name} is {}, and no spans are sent; http/protobuf is the one that there is",
                crate::job::shown(protocol)
            ));
            if endpoint.is_empty() {
                return Ok((None, ignored));
            }
        }
        let mut number = |name: &str, text: Option<&str>| {
            let number = text?.parse::<u64>().ok().filter(|number| *number > 0);
            if number.is_none() {
                ignored.push(format!("{name} is no number above 0, and as good as absent"));
            }
            number
        };
        let millis = |number: Option<u64>, usual| number.map_or(usual, Duration::from_millis).min(LONGEST);
        let count = |number: Option<u64>, (usual, most): (usize, usize)| {
            number.and_then(|number| usize::try_from(number).ok()).unwrap_or(usual).min(most)
        };
        let timeout = either("TIMEOUT").and_then(|(name, text)| number(&name, Some(text)));
        let delay = number("OTEL_BSP_SCHEDULE_DELAY", text("OTEL_BSP_SCHEDULE_DELAY"));
        let queue = count(number("OTEL_BSP_MAX_QUEUE_SIZE", text("OTEL_BSP_MAX_QUEUE_SIZE")), QUEUE);
        let batch = number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", text("OTEL_BSP_MAX_EXPORT_BATCH_SIZE"));
        let mut read_pairs = |name: &str, text: Option<&str>| {
            text.map(|text| {
                pairs(text).unwrap_or_else(|| {
                    // It may be a secret, so it is not shown.
                    ignored.push(format!("{name} is no list of key=value, and as good as absent"));
                    Vec::new()
                })
            })
            .unwrap_or_default()
        };
        let headers = either("HEADERS").map(|(name, text)| read_pairs(&name, Some(text))).unwrap_or_default();
        let mut resource = read_pairs("OTEL_RESOURCE_ATTRIBUTES", text("OTEL_RESOURCE_ATTRIBUTES"));
        if let Some(name) = text("OTEL_SERVICE_NAME") {
            resource.retain(|(key, _)| key != "service.name");
            resource.push(("service.name".to_owned(), name.to_owned()));
        }
        let sampler =
            text("OTEL_TRACES_SAMPLER").map(|name| (name, Sampler::named(name, text("OTEL_TRACES_SAMPLER_ARG"))));
        let sampler = match sampler {
            None => Sampler::default(),
            Some((_, Some(sampler))) => sampler,
            Some((name, None)) => {
                let name = crate::job::shown(name);
                ignored.push(format!(
                    "OTEL_TRACES_SAMPLER {name}, with its argument, is no sampler that there is; all traces are told"
                ));
                Sampler::default()
            }
        };
        let ca_file = either("CERTIFICATE").map(|(_, file)| PathBuf::from(file));
        let settings = Self {
            url,
            ca_file,
            headers,
            timeout: millis(timeout, TIMEOUT),
            delay: millis(delay, DELAY),
            queue,
            batch: count(batch, BATCH).min(queue),
            sampler,
            resource,
        };
        Ok((Some(settings), ignored))
    }

    /// The same, told by this service: what the environment says of it comes first.
    #[must_use]
    pub fn told_by(mut self, facts: &[(&str, &str)]) -> Self {
        for (key, value) in facts {
            if !self.resource.iter().any(|(there, _)| there == key) {
                self.resource.push(((*key).to_owned(), (*value).to_owned()));
            }
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(endpoint: &str, env: &[(&str, &str)]) -> (Option<OtlpSettings>, Vec<String>) {
        let env = env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        OtlpSettings::read(endpoint, &env).expect("is good")
    }

    #[test]
    fn nobody_is_told_unless_somebody_says_where() {
        assert_eq!(read("", &[("OTEL_SERVICE_NAME", "x")]), (None, vec![]));
        let url = |endpoint: &str, env: &[(&str, &str)]| read(endpoint, env).0.map(|settings| settings.url);
        assert_eq!(url("http://c:4318/", &[]).as_deref(), Some("http://c:4318/v1/traces"));
        let all = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all:4318");
        let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://own:4318/x");
        assert_eq!(url("", &[all]).as_deref(), Some("http://all:4318/v1/traces"));
        assert_eq!(url("", &[all, own]).as_deref(), Some("http://own:4318/x"));
        assert_eq!(url("http://c:4318", &[all, own]).as_deref(), Some("http://c:4318/v1/traces"));
        for off in [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")] {
            assert_eq!(url("http://c:4318", &[off]), None);
        }
    }

    #[test]
    fn a_bad_setting_is_an_error_and_a_bad_variable_is_told_and_left_alone() {
        let none = BTreeMap::new();
        for bad in ["https://", "c:4318", "http://", "http://a:b@c:4318", "ftp://c"] {
            assert!(OtlpSettings::read(bad, &none).is_err(), "{bad}");
        }
        let (settings, ignored) = read("", &[("OTEL_EXPORTER_OTLP_ENDPOINT", "c:4318")]);
        assert!(settings.is_none() && ignored.len() == 1 && ignored[0].contains("collector"), "{ignored:?}");
        let authority = ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/etc/ca.pem");
        let (settings, _) = read("https://c:4318", &[authority]);
        let settings = settings.expect("TLS is spoken");
        assert_eq!((settings.url.as_str(), settings.ca_file), ("https://c:4318/v1/traces", Some("/etc/ca.pem".into())));
        let grpc = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")];
        let (settings, ignored) = read("", &grpc);
        assert!(settings.is_none() && ignored[0].contains("http/protobuf"), "{ignored:?}");
        let (settings, ignored) = read(
            "http://c",
            &[
                ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
                ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
                ("OTEL_EXPORTER_OTLP_HEADERS", "secret"),
            ],
        );
        let settings = settings.expect("is on");
        assert_eq!((settings.timeout, settings.sampler, settings.headers.len()), (TIMEOUT, Sampler::default(), 0));
        assert!(ignored.len() == 3 && !ignored.concat().contains("secret"), "{ignored:?}");
    }

    #[test]
    fn the_usual_variables_are_understood() {
        let (settings, ignored) = read(
            "http://c",
            &[
                ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Basic%20YTpi,x-scope = a"),
                ("OTEL_EXPORTER_OTLP_TIMEOUT", "1500"),
                ("OTEL_BSP_SCHEDULE_DELAY", "250"),
                ("OTEL_BSP_MAX_QUEUE_SIZE", "10"),
                ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "999999999"),
                ("OTEL_RESOURCE_ATTRIBUTES", "service.name=a,deployment.environment.name=test"),
                ("OTEL_SERVICE_NAME", "b"),
                ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
                ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
            ],
        );
        let settings = settings.expect("is on").told_by(&[("service.name", "jobcell"), ("service.version", "1")]);
        assert_eq!(ignored, Vec::<String>::new());
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(settings.headers, [pair("authorization", "Basic YTpi"), pair("x-scope", "a")]);
        assert_eq!((settings.timeout, settings.delay), (Duration::from_millis(1500), Duration::from_millis(250)));
        assert_eq!((settings.queue, settings.batch), (10, 10));
        assert_eq!(settings.sampler, Sampler { by_parent: true, ratio: 0.25 });
        let resource =
            [pair("deployment.environment.name", "test"), pair("service.name", "b"), pair("service.version", "1")];
        assert_eq!(settings.resource, resource);
        assert!(!format!("{settings:?}").contains("Basic"), "headers are no business of a log's");
    }

    #[test]
    fn a_part_of_the_traces_is_taken_and_whoever_began_one_decides() {
        let half = Sampler { by_parent: true, ratio: 0.5 };
        let trace = |low: u8| TraceId([1, 2, 3, 4, 5, 6, 7, 8, 0x80, low, 0, 0, 0, 0, 0, 0]);
        assert!(half.takes(trace(0x7f), None) && !half.takes(trace(0x80), None));
        let all = Sampler { ratio: 1.0, ..half };
        assert!(all.takes(TraceId([0xff; 16]), None));
        assert!(!Sampler { ratio: 0.0, ..half }.takes(TraceId([0; 16]), None));
        let parent = |flags| TraceContext::parse(&format!("00-{}-00f067aa0ba902b7-{flags}", trace(0xff)), None);
        assert!(half.takes(trace(0xff), parent("01").as_ref()));
        assert!(!all.takes(trace(0), parent("00").as_ref()));
        assert!(Sampler { by_parent: false, ..all }.takes(trace(0), parent("00").as_ref()));
    }
}

//! Jobs whose output is known to the byte: numbered lines on both streams, a running sum in each, and the sum at the end.

use serde_json::{Value, json};

/// One job.
#[derive(Debug, Clone)]
pub(super) struct Work {
    lines: u32,
    /// Between two lines, milliseconds.
    pause: u32,
    pub(super) code: u8,
    /// The job's own `lost_after`.
    lost_after: Option<&'static str>,
    /// It runs on another host, in this mode.
    mode: Option<&'static str>,
}

/// A job that was taken in.
#[derive(Debug)]
pub(super) struct Submitted {
    pub(super) id: String,
    pub(super) work: Work,
}

impl Work {
    /// Over as soon as it has begun.
    pub(super) const fn short() -> Self {
        Self { lines: 20, pause: 0, code: 0, lost_after: None, mode: None }
    }

    /// A megabyte, as fast as it can.
    pub(super) const fn flood() -> Self {
        Self { lines: 30_000, pause: 0, code: 0, lost_after: None, mode: None }
    }

    /// Writes for so many seconds.
    pub(super) const fn slow(seconds: u32) -> Self {
        Self { lines: seconds * 20, pause: 50, code: 0, lost_after: None, mode: None }
    }

    pub(super) const fn code(self, code: u8) -> Self {
        Self { code, ..self }
    }

    pub(super) const fn lost_after(self, lost_after: &'static str) -> Self {
        Self { lost_after: Some(lost_after), ..self }
    }

    /// On the host of a world that has one.
    pub(super) const fn on_host(self, mode: &'static str) -> Self {
        Self { mode: Some(mode), ..self }
    }

    /// Some of each kind.
    pub(super) fn mixture() -> Vec<Self> {
        vec![Self::slow(1).code(3), Self::short(), Self::flood(), Self::short().code(7)]
    }

    pub(super) fn spec(&self) -> Value {
        let Self { lines, pause, code, lost_after, mode } = self;
        let pause = if *pause == 0 { String::new() } else { format!("sleep 0.{pause:03}\n") };
        let script = format!(
            "echo begin $JOBCELL_ATTEMPT\nsum=0\nfor ((i = 1; i <= {lines}; i++)); do\n\
             sum=$(((sum * 31 + i) % 1000003))\necho line $i $sum\n((i % 10)) || echo note $i $sum >&2\n{pause}done\n\
             echo sum $sum\nexit {code}\n"
        );
        let mut spec = match mode {
            None => json!({"preset": "bash", "script": script, "resources": {"cpu": 0.25, "memory": "64MiB"}}),
            Some(mode) => {
                json!({"target": {"host": "web1", "mode": mode}, "interpreter": "/bin/bash", "script": script})
            }
        };
        if let Some(lost_after) = lost_after {
            spec["lost_after"] = json!(lost_after);
        }
        spec
    }

    /// What an attempt writes to standard output and standard error.
    pub(super) fn output(&self, attempt: u64) -> [String; 2] {
        let (mut out, mut err, mut sum) = (format!("begin {attempt}\n"), String::new(), 0u64);
        for line in 1..=u64::from(self.lines) {
            sum = (sum * 31 + line) % 1_000_003;
            out += &format!("line {line} {sum}\n");
            if line % 10 == 0 {
                err += &format!("note {line} {sum}\n");
            }
        }
        [out + &format!("sum {sum}\n"), err]
    }
}

//! Options that say on which host a job runs, and how that is reached.

use clap::Args;
use serde_json::{Value, json};

/// A target, by options.
#[derive(Debug, Args)]
pub(super) struct OnArgs {
    /// Run it on this host, over SSH, in place of a container; several, also with commas between them: a job for each
    #[arg(long, value_name = "HOST", value_delimiter = ',')]
    on: Vec<String>,
    /// As whom; without it, as the agent's inventory has it. Here and below
    #[arg(long, requires = "on")]
    login: Option<String>,
    /// With which credential of the agent's inventory
    #[arg(long, value_name = "NAME", requires = "on")]
    credential: Option<String>,
    /// The port of its SSH server
    #[arg(long, requires = "on")]
    port: Option<u16>,
    /// Hosts on the way there, the first one first
    #[arg(long, value_name = "HOST", value_delimiter = ',', requires = "on")]
    jump: Vec<String>,
    /// Of several hosts, so many at the same time
    #[arg(long, value_name = "N", requires = "on")]
    at_once: Option<u32>,
    /// Of several hosts: the first that does not succeed ends the others
    #[arg(long, requires = "on")]
    fail_fast: bool,
}

impl OnArgs {
    /// As a spec has it; nothing when it was not asked for.
    pub(super) fn target(&self) -> Option<Value> {
        let mut target = match &self.on[..] {
            [] => return None,
            [one] if self.at_once.is_none() && !self.fail_fast => json!({ "host": one }),
            several => json!({ "hosts": several }),
        };
        let mut put = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                target[key] = value;
            }
        };
        put("login", self.login.as_ref().map(|text| json!(text)));
        put("credential", self.credential.as_ref().map(|text| json!(text)));
        put("port", self.port.map(|port| json!(port)));
        put("jump", (!self.jump.is_empty()).then(|| json!(self.jump)));
        put("at_once", self.at_once.map(|number| json!(number)));
        put("fail_fast", self.fail_fast.then(|| json!(true)));
        Some(target)
    }

    /// Puts it into a spec, in place of what that says of where it runs.
    pub(super) fn put(&self, spec: &mut Value) {
        if let (Some(target), Some(map)) = (self.target(), spec.as_object_mut()) {
            map.retain(|key, _| !matches!(key.as_str(), "image" | "preset"));
            map.insert("target".to_owned(), target);
        }
    }
}

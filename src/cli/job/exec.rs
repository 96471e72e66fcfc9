//! `jobcell job exec`: a command becomes a job, with what is on standard input, and is followed to its end. Ctrl-C cancels it.

use super::on::OnArgs;
use super::secrets::{self, SecretArgs};
use super::stay::{Limit, Until, see};
use crate::cli::client::Client;
use crate::cli::inputs::{InputArgs, Target};
use crate::cli::{Failure, Global, exit};
use crate::job::{MAX_STDIN_BYTES, Millis};
use clap::Args;
use serde_json::{Map, Value, json};
use std::io::{IsTerminal, Read};
use std::time::Duration;

/// Standard input that does not end within this time is worth a word: nothing is submitted before its end.
const STDIN_PATIENCE: Duration = Duration::from_secs(3);

/// What to run, and in what.
#[derive(Debug, Args)]
pub(in crate::cli) struct ExecArgs {
    /// Image of the cell; must be on the engine
    #[arg(long, value_name = "IMAGE", conflicts_with_all = ["preset", "on"])]
    image: Option<String>,
    /// Preset of the cell
    #[arg(long, value_name = "NAME", default_value = "bash", conflicts_with = "on")]
    preset: String,
    #[command(flatten)]
    on: OnArgs,
    /// A variable of the job; may be given several times
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = pair)]
    env: Vec<(String, String)>,
    #[command(flatten)]
    secrets: SecretArgs,
    /// Its working directory
    #[arg(long, value_name = "PATH")]
    workdir: Option<String>,
    /// Cores
    #[arg(long, value_name = "CORES")]
    cpu: Option<String>,
    /// Memory
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    /// Size of its workspace
    #[arg(long, value_name = "SIZE")]
    disk: Option<String>,
    /// End the job after this time, as `timeout` in a spec does
    #[arg(long, value_name = "TIME")]
    time_limit: Option<String>,
    /// Its name
    #[arg(long)]
    name: Option<String>,
    /// A label of the job; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    label: Vec<(String, String)>,
    /// A place that the job may reach, such as pypi.org:443; may be given several times
    #[arg(long, value_name = "HOST:PORT")]
    allow: Vec<String>,
    #[command(flatten)]
    inputs: InputArgs,
    /// Give the job nothing to read, whatever is on standard input
    #[arg(short, long)]
    no_stdin: bool,
    /// Give up waiting after this time and exit with 124; the job goes on, see --time-limit
    #[arg(long, value_name = "TIME")]
    timeout: Option<Millis>,
    /// Program and arguments; no shell is involved
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Reads `name=value`; what a good name is, the API says.
fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected a name, an equals sign and a value")?;
    Ok((name.to_owned(), value.to_owned()))
}

impl ExecArgs {
    /// The job as a spec. What is not said is left to the API's defaults.
    fn spec(&self, stdin: Option<&str>) -> Value {
        let map = |pairs: &[(String, String)]| {
            let pairs: Map<String, Value> = pairs.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
            (!pairs.is_empty()).then_some(Value::Object(pairs))
        };
        let mut resources = Map::new();
        for (key, value) in [("cpu", &self.cpu), ("memory", &self.memory), ("disk", &self.disk)] {
            resources.extend(value.iter().map(|value| (key.to_owned(), json!(value))));
        }
        let source = match (self.on.target(), &self.image) {
            (Some(target), _) => ("target", Some(target)),
            (None, Some(image)) => ("image", Some(json!(image))),
            (None, None) => ("preset", Some(json!(self.preset))),
        };
        let parts = [
            ("name", self.name.as_ref().map(|name| json!(name))),
            source,
            ("command", Some(json!(self.command))),
            ("workdir", self.workdir.as_ref().map(|path| json!(path))),
            ("env", map(&self.env)),
            ("stdin", stdin.map(|text| json!(text))),
            ("timeout", self.time_limit.as_ref().map(|time| json!(time))),
            ("resources", (!resources.is_empty()).then_some(Value::Object(resources))),
            ("labels", map(&self.label)),
            ("egress", (!self.allow.is_empty()).then(|| json!({"allow": self.allow}))),
        ];
        Value::Object(parts.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect())
    }
}

pub(in crate::cli) async fn run(args: ExecArgs, global: &Global) -> Result<u8, Failure> {
    let given = args.secrets.read()?;
    let client = Client::new(global)?;
    let stdin = match args.no_stdin || args.secrets.reads_stdin() || std::io::stdin().is_terminal() {
        true => None,
        false => read_stdin(global).await?,
    };
    let limit = Limit::begin(args.timeout);
    let mut spec = args.spec(stdin.as_deref());
    secrets::put(&mut spec, &given);
    let spec = args.inputs.add_to(spec, &Target::Server(&client)).await?;
    let job = client.submit(&spec).await?;
    let id = job["id"].as_str().unwrap_or_default().to_owned();
    tokio::select! {
        code = see(&client, job, (Until::Followed, limit), global) => code,
        code = interrupted(&client, &id, global) => code,
    }
}

/// The first Ctrl-C cancels the job, and its end is waited for as before; the second leaves at once. Errors: the job cannot
/// be canceled, so there is nothing to wait for.
async fn interrupted(client: &Client, id: &str, global: &Global) -> Result<u8, Failure> {
    let ctrl_c = async || {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    };
    ctrl_c().await;
    global.note("canceling the job; once more leaves at once");
    tokio::select! {
        canceled = client.cancel(id, false) => canceled.map(drop)?,
        () = ctrl_c() => return Ok(exit::INTERRUPTED),
    }
    ctrl_c().await;
    Ok(exit::INTERRUPTED)
}

/// What is on standard input, to its end; nothing if that comes at once.
async fn read_stdin(global: &Global) -> Result<Option<String>, Failure> {
    let read = tokio::task::spawn_blocking(|| {
        let mut bytes = Vec::new();
        // One more than fits, to tell what does not.
        std::io::stdin().lock().take(MAX_STDIN_BYTES as u64 + 1).read_to_end(&mut bytes).map(|_| bytes)
    });
    tokio::pin!(read);
    let read = match tokio::time::timeout(STDIN_PATIENCE, &mut read).await {
        Ok(read) => read,
        Err(_) => {
            global.note("reading standard input for the job; --no-stdin gives it none");
            read.await
        }
    };
    let failed = |reason: String| Failure::new(format!("standard input cannot be read: {reason}"));
    given(read.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))?)
}

/// Bytes as a spec can have them.
fn given(bytes: Vec<u8>) -> Result<Option<String>, Failure> {
    let bad = |reason: String| {
        Failure::usage(format!("standard input {reason}; put it into the image, or give the job none with --no-stdin"))
    };
    if bytes.len() > MAX_STDIN_BYTES {
        return Err(bad(format!("has more than the {MAX_STDIN_BYTES} bytes that a job can be given")));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(text).filter(|text| !text.is_empty())),
        Err(_) => Err(bad("is not text in UTF-8".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{JobSpec, SpecRules};
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        exec: ExecArgs,
    }

    fn read(words: &[&str]) -> Result<ExecArgs, String> {
        let line = Line::try_parse_from([&["exec"], words].concat());
        line.map(|line| line.exec).map_err(|error| error.to_string())
    }

    #[test]
    fn a_command_becomes_a_spec_that_the_api_takes() {
        let least = read(&["--", "ls", "-la", "--image"]).expect("is read").spec(None);
        assert_eq!(least, json!({"preset": "bash", "command": ["ls", "-la", "--image"]}));
        assert_eq!(read(&["ls", "-la", "--image"]).expect("is read").spec(None), least);
        let all = [
            "--image=a:1",
            "-e",
            "A=b=c",
            "--env=D=",
            "--workdir=/tmp",
            "--cpu=0.5",
            "--memory=64MiB",
            "--disk=1GiB",
            "--time-limit=10s",
            "--name=n",
            "--label=team=blue",
            "--timeout=1m",
            "x",
        ];
        let spec = read(&all).expect("is read").spec(Some("in\n"));
        let wanted = json!({"name": "n", "image": "a:1", "command": ["x"], "workdir": "/tmp", "env": {"A": "b=c", "D": ""},
            "stdin": "in\n", "timeout": "10s", "resources": {"cpu": "0.5", "memory": "64MiB", "disk": "1GiB"}, "labels": {"team": "blue"}});
        assert_eq!(spec, wanted);
        for spec in [least, spec] {
            JobSpec::check(&spec, &SpecRules::default()).expect("is valid");
        }
        let there = read(&["--on=web1", "--login", "deploy", "uptime"]).expect("is read").spec(None);
        assert_eq!(there, json!({"target": {"host": "web1", "login": "deploy"}, "command": ["uptime"]}));
        let several = [
            "--on=web1,web2",
            "--on=web3",
            "--at-once=2",
            "--fail-fast",
            "--credential=ci",
            "--jump=b",
            "--port=2222",
            "uptime",
        ];
        let several = read(&several).expect("is read").spec(None);
        let wanted = json!({"hosts": ["web1", "web2", "web3"], "at_once": 2, "fail_fast": true, "credential": "ci", "jump": ["b"], "port": 2222});
        assert_eq!(several["target"], wanted);
        for spec in [there, several] {
            JobSpec::check(&spec, &SpecRules::default()).expect("is valid");
        }
        for words in [["--on=a", "--image=b", "x"], ["--on=a", "--preset=b", "x"], ["--login=a", "--name=b", "x"]] {
            assert!(read(&words).is_err(), "{words:?}");
        }
        for words in [&[] as &[&str], &["--image=a", "--preset=b", "x"], &["--env=A", "x"], &["--tmeout=1s", "x"]] {
            assert!(read(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn standard_input_is_text_of_bounded_length() {
        let given = |bytes: &[u8]| super::given(bytes.to_vec()).map_err(|failure| failure.to_string());
        assert_eq!((given(b""), given("ü\n".as_bytes())), (Ok(None), Ok(Some("ü\n".to_owned()))));
        let most = vec![b'x'; MAX_STDIN_BYTES];
        assert!(given(&most).is_ok_and(|text| text.is_some_and(|text| text.len() == MAX_STDIN_BYTES)));
        assert!(given(&[most, vec![b'x']].concat()).is_err_and(|said| said.contains("more than the 524288 bytes")));
        assert!(given(b"\xff").is_err_and(|said| said.contains("UTF-8") && said.contains("--no-stdin")));
    }
}

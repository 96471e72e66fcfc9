//! The package and its units under a real systemd: process 1 of a container of its own, which has the engine's socket as a host has it.
//!
//! Every command is the one that deploy/README.md and docs/operations.md have people type. No privileged container: what systemd needs is the
//! right to mount, and a tree of control groups of its own.

use super::debian::{Container, SYSTEMD, socket, systemd};
use super::package::package;
use super::stage::{docker, engine, until};
use serde_json::Value;
use std::path::Path;

/// What process 1 does before it is systemd: mounts are shared, as they are on a host (credentials come by that), and where control groups
/// are those of version 1, the tree that systemd keeps its units in is there and can be written.
const BEFORE: &str = "mount --make-rshared /
if [ \"$(stat -f -c %T /sys/fs/cgroup)\" = cgroup2fs ]; then mount -o remount,rw /sys/fs/cgroup
else
  umount -R /sys/fs/cgroup
  mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
  mkdir /sys/fs/cgroup/systemd
  mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
fi
exec /lib/systemd/systemd --show-status=0";

const UP: &str = "jobcell-up";

/// What an operator adds to the unit; the watchdog's time is a tenth, so that it is seen to bite.
const DROP_IN: &str = "[Service]\nWatchdogSec=6s\nLoadCredential=greeting:/etc/jobcell/greeting\n";

const SETTINGS: &str = "secrets: {greeting: \"credential:greeting\"}\n";

/// Of an agent for a server elsewhere: handing over and being impatient make the test short.
const AGENT_SETTINGS: &str =
    "agent: {drain_mode: handover, grace: 1s}\nbackends: {main: {url: \"http://127.0.0.1:7807\"}}\n";

/// A host that was booted, and the unit that it is for.
struct Host {
    there: Container,
    unit: &'static str,
}

impl Host {
    /// `None` after saying loudly that the test is skipped.
    async fn boot(engine: &str, unit: &'static str, network: &str) -> Option<Self> {
        let (path, group) = socket(engine)?;
        if !systemd(engine) {
            return None;
        }
        let mount = format!("{path}:/run/docker.sock");
        let options = [
            "--cap-add=SYS_ADMIN",
            // To look at the service as it sees its host.
            "--cap-add=SYS_PTRACE",
            "--security-opt=seccomp=unconfined",
            "--security-opt=apparmor=unconfined",
            "--cgroupns=private",
            "--network",
            network,
            "--tmpfs=/run",
            "--tmpfs=/tmp:exec",
            "--volume",
            &mount,
        ];
        let there = Container::run(engine, &[&options[..], &[SYSTEMD, "/bin/sh", "-euc", BEFORE]].concat());
        let host = Self { there, unit };
        until("systemd", || async {
            assert_eq!(host.there.inspect("{{.State.Running}}"), "true", "systemd did not boot: {}", host.there.logs());
            let (_, state, _) = host.there.exec(&["systemctl", "is-system-running"]);
            ["running", "degraded"].contains(&state.trim()).then_some(())
        })
        .await;
        // Its group, as the engine's package makes it.
        host.there.sh(&format!("groupadd --non-unique --gid {group} docker"));
        Some(host)
    }

    fn sh(&self, script: &str) -> String {
        self.there.sh(script)
    }

    /// A script that has to fail, and what it says.
    fn fails(&self, script: &str) -> String {
        let (code, out, err) = self.there.exec(&["/bin/sh", "-euc", script]);
        assert_ne!(code, 0, "{script}: {out}{err}");
        out + &err
    }

    /// Puts a file there, in one step.
    fn write(&self, path: &str, text: &str) {
        self.sh(&format!("mkdir -p $(dirname {path}); cat >{path}.new <<'END'\n{text}END\nmv {path}.new {path}"));
    }

    fn bring(&self, engine: &str, package: &Path) {
        docker(engine, &["cp", &package.display().to_string(), &format!("{}:/root/jobcell.deb", self.there.id)]);
    }

    fn install(&self) -> String {
        self.sh("dpkg --install /root/jobcell.deb 2>&1")
    }

    /// A property of the unit.
    fn is(&self, property: &str) -> String {
        self.sh(&format!("systemctl show {} --property={property} --value", self.unit))
    }

    /// What an operator sees of the unit first.
    fn status(&self) -> String {
        self.sh(&format!("systemctl status --no-pager --lines=0 {} 2>&1 || true", self.unit))
    }

    /// Waits for a state and a sentence of the unit.
    async fn shows(&self, sentence: &str) {
        until(sentence, || async {
            let told = self.status();
            (told.contains("Active: active (running)") && told.contains(sentence)).then_some(())
        })
        .await;
    }

    /// What the journal has of the unit, by more matches.
    fn journal(&self, matches: &str) -> Vec<Value> {
        let lines =
            self.sh(&format!("journalctl --no-pager --output=json _SYSTEMD_UNIT={}.service {matches}", self.unit));
        lines.lines().map(|line| serde_json::from_str(line).expect("is JSON")).collect()
    }

    /// Submits a script's job: its id.
    fn submit(&self, script: &str) -> String {
        let secrets = if self.unit == UP { "secrets: {GREETING: greeting}\n" } else { "" };
        let spec = format!("preset: bash\n{secrets}script: |\n  {script}\n");
        self.write("/root/job.yaml", &spec);
        let job: Value = serde_json::from_str(&self.sh("jobcell job submit /root/job.yaml -o json")).expect("is JSON");
        job["id"].as_str().expect("an id").to_owned()
    }

    fn job(&self, id: &str) -> Value {
        serde_json::from_str(&self.sh(&format!("jobcell job get {id} -o json"))).expect("is JSON")
    }

    /// Waits until it has written this.
    async fn wrote(&self, id: &str, text: &str) {
        until(text, || async { (self.sh(&format!("jobcell job logs {id}")) == text).then_some(()) }).await;
    }

    /// Properties of another unit there.
    fn shows_of<'a>(&'a self, unit: &'a str) -> impl Fn(&str) -> String + 'a {
        move |property| self.sh(&format!("systemctl show {unit} --property={property} --value"))
    }

    async fn another_process(&self, than: &str) -> String {
        until("another process", || async {
            let now = self.is("MainPID");
            (now != than && now != "0" && self.is("ActiveState") == "active").then_some(now)
        })
        .await
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (_, out, err) = self.there.exec(&["journalctl", "--no-pager", "--lines=120"]);
            eprintln!("its journal:\n{out}{err}");
        }
    }
}

#[tokio::test]
async fn the_package_does_under_systemd_what_its_pages_say() {
    let Some(engine) = engine() else { return };
    let Some(host) = Host::boot(&engine, UP, "none").await else { return };
    let Some(package) = package() else { return };
    host.bring(&engine, package);

    // A fresh host: what is installed does nothing until somebody says what it is to be.
    let told = host.install();
    assert!(told.contains("systemctl enable --now jobcell-up"), "{told}");
    assert_eq!(host.is("ActiveState"), "inactive");
    host.sh("install -m 600 /dev/null /etc/jobcell/greeting; echo 'for jobs only' >/etc/jobcell/greeting");
    host.write(&format!("/etc/systemd/system/{UP}.service.d/local.conf"), DROP_IN);
    host.write("/etc/jobcell/conf.d/local.yaml", SETTINGS);
    host.sh("systemctl daemon-reload; systemctl enable --now jobcell-up");
    host.shows("Status: \"0 jobs, ").await;
    host.shows("slots free, backend ok").await;
    host.sh("jobcell health");
    let owner = host.sh("cat /var/lib/jobcell/owner");
    // The engine is this agent's alone, and says so to agents of every user.
    assert_eq!(host.sh("stat -c '%U %a' /run/lock/jobcell-engine-*.lock"), "jobcell 644");
    assert!(host.fails("jobcell --data-dir /root/other up --listen 127.0.0.1:0").contains("another jobcell agent"));

    // What the unit takes from the service is taken, and no job misses it.
    let process = host.is("MainPID");
    let status = host.sh(&format!("cat /proc/{process}/status"));
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2", "CapBnd:\t0000000000000000", "CapEff:\t0000000000000000"] {
        assert!(status.contains(line), "{line}: {status}");
    }
    for path in ["/usr", "/etc/jobcell"] {
        let told = host.fails(&format!("touch /proc/{process}/root{path}/x"));
        assert!(told.contains("Read-only file system"), "{path}: {told}");
    }
    let exposure = host.sh("systemd-analyze security --no-pager --threshold=25 jobcell-up | tail -n 1");
    eprintln!("{exposure}");
    assert!(host.sh("jobcell exec -- uname -s") == "Linux");
    let job = host.submit("[ \"$GREETING\" = 'for jobs only' ] && echo \"it is $GREETING\"");
    assert_eq!(host.sh(&format!("jobcell job wait {job} >/dev/null; jobcell job logs {job}")), "it is ***");

    // Its end is an entry with fields of its own.
    let ends = host.journal(&format!("EVENT=attempt.ended JOB_ID={job}"));
    let [end] = &ends[..] else { panic!("{ends:?}") };
    for (field, value) in
        [("PRIORITY", "6"), ("SYSLOG_IDENTIFIER", "jobcell"), ("ATTEMPT", "1"), ("CAUSE", "exit_code")]
    {
        assert_eq!(end[field], value, "{field}: {end}");
    }
    assert_eq!((&end["_TRANSPORT"], &end["VERDICT"]), (&"journal".into(), &"succeeded".into()), "{end}");
    let trace = end["TRACE_ID"].as_str().expect("its trace");
    assert!(!host.journal(&format!("TRACE_ID={trace}")).is_empty());

    settings_are_read_again(&host).await;
    a_job_outlives_its_agent(&host).await;

    // Stopping waits for what runs.
    let job = host.submit("sleep 3; echo late");
    until("its start", || async { (host.job(&job)["phase"] == "running").then_some(()) }).await;
    host.sh("systemctl stop jobcell-up");
    assert_eq!((host.is("Result"), host.is("ActiveState")), ("success".to_owned(), "inactive".to_owned()));
    let ends = host.journal(&format!("EVENT=attempt.ended JOB_ID={job}"));
    assert!(ends.len() == 1 && ends[0]["VERDICT"] == "succeeded", "{ends:?}");

    // And nothing of it is left.
    host.sh("systemctl start jobcell-up; dpkg --purge jobcell 2>&1");
    let left = host.sh(&format!("systemctl show {UP} --property=LoadState,ActiveState | xargs"));
    assert_eq!(left, "LoadState=not-found ActiveState=inactive");
    host.sh(
        "! [ -e /var/lib/jobcell ] && ! [ -e /run/jobcell ] && ! getent passwd jobcell && ! ls /run/lock/jobcell-*",
    );
    host.sh("! [ -L /etc/systemd/system/multi-user.target.wants/jobcell-up.service ]");
    assert_eq!(docker(&engine, &["ps", "--all", "--quiet", "--filter", &format!("label=jobcell.owner={owner}")]), "");
}

/// A reload takes what is good, and says what is not; a start with bad settings is not tried again.
async fn settings_are_read_again(host: &Host) {
    let process = host.is("MainPID");
    host.write("/etc/jobcell/conf.d/more.yaml", "limits: {burst: 300}\n");
    host.sh("systemctl reload jobcell-up");
    until("the change", || async { (!host.journal("KEY=limits.burst").is_empty()).then_some(()) }).await;
    host.write("/etc/jobcell/conf.d/more.yaml", "limits: {burst: many}\n");
    host.fails("systemctl reload jobcell-up");
    let said = host.sh("journalctl --no-pager --unit=jobcell-up --output=cat");
    assert!(said.contains("limits.burst: "), "{said}");
    assert_eq!((host.is("MainPID"), host.is("ActiveState")), (process, "active".to_owned()));

    host.fails("systemctl restart jobcell-up");
    assert_eq!((host.is("ActiveState"), host.is("ExecMainStatus")), ("failed".to_owned(), "78".to_owned()));
    assert_eq!(host.is("NRestarts"), "0");
    host.write("/etc/jobcell/conf.d/more.yaml", "agent: {drain_mode: handover}\n");
    host.sh("systemctl start jobcell-up");
    host.shows("slots free, backend ok").await;
}

/// A process that hangs is started again by the watchdog, and an upgrade puts another program in its place: the job runs on through both.
async fn a_job_outlives_its_agent(host: &Host) {
    let job = host.submit("echo begun; read -r x < <(sleep 600)");
    host.wrote(&job, "begun").await;
    let first = host.is("MainPID");
    host.sh("systemctl kill --kill-who=main --signal=STOP jobcell-up");
    let second = host.another_process(&first).await;
    assert_eq!(host.is("NRestarts"), "1");
    assert!(host.sh("journalctl --no-pager --unit=jobcell-up --output=cat").contains("Watchdog timeout"));
    host.shows("Status: \"1 job, ").await;

    // One that the new program would not take stops nothing.
    host.write("/etc/jobcell/conf.d/bad.yaml", "agent: {slots: lots}\n");
    let told = host.install();
    assert!(told.contains("agent.slots") && told.contains("nothing was started or stopped"), "{told}");
    assert_eq!(host.is("MainPID"), second);
    host.sh("rm /etc/jobcell/conf.d/bad.yaml");
    host.install();
    host.another_process(&second).await;
    host.shows("Status: \"1 job, ").await;

    host.sh(&format!("jobcell job cancel --yes {job}"));
    host.there.exec(&["jobcell", "job", "wait", &job]);
    let told = host.job(&job);
    assert_eq!((&told["attempt"], &told["ending"]["cause"]["code"]), (&1.into(), &"canceled".into()), "{told}");
    assert_eq!(told["log"]["complete"], true, "{told}");
    assert_eq!(host.journal(&format!("EVENT=attempt.adopted JOB_ID={job}")).len(), 2);
    assert_eq!(host.journal(&format!("EVENT=attempt.ended JOB_ID={job}")).len(), 1);
    host.sh("rm /etc/jobcell/conf.d/more.yaml; systemctl restart jobcell-up");
}

/// Gives an agent's unit a join token, as docs/operations.md says.
fn give(agent: &Host, token: &str) {
    agent.sh(&format!(
        "install -d -m 700 /etc/credstore; echo {token} | install -m 600 /dev/stdin /etc/credstore/jobcell-join-token"
    ));
}

#[tokio::test]
async fn a_server_and_an_agent_are_joined_by_a_token_and_outlive_each_others_restarts() {
    let Some(engine) = engine() else { return };
    let Some(server) = Host::boot(&engine, "jobcell-server", "none").await else { return };
    // Its loopback is the server's.
    let beside = format!("container:{}", server.there.id);
    let Some(agent) = Host::boot(&engine, "jobcell-agent", &beside).await else { return };
    let Some(package) = package() else { return };
    for host in [&server, &agent] {
        host.bring(&engine, package);
        host.install();
    }
    server.sh("systemctl enable --now jobcell-server");
    server.shows("Status: \"serving\"").await;
    agent.write("/etc/jobcell/conf.d/local.yaml", AGENT_SETTINGS);
    // Without a token it says what to do, and is not started again and again.
    agent.fails("systemctl enable --now jobcell-agent");
    let told = agent.status();
    assert!(told.contains("Status: \"backends.main: no key: give a join token"), "{told}");
    assert_eq!((agent.is("ExecMainStatus"), agent.is("NRestarts")), ("78".to_owned(), "0".to_owned()));
    let token = server.sh("jobcell --quiet agents token create build-1");
    give(&agent, &token);
    agent.sh("systemctl start jobcell-agent");
    agent.shows("slots free, backend ok").await;
    assert_eq!(server.sh("jobcell exec -- uname -s"), "Linux");

    restarts_lose_nothing(&server, &agent).await;
    a_key_and_a_token_are_refused_clearly(&server, &agent, &token).await;
    a_unit_that_cannot_start_yet_is_tried_again(&server).await;

    // A stop that has to end jobs is not a unit that failed.
    agent.write("/etc/jobcell/conf.d/local.yaml", &AGENT_SETTINGS.replace("handover", "wait, drain_timeout: 1s"));
    agent.sh("systemctl restart jobcell-agent");
    let job = server.submit("echo begun; read -r x < <(sleep 600)");
    server.wrote(&job, "begun").await;
    agent.sh("systemctl stop jobcell-agent");
    let told = ["ExecMainStatus", "Result", "ActiveState"].map(|property| agent.is(property));
    assert_eq!(told, ["75", "success", "inactive"]);
    for host in [&agent, &server] {
        host.sh("dpkg --purge jobcell 2>&1; ! [ -e /var/lib/jobcell ]");
    }
}

/// Each is started again while a job runs: the agent keeps what the server is not there to hear, and takes over what it ran itself. The
/// token is needed no more.
async fn restarts_lose_nothing(server: &Host, agent: &Host) {
    let job = server.submit("echo begun; sleep 2; echo done");
    server.wrote(&job, "begun").await;
    server.sh("systemctl stop jobcell-server");
    until("its end", || async {
        (!agent.journal(&format!("EVENT=attempt.ended JOB_ID={job}")).is_empty()).then_some(())
    })
    .await;
    agent.shows("main away: ").await;
    // Nothing is left in the log of a file whose process came to its end in order.
    server.sh("for log in /var/lib/jobcell/queue.db-wal /var/lib/jobcell/blobs/index.db-wal; do ! [ -s $log ]; done");
    server.sh("systemctl start jobcell-server");
    server.sh(&format!("jobcell job wait {job} >/dev/null"));
    let told = server.job(&job);
    assert_eq!((&told["attempt"], &told["ending"]["verdict"]), (&1.into(), &"succeeded".into()), "{told}");
    assert_eq!(server.sh(&format!("jobcell job logs {job}")), "begun\ndone");
    agent.shows("slots free, backend ok").await;

    agent.sh("rm /etc/credstore/jobcell-join-token");
    let job = server.submit("echo begun; read -r x < <(sleep 600)");
    server.wrote(&job, "begun").await;
    agent.sh("systemctl restart jobcell-agent");
    agent.shows("Status: \"1 job, ").await;
    server.sh(&format!("jobcell job cancel --yes {job}"));
    server.there.exec(&["jobcell", "job", "wait", &job]);
    let told = server.job(&job);
    assert_eq!((&told["attempt"], &told["ending"]["cause"]["code"]), (&1.into(), &"canceled".into()), "{told}");
    assert_eq!(agent.journal(&format!("EVENT=attempt.adopted JOB_ID={job}")).len(), 1);
}

/// A token that was used, and a key that the server does not know any more.
async fn a_key_and_a_token_are_refused_clearly(server: &Host, agent: &Host, used: &str) {
    agent.sh("systemctl stop jobcell-agent; mv /var/lib/jobcell/agent-main.key /root/");
    give(agent, used);
    agent.fails("systemctl start jobcell-agent");
    let told = agent.status();
    assert!(told.contains("Status: \"backends.main: ") && told.contains("the join token was used at"), "{told}");
    assert!(told.contains("by the agent `build-1`"), "{told}");
    assert_eq!((agent.is("ExecMainStatus"), agent.is("NRestarts")), ("78".to_owned(), "0".to_owned()));

    // The key comes first, whatever the token.
    agent.sh("mv /root/agent-main.key /var/lib/jobcell/");
    server.sh("jobcell agents remove build-1");
    agent.sh("systemctl start jobcell-agent");
    agent.shows("main refuses this agent: register: the backend answered 401").await;
    let told = agent.fails("jobcell health");
    assert!(told.contains("main refuses this agent: "), "{told}");
    assert!(!agent.journal("PRIORITY=3").is_empty());

    // As docs/operations.md mends it.
    give(agent, &server.sh("jobcell --quiet agents token create build-1"));
    agent.sh("systemctl stop jobcell-agent; rm /var/lib/jobcell/agent-main.key; systemctl start jobcell-agent");
    agent.shows("slots free, backend ok").await;
    assert_eq!(server.sh("jobcell exec -- uname -s"), "Linux");
}

/// Server and agent of one host would share a data directory: the second one says so, and is there when the first one is gone.
async fn a_unit_that_cannot_start_yet_is_tried_again(server: &Host) {
    let second = server.shows_of(UP);
    server.sh("systemctl start --no-block jobcell-up");
    until("its reason", || async { second("StatusText").contains("is held by another jobcell process").then_some(()) })
        .await;
    until("another try", || async { (second("NRestarts") != "0").then_some(()) }).await;
    // Not by its property: the next try may have begun.
    assert!(server.sh("journalctl --no-pager --unit=jobcell-up --output=cat").contains("status=69"), "its code");
    server.sh("systemctl stop jobcell-up");
}

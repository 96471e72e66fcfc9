//! The package and its units under a real systemd: process 1 of a container of its own, which has the engine's socket as a host has it.
//!
//! Every command is the one that deploy/README.md and docs/operations.md have people type. No privileged container: what systemd needs is the
//! right to mount, and a tree of control groups of its own.

use super::debian::{Container, SYSTEMD, socket, systemd};
use super::package::package;
use super::stage::{docker, engine, until};
use serde_json::Value;

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

const UNIT: &str = "jobcell-up";

/// What an operator adds to the unit; the watchdog's time is a tenth, so that it is seen to bite.
const DROP_IN: &str = "[Service]\nWatchdogSec=6s\nLoadCredential=greeting:/etc/jobcell/greeting\n";

const SETTINGS: &str = "secrets: {greeting: \"credential:greeting\"}\n";

/// A host that was booted.
struct Host {
    there: Container,
}

impl Host {
    /// `None` after saying loudly that the test is skipped.
    async fn boot(engine: &str) -> Option<Self> {
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
            "--network=none",
            "--tmpfs=/run",
            "--tmpfs=/tmp:exec",
            "--volume",
            &mount,
        ];
        let there = Container::run(engine, &[&options[..], &[SYSTEMD, "/bin/sh", "-euc", BEFORE]].concat());
        let host = Self { there };
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

    fn install(&self) -> String {
        self.sh("dpkg --install /root/jobcell.deb 2>&1")
    }

    /// A property of the unit.
    fn is(&self, property: &str) -> String {
        self.sh(&format!("systemctl show {UNIT} --property={property} --value"))
    }

    /// Waits for a state and a sentence of the unit.
    async fn shows(&self, sentence: &str) {
        until(sentence, || async {
            let told = self.sh(&format!("systemctl status --no-pager --lines=0 {UNIT} 2>&1 || true"));
            (told.contains("Active: active (running)") && told.contains(sentence)).then_some(())
        })
        .await;
    }

    /// What the journal has of the unit, by more matches.
    fn journal(&self, matches: &str) -> Vec<Value> {
        let lines = self.sh(&format!("journalctl --no-pager --output=json _SYSTEMD_UNIT={UNIT}.service {matches}"));
        lines.lines().map(|line| serde_json::from_str(line).expect("is JSON")).collect()
    }

    /// Submits a script's job: its id.
    fn submit(&self, script: &str) -> String {
        let spec = format!("preset: bash\nsecrets: {{GREETING: greeting}}\nscript: |\n  {script}\n");
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
    let Some(host) = Host::boot(&engine).await else { return };
    let Some(package) = package() else { return };
    docker(&engine, &["cp", &package.display().to_string(), &format!("{}:/root/jobcell.deb", host.there.id)]);

    // A fresh host: what is installed does nothing until somebody says what it is to be.
    let told = host.install();
    assert!(told.contains("systemctl enable --now jobcell-up"), "{told}");
    assert_eq!(host.is("ActiveState"), "inactive");
    host.sh("install -m 600 /dev/null /etc/jobcell/greeting; echo 'for jobs only' >/etc/jobcell/greeting");
    host.write(&format!("/etc/systemd/system/{UNIT}.service.d/local.conf"), DROP_IN);
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
    let left = host.sh(&format!("systemctl show {UNIT} --property=LoadState,ActiveState | xargs"));
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

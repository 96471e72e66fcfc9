//! Cells on a bridge of their own, on an engine of the test's own: made for one cell, gone with it, and what of the host is reached.

use super::policy::{change, up_by};
use super::private::Private;
use super::stage::{JOBCELL, Up, cause, docker, engine, fact, id, read, until};
use reqwest::Method;
use serde_json::{Value, json};
use std::process::{Child, Command, Stdio};

const OPEN: &str = "{version: 1, allow: {networks: [none, bridge]}}";

/// Networks of the engine but for its own two.
fn networks(host: &str) -> Vec<String> {
    let all = docker(host, &["network", "ls", "--format", "{{.Name}}"]);
    all.lines().filter(|name| !["none", "host"].contains(name)).map(str::to_owned).collect()
}

async fn no_networks(host: &str) {
    until("no network", || async { networks(host).is_empty().then_some(()) }).await;
}

/// A server on every address of the engine's host; gone with the value.
struct Listener(Child);

impl Listener {
    async fn start(private: &Private, dir: &std::path::Path) -> Self {
        let net = format!("--net={}", private.path().join("net").display());
        let child = Command::new("nsenter")
            .args([&net, JOBCELL, "server", "--listen", "0.0.0.0:7999", "--data-dir"])
            .arg(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        until("the listener", || async { read(&dir.join("endpoint")) }).await;
        Self(child)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Asks the gateway, which is the host.
const ASK_THE_HOST: &str = r"
while read -r dev to via rest; do [ $to = 00000000 ] && gw=$via; done </proc/net/route
exec 3<>/dev/tcp/$((0x${gw:6:2})).$((0x${gw:4:2})).$((0x${gw:2:2})).$((0x${gw:0:2}))/7999
printf 'GET /livez HTTP/1.0\r\n\r\n' >&3
read -r _ status _ <&3; echo $status
";

const UNTIL_STOPPED: &str = "echo begun; until [ -e stop ]; do read -t 0.05 <> <(:); done";

fn on_a_bridge(script: &str) -> Value {
    json!({"preset": "bash", "network": "bridge", "script": script})
}

async fn cancel(up: &Up, job: &Value) -> Value {
    up.call(Method::POST, &format!("/v1/jobs/{}/cancel", id(job)), None).await;
    up.ended(job).await
}

#[tokio::test]
async fn a_cell_has_a_bridge_of_its_own_and_reaches_the_host_by_it() {
    let Some(private) = engine().and_then(|_| Private::prepare()) else { return };
    private.start_with(&["--iptables=true"], None);
    let host = private.host();
    let data = tempfile::tempdir().expect("a folder");
    let _listener = Listener::start(&private, data.path()).await;
    let up = up_by(&host, OPEN, "").await;

    let job = up.submit(&on_a_bridge(&format!("{ASK_THE_HOST}{UNTIL_STOPPED}"))).await;
    let other = up.submit(&on_a_bridge(UNTIL_STOPPED)).await;
    for job in [&job, &other] {
        up.phase(job, "running").await;
    }
    let names = networks(&host);
    assert_eq!(names.len(), 2, "one each: {names:?}");
    let told = docker(&host, &["network", "inspect", &names[0], &names[1]]);
    let told: Value = serde_json::from_str(&told).expect("is JSON");
    for network in told.as_array().expect("a list") {
        assert_eq!(network["Options"]["com.docker.network.bridge.enable_icc"], "false");
        assert_eq!(network["Containers"].as_object().map(serde_json::Map::len), Some(1), "nobody else is on it");
        assert_eq!(network["Labels"]["jobcell.owner"], read(&up.data().join("owner")).expect("is there"));
    }
    until("the host's answer", || async { up.text(&job, "stdout").await.contains("begun").then_some(()) }).await;
    let job = cancel(&up, &job).await;
    // What docs/policy.md says of it, seen: a bridge keeps nothing apart from the host.
    assert!(up.text(&job, "stdout").await.starts_with("200\n"), "{job}");
    assert_eq!((fact(&job, "interfaces"), fact(&job, "host_reachable")), ("eth0,lo", "assumed"));
    until("one network", || async { (networks(&host).len() == 1).then_some(()) }).await;
    cancel(&up, &other).await;
    no_networks(&host).await;

    let sealed = up.bash("exec 3<>/dev/tcp/172.17.0.1/7999").await;
    assert_eq!((cause(&sealed), fact(&sealed, "host_reachable")), ("exit_code", "no"));
    assert_eq!(sealed["ending"]["process_exit_code"], 1);

    // A cell that cannot be made leaves its network no longer than itself.
    let lost = up.run(&json!({"image": "no/such:1", "pull": "never", "command": ["x"], "network": "bridge"})).await;
    assert_eq!(cause(&lost), "image_missing");
    no_networks(&host).await;

    change(&up, "{version: 1}").await;
    let refused = up.call(Method::POST, "/v1/jobs", Some(&on_a_bridge("true"))).await;
    assert_eq!(refused.status(), 403, "never by default");
    up.stop().await;
    assert_eq!(private.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn networks_of_a_dead_agent_are_taken_over_or_removed() {
    let Some(private) = engine().and_then(|_| Private::prepare()) else { return };
    private.start();
    let host = private.host();
    let mut up = up_by(&host, OPEN, "").await;
    let ready = async |up: &Up| {
        until("readiness", || async { up.plain("/readyz").await.filter(|(status, _)| *status == 200) }).await;
    };
    let adopted = up.submit(&on_a_bridge(UNTIL_STOPPED)).await;
    let lost = up
        .submit(
            &json!({"preset": "bash", "network": "bridge", "script": UNTIL_STOPPED, "retry": {"infrastructure": 0}}),
        )
        .await;
    for job in [&adopted, &lost] {
        up.phase(job, "running").await;
    }
    assert_eq!(networks(&host).len(), 2);

    // The cell of one goes while nobody looks, and its network stays; beside them one of an attempt that nobody knows, and a stranger's.
    up.kill().await;
    let owner = format!("jobcell.owner={}", read(&up.data().join("owner")).expect("is there"));
    let label = format!("label=jobcell.job={}", id(&lost));
    let cell = docker(&host, &["ps", "--quiet", "--filter", &label]);
    docker(&host, &["rm", "--force", cell.trim()]);
    let stray = [
        "network",
        "create",
        "--label",
        &owner,
        "--label",
        "jobcell.job=0190b2d4-0000-7000-8000-000000000001",
        "--label",
        "jobcell.attempt=1",
        "--label",
        "jobcell.part=0",
        "stray-net",
    ];
    docker(&host, &stray);
    docker(&host, &["network", "create", "--label", "jobcell.owner=00000000", "others-net"]);
    up.revive().await;
    ready(&up).await;
    let lost = up.ended(&lost).await;
    assert_eq!(cause(&lost), "cell_lost");
    // Its network is no cell.
    assert_eq!(lost["ending"]["cause"]["reason"], "it was gone when the agent came back");
    until("what is wanted alone", || async { (networks(&host).len() == 2).then_some(()) }).await;
    assert!(networks(&host).contains(&"others-net".to_owned()));

    // The one that was taken over loses its network with its cell.
    let adopted = cancel(&up, &adopted).await;
    assert_eq!((cause(&adopted), fact(&adopted, "host_reachable")), ("canceled", "assumed"));
    until("the stranger's alone", || async { (networks(&host) == ["others-net"]).then_some(()) }).await;
    docker(&host, &["network", "rm", "others-net"]);
    up.stop().await;
    assert_eq!(private.leftovers(), Vec::<String>::new());
}

/// An engine that has addresses for two networks: those that want a third wait for it, and nobody else does.
#[tokio::test]
async fn a_bridge_that_the_engine_has_no_addresses_for_is_waited_for_by_its_job_alone() {
    let Some(private) = engine().and_then(|_| Private::prepare()) else { return };
    private.start_with(&["--default-address-pool", "base=10.200.0.0/28,size=29"], None);
    let host = private.host();
    let up = up_by(&host, OPEN, "agent: {slots: 4, cpu: 4, memory: 4GiB}\n").await;
    let (first, second) = (up.submit(&on_a_bridge(UNTIL_STOPPED)).await, up.submit(&on_a_bridge(UNTIL_STOPPED)).await);
    for job in [&first, &second] {
        up.phase(job, "running").await;
    }
    let once =
        |script: &str| json!({"preset": "bash", "network": "bridge", "script": script, "retry": {"infrastructure": 0}});
    let third = up.submit(&once("echo x")).await;
    let given_back = async || {
        let job = up.get(&format!("/v1/jobs/{}", id(&third))).await;
        let events = job["history"].as_array().cloned().unwrap_or_default();
        events.iter().any(|event| event["reason"] == "no_cell_yet").then_some(())
    };
    until("that it was given back", given_back).await;
    // The host is well, and runs what needs no network.
    assert_eq!(cause(&up.bash("true").await), "exit_code");
    assert_eq!(up.plain("/readyz").await.map(|(status, _)| status), Some(200));
    assert_eq!(networks(&host).len(), 2);

    // A network that somebody put a container of theirs on stays as long as that does; its removal is tried again.
    let label = format!("label=jobcell.job={}", id(&first));
    let held = docker(&host, &["network", "ls", "--filter", &label, "--format", "{{.Name}}"]).trim().to_owned();
    docker(&host, &["run", "--detach", "--network", &held, "--name", "guest", "jobcell/bash:1", "sleep", "600"]);
    cancel(&up, &first).await;
    until("its cell's end", || async { (up.containers().len() == 1).then_some(()) }).await;
    until("a removal that fails", || async { up.log().contains("still cannot be removed").then_some(()) }).await;
    assert!(networks(&host).contains(&held));
    docker(&host, &["rm", "--force", "guest"]);
    let third = up.ended(&third).await;
    assert_eq!(cause(&third), "exit_code", "{third}\n{}", up.log());
    assert!(!networks(&host).contains(&held));
    cancel(&up, &second).await;
    no_networks(&host).await;
    up.stop().await;
    assert_eq!(private.leftovers(), Vec::<String>::new());
}

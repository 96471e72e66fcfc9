//! A job for several hosts over a real sshd: parts that run, one that cannot, what the whole comes to; and what the policy makes of logins
//! that are the inventory's.

use super::super::stage::{cause, id, said};
use super::jobs::{inventory, stop, up_with};
use super::sshd::{self, Folder};
use serde_json::{Value, json};

/// An inventory with one server under two names, and a host where nobody listens.
fn three(folder: &Folder, sshd: &sshd::Sshd) -> String {
    let host = |name: &str, port: u16, address: &str| {
        format!("  {name}: {{address: {address}, port: {port}, login: {}, credential: user}}\n", sshd::login())
    };
    let more = host("web2", sshd.port, &sshd.address) + &host("gone", 1, "127.0.0.1") + "credentials:";
    inventory(folder, sshd).replace("credentials:", &more)
}

#[tokio::test]
async fn each_host_has_a_job_of_its_own_and_the_whole_says_how_many_succeeded() {
    if !sshd::present() {
        return;
    }
    let folder = Folder::new();
    let sshd = folder.sshd("");
    let up = up_with(&folder, &three(&folder, &sshd), "").await;
    let spec = json!({"target": {"hosts": ["web1", "gone", "web2"], "at_once": 2}, "script": "echo \"here\"; echo there",
        "retry": {"infrastructure": 0}});
    let job = up.run(&spec).await;
    let ending = &job["ending"];
    assert_eq!((cause(&job), &ending["verdict"]), ("fan_out", &json!("cell_error")), "{job}\n{}", up.log());
    assert_eq!((&ending["cause"]["of"], &ending["cause"]["succeeded"]), (&json!(3), &json!(2)));
    let failed = ending["cause"]["failed"].as_array().expect("a list");
    assert_eq!(failed.iter().map(|one| &one["host"]).collect::<Vec<_>>(), ["gone"]);
    let part = up.get(&format!("/v1/jobs/{}", failed[0]["job"].as_str().expect("an id"))).await;
    assert_eq!((cause(&part), &part["parent"]), ("host_unreachable", &job["id"]));

    let (code, out, err) = said(&up.command(&["job", "logs", id(&job)]).await);
    assert_eq!((code, out.as_str()), (0, "web1 | here\nweb1 | there\nweb2 | here\nweb2 | there\n"), "{err}");
    // Who asks for the whole sees every host.
    let (code, out, err) = said(&up.command(&["job", "report", id(&job)]).await);
    assert!(code == 0 && out.contains("hosts\n  web1  "), "{out}{err}");
    for (host, end) in [("web1", "succeeded"), ("gone", "cell_error"), ("web2", "succeeded")] {
        let line = out.lines().find(|line| line.starts_with(&format!("  {host}"))).unwrap_or_default();
        assert!(line.contains(end), "{host}: {out}");
    }
    let report = up.get(&format!("/v1/jobs/{}/report?format=json", id(&part))).await;
    assert_eq!((&report["parent"], &report["hosts"]), (&job["id"], &json!([])), "{report}");
    let (_, out, _) = said(&up.command(&["job", "get", id(&part)]).await);
    assert!(out.contains("host      gone\n") && out.contains(&format!("parent    {}\n", id(&job))), "{out}");
    let (_, out, _) = said(&up.command(&["job", "get", id(&job)]).await);
    assert!(out.contains("hosts     3: 3 ended, 2 of them well\n"), "{out}");
    let (code, out, err) = said(&up.command(&["job", "exec", "--on", "web1,web2", "--", "echo", "hello"]).await);
    let mut lines: Vec<&str> = out.lines().collect();
    lines.sort_unstable();
    assert_eq!((code, lines), (0, vec!["web1 | hello", "web2 | hello"]), "{err}");
    let (code, out, err) =
        said(&up.command(&["job", "exec", "--on", "web2", "--", "sh", "-c", "echo one; exit 7"]).await);
    assert_eq!((code, out.as_str()), (7, "one\n"), "{err}");
    stop(up).await;
}

#[tokio::test]
async fn a_login_that_the_inventory_does_not_have_needs_the_policys_word() {
    if !sshd::present() {
        return;
    }
    let folder = Folder::new();
    let sshd = folder.sshd("");
    let up = up_with(&folder, &three(&folder, &sshd), "").await;
    let ask = async |target: Value| {
        let spec = json!({"target": target, "command": ["true"]});
        let answer = up.call(reqwest::Method::POST, "/v1/jobs", Some(&spec)).await;
        let (status, body) = (answer.status().as_u16(), answer.json::<Value>().await.expect("JSON"));
        (status, body["detail"].as_str().unwrap_or_default().to_owned())
    };
    let (status, why) = ask(json!({"host": "web1", "login": "somebody-else"})).await;
    assert!(status == 403 && why.contains("login `somebody-else` at `web1` is not allowed"), "{status} {why}");
    let (status, why) = ask(json!({"hosts": ["web1", "web2"], "port": 2222})).await;
    assert!(status == 403 && why.contains("port 2222 of `web1` is not allowed"), "{status} {why}");
    assert_eq!(ask(json!({"host": "web1", "login": sshd::login(), "credential": "user"})).await.0, 201);
    stop_when_idle(up).await;
}

/// What was submitted has to end first.
async fn stop_when_idle(up: super::super::stage::Up) {
    let list = up.get("/v1/jobs").await;
    for job in list["jobs"].as_array().expect("jobs") {
        up.ended(job).await;
    }
    stop(up).await;
}

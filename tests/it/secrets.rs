//! Secrets of jobs: where they come from, how a job has them, what is seen of them, and what is said when they cannot be had.

use super::policy::up_by;
use super::stage::{JOBCELL, PATIENCE, Up, cause, engine, fact, id, said, until};
use reqwest::Method;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Stdio;

/// `jobcell up` with a secret from a variable, `token`, and one from a file, `key`, whose path is given back.
async fn up_with(settings: &str) -> Option<(Up, std::path::PathBuf)> {
    let host = engine()?;
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("key.pem");
    std::fs::write(&file, "-----BEGIN KEY-----\nMIIEvQIBADANBgkq\n-----END KEY-----\n").expect("writes");
    let settings = format!("secrets: {{token: 'env:TEST_TOKEN', key: 'file:{}'}}\n{settings}", file.display());
    let up = Up::start_with(dir, &host, &settings, &[("TEST_TOKEN", "s3cr3t-t0ken/\"+")]).await;
    until("readiness", || async { up.plain("/readyz").await.filter(|(status, _)| *status == 200) }).await;
    Some((up, file))
}

fn job(script: &str, secrets: &Value) -> Value {
    json!({"preset": "bash", "script": script, "secrets": secrets})
}

#[tokio::test]
async fn a_job_has_its_secrets_and_nobody_reads_them_in_what_it_writes() {
    let Some((up, _)) = up_with("").await else { return };
    let script = r#"
        printf 'token %s\n' "$TOKEN"
        printf '%s' "$TOKEN" | base64
        printf 'x%s' "$TOKEN" | base64 >&2
        stat -c '%a %F' "$KEY"; echo "$KEY"
        cat "$KEY"; tr -d '\n' < "$KEY"; echo
        while IFS= read -r line; do echo "line $line"; done < "$KEY"
        echo "inline $INLINE"
        [ ${#TOKEN} = 15 ] && [ "$(wc -c < "$KEY")" = 55 ] && [ "$INLINE" = "in line" ] && echo whole
        # In two writes, with a pause that is longer than a moment.
        printf '%s' "${TOKEN:0:9}"; sleep 0.3; printf '%s\n' "${TOKEN:9}"
        : > "$KEY" || echo 'not changed'
    "#;
    let secrets = json!({"TOKEN": "token", "KEY": {"from": "key", "as": "file"}, "INLINE": {"value": "in line"}});
    let job = up.run(&job(script, &secrets)).await;
    assert_eq!((cause(&job), &job["ending"]["process_exit_code"]), ("exit_code", &json!(0)), "{job}\n{}", up.log());
    let (out, err) = (up.text(&job, "stdout").await, up.text(&job, "stderr").await);
    let mut lines = out.lines();
    for wanted in ["token ***", "***r", "400 regular file", "/run/secrets/KEY", "***"] {
        let line = lines.next().unwrap_or_default();
        assert!(line == wanted || (line.starts_with("***") && wanted == "***r"), "{wanted}: {out}");
    }
    assert!(out.contains("\ninline ***\nwhole\n***\nnot changed\n"), "{out}");
    assert!(out.contains("line ***\nline ***\nline ***\n"), "{out}");
    for shown in ["s3cr3t", "t0ken", "MIIE", "BEGIN", "in line", "czNjcjN0"] {
        assert!(!out.contains(shown) && !err.contains(shown), "{shown}: {out}{err}");
    }
    // What was counted and hashed is what is there.
    assert_eq!(job["log"]["stdout"]["bytes"], out.len());
    assert_eq!(job["log"]["complete"], true, "{job}");
    let place = |option: &str| fact(&job, &format!("mount./run/secrets{option}")).to_owned();
    assert_eq!((place(""), place(".noexec"), place(".nosuid")), ("tmpfs".into(), "1".into(), "1".into()));
    // Names only, whoever asks.
    let wanted = json!({"TOKEN": {"from": "token"}, "KEY": {"from": "key", "as": "file"}, "INLINE": {"inline": true}});
    assert_eq!(job["spec"]["secrets"], wanted);
    up.stop().await;
}

#[tokio::test]
async fn what_a_job_gives_back_shows_no_secret() {
    let Some((up, _)) = up_with("").await else { return };
    let script = r#"
        echo "got=<$TOKEN>" >> "$JOBCELL_OUTPUT"
        "$JOBCELL_HELPER" output key - < "$KEY"; "$JOBCELL_HELPER" output lines < "$KEY"
        printf 'coded=%s\n' "$(printf 'x%s' "$TOKEN" | base64)" >> "$JOBCELL_OUTPUT"
        echo "$INLINE=name" >> "$JOBCELL_OUTPUT"
        "$JOBCELL_HELPER" step begin "use $INLINE"
        "$JOBCELL_HELPER" progress 40 "has $TOKEN"
        mkdir "of $INLINE"; echo 1 > "of $INLINE/f"; echo 2 > "g $INLINE"
        ln -s "$KEY" link; echo "$INLINE" > plain
        while [ ! -e go ]; do sleep 0.05; done
    "#;
    let secrets = json!({"TOKEN": "token", "KEY": {"from": "key", "as": "file"}, "INLINE": {"value": "in line"}});
    let mut spec = job(script, &secrets);
    spec["artifacts"] = json!(["**"]);
    let running = up.submit(&spec).await;
    let path = format!("/v1/jobs/{}", id(&running));
    let live = until("live progress", || async {
        let job = up.get(&path).await;
        (job["progress"]["percent"] == 40).then_some(job)
    })
    .await;
    assert_eq!((&live["progress"]["message"], &live["steps"][0]["name"]), (&json!("has ***"), &json!("use ***")));
    let container = up.containers().pop().expect("its cell");
    super::stage::docker(&up.host, &["exec", &container, "touch", "/workspace/go"]);
    let done = up.ended(&running).await;
    let coded = done["outputs"]["coded"].as_str().unwrap_or_default().to_owned();
    let wanted = json!({"got": "<***>", "key": "-", "lines": "***", "coded": coded});
    assert_eq!((cause(&done), &done["outputs"]), ("exit_code", &wanted), "{done}");
    assert!(coded.contains("***") && coded.len() < 12, "{coded}");
    let problems: Vec<_> = done["artifacts"]["problems"].as_array().expect("some").iter().collect();
    let mut told: Vec<_> = problems.iter().map(|one| (one["path"].as_str(), one["code"].as_str())).collect();
    told.sort_unstable();
    let bad = |path| (Some(path), Some("bad_name"));
    assert_eq!(told, [bad("g ***"), (Some("link"), Some("link")), bad("of ***/f")]);
    // Neither the files that secrets are, nor what leads to them; what a job writes into its own files is its own.
    let files = up.get(&format!("{path}/artifacts")).await;
    let files: Vec<_> = files["artifacts"].as_array().expect("files").iter().map(|file| &file["path"]).collect();
    assert_eq!(files, ["go", "plain"]);
    let text = done.to_string();
    for shown in ["s3cr3t", "t0ken", "MIIE", "BEGIN", "in line", "czNjcjN0"] {
        assert!(!text.contains(shown), "{shown}: {text}");
    }
    up.stop().await;
}

#[tokio::test]
async fn a_line_without_an_end_is_seen_while_the_job_waits_and_a_new_value_is_used_without_a_restart() {
    let Some((up, file)) = up_with("").await else { return };
    let hash = "printf 'Password: '; sha256sum < \"$KEY\" >&2; read -t 600 <> <(:)";
    let mut seen = Vec::new();
    for value in ["the first value", "the second value"] {
        std::fs::write(&file, value).expect("writes");
        let job = up.submit(&job(hash, &json!({"KEY": {"from": "key", "as": "file"}}))).await;
        until("the prompt", || async { (up.text(&job, "stdout").await == "Password: ").then_some(()) }).await;
        until("the sum", || async { (up.text(&job, "stderr").await.len() > 64).then_some(()) }).await;
        seen.push(up.text(&job, "stderr").await);
        up.call(Method::POST, &format!("/v1/jobs/{}/cancel?force=true", id(&job)), None).await;
        up.ended(&job).await;
    }
    assert_ne!(seen[0], seen[1]);
    up.stop().await;
}

#[tokio::test]
async fn what_cannot_be_had_is_told_before_anything_is_made() {
    let Some((up, file)) = up_with("").await else { return };
    let asked = json!({"KEY": {"from": "key", "as": "file"}, "TOKEN": "token"});
    let spec = json!({"preset": "bash", "script": "true", "secrets": asked, "retry": {"infrastructure": 0}});
    for (content, wanted) in [(None, "No such file"), (Some("12345\n"), "fewer than 6 cannot be masked")] {
        match content {
            None => std::fs::remove_file(&file).expect("was there"),
            Some(content) => std::fs::write(&file, content).expect("writes"),
        }
        let job = up.run(&spec).await;
        let ending = &job["ending"];
        assert_eq!((cause(&job), &ending["verdict"]), ("secret_missing", &json!("cell_error")), "{job}");
        let message = ending["message"].as_str().expect("a sentence");
        assert!(message.starts_with("secret `KEY` cannot be had: ") && message.contains(wanted), "{message}");
        assert_eq!((&job["started_at"], &job["receipt"]), (&Value::Null, &json!([])));
        assert_eq!(up.containers(), Vec::<String>::new());
    }
    // It comes back, and the job is tried again.
    let mut again = spec.clone();
    again["retry"] = json!({"infrastructure": 20, "backoff": "200ms", "backoff_max": "200ms"});
    let waiting = up.submit(&again).await;
    let path = format!("/v1/jobs/{}", id(&waiting));
    let tried = async |up: &Up| up.get(&path).await["past_tries"].as_array().map_or(0, Vec::len);
    until("a try", || async { (tried(&up).await > 0).then_some(()) }).await;
    std::fs::write(&file, "is there again").expect("writes");
    assert_eq!(cause(&up.ended(&waiting).await), "exit_code");
    // What the agent has never heard of is refused at the door.
    let unknown = up.call(Method::POST, "/v1/jobs", Some(&job("true", &json!({"A": "nobodys"})))).await;
    assert_eq!(unknown.status(), 403);
    let body: Value = unknown.json().await.expect("is JSON");
    assert_eq!(
        (&body["code"], &body["problems"][0]["path"]),
        (&json!("policy_refused"), &json!("secrets.A")),
        "{body}"
    );
    let short = up.call(Method::POST, "/v1/jobs", Some(&job("true", &json!({"A": {"value": "12345"}})))).await;
    assert_eq!(short.status(), 422);
    assert!(short.text().await.expect("text").contains("fewer than 6 cannot be masked"));
    up.stop().await;
}

#[tokio::test]
async fn an_operator_says_which_jobs_may_have_which_secrets() {
    let Some(host) = engine() else { return };
    let policy = "{version: 1, allow: {secrets: [], env: ['CI_*', TOKEN]}, \
                  rules: [{name: deploys, when: {labels: {kind: deploy}}, allow: {secrets: ['deploy-*']}}]}";
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("value");
    std::fs::write(&file, "the value").expect("writes");
    let settings = format!("secrets: {{deploy-web: 'file:{0}', db: 'file:{0}'}}\n", file.display());
    let up = up_by(&host, policy, &settings).await;
    let ask = |labels: Value, secrets: Value| json!({"preset": "bash", "script": "true", "labels": labels, "secrets": secrets});
    for (labels, secrets, code) in [
        (json!({}), json!({"TOKEN": "deploy-web"}), "secret_not_allowed"),
        (json!({"kind": "deploy"}), json!({"TOKEN": "db"}), "secret_not_allowed"),
        (json!({"kind": "deploy"}), json!({"TOKEN": "deploy-other"}), "secret_unknown"),
        // Under another name it would be a variable like any other.
        (json!({"kind": "deploy"}), json!({"BASH_ENV": "deploy-web"}), "env_not_allowed"),
        (json!({}), json!({"BASH_ENV": {"value": "/workspace/x"}}), "env_not_allowed"),
    ] {
        let refused = up.call(Method::POST, "/v1/jobs", Some(&ask(labels, secrets))).await;
        assert_eq!(refused.status(), 403);
        let text = refused.text().await.expect("text");
        assert!(text.contains(code) && !text.contains("/workspace/x"), "{code}: {text}");
        // Who wrote the value where the name belongs is told how a value is given.
        assert_eq!(text.contains("--secret TOKEN=@FILE"), code != "env_not_allowed", "{code}: {text}");
    }
    let job = up.run(&ask(json!({"kind": "deploy"}), json!({"TOKEN": "deploy-web"}))).await;
    assert_eq!(cause(&job), "exit_code", "{job}");
    let job = up.run(&ask(json!({}), json!({"CI_OWN": {"value": "brought along"}}))).await;
    assert_eq!(cause(&job), "exit_code", "{job}");
    up.stop().await;
}

/// Whether a value is in any file below a folder.
fn is_in(dir: &Path, value: &str) -> bool {
    std::fs::read_dir(dir).expect("a folder").any(|entry| {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            return is_in(&path, value);
        }
        let bytes = std::fs::read(&path).unwrap_or_default();
        bytes.windows(value.len()).any(|part| part == value.as_bytes())
    })
}

/// Rows of sealed values.
fn sealed(up: &Up) -> u32 {
    let db = rusqlite::Connection::open(up.data().join("queue.db")).expect("opens");
    db.query_row("SELECT count(*) FROM sealed", [], |row| row.get(0)).expect("a number")
}

#[tokio::test]
async fn a_value_that_came_with_a_job_waits_sealed_goes_to_each_try_and_is_gone_with_the_end() {
    let Some((mut up, _)) = up_with("agent: {labels: {zone: here}}\n").await else { return };
    const VALUE: &str = "a value that came along";
    let secrets = json!({"MINE": {"value": VALUE}});
    // It waits over the death of the server.
    let mut waits = job("true", &secrets);
    waits["requires"] = json!({"labels": {"zone": "elsewhere"}});
    let waits = up.submit(&waits).await;
    assert!(!is_in(&up.data(), VALUE));
    assert_eq!(sealed(&up), 1);
    up.crash().await;
    until("readiness", || async { up.plain("/readyz").await.filter(|(status, _)| *status == 200) }).await;
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(up.data().join("secrets.key")).expect("is there").permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    // Both tries get it; the first one fails.
    let script = "[ ${#MINE} = 23 ] || exit 9; echo \"try $JOBCELL_ATTEMPT: $MINE\"; [ $JOBCELL_ATTEMPT = 2 ]";
    let mut spec = job(script, &secrets);
    spec["retry"] = json!({"failure": 1, "backoff": "10ms"});
    spec["idempotency_key"] = json!("once");
    let tried = up.submit(&spec).await;
    let mut other = spec.clone();
    other["secrets"]["MINE"]["value"] = json!("another value");
    assert_eq!(id(&up.submit(&other).await), id(&tried), "a value is in no comparison");
    let tried = up.ended(&tried).await;
    assert_eq!((cause(&tried), &tried["ending"]["process_exit_code"]), ("exit_code", &json!(0)), "{tried}");
    assert_eq!(up.text(&tried, "stdout").await, "try 2: ***\n");
    assert_eq!(sealed(&up), 1, "that of the one that waits");
    up.call(Method::POST, &format!("/v1/jobs/{}/cancel", id(&waits)), None).await;
    assert_eq!(sealed(&up), 0);
    // What is gone cannot be given again.
    let retried = up.call(Method::POST, &format!("/v1/jobs/{}/retry", id(&tried)), None).await;
    assert_eq!(retried.status(), 409);
    let body: Value = retried.json().await.expect("is JSON");
    assert_eq!(body["code"], "secrets_gone", "{body}");
    let shown = up.get(&format!("/v1/jobs/{}", id(&tried))).await;
    let again = up.call(Method::POST, "/v1/jobs", Some(&shown["spec"])).await;
    assert_eq!(again.status(), 422);
    assert!(again.text().await.expect("text").contains("values are never shown"));
    assert!(!is_in(&up.data(), VALUE) && !up.log().contains(VALUE));
    up.stop().await;
}

#[tokio::test]
async fn a_key_that_is_not_there_any_more_costs_a_try_and_says_so() {
    let Some((mut up, _)) = up_with("agent: {labels: {zone: here}}\n").await else { return };
    let secrets = json!({"MINE": {"value": "a value that came along"}});
    let mut waits = job("true", &secrets);
    waits["requires"] = json!({"labels": {"zone": "there"}});
    waits["retry"] = json!({"infrastructure": 0});
    let waits = up.submit(&waits).await;
    up.kill().await;
    std::fs::remove_file(up.data().join("secrets.key")).expect("was there");
    let config = up.dir.path().join("config.yaml");
    let settings = std::fs::read_to_string(&config).expect("is there").replace("zone: here", "zone: there");
    std::fs::write(&config, settings).expect("writes");
    up.revive().await;
    let ended = up.ended(&waits).await;
    assert_eq!(cause(&ended), "secret_missing", "{ended}");
    assert!(ended["ending"]["message"].as_str().expect("text").contains("`MINE`"), "{ended}");
    assert!(up.log().contains("a secret that came with a job cannot be opened"));
    up.stop().await;
}

#[tokio::test]
async fn the_command_line_takes_values_from_files_and_standard_input_and_never_from_an_argument() {
    let Some((up, _)) = up_with("").await else { return };
    let spec = up.dir.path().join("job.yaml");
    std::fs::write(&spec, "preset: bash\nscript: 'echo \"$TOKEN $MINE\"; sha256sum <<< \"$MINE\"'\n").expect("writes");
    let value = up.dir.path().join("value");
    std::fs::write(&value, "from a file\n").expect("writes");
    let mine = format!("MINE=@{}", value.display());
    let submit =
        ["job", "submit", spec.to_str().expect("text"), "--secret", "TOKEN=token", "--secret", &mine, "--follow"];
    let (code, out, err) = said(&up.command(&submit).await);
    assert_eq!(code, 0, "{err}");
    // Without the line's end that the file has: as `echo -n 'from a file'` would have given it.
    assert_eq!(out.lines().next(), Some("*** ***"), "{out}{err}");
    let (code, out, err) =
        said(&up.command(&["job", "exec", "--secret", &mine, "--", "bash", "-c", "echo \"<$MINE>\""]).await);
    assert_eq!((code, out.as_str()), (0, "<***>\n"), "{err}");
    let mut child = up.spawn(&["job", "exec", "--secret", "MINE=@-", "--", "bash", "-c", "echo \"<$MINE>\"; wc -c"]);
    let mut stdin = child.stdin.take().expect("a pipe");
    tokio::io::AsyncWriteExt::write_all(&mut stdin, b"typed in\n").await.expect("writes");
    drop(stdin);
    let (code, out, err) = said(&child.wait_with_output().await.expect("ends"));
    assert_eq!((code, out.as_str()), (0, "<***>\n0\n"), "{err}");
    // Without a server too.
    let own = up.dir.path().join("own.yaml");
    std::fs::write(&own, "preset: bash\nscript: 'echo \"<$MINE>\"; sha256sum <<< \"$MINE\"'\n").expect("writes");
    let mut here = tokio::process::Command::new(JOBCELL);
    here.args(["job", "run", own.to_str().expect("text"), "--secret", &mine]).stdin(Stdio::null());
    here.env("DOCKER_HOST", engine().expect("is there")).env("JOBCELL_DOCKER__SHARED", "true").kill_on_drop(true);
    let (code, out, err) = said(&tokio::time::timeout(PATIENCE, here.output()).await.expect("ends").expect("runs"));
    let sum = jobcell::job::Digest::of(b"from a file\n").hex();
    assert_eq!((code, out.as_str()), (0, format!("<***>\n{sum}  -\n").as_str()), "{err}");
    let (code, _, err) = said(&up.command(&["job", "exec", "--secret", "MINE=hunter2 hunter2", "--", "true"]).await);
    assert!(code == 2 && err.contains("NAME=@FILE"), "{err}");
    up.stop().await;
}

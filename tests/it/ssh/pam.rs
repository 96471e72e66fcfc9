//! A server that asks PAM, as those of distributions do: its sessions have limits, variables and an end of their own.

use super::super::stage::{cause, fact};
use super::jobs::{on, stage, stop};
use serde_json::json;

#[tokio::test]
async fn jobs_run_in_sessions_of_pam_in_both_modes() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("SKIPPED: a server that asks PAM has to be root's");
    }
    let Some((_folder, _sshd, up)) = stage("UsePAM yes\n", "").await else { return };
    for mode in ["plain", "auto"] {
        let spec = on(
            &json!({"host": "web1", "mode": mode}),
            &json!({"script": "echo out; echo err >&2; setsid sleep 300 & exit 3"}),
        );
        let job = up.run(&spec).await;
        let code = &job["ending"]["cause"]["exit_code"];
        assert_eq!((cause(&job), code), ("exit_code", &json!(3)), "{mode}: {job}\n{}", up.log());
        assert_eq!(fact(&job, "mode"), if mode == "auto" { "resident" } else { "plain" }, "{job}");
        assert_eq!((up.text(&job, "stdout").await, up.text(&job, "stderr").await), ("out\n".into(), "err\n".into()));
    }
    stop(up).await;
}

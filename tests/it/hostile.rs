//! Jobs that mean harm: to the host, to their neighbours, to whoever reads of them. What they do to their warden is in `cells`, what to their
//! limits in `causes`, what to a terminal in `output`.

use super::stage::{Up, cause, engine, fact, id, until};
use reqwest::Method;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Processes of the host with this in their arguments.
fn processes(word: &str) -> usize {
    let entries = std::fs::read_dir("/proc").expect("is there").flatten();
    let has = |entry: &std::fs::DirEntry| {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        command.split(|byte| *byte == 0).any(|argument| argument == word.as_bytes())
    };
    entries.filter(has).count()
}

/// Lines that a job wrote, each of which begins with what was tried.
async fn tried(up: &Up, job: &Value) -> Vec<(String, String)> {
    let text = up.text(job, "stdout").await;
    let line = |line: &str| line.split_once(": ").map(|(tried, came)| (tried.to_owned(), came.to_owned()));
    text.lines().map(|text| line(text).unwrap_or_else(|| panic!("{text}"))).collect()
}

#[tokio::test]
async fn a_fork_bomb_is_gone_soon_after_its_cancel_and_its_neighbour_did_not_notice() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "agent: {slots: 2, grace: 1s}").await;
    let neighbour = "for i in {1..40}; do echo $i; sleep 0.1; done";
    let neighbour = up.submit(&json!({"preset": "bash", "script": neighbour})).await;
    let bomb = "b() { b | b & }; echo lit; while :; do b; done 2> /dev/null";
    let bomb = up.submit(&json!({"preset": "bash", "script": bomb, "resources": {"pids": 64, "cpu": 0.5}})).await;
    until("the bomb to be lit", || async { (up.text(&bomb, "stdout").await == "lit\n").then_some(()) }).await;
    let neighbour = up.ended(&neighbour).await;
    let wanted: String = (1..=40).map(|number| format!("{number}\n")).collect();
    assert_eq!((cause(&neighbour), up.text(&neighbour, "stdout").await), ("exit_code", wanted));
    let asked = Instant::now();
    up.call(Method::POST, &format!("/v1/jobs/{}/cancel", id(&bomb)), None).await;
    assert_eq!(cause(&up.ended(&bomb).await), "canceled");
    until("no cell", || async { up.containers().is_empty().then_some(()) }).await;
    // By hand 1.15 s, one of them the grace; this is to notice what hangs, not what is slow.
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    up.stop().await;
}

#[tokio::test]
async fn what_a_job_leaves_behind_ends_with_it_and_what_ends_in_it_is_waited_for() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let script = "
        for i in {1..100}; do (setsid bash -c 'exit 3' &); done
        (setsid bash -c 'trap \"\" TERM HUP; exec sleep 98765431' &)
        until grep -qsa 98765431 /proc/[0-9]*/cmdline; do :; done
        zombies() { grep -ls '^State:.Z' /proc/[0-9]*/status | wc -l; }
        for i in {1..100}; do [ $(zombies) = 0 ] && break; sleep 0.1; done
        echo zombies: $(zombies)";
    let job = up.bash(script).await;
    assert_eq!((up.text(&job, "stdout").await.as_str(), cause(&job)), ("zombies: 0\n", "exit_code"), "{job}");
    until("no cell", || async { up.containers().is_empty().then_some(()) }).await;
    assert_eq!(processes("98765431"), 0);
    up.stop().await;
}

#[tokio::test]
async fn the_host_is_not_to_be_written_read_or_reached() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let script = r#"
import ctypes, errno, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    ctypes.set_errno(0)
    result = getattr(libc, name)(*arguments)
    print(f"{name}: {'REACHED' if result >= 0 else errno.errorcode[ctypes.get_errno()]}")
def open_(path, mode):
    try:
        with open(path, mode) as file:
            print(f"{path}: {'WRITTEN' if 'w' in mode and file.write('1') and not file.flush() else len(file.read(64))}")
    except OSError as error:
        print(f"{path}: {errno.errorcode[error.errno]}")
for path in ["/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/vm/overcommit_memory", "/sys/kernel/uevent_helper",
             "/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory.max", "/etc/hosts", "/etc/passwd", "/.jobcell/warden",
             "/proc/1/oom_score_adj", "/proc/1/mem", "/dev/mem", "/dev/kmsg", "/dev/sda", "/dev/vda"]:
    open_(path, "w")
for path in ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/proc/1/environ", "/var/run/docker.sock"]:
    open_(path, "rb")
for name, arguments in [("unshare", (0x10000000,)), ("unshare", (0x40000000,)), ("mount", (b"none", b"/tmp", b"tmpfs", 0, None)),
                        ("umount2", (b"/workspace", 2)), ("chroot", (b"/workspace",)), ("setns", (0, 0)), ("swapon", (b"/workspace", 0)),
                        ("sethostname", (b"x", 1)), ("setuid", (0,)), ("setgid", (0,)), ("ptrace", (16, 1, 0, 0)), ("acct", (None,)),
                        ("init_module", (None, 0, b"")), ("bpf", (0, None, 0)) if hasattr(libc, "bpf") else ("setuid", (0,))]:
    call(name, *arguments)
for name, arguments in [("raw", (socket.AF_INET, socket.SOCK_RAW, 1)), ("packet", (17, socket.SOCK_RAW, 0)), ("vsock", (40, socket.SOCK_STREAM, 0))]:
    try:
        socket.socket(*arguments)
        print(f"{name}: REACHED")
    except OSError as error:
        print(f"{name}: {errno.errorcode[error.errno]}")
for address in ["169.254.169.254", "172.17.0.1", "8.8.8.8"]:
    try:
        socket.create_connection((address, 80), 2)
        print(f"{address}: REACHED")
    except OSError as error:
        print(f"{address}: {errno.errorcode.get(error.errno, 'timeout')}")
"#;
    let job = up.run(&json!({"preset": "python", "script": script})).await;
    assert_eq!(cause(&job), "exit_code", "{}", up.text(&job, "both").await);
    let tried = tried(&up, &job).await;
    assert_eq!(tried.len(), 41, "{tried:?}");
    let refused = ["EROFS", "EACCES", "EPERM", "ENOENT", "ENXIO", "ENETUNREACH", "ENOSYS", "ENODEV", "EAFNOSUPPORT"];
    for (what, came) in &tried {
        // A masked file is there and empty.
        assert!(refused.contains(&came.as_str()) || came == "0", "{what}: {came}");
    }
    up.stop().await;
}

#[tokio::test]
async fn programs_run_from_the_workspace_only() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let job =
        up.bash("for d in /workspace /tmp /dev/shm; do cp /bin/true $d/x; $d/x 2> /dev/null; echo $d: $?; done").await;
    let came = tried(&up, &job).await;
    let wanted = [("/workspace", "0"), ("/tmp", "126"), ("/dev/shm", "126")];
    assert_eq!(came, wanted.map(|(what, came)| (what.to_owned(), came.to_owned())));
    up.stop().await;
}

/// The kernel counts some things for each user id, whatever the container: cells that shared one would starve each other.
#[tokio::test]
async fn one_that_takes_all_that_a_user_may_have_takes_nothing_from_its_neighbour() {
    const TAKE: &str = r#"
import ctypes, sys, time
libc = ctypes.CDLL(None, use_errno=True)
taken = 0
while libc.inotify_init() >= 0:
    taken += 1
print(taken, flush=True)
time.sleep(600)
"#;
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "agent: {slots: 2}").await;
    let greedy = up.submit(&json!({"preset": "python", "script": TAKE})).await;
    let taken = until("it has all", || async { up.text(&greedy, "stdout").await.trim().parse::<u32>().ok() }).await;
    assert!(taken >= 16, "{taken}");
    let script = "import ctypes\nlibc = ctypes.CDLL(None)\nprint(sum(libc.inotify_init() >= 0 for _ in range(16)))";
    let neighbour = up.run(&json!({"preset": "python", "script": script})).await;
    assert_eq!(up.text(&neighbour, "stdout").await, "16\n");
    let greedy = up.get(&format!("/v1/jobs/{}", id(&greedy))).await;
    assert_eq!(greedy["phase"], "running");
    up.call(Method::POST, &format!("/v1/jobs/{}/cancel", id(&greedy)), None).await;
    let greedy = up.ended(&greedy).await;
    assert_ne!(fact(&greedy, "uid"), fact(&neighbour, "uid"));
    up.stop().await;
}

#[tokio::test]
async fn one_that_burns_all_it_can_gets_its_share_and_no_more() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "agent: {slots: 1}").await;
    let script = "for i in 1 2 3 4; do (while :; do :; done) & done; sleep 4; kill $(jobs -p)";
    let job = up.run(&json!({"preset": "bash", "script": script, "resources": {"cpu": 0.2}})).await;
    let number = |key: &str| job["usage"][key].as_f64().unwrap_or_else(|| panic!("{key}: {}", job["usage"]));
    let used = number("cpu_user_us") + number("cpu_system_us");
    let span = job["ended_at"].as_f64().expect("a time") - job["started_at"].as_f64().expect("a time");
    // The quota is for each tenth of a second; two of these may be used outside of what is measured.
    assert!(used / 1000.0 <= 0.2 * (span + 200.0) && used > 100_000.0, "{used} us in {span} ms");
    up.stop().await;
}

#[tokio::test]
async fn what_a_job_is_called_and_writes_never_reaches_the_agents_log_as_it_is() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "telemetry: {log_filter: \"info,jobcell=debug\"}").await;
    let ugly = "/x\u{1b}[2J\nERROR forged line";
    let job = up
        .run(&json!({"image": "jobcell/bash:1", "command": [ugly], "retry": {"failure": 1, "backoff": "10ms"}}))
        .await;
    assert_eq!(cause(&job), "program_not_found");
    let job = up.bash("printf '\\e[2J\\nERROR forged line\\n'; cd /nowhere").await;
    assert_eq!(cause(&job), "exit_code");
    let log = up.log();
    assert!(log.contains("program_not_found") || log.contains("ended"), "{log}");
    assert!(!log.contains("\u{1b}[2J") && !log.lines().any(|line| line.starts_with("ERROR forged")), "{log}");
    let metrics = up.plain("/metrics").await.expect("answers").1;
    assert!(!metrics.contains("forged") && !metrics.contains('\u{1b}'), "{metrics}");
    up.stop().await;
}

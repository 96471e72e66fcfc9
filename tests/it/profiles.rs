//! The seccomp profiles at work, in real cells: what each takes away, what trips the wire, and that real jobs run under them.

use super::stage::{Up, cause, docker, engine, fact, until};
use serde_json::{Value, json};

/// Not the presets' images: what the job is made of is named by the tests.
const TOOLS: &str = "jobcell/tools:1";

fn try_of(job: &Value, name: &str) -> String {
    fact(job, &format!("try.{name}")).to_owned()
}

#[tokio::test]
async fn each_profile_takes_away_what_it_says_and_the_receipt_tells_them_apart() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let script = r#"
import socket, subprocess
def tried(name, call):
    try:
        call()
        print(name, "ok")
    except OSError as error:
        print(name, error.errno)
tried("inet", lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
tried("inet6", lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
tried("sctp", lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132))
tried("unix", lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
tried("interfaces", lambda: socket.socket(16, socket.SOCK_RAW, 0))
print("shm", subprocess.run(["ipcmk", "-M", "4096"], capture_output=True).returncode)
"#;
    // In the order of the script. SCTP: the kernel may lack it, so that only the refusal is looked at.
    for (profile, inet, sctp, shm) in [
        (None, "ok", None, "0"),
        (Some("offline"), "97", Some("97"), "0"),
        (Some("strict"), "ok", Some("1"), "1"),
        (Some("tripwire"), "ok", None, "0"),
    ] {
        let job = up.run(&json!({"preset": "python", "script": script, "seccomp": profile})).await;
        let text = up.text(&job, "stdout").await;
        let found = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.trim().to_owned()
        };
        assert_eq!(job["ending"]["verdict"], "succeeded", "{profile:?}: {job}{text}");
        assert_eq!(
            (found("inet "), found("inet6 "), found("shm ")),
            (inet.into(), inet.into(), shm.into()),
            "{profile:?}"
        );
        assert!(sctp.is_none_or(|errno| found("sctp ") == errno), "{profile:?}: {text}");
        assert_eq!((found("unix "), found("interfaces ")), ("ok".to_owned(), "ok".to_owned()), "{profile:?}");
        assert_eq!(try_of(&job, "socket_inet"), if profile == Some("offline") { "EAFNOSUPPORT" } else { "ok" });
        assert_eq!(try_of(&job, "sysv_shm"), if profile == Some("strict") { "EPERM" } else { "EINVAL" });
        assert_eq!(try_of(&job, "unshare_user"), if profile == Some("tripwire") { "ENOSYS" } else { "EPERM" });
    }
    up.stop().await;
}

#[tokio::test]
async fn nothing_weaker_than_the_operator_wants_is_in_force() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "docker: {seccomp: strict}").await;
    for asked in [None, Some("default"), Some("strict")] {
        let job = up.run(&json!({"preset": "bash", "script": "cat", "stdin": "it is read\n", "seccomp": asked})).await;
        assert_eq!(
            (job["ending"]["verdict"].as_str(), try_of(&job, "sysv_shm").as_str()),
            (Some("succeeded"), "EPERM")
        );
        assert_eq!(up.text(&job, "stdout").await, "it is read\n");
    }
    // Strict has IPv4, offline has more of other things: neither will do.
    let spec = json!({"preset": "bash", "script": "echo it ran", "seccomp": "offline"});
    let answer = up.call(reqwest::Method::POST, "/v1/jobs", Some(&spec)).await;
    assert_eq!(answer.status(), 403);
    let problem: serde_json::Value = answer.json().await.expect("is JSON");
    let told = problem["problems"].to_string();
    assert!(told.contains("seccomp_not_offered") && told.contains("strict"), "{problem}");
    up.stop().await;
}

#[tokio::test]
async fn a_tripwire_ends_the_job_whichever_of_its_processes_trips_it() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let unshare = "echo before; unshare --user true; echo after";
    let spec =
        |script: &str| json!({"preset": "python", "script": script, "interpreter": ["bash"], "seccomp": "tripwire"});
    let bpf = "import ctypes; ctypes.CDLL(None).syscall(321, 0, 0, 0)";
    let mount = "import ctypes; ctypes.CDLL(None).syscall(165, 0, 0, 0, 0, 0)";
    let attach = "import ctypes, os; ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0)";
    for (script, call, program) in [
        (unshare.to_owned(), "unshare(0x10000000)", "unshare"),
        // Nobody waits for it, and its parent is gone.
        ("echo before; (setsid unshare --net true &); sleep 60".to_owned(), "unshare(0x40000000)", "unshare"),
        (format!("echo before; trap '' TERM; python3 -c '{mount}'; sleep 60"), "mount", "python3"),
        (format!("echo before; python3 -c '{bpf}'; sleep 60"), "bpf", "python3"),
        (format!("echo before; python3 -c '{attach}' & sleep 60"), "ptrace(0x10)", "python3"),
        // The main process itself.
        ("echo before; exec unshare --mount true".to_owned(), "unshare(0x20000)", "unshare"),
    ] {
        let mut spec = spec(&script);
        spec["on_cancel"] = json!({"command": ["echo", "cleaned up"]});
        spec["retry"] = json!({"failure": 3});
        let job = up.run(&spec).await;
        assert_eq!(
            (cause(&job), job["ending"]["verdict"].as_str()),
            ("policy_violation", Some("failed")),
            "{script}: {job}"
        );
        assert_eq!(job["ending"]["cause"]["call"], call, "{script}");
        assert_eq!(job["ending"]["cause"]["program"], program, "{script}");
        assert_eq!(job["ending"]["process_exit_code"], 159);
        assert_eq!(up.text(&job, "stdout").await, "before\n", "{script}");
        assert!(job["past_tries"].as_array().is_none_or(Vec::is_empty), "{job}");
    }
    // Also where the job's own end comes at the same time: as often as not the call is the last thing that happens.
    let job = up.run(&spec("unshare --user true & exit 0")).await;
    assert!(["policy_violation", "exit_code"].contains(&cause(&job)), "{job}");

    // The kernel ends what comes by the 32-bit entry, and tells nobody: the main process and orphans are seen, and no one else.
    let run32 = "import ctypes, mmap\nm = mmap.mmap(-1, 4096, prot=7)\nm.write(bytes.fromhex(\"b814000000cd80c3\"))\n\
                 ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()\n";
    let run32 = |profile: &str| json!({"preset": "python", "script": run32, "seccomp": profile});
    let job = up.run(&run32("tripwire")).await;
    assert_eq!((cause(&job), &job["ending"]["cause"]["call"]), ("policy_violation", &Value::Null), "{job}");
    let job = up.run(&run32("default")).await;
    assert_eq!((cause(&job), job["ending"]["cause"]["signal"].as_i64()), ("signal", Some(31)), "{job}");

    let honest = "unshare --fork true; nice true; (sleep 0.1 &); python3 -c 'import threading; threading.Thread(target=print).start()'";
    let job = up.run(&spec(honest)).await;
    assert_eq!(job["ending"]["verdict"], "succeeded", "{job}");
    // The same under the default profile is refused, and nothing more.
    let job = up.bash(unshare).await;
    assert_eq!(job["ending"]["verdict"], "succeeded", "{job}");
    assert_eq!(up.text(&job, "stdout").await, "before\nafter\n");
    up.stop().await;
}

/// The command that runs after a stop is the job's too.
#[tokio::test]
async fn a_tripwire_that_trips_during_a_clean_up_is_told_too() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let spec = json!({
        "preset": "bash", "script": "echo before; sleep 60", "seccomp": "tripwire",
        "on_cancel": {"command": ["unshare", "--user", "true"]},
    });
    let job = up.submit(&spec).await;
    up.phase(&job, "running").await;
    until("its output", async || (up.text(&job, "stdout").await == "before\n").then_some(())).await;
    up.call(reqwest::Method::POST, &format!("/v1/jobs/{}/cancel", super::stage::id(&job)), None).await;
    let job = up.ended(&job).await;
    assert_eq!(
        (cause(&job), job["ending"]["cause"]["call"].as_str()),
        ("policy_violation", Some("unshare(0x10000000)"))
    );
    up.stop().await;
}

const SHELL: &str = r#"
set -euo pipefail
seq 100 | sort -rn | awk '{s += $1} END {print s}' | grep -qx 5050
mkfifo f; (echo through > f &); [ "$(cat f)" = through ]
timeout 5 true; nice true; ls -la / | wc -l > /dev/null; cp -a /etc/passwd p; tar cf - p | tar tf - | grep -qx p
for i in 1 2 3 4; do (sleep 0.05) & done; wait
trap 'echo done' EXIT
"#;
const PYTHON: &str = r#"
import asyncio, multiprocessing, shutil, socket, sqlite3, subprocess, tempfile, threading
assert subprocess.check_output(["echo", "x"]) == b"x\n"
async def child():
    process = await asyncio.create_subprocess_exec("true")
    return await process.wait()
assert asyncio.run(child()) == 0
with multiprocessing.Pool(2) as pool:
    assert pool.map(abs, [-1, -2]) == [1, 2]
a, b = socket.socketpair(); a.send(b"x"); assert b.recv(1) == b"x"
thread = threading.Thread(target=lambda: None); thread.start(); thread.join()
sqlite3.connect("t.db").execute("create table t (a)")
shutil.copy("/etc/passwd", "p")
print("done")
"#;
const NODE: &str = r#"
const {execSync} = require("child_process"), {Worker} = require("worker_threads"), net = require("net"), os = require("os");
if (execSync("echo x").toString() !== "x\n" || !os.networkInterfaces().lo) process.exit(1);
new Worker("1 + 1", {eval: true}).on("exit", () => {
  const server = net.createServer(c => c.end("x")).listen("/workspace/s", () =>
    net.connect("/workspace/s").on("data", () => server.close(() => console.log("done"))).on("end", () => {}));
});
"#;
const COMPILER: &str = r#"
set -euo pipefail
printf '#include <stdio.h>\n#include <pthread.h>\nint main(void) { puts("done"); }\n' > m.c
printf 'm: m.o\n\tgcc -o m m.o -pthread\nm.o: m.c\n\tgcc -O2 -Wall -c m.c\n' > Makefile
make -s -j2 && ./m
"#;
const GIT: &str = r#"
set -euo pipefail
git init -q r && cd r && git config user.email a@b && git config user.name a
echo 1 > a && git add a && git commit -qm one && git gc -q && git clone -q . ../r2 && git -C ../r2 log --oneline | wc -l | grep -qx 1
git fsck --strict && echo done
"#;
const CURL: &str = r#"
set -euo pipefail
curl -sS file:///etc/passwd | grep -q root
python3 - <<'X' &
import http.server, socketserver
class Local(socketserver.UnixStreamServer):
    def get_request(self):
        request, _ = super().get_request()
        return request, ("local", 0)
Local("/workspace/s", http.server.SimpleHTTPRequestHandler).serve_forever()
X
until [ -S /workspace/s ]; do :; done
echo hello > h; curl -sS --retry 5 --retry-connrefused --unix-socket /workspace/s http://local/h | grep -qx hello
kill %1; echo done
"#;
/// What curl does most: TCP, which `offline` has not.
const CURL_TCP: &str = r#"
set -euo pipefail
python3 - <<'X' &
import http.server, socketserver
server = socketserver.TCPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
open("port.new", "w").write(str(server.server_address[1])); import os; os.rename("port.new", "port")
server.serve_forever()
X
until [ -e port ]; do :; done
echo hello > h; curl -sS "http://127.0.0.1:$(cat port)/h" | grep -qx hello
kill %1; echo done
"#;
const GO: &str = r#"
set -euo pipefail
export GOCACHE=/workspace/cache GOPATH=/workspace/go GO111MODULE=off GOTMPDIR=/workspace
printf 'package main\nimport ("fmt"; "net"; "os/exec"; "sync")\nfunc main() {\n  var w sync.WaitGroup\n  for i := 0; i < 50; i++ { w.Add(1); go func() { defer w.Done() }() }\n  w.Wait()\n  if _, err := net.Interfaces(); err != nil { panic(err) }\n  out, err := exec.Command("echo", "done").Output(); if err != nil { panic(err) }\n  fmt.Print(string(out))\n}\n' > m.go
go run m.go
"#;
const RUST: &str = r#"
set -euo pipefail
printf 'use std::{process::Command, thread};\nfn main() {\n  thread::spawn(|| ()).join().unwrap();\n  assert!(Command::new("true").status().unwrap().success());\n  println!("done");\n}\n' > m.rs
TMPDIR=/workspace rustc -C linker=gcc -O m.rs && ./m
"#;
const JAVA: &str = r#"
set -euo pipefail
printf 'import java.util.stream.*;\npublic class M { public static void main(String[] a) throws Exception {\n  Thread t = new Thread(() -> {}); t.start(); t.join();\n  if (IntStream.range(0, 1000).parallel().sum() != 499500) throw new Error();\n  if (new ProcessBuilder("true").start().waitFor() != 0) throw new Error();\n  System.out.println("done"); } }\n' > M.java
java=$(echo /usr/lib/jvm/java-??-openjdk-amd64/bin); "$java/javac" -J-Xmx256m M.java && "$java/java" -Xmx128m M
"#;

/// Runs it to the word `done`.
async fn works(up: &Up, what: &str, image: &Value, interpreter: &[&str], script: &str, profile: &str) {
    let mut spec = json!({
        "script": script, "interpreter": interpreter, "seccomp": profile, "timeout": "5m",
        "resources": {"memory": "1GiB", "pids": 512, "cpu": 2},
    });
    spec.as_object_mut().expect("a map").extend(image.as_object().expect("a map").clone());
    let job = up.run(&spec).await;
    let (out, err) = (up.text(&job, "stdout").await, up.text(&job, "stderr").await);
    assert!(
        job["ending"]["verdict"] == "succeeded" && out.ends_with("done\n"),
        "{what} under {profile}: {}\n{out}{err}",
        job["ending"]
    );
}

#[tokio::test]
async fn shells_and_python_run_under_every_profile() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    for profile in ["default", "offline", "strict", "tripwire"] {
        works(&up, "bash", &json!({"preset": "bash"}), &["bash"], SHELL, profile).await;
        works(&up, "python", &json!({"preset": "python"}), &["python3"], PYTHON, profile).await;
    }
    up.stop().await;
}

/// What the image is made for is `make toolchains`; where it is there, it is used.
#[tokio::test]
async fn compilers_and_runtimes_run_under_the_profiles_that_are_for_them() {
    let Some(host) = engine() else { return };
    if docker(&host, &["images", "--quiet", TOOLS]).is_empty() {
        assert_ne!(
            std::env::var("JOBCELL_TEST_TOOLS").as_deref(),
            Ok("required"),
            "no image {TOOLS}: scripts/images.sh tools"
        );
        eprintln!("SKIPPED: there is no image {TOOLS}; `make toolchains` makes it and runs this");
        return;
    }
    let up = Up::start(&host, "docker: {workspace_size: 512MiB}").await;
    let image = json!({"image": TOOLS});
    for profile in ["default", "offline", "strict", "tripwire"] {
        works(&up, "node", &image, &["node"], NODE, profile).await;
        works(&up, "gcc and make", &image, &["bash"], COMPILER, profile).await;
        works(&up, "git", &image, &["bash"], GIT, profile).await;
        works(&up, "curl", &image, &["bash"], CURL, profile).await;
        if profile != "offline" {
            works(&up, "curl over TCP", &image, &["bash"], CURL_TCP, profile).await;
        }
    }
    for profile in ["default", "tripwire"] {
        works(&up, "go", &image, &["bash"], GO, profile).await;
        works(&up, "rustc", &image, &["bash"], RUST, profile).await;
        works(&up, "java", &image, &["bash"], JAVA, profile).await;
    }
    up.stop().await;
}

//! jobcell as a container: the image of the Dockerfile, the socket proxy, and the compose files, on a real engine.

use super::debian::{Container, DEBIAN, Image, debian, socket};
use super::stage::{PATIENCE, Up, cause, docker, engine, root, said, until};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// As compose.yaml has it, and in the way that tests share an engine.
const SEALED: [&str; 7] = [
    "--read-only",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--network=none",
    "--health-interval=1s",
    "--env",
    "JOBCELL_DOCKER__SHARED=true",
];

async fn health(container: &Container, wanted: &str) {
    until(wanted, || async { (container.inspect("{{.State.Health.Status}}") == wanted).then_some(()) }).await;
}

#[tokio::test]
async fn the_image_is_what_it_says_and_runs_jobs_without_any_right_of_its_own() {
    let Some(host) = engine() else { return };
    let (Some((path, group)), Some(image)) = (socket(&host), Image::shared(&host)) else { return };
    let config: Value =
        serde_json::from_str(&docker(&host, &["inspect", "--format", "{{json .Config}}", &image.name])).expect("JSON");
    assert_eq!((&config["User"], &config["StopSignal"]), (&json!("7807:7807"), &json!("SIGTERM")));
    assert_eq!(config["Healthcheck"]["Test"], json!(["CMD", "/usr/local/bin/jobcell", "health"]));
    assert_eq!((&config["Entrypoint"], &config["Cmd"]), (&json!(["/usr/local/bin/jobcell"]), &json!(["up"])));
    let label = |name: &str| config["Labels"][format!("org.opencontainers.image.{name}")].as_str().map(str::to_owned);
    assert_eq!(label("version").as_deref(), Some(env!("CARGO_PKG_VERSION")));
    assert_eq!(label("licenses").as_deref(), Some(env!("CARGO_PKG_LICENSE")));
    assert_eq!(label("description").as_deref(), Some(env!("CARGO_PKG_DESCRIPTION")));
    assert!(label("title").is_some() && label("revision").is_some());

    // Without an engine it lives, and is not well.
    let alone = Container::run(
        &host,
        &[&SEALED[..], &["--health-start-period=0s", "--health-retries=1", &image.name]].concat(),
    );
    health(&alone, "unhealthy").await;
    assert!(alone.inspect("{{json .State.Health.Log}}").contains("engine is down"), "{}", alone.logs());
    assert_eq!(alone.exec(&["jobcell", "health", "--live"]).0, 0);
    alone.sh("cd /usr/share/doc/jobcell; grep -q '^  tokio ' THIRD-PARTY; grep -q CycloneDX jobcell.cdx.json");
    drop(alone);

    let (mount, group) = (format!("{path}:/var/run/docker.sock"), group.to_string());
    let given = ["--volume", &mount, "--group-add", &group, &image.name];
    let container = Container::run(&host, &[&SEALED[..], &given].concat());
    health(&container, "healthy").await;
    let (code, out, err) = container.exec(&["jobcell", "exec", "--", "cat", "/proc/self/status"]);
    assert!(code == 0 && out.contains("CapEff:\t0000000000000000"), "{out}{err}\n{}", container.logs());
    let (code, _, err) = container.exec(&["jobcell", "exec", "--", "false"]);
    assert_eq!(code, 1, "{err}");
    let owner = container.sh("cat /var/lib/jobcell/owner");
    docker(&host, &["stop", "--time", "60", &container.id]);
    assert_eq!(container.inspect("{{.State.ExitCode}}"), "0", "{}", container.logs());
    let label = format!("label=jobcell.owner={owner}");
    assert_eq!(docker(&host, &["ps", "--all", "--quiet", "--filter", &label]), "");
}

/// What the Dockerfile brings to the build is all that the program is made of.
#[test]
fn the_build_has_every_file_that_the_program_is_made_of() {
    let file = std::fs::read_to_string(root().join("Dockerfile")).expect("reads");
    let (build, _) = file.split_once("RUN cargo build").expect("its build");
    let brought: Vec<&str> = build
        .lines()
        .filter_map(|line| line.strip_prefix("COPY "))
        .flat_map(|line| line.split(' ').collect::<Vec<_>>().split_last().map_or(Vec::new(), |(_, from)| from.to_vec()))
        .collect();
    let let_in = std::fs::read_to_string(root().join(".dockerignore")).expect("reads");
    let let_in: Vec<&str> = let_in.lines().filter_map(|line| line.strip_prefix('!')).collect();
    for name in &brought {
        assert!(let_in.contains(name), "{name} is not let in by .dockerignore");
    }
    // What the sources take in besides themselves, and what the manifest names.
    let mut wanted = vec!["Cargo.toml".to_owned(), "Cargo.lock".to_owned(), "build.rs".to_owned()];
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).expect("reads");
    let (manifest, _) = manifest.split_once("[package.metadata").expect("its metadata");
    let paths = manifest.lines().filter_map(|line| line.strip_prefix("path = \""));
    wanted.extend(paths.filter_map(|path| path.split('/').next()).map(str::to_owned));
    let mut sources = vec![root().join("src"), root().join("warden/src")];
    while let Some(path) = sources.pop() {
        if path.is_dir() {
            sources.extend(std::fs::read_dir(&path).expect("reads").map(|entry| entry.expect("an entry").path()));
            continue;
        }
        // Tests are no part of the program.
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with("tests.rs") || path.components().any(|part| part.as_os_str() == "simulation") {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("reads");
        for part in text.split("include_str!(\"").skip(1) {
            let target = path.with_file_name(part.split('"').next().unwrap_or_default());
            let target = target.canonicalize().unwrap_or_else(|error| panic!("{}: {error}", target.display()));
            let inside = target.strip_prefix(root().canonicalize().expect("there")).expect("of this tree").to_owned();
            wanted.push(inside.components().next().expect("a name").as_os_str().to_string_lossy().into_owned());
        }
    }
    for name in wanted {
        assert!(brought.contains(&name.as_str()), "{name} is not copied into the build");
    }
}

/// Asks through a socket, and gives the status.
async fn knock(socket: &Path, method: &str, target: &str) -> u16 {
    let mut stream = UnixStream::connect(socket).await.expect("connects");
    let request =
        format!("{method} {target} HTTP/1.1\r\nHost: engine\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("writes");
    let mut answer = Vec::new();
    // An engine may close in mid-answer of what it does not like; the status is at the beginning.
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("answers in time");
    let text = String::from_utf8_lossy(&answer).into_owned();
    text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{target}: {text}"))
}

#[tokio::test]
async fn jobs_run_through_the_socket_proxy_and_nothing_else_gets_through() {
    let Some(host) = engine() else { return };
    let Some((path, _)) = socket(&host) else { return };
    if !debian(&host) {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let (mount, rules, door) = (
        format!("{path}:/var/run/docker.sock"),
        format!("{}:/etc/jobcell/haproxy.cfg:ro", root().join("deploy/socket-proxy/haproxy.cfg").display()),
        format!("{}:/run/engine", dir.path().display()),
    );
    let options = ["--network=none", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"];
    let given = [
        "-v",
        &mount,
        "-v",
        &rules,
        "-v",
        &door,
        "--entrypoint",
        "haproxy",
        DEBIAN,
        "-db",
        "-f",
        "/etc/jobcell/haproxy.cfg",
    ];
    let proxy = Container::run(&host, &[&options[..], &given].concat());
    let socket = dir.path().join("docker.sock");
    until("the proxy", || async { UnixStream::connect(&socket).await.ok() }).await;

    let mut up = Up::start(&format!("unix://{}", socket.display()), "").await;
    let all = up.bash("yes 'the quick brown fox jumps over the lazy dog' | head -n 200000").await;
    assert_eq!((cause(&all), &all["log"]["complete"]), ("exit_code", &json!(true)), "{all}\n{}", proxy.logs());
    assert_eq!(up.stream(&all, "stdout").await.len(), 200_000 * 44);
    let job = up
        .submit(&json!({"preset": "bash", "script": "echo begun; until [ -e stop ]; do read -t 0.05 <> <(:); done"}))
        .await;
    until("output", || async { (up.text(&job, "stdout").await == "begun\n").then_some(()) }).await;
    // The agent finds its cell again behind the proxy.
    up.crash().await;
    let cancel = format!("/v1/jobs/{}/cancel", super::stage::id(&job));
    until("the cancel", || async {
        let response = up.request(reqwest::Method::POST, &cancel).send().await.ok()?;
        response.status().is_success().then_some(())
    })
    .await;
    let job = up.ended(&job).await;
    assert_eq!((cause(&job), &job["attempt"]), ("canceled", &json!(1)), "{job}\n{}", up.log());

    // What is not of ours stays shut, however it is written.
    let stranger =
        Container::run(&host, &["--network=none", "--name", "jobcell-strangers-box", DEBIAN, "sleep", "600"]);
    for (method, target) in [
        ("GET", "/_ping"),
        ("GET", "/events"),
        ("GET", "/secrets"),
        ("POST", "/build"),
        ("POST", "/v1.41/volumes/create"),
        ("POST", "/v1.41/containers/prune"),
        ("POST", "/v1.41/containers/create"),
        ("POST", "/v1.41/containers/create?name=mine"),
        ("POST", "/v1.41/containers/create?name=mine&name=jobcell-0a1b2c3d-x"),
        ("POST", "/v1.41/containers/jobcell-strangers-box/kill"),
        ("POST", "/v1.41/containers/jobcell-0a1b2c3d-x/exec"),
        ("POST", "/v1.41/containers/jobcell-0a1b2c3d-x/../jobcell-strangers-box/kill"),
        ("POST", "/v1.41/containers/jobcell-0a1b2c3d-x%2f..%2fjobcell-strangers-box/kill"),
        ("POST", "//v1.41/containers/jobcell-strangers-box/kill"),
        ("DELETE", "/v1.41/containers/jobcell-strangers-box?force=true"),
        ("DELETE", &format!("/v1.41/containers/{}?force=true", stranger.id)),
        ("GET", "/v1.41/containers/jobcell-strangers-box/json"),
        ("GET", "/v1.41/images/../containers/jobcell-strangers-box/json"),
        ("DELETE", "/v1.41/images/../containers/jobcell-strangers-box"),
        ("DELETE", "/v1.41/volumes/jobcell-data"),
        ("DELETE", "/v1.41/networks/bridge"),
    ] {
        assert_eq!(knock(&socket, method, target).await, 403, "{method} {target}\n{}", proxy.logs());
    }
    for (method, target, status) in [
        ("GET", "/version", 200),
        ("GET", "/v1.41/containers/json?limit=1", 200),
        ("GET", "/v1.41/containers/jobcell-0a1b2c3d-none/json", 404),
        ("DELETE", "/v1.41/volumes/jobcell-warden-00000000000000ff", 404),
        ("GET", &format!("/v1.41/images/{DEBIAN}/json"), 200),
    ] {
        assert_eq!(knock(&socket, method, target).await, status, "{method} {target}\n{}", proxy.logs());
    }
    assert_eq!(stranger.inspect("{{.State.Running}}"), "true");
    // What was refused is in its log, and nothing else. It leaves a line out where two of its threads have one at the same time.
    let prune = "/v1.41/containers/prune";
    until("the log to have it", || async {
        assert_eq!(knock(&socket, "POST", prune).await, 403);
        proxy.logs().contains(prune).then_some(())
    })
    .await;
    let told = proxy.logs();
    assert!(!told.contains("GET /version"), "{told}");
    // Not by the client, whose own calls are not let through.
    up.host = host;
    up.stop().await;
}

/// The services of a compose file, gone with the value.
struct Compose {
    file: &'static str,
    env: Vec<(&'static str, String)>,
    /// It has to be there until everything is down.
    _image: Arc<Image>,
}

impl Compose {
    /// `None` after saying loudly that there is no compose.
    fn of(file: &'static str, host: &str, image: Arc<Image>, group: u32) -> Option<Self> {
        let env = vec![
            ("DOCKER_HOST", host.to_owned()),
            ("DOCKER_GID", group.to_string()),
            ("COMPOSE_PROJECT_NAME", format!("jcc{}{}", std::process::id(), file.len())),
            ("JOBCELL_IMAGE", image.name.clone()),
            ("JOBCELL_PORT", "0".to_owned()),
            ("JOBCELL_DOCKER__SHARED", "true".to_owned()),
            ("SOCKET_PROXY_IMAGE", DEBIAN.to_owned()),
        ];
        let compose = Self { file, env, _image: image };
        let there = compose.run(&["version"]).0 == 0;
        assert!(
            there || std::env::var("JOBCELL_TEST_ENGINE").as_deref() != Ok("required"),
            "neither `docker compose` nor docker-compose is there, and JOBCELL_TEST_ENGINE=required"
        );
        if !there {
            eprintln!("SKIPPED: neither `docker compose` nor docker-compose is there");
        }
        there.then_some(compose)
    }

    /// Exit code, standard output, standard error.
    fn run(&self, args: &[&str]) -> (i32, String, String) {
        let plugin = Command::new("docker").args(["compose", "version"]).output();
        let mut command = if plugin.is_ok_and(|output| output.status.success()) {
            let mut command = Command::new("docker");
            command.arg("compose");
            command
        } else {
            Command::new("docker-compose")
        };
        command.arg("-f").arg(root().join(self.file)).args(args).envs(self.env.iter().cloned()).stdin(Stdio::null());
        command.output().map_or_else(|error| (-1, String::new(), error.to_string()), |output| said(&output))
    }

    fn well(&self, args: &[&str]) -> String {
        let (code, out, err) = self.run(args);
        assert_eq!(code, 0, "{args:?}: {out}{err}\n{}", self.run(&["logs"]).1);
        out
    }
}

impl Drop for Compose {
    fn drop(&mut self) {
        let _ = self.run(&["down", "--volumes", "--remove-orphans", "--timeout", "60"]);
    }
}

/// Up, until the agent is well, and a job by the server.
async fn services_do_a_job(file: &'static str) -> Option<Compose> {
    let host = engine()?;
    let (_, group) = socket(&host)?;
    let image = Image::shared(&host)?;
    let compose = Compose::of(file, &host, image, group)?;
    compose.well(&["up", "--detach", "--no-build"]);
    let agent = compose.well(&["ps", "--quiet", "agent"]).trim().to_owned();
    until("the agent", || async {
        (docker(&host, &["inspect", "--format", "{{.State.Health.Status}}", &agent]) == "healthy").then_some(())
    })
    .await;
    let (code, out, err) = compose.run(&["run", "--rm", "-T", "sample"]);
    assert!(code == 0 && out.contains("counting: 5"), "{code} {out}{err}\n{}", compose.run(&["logs"]).1);
    Some(compose)
}

#[tokio::test]
async fn the_compose_file_brings_up_a_server_and_an_agent_that_enrolls_itself() {
    let Some(compose) = services_do_a_job("deploy/compose.yaml").await else { return };
    // A second time nothing is enrolled anew: the agent's key is there.
    compose.well(&["up", "--detach", "--no-build", "--force-recreate"]);
    let (code, out, err) = compose.run(&["run", "--rm", "-T", "sample"]);
    let logs = compose.run(&["logs"]).1;
    assert!(code == 0 && out.contains("counting: 5"), "{code} {out}{err}\n{logs}");
    let listed = compose.well(&["exec", "-T", "server", "jobcell", "agents", "list"]);
    assert!(listed.contains("sidecar"), "{listed}");
    // Nothing that a container prints opens anything.
    assert!(
        logs.contains("is up (server only)") && ["jck_", "jca_", "jct_"].iter().all(|secret| !logs.contains(secret)),
        "{logs}"
    );
}

#[tokio::test]
async fn with_the_socket_proxy_the_agent_has_no_socket_of_the_engines() {
    let Some(compose) = services_do_a_job("deploy/compose.socket-proxy.yaml").await else { return };
    let host = engine().expect("it was there");
    let agent = compose.well(&["ps", "--quiet", "agent"]).trim().to_owned();
    let mounts = docker(&host, &["inspect", "--format", "{{range .Mounts}}{{.Destination}} {{end}}", &agent]);
    assert!(!mounts.contains("docker.sock") && mounts.contains("/run/engine"), "{mounts}");
    let proxy = compose.well(&["ps", "--quiet", "engine-proxy"]).trim().to_owned();
    assert_eq!(docker(&host, &["inspect", "--format", "{{.HostConfig.NetworkMode}}", &proxy]), "none");
}

/// The two files differ in the agent alone.
#[test]
fn the_compose_files_have_the_same_server_and_the_same_sample() {
    let text = |file: &str| std::fs::read_to_string(root().join(file)).expect("reads");
    let (one, other) = (text("deploy/compose.yaml"), text("deploy/compose.socket-proxy.yaml"));
    for part in ["x-service: &service", "  server:", "  enroll:", "  sample:"] {
        let of = |text: &str| {
            let (_, rest) = text.split_once(&format!("\n{part}\n")).expect(part);
            rest.split("\n\n").next().expect("its lines").to_owned()
        };
        assert_eq!(of(&one), of(&other), "{part}");
    }
}

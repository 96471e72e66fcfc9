//! The figures of jobs on other hosts, by a warden that stays there and in plain mode, against OpenSSH's own client with a shared connection
//! (ControlMaster) and against one channel for each command. A report, not a test: it exits with an error only when something is wrong, never
//! because a number is.
//!
//! `cargo bench --bench ssh -- [--short] [NAME…]` with the names connect, cells, warm, job, rate, hosts, flood, idle. `cells` leaves out the queue, the log
//! store and the API: a job goes to the executor, and its warden's wire is spoken to its end. The servers are real sshd processes on
//! loopback, and take most of the processor: both sides share the machine.

mod asked;
#[path = "ssh_parts/cells.rs"]
mod cells;
#[path = "../tests/it/ssh/driver.rs"]
mod driver;
#[allow(dead_code, reason = "shared with the other benches")]
mod fleet;
#[path = "../tests/it/programs.rs"]
mod programs;
#[allow(dead_code, reason = "shared with the tests")]
#[path = "../tests/it/ssh/sshd.rs"]
mod sshd;

use asked::Asked;
use fleet::{Member, Outcome};
use jobcell::executor::ssh::inventory::{Destination, LiveInventory};
use jobcell::executor::ssh::{Event, Lane, Pool, Route, SshSettings};
use serde_json::json;
use sshd::{Folder, Sshd, login};
use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Outcome<()> {
    let asked = Asked::read();
    if !sshd::present() {
        return Err("there is no sshd".into());
    }
    let times = |long: usize, short: usize| if asked.short { short } else { long };
    println!("{:<58} {:>10} {:>10} {:>6}   goal", "figure", "value", "reference", "ratio");
    if asked.wants("connect") {
        connect(times(30, 3)).await?;
    }
    if asked.wants("cells") {
        cells::cells(times(200, 5), times(4000, 40)).await?;
    }
    if asked.wants("warm") && !asked.wants("cells") {
        cells::warm(times(500, 5), times(4000, 40)).await?;
    }
    for mode in ["auto", "plain"] {
        if asked.wants("job") {
            job(times(100, 5), mode).await?;
        }
        if asked.wants("rate") {
            rate(times(1000, 20), mode).await?;
        }
    }
    if asked.wants("hosts") {
        hosts(times(50, 10)).await?;
    }
    for mode in ["auto", "plain"] {
        if asked.wants("flood") {
            flood(times(1024, 16), mode).await?;
        }
    }
    if asked.wants("idle") {
        idle(times(1000, 20)).await?;
    }
    Ok(())
}

fn quantile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(part * (values.len() - 1) as f64).round() as usize]
}

fn row(name: &str, value: f64, reference: Option<f64>, goal: &str) {
    let (reference, ratio) = match reference {
        Some(reference) => (format!("{reference:.1}"), format!("{:.2}", value / reference)),
        None => (String::new(), String::new()),
    };
    println!("{name:<58} {value:>10.1} {reference:>10} {ratio:>6}   {goal}");
}

fn spans(name: &str, ours: &mut [f64], reference: Option<&mut Vec<f64>>, goal: &str) {
    let reference = reference.map(|all| (quantile(all, 0.5), quantile(all, 0.95)));
    row(&format!("{name}, p50 (ms)"), quantile(ours, 0.5), reference.map(|all| all.0), goal);
    row(&format!("{name}, p95 (ms)"), quantile(ours, 0.95), reference.map(|all| all.1), "");
}

fn inventory(folder: &Folder, hosts: &str) -> PathBuf {
    let text = format!(
        "hosts:\n{hosts}credentials: {{key: {{key_file: {}}}}}\nknown_hosts: [{}]\n",
        folder.shown("user"),
        folder.shown("known_hosts")
    );
    let path = folder.write("inventory.yaml", &text);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("sets the mode");
    path
}

fn web(sshd: &Sshd) -> String {
    format!("  web: {{address: {}, port: {}, login: {}, credential: key}}\n", sshd.address, sshd.port, login())
}

fn pool(folder: &Folder, inventory: &std::path::Path) -> Outcome<(Pool, CancellationToken)> {
    let live = LiveInventory::load(inventory, &folder.path("data")).map_err(|problems| problems.to_string())?;
    let stop = CancellationToken::new();
    Ok((
        Pool::new(
            SshSettings { connect_timeout: Duration::from_secs(60), ..SshSettings::default() },
            live,
            stop.clone(),
        ),
        stop,
    ))
}

fn route(pool: &Pool, host: &str) -> Outcome<Route> {
    Ok(pool.inventory().current().route(&Destination { host, ..Destination::default() })?)
}

/// Runs a command to the channel's end, as OpenSSH's client does beside it.
async fn run(pool: &Pool, route: &Route, command: &str) -> Outcome<()> {
    let mut exec = pool.exec(route, command, Lane::Job).await?;
    let mut code = None;
    while let Some(event) = exec.output.next().await {
        match event {
            Event::Exit(exit) => code = Some(exit),
            Event::Lost(reason) => return Err(reason.into()),
            _ => {}
        }
    }
    if code == Some(0) { Ok(()) } else { Err(format!("it ended with {code:?}").into()) }
}

/// OpenSSH's client, over a connection that it keeps if there is `control`.
fn openssh(folder: &Folder, sshd: &Sshd, control: Option<&str>) -> Command {
    let mut command = Command::new("ssh");
    command.args(["-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-i", &folder.shown("user")]);
    command.args(["-o", &format!("UserKnownHostsFile={}", folder.shown("known_hosts")), "-p", &sshd.port.to_string()]);
    if let Some(control) = control {
        command.args(["-o", &format!("ControlPath={control}")]);
    }
    command
        .arg(format!("{}@{}", login(), sshd.address))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

fn must(command: &mut Command) -> Outcome<()> {
    if command.status()?.success() { Ok(()) } else { Err("ssh does not do it".into()) }
}

/// OpenSSH's shared connection, for as long as this lives.
struct Master {
    child: std::process::Child,
    path: String,
}

impl Master {
    fn open(folder: &Folder, sshd: &Sshd) -> Outcome<Self> {
        let path = folder.shown("master");
        let child = openssh(folder, sshd, Some(&path)).args(["-M", "-N"]).spawn()?;
        let end = Instant::now() + Duration::from_secs(30);
        while !std::path::Path::new(&path).exists() {
            if Instant::now() > end {
                return Err("no shared connection".into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(Self { child, path })
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ms(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1e3
}

/// A command on a connection that has to be made first, and on one that is there.
async fn connect(times: usize) -> Outcome<()> {
    let folder = Folder::new();
    let sshd = folder.sshd("");
    let inventory = inventory(&folder, &web(&sshd));
    let master = Master::open(&folder, &sshd)?;
    let (mut cold, mut reference, mut warm, mut shared) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..times {
        let (pool, stop) = pool(&folder, &inventory)?;
        let web = route(&pool, "web")?;
        let began = Instant::now();
        run(&pool, &web, "true").await?;
        cold.push(ms(began));
        let began = Instant::now();
        run(&pool, &web, "true").await?;
        warm.push(ms(began));
        stop.cancel();
        let began = Instant::now();
        must(openssh(&folder, &sshd, None).arg("true"))?;
        reference.push(ms(began));
        let began = Instant::now();
        must(openssh(&folder, &sshd, Some(&master.path)).arg("true"))?;
        shared.push(ms(began));
    }
    spans("connect, login and a command; ssh", &mut cold, Some(&mut reference), "<= 75 ms");
    spans("a command on a connection that is there; ControlMaster", &mut warm, Some(&mut shared), "");
    Ok(())
}

fn settings(inventory: &std::path::Path) -> String {
    format!(
        "docker: {{enabled: false}}\nagent: {{slots: 64}}\nqueue: {{claim_batch: 64}}\nssh: {{inventory: '{}', connections_per_host: 8}}\n",
        inventory.display()
    )
}

/// How a mode is called in the figures.
fn shown(mode: &str) -> &str {
    if mode == "auto" { "resident" } else { mode }
}

/// A whole job, from its submission to its end, on a connection that is there.
async fn job(times: usize, mode: &str) -> Outcome<()> {
    let folder = Folder::new();
    let sshd = folder.sshd("");
    let up = Member::up(&settings(&inventory(&folder, &web(&sshd)))).await?;
    let master = Master::open(&folder, &sshd)?;
    let spec = json!({"target": {"host": "web", "mode": mode}, "command": ["true"]});
    let (mut ours, mut shared) = (Vec::new(), Vec::new());
    for turn in 0..=times {
        let began = Instant::now();
        let id = up.submit(&spec).await?;
        let job = up.ended(&id).await?;
        if job["ending"]["verdict"] != "succeeded" {
            return Err(job.to_string().into());
        }
        // The first one made the connection.
        if turn > 0 {
            ours.push(ms(began));
        }
        let began = Instant::now();
        must(openssh(&folder, &sshd, Some(&master.path)).arg("true"))?;
        shared.push(ms(began));
    }
    spans(
        &format!("a job, {}, submitted to ended; a ControlMaster's `true`", shown(mode)),
        &mut ours,
        Some(&mut shared),
        "",
    );
    up.stop().await
}

/// Jobs in a second on one host.
async fn rate(count: usize, mode: &str) -> Outcome<()> {
    let folder = Folder::new();
    let sshd = folder.sshd("MaxStartups 100\n");
    let up = Member::up(&settings(&inventory(&folder, &web(&sshd)))).await?;
    let spec = json!({"target": {"host": "web", "mode": mode}, "command": ["true"]});
    let first = up.submit(&spec).await?;
    up.ended(&first).await?;
    let began = Instant::now();
    let submits = futures_util::future::join_all((0..count).map(|_| up.submit(&spec))).await;
    for id in submits {
        let job = up.ended(&id?).await?;
        if job["ending"]["verdict"] != "succeeded" {
            return Err(job.to_string().into());
        }
    }
    let ours = count as f64 / began.elapsed().as_secs_f64();
    up.stop().await?;

    let master = Master::open(&folder, &sshd)?;
    let count = count / 4;
    let began = Instant::now();
    std::thread::scope(|scope| {
        let one = || {
            for _ in 0..count.div_ceil(9) {
                must(openssh(&folder, &sshd, Some(&master.path)).arg("true")).expect("runs");
            }
        };
        (0..9).for_each(|_| drop(scope.spawn(one)));
    });
    let shared = (count.div_ceil(9) * 9) as f64 / began.elapsed().as_secs_f64();
    let name = format!("jobs in a second, {}, through queue and API; ControlMaster, nine", shown(mode));
    row(&name, ours, Some(shared), "");
    Ok(())
}

/// One command on each of many hosts, on connections that have to be made, and that are there.
async fn hosts(count: usize) -> Outcome<()> {
    let folder = Folder::new();
    folder.keygen("hk", &["-t", "ed25519"]);
    let port = std::net::TcpListener::bind("127.0.8.1:0")?.local_addr()?.port();
    let (mut servers, mut text) = (Vec::new(), String::new());
    for first in (1..=count).step_by(10) {
        let mut more = "MaxStartups 500\n".to_owned();
        for n in first..(first + 10).min(count + 1) {
            writeln!(more, "ListenAddress 127.0.8.{n}:{port}")?;
            writeln!(text, "  h{n}: {{address: 127.0.8.{n}, port: {port}, login: {}, credential: key}}", login())?;
        }
        servers.push(folder.sshd_with("hk", &more));
    }
    folder.write("known_hosts", &format!("[127.0.8.*]:{port} {}\n", folder.public("hk")));
    let (pool, _stop) = pool(&folder, &inventory(&folder, &text))?;
    let routes = (1..=count).map(|n| route(&pool, &format!("h{n}"))).collect::<Outcome<Vec<_>>>()?;
    for (what, goal) in [("cold", "<= 800 ms"), ("warm", "<= 60 ms")] {
        let began = Instant::now();
        for ran in futures_util::future::join_all(routes.iter().map(|route| run(&pool, route, "true"))).await {
            ran?;
        }
        row(&format!("{count} hosts, a command on each, {what} (ms)"), ms(began), None, goal);
    }
    Ok(())
}

/// Lines of a job into the log store.
async fn flood(mib: usize, mode: &str) -> Outcome<()> {
    let folder = Folder::new();
    let sshd = folder.sshd("");
    let up = Member::up(&settings(&inventory(&folder, &web(&sshd)))).await?;
    let line = format!("{}\n", "x".repeat(99));
    let lines = mib * (1 << 20) / 100;
    let script = format!("yes '{}' | head -n {lines}", line.trim_end());
    let spec = json!({"target": {"host": "web", "mode": mode}, "script": script, "resources": {"output": "4GiB"}});
    let before = up.memory("VmRSS")?;
    let began = Instant::now();
    let id = up.submit(&spec).await?;
    let job = up.ended(&id).await?;
    let seconds = began.elapsed().as_secs_f64();
    if job["log"]["stdout"]["bytes"] != lines * 100 {
        return Err(job.to_string().into());
    }
    let mut ssh = openssh(&folder, &sshd, None);
    let began = Instant::now();
    must(ssh.args(["-c", "aes128-gcm@openssh.com"]).arg(&script))?;
    let reference = (lines * 100) as f64 / 1e6 / began.elapsed().as_secs_f64();
    row(
        &format!("lines into the log store, {} (MB/s); ssh to /dev/null", shown(mode)),
        (lines * 100) as f64 / 1e6 / seconds,
        Some(reference),
        ">= 300 MB/s",
    );
    row("memory growth of `up` meanwhile (MB)", (up.memory("VmHWM")? - before) / 1e6, None, "");
    up.stop().await
}

/// What connections cost that nobody uses.
async fn idle(count: usize) -> Outcome<()> {
    let folder = Folder::new();
    folder.keygen("hk", &["-t", "ed25519"]);
    let port = std::net::TcpListener::bind("127.0.9.1:0")?.local_addr()?.port();
    let mut more = "MaxStartups 500\n".to_owned();
    (1..=10).try_for_each(|n| writeln!(more, "ListenAddress 127.0.9.{n}:{port}"))?;
    let _server = folder.sshd_with("hk", &more);
    folder.write("known_hosts", &format!("[127.0.9.*]:{port} {}\n", folder.public("hk")));
    let mut text = String::new();
    // Each route has connections of its own.
    for n in 0..count {
        let address = 1 + n % 10;
        writeln!(text, "  h{n}: {{address: 127.0.9.{address}, port: {port}, login: {}, credential: key}}", login())?;
    }
    let (pool, _stop) = pool(&folder, &inventory(&folder, &text))?;
    let routes = (0..count).map(|n| route(&pool, &format!("h{n}"))).collect::<Outcome<Vec<_>>>()?;
    let memory = || -> Outcome<f64> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let line = status.lines().find(|line| line.starts_with("VmRSS")).ok_or("no such line")?;
        Ok(line.split_whitespace().nth(1).ok_or("no number")?.parse::<f64>()? * 1024.0)
    };
    let before = memory()?;
    for some in routes.chunks(40) {
        for ran in futures_util::future::join_all(some.iter().map(|route| run(&pool, route, "true"))).await {
            ran?;
        }
    }
    let open: usize = pool.states().iter().map(|host| host.connections).sum();
    if open < count {
        return Err(format!("{open} connections are open").into());
    }
    row(&format!("{count} idle connections (MiB)"), (memory()? - before) / 1048576.0, None, "<= 64 MiB for 1,000");
    Ok(())
}

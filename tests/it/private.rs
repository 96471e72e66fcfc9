//! An engine of a test's own, which may be broken; the shared one never is.

use super::stage::{docker, root};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

/// An engine of its own, gone with the value, also when the test panics.
pub(crate) struct Private {
    dir: tempfile::TempDir,
    /// A daemon was killed: shims that it was about to start are nobody's, until an agent looks for them.
    forgot_shims: AtomicBool,
    /// containerd was killed: it may have removed what says whose a shim is.
    forgot_bundles: AtomicBool,
    /// A daemon was killed: control groups that it was about to fill stay, and are empty.
    forgot_groups: AtomicBool,
    /// A daemon was killed, maybe between the making of a container's first process and its program.
    forgot_starts: AtomicBool,
}

impl Private {
    /// Only a folder: the engine is started later. Needs root.
    pub(crate) fn prepare() -> Option<Self> {
        let root = std::fs::metadata("/proc/self").ok().map(|meta| std::os::unix::fs::MetadataExt::uid(&meta));
        if root != Some(0) {
            assert!(std::env::var("JOBCELL_TEST_ENGINE").as_deref() != Ok("required"), "private engines need root");
            eprintln!("SKIPPED: a private engine needs root");
            return None;
        }
        let dir = tempfile::Builder::new().prefix("jce").tempdir().expect("a folder");
        Some(Self {
            dir,
            forgot_shims: false.into(),
            forgot_bundles: false.into(),
            forgot_groups: false.into(),
            forgot_starts: false.into(),
        })
    }

    pub(crate) fn script(&self, verb: &str) {
        self.run(verb, &[], None);
    }

    /// `kill9` or `restart` of one of its daemons.
    pub(crate) fn daemon(&self, verb: &str, daemon: &str) {
        if verb == "kill9" {
            self.forgot_shims.store(true, Ordering::Relaxed);
            self.forgot_groups.store(true, Ordering::Relaxed);
            self.forgot_starts.store(true, Ordering::Relaxed);
            self.forgot_bundles.fetch_or(daemon == "containerd", Ordering::Relaxed);
        }
        self.run(verb, &[daemon], None);
    }

    /// From here on a shim that looks after nothing is one too many.
    pub(crate) fn shims_were_looked_for(&self) {
        self.forgot_shims.store(false, Ordering::Relaxed);
    }

    fn run(&self, verb: &str, args: &[&str], data_size: Option<&str>) {
        let mut command = Command::new(root().join("scripts/private-engine.sh"));
        command.arg(verb).arg(self.dir.path()).args(args).stdout(Stdio::null());
        if let Some(size) = data_size {
            command.env("JOBCELL_ENGINE_DATA_SIZE", size);
        }
        assert!(command.status().expect("runs").success(), "private-engine.sh {verb} {args:?}");
    }

    /// With the image of the preset `bash`.
    pub(crate) fn start(&self) {
        self.start_with(&[], None);
    }

    /// With more options of dockerd, and its data on a small file system of that size.
    pub(crate) fn start_with(&self, options: &[&str], data_size: Option<&str>) {
        self.run("start", options, data_size);
        let images = root().join("scripts/images.sh");
        let loaded = Command::new(images).args(["--load", &self.host(), "bash"]).status().expect("runs");
        assert!(loaded.success(), "the image is loaded");
    }

    pub(crate) fn host(&self) -> String {
        format!("unix://{}", self.dir.path().join("docker.sock").display())
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Sends a signal to one of its daemons.
    pub(crate) fn signal(&self, daemon: &str, signal: &str) {
        let pid = std::fs::read_to_string(self.dir.path().join(format!("{daemon}.pid"))).expect("it runs");
        let sent = Command::new("kill").args([signal, pid.trim()]).status().expect("kill runs");
        assert!(sent.success(), "{signal} for {daemon}");
    }

    /// Processes of its containers, and of what runs them: by their control group, and by the address of its containerd.
    pub(crate) fn processes(&self) -> Vec<Process> {
        let group = format!("/{}/", self.group());
        let mut all = Vec::new();
        for entry in std::fs::read_dir("/proc").expect("is there") {
            let Ok(pid) = entry.expect("an entry").file_name().to_string_lossy().parse::<u32>() else { continue };
            let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let text = |file: &str| String::from_utf8_lossy(&read(file)).replace('\0', " ");
            // One that has ended and waits for its parent has neither.
            let command = text("cmdline");
            let ours = text("cgroup").contains(&group) || command.contains(&self.containerd());
            if ours && !command.is_empty() {
                all.push(Process { pid, command, environment: text("environ") });
            }
        }
        all
    }

    /// Containers with nothing in them but runc's own process before it becomes their program: their ids, and the pids of that and its shim.
    fn unstarted(&self) -> Vec<(String, [u32; 2])> {
        let all = self.processes();
        let inits = all.iter().filter(|one| one.command.trim_end() == "runc init");
        let of = |init: &Process| {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", init.pid)).ok()?;
            let parent: u32 = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
            let shim = all.iter().find(|one| one.pid == parent && one.command.contains("containerd-shim"))?;
            let id = shim.command.split(' ').skip_while(|word| *word != "-id").nth(1)?;
            Some((id.to_owned(), [init.pid, shim.pid]))
        };
        inits.filter_map(of).collect()
    }

    /// Pids of its shims.
    pub(crate) fn shims(&self) -> Vec<u32> {
        let shims = self.processes().into_iter().filter(|one| one.command.contains(&self.containerd()));
        shims.map(|one| one.pid).collect()
    }

    fn containerd(&self) -> String {
        format!("-address {}/containerd.sock", self.dir.path().display())
    }

    fn group(&self) -> String {
        format!("jobcell-private-{}", self.dir.path().file_name().expect("a name").to_string_lossy())
    }

    /// All that is there of jobs, and should not be when none runs: a line for each thing.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let host = self.host();
        let lines = |what: &str, text: String| text.lines().map(|line| format!("{what} {line}")).collect::<Vec<_>>();
        let mut left = lines("container", docker(&host, &["ps", "--all", "--format", "{{.Names}} {{.Status}}"]));
        // The warden's volume stays: it is what every cell begins with.
        let volumes = docker(&host, &["volume", "ls", "--format", "{{.Name}}"]);
        let mut wardens = 0;
        for volume in volumes.lines() {
            wardens += usize::from(volume.starts_with("jobcell-warden-"));
            if !volume.starts_with("jobcell-warden-") || wardens > 1 {
                left.push(format!("volume {volume}"));
            }
        }
        let networks = docker(&host, &["network", "ls", "--format", "{{.Name}}"]);
        left.extend(
            networks.lines().filter(|name| !["none", "host"].contains(name)).map(|name| format!("network {name}")),
        );
        // A daemon that is killed forgets a shim that it has just started. No cell runs below one; an agent's start, its sweeper, and
        // `agent sweep` end it.
        let forgot = self.forgot_shims.load(Ordering::Relaxed);
        let processes = self.processes().into_iter();
        // containerd may remove the description of one that it cannot reach after its own death, and goes on without it. Nobody can tell
        // then whose that shim was, and no agent ends what may be another's (docs/failure-modes.md).
        let bundles = self.forgot_bundles.load(Ordering::Relaxed);
        let nobodys = |one: &Process| forgot || (bundles && !one.has_description());
        let processes = processes.filter(|one| !(one.is_idle_shim() && nobodys(one)));
        // One that is killed in the act of starting a container forgets it with all that is there by then: a shim, and runc's process that
        // waits to become the warden. Nothing of ours runs in it, the API knows of no such container, and so no agent can end it.
        let known = docker(&host, &["ps", "--all", "--quiet", "--no-trunc"]);
        let starts = if self.forgot_starts.load(Ordering::Relaxed) { self.unstarted() } else { Vec::new() };
        let starts: Vec<_> = starts.into_iter().filter(|(id, _)| !known.contains(id)).collect();
        let processes = processes.filter(|one| !starts.iter().any(|(_, pids)| pids.contains(&one.pid)));
        left.extend(processes.map(|one| format!("process {} {} {}", one.pid, one.command, one.surroundings())));
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("is there");
        let dir = format!("{}/", self.dir.path().display());
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|point| point.starts_with(&dir));
        left.extend(
            points
                .filter(|point| point.ends_with("/merged") || point.ends_with("/shm"))
                .map(|point| format!("mount {point}")),
        );
        let forgot = self.forgot_groups.load(Ordering::Relaxed);
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup").expect("is there") {
            let Ok(inside) = std::fs::read_dir(hierarchy.expect("an entry").path().join(self.group())) else {
                continue;
            };
            let folders = inside.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_dir());
            let is_empty = |path: &Path| std::fs::read(path.join("cgroup.procs")).is_ok_and(|pids| pids.is_empty());
            let folders = folders.filter(|path| !(forgot && is_empty(path)));
            let folders = folders.filter(|path| !starts.iter().any(|(id, _)| path.ends_with(id)));
            left.extend(folders.map(|path| format!("control group {}", path.display())));
        }
        left
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        let script = root().join("scripts/private-engine.sh");
        let _ = Command::new(script).arg("stop").arg(self.dir.path()).status();
    }
}

/// A process of a cell, or of what runs it.
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) command: String,
    pub(crate) environment: String,
}

impl Process {
    /// Where it is and what is below it, for whoever has to find out why it is left.
    fn surroundings(&self) -> String {
        let place = std::fs::read_link(format!("/proc/{}/cwd", self.pid)).unwrap_or_default();
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid)).into_iter().flatten().flatten();
        let below = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
        format!("(in {}, below: {:?})", place.display(), below.collect::<String>())
    }

    /// A shim's bundle says what it was begun for.
    fn has_description(&self) -> bool {
        std::fs::metadata(format!("/proc/{}/cwd/config.json", self.pid)).is_ok()
    }

    /// A shim without a process below it.
    fn is_idle_shim(&self) -> bool {
        let mut tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid)).into_iter().flatten().flatten();
        let childless = |task: std::fs::DirEntry| {
            std::fs::read_to_string(task.path().join("children")).is_ok_and(|pids| pids.trim().is_empty())
        };
        self.command.contains("containerd-shim") && tasks.all(childless)
    }
}

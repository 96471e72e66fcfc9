//! A small Debian without a registry (scripts/debian-image.sh), and jobcell's own image on top of it, built from the Dockerfile's last
//! stage as it stands.

use super::stage::{JOBCELL, docker, root};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, Weak};

/// The image that stands for `debian:bookworm-slim`, and has haproxy.
pub(crate) const DEBIAN: &str = "jobcell/debian:1";

/// The same with systemd, which boots (scripts/systemd-image.sh).
pub(crate) const SYSTEMD: &str = "jobcell/systemd:1";

/// Sees to it that [`DEBIAN`] is there; false after saying loudly that the test is skipped.
pub(crate) fn debian(host: &str) -> bool {
    made(host, DEBIAN, "scripts/debian-image.sh")
}

/// The same for [`SYSTEMD`].
pub(crate) fn systemd(host: &str) -> bool {
    made(host, SYSTEMD, "scripts/systemd-image.sh")
}

fn made(host: &str, image: &str, script: &str) -> bool {
    let made = Command::new(root().join(script)).env("DOCKER_HOST", host).status().expect("runs").success();
    let required = std::env::var("JOBCELL_TEST_ENGINE").as_deref() == Ok("required");
    assert!(made || !required, "{image} cannot be made");
    if !made {
        eprintln!("SKIPPED: {image} cannot be made");
    }
    made
}

/// The program under test without what only a debugger reads.
pub(crate) fn stripped(to: &Path) {
    let stripped = Command::new("strip").arg("-o").arg(to).arg(JOBCELL).status().expect("strip runs");
    assert!(stripped.success(), "strip");
}

/// jobcell's image; it is removed with the last one who has it.
pub(crate) struct Image {
    pub(crate) name: String,
    host: String,
}

impl Image {
    /// The one that all tests of this process share.
    pub(crate) fn shared(host: &str) -> Option<Arc<Self>> {
        static CURRENT: Mutex<Weak<Image>> = Mutex::new(Weak::new());
        if !debian(host) {
            return None;
        }
        // One that panicked while it built has left nothing there.
        let mut current = CURRENT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(image) = current.upgrade() {
            return Some(image);
        }
        let image = Arc::new(Self::build(host));
        *current = Arc::downgrade(&image);
        Some(image)
    }

    /// The Dockerfile's last stage: the base is [`DEBIAN`], the program is the one under test, and everything else is as it is written.
    fn build(host: &str) -> Self {
        let file = std::fs::read_to_string(root().join("Dockerfile")).expect("reads");
        let (_, stage) = file.split_once("\nFROM debian:bookworm-slim\n").expect("its base");
        assert!(!stage.contains("\nFROM "), "it is the last stage");
        assert_eq!(stage.matches("COPY ").count(), 2);
        let mut stage = stage.to_owned();
        for (built, name) in [("release/jobcell /usr/local/bin/", "jobcell"), ("sbom /usr/share/doc/", "sbom")] {
            let copied = format!("COPY --from=build /source/target/{built}jobcell\n");
            assert!(stage.contains(&copied), "{stage}");
            let to = built.split_once(' ').expect("two words").1;
            stage = stage.replace(&copied, &format!("COPY {name} {to}jobcell\n"));
        }
        let context = tempfile::tempdir().expect("a folder");
        let listed = Command::new(root().join("scripts/sbom.py")).arg(context.path().join("sbom")).status();
        assert!(listed.expect("runs").success(), "sbom.py");
        stripped(&context.path().join("jobcell"));
        let name = format!("jobcell/agent-under-test:{}", std::process::id());
        let dockerfile = context.path().join("Dockerfile");
        let mut to = std::fs::File::create(&dockerfile).expect("makes");
        write!(to, "FROM {DEBIAN}\n{stage}").expect("writes");
        let built = Command::new("docker")
            .args(["--host", host, "build", "--quiet", "--network", "none", "--force-rm", "--tag", &name])
            .arg(context.path())
            // The builder that every engine has by itself.
            .env("DOCKER_BUILDKIT", "0")
            .stdout(Stdio::null())
            .status();
        assert!(built.expect("runs").success(), "docker build");
        Self { name, host: host.to_owned() }
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["--host", &self.host, "rmi", "--force", &self.name]).output();
    }
}

/// A container of a test's own, gone with the value.
pub(crate) struct Container {
    pub(crate) id: String,
    host: String,
}

impl Container {
    /// `docker run --detach` with these arguments.
    pub(crate) fn run(host: &str, args: &[&str]) -> Self {
        let id = docker(host, &[&["run", "--detach"], args].concat());
        Self { id, host: host.to_owned() }
    }

    /// A field of `docker inspect`.
    pub(crate) fn inspect(&self, format: &str) -> String {
        docker(&self.host, &["inspect", "--format", format, &self.id])
    }

    /// Runs a command in it: exit code, standard output, standard error.
    pub(crate) fn exec(&self, args: &[&str]) -> (i32, String, String) {
        let mut command = Command::new("docker");
        command.args(["--host", &self.host, "exec", &self.id]).args(args).stdin(Stdio::null());
        super::stage::said(&command.output().expect("runs"))
    }

    /// A script for its shell, which has to do well; its output.
    pub(crate) fn sh(&self, script: &str) -> String {
        let (code, out, err) = self.exec(&["/bin/sh", "-euc", script]);
        assert_eq!(code, 0, "{script}\n{out}{err}");
        out.trim_end().to_owned()
    }

    pub(crate) fn logs(&self) -> String {
        let output = Command::new("docker").args(["--host", &self.host, "logs", &self.id]).output().expect("runs");
        let (_, out, err) = super::stage::said(&output);
        out + &err
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let args = ["--host", &self.host, "rm", "--force", "--volumes", &self.id];
        let _ = Command::new("docker").args(args).output();
    }
}

/// The socket of an engine on this host, and the group that may use it; `None` after saying that the test is skipped.
pub(crate) fn socket(host: &str) -> Option<(String, u32)> {
    let Some(path) = host.strip_prefix("unix://") else {
        eprintln!("SKIPPED: containers are given an engine's socket, and {host} is none");
        return None;
    };
    let group = std::fs::metadata(path).map(|meta| std::os::unix::fs::MetadataExt::gid(&meta)).expect("is there");
    Some((path.to_owned(), group))
}

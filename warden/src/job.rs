//! The job's process: how it starts, and how its output pipes are read.

use crate::intake::Spec;
use crate::sys;
use crate::wire::CellSpec;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};

/// Set by the cell or the engine, not by the image.
const NOT_INHERITED: [&str; 3] = ["HOME", "HOSTNAME", "TERM"];

/// A job that could not be started: which step, and the kernel's error number.
#[derive(Debug)]
pub struct StartFailed {
    pub step: &'static str,
    pub errno: i32,
}

/// A running job.
pub struct Job {
    pub pid: i32,
    /// Standard output, standard error; none once at its end.
    pub pipes: [Option<OwnedFd>; 2],
}

/// Starts the job.
pub fn start(spec: Spec) -> Result<Job, StartFailed> {
    let Spec { cell, script, stdin } = spec;
    let at = |step: &'static str| move |error: io::Error| StartFailed { step, errno: error.raw_os_error().unwrap_or(5) };
    if let Some(script) = script {
        write_script(&cell.script_path, script).map_err(at("script"))?;
    }
    let (out_from, out_to) = sys::pipe(cell.output_pipe_bytes).map_err(at("pipe"))?;
    let (err_from, err_to) = sys::pipe(cell.output_pipe_bytes).map_err(at("pipe"))?;
    let mut argv = cell.argv.iter().map(|part| if part == "{script}" { &cell.script_path } else { part });
    let program = argv.next().ok_or(StartFailed { step: "interpreter", errno: 2 })?;
    let mut command = Command::new(program);
    command.args(argv).env_clear().envs(environment(&cell, std::env::vars_os()));
    command.stdin(stdin.map_or_else(Stdio::null, Stdio::from)).stdout(out_to).stderr(err_to);
    sys::prepare_child(&mut command, cell.rlimits.clone());
    // Entered here and not in the child, so that a missing directory is told from a missing program.
    std::env::set_current_dir(&cell.cwd).map_err(at("workdir"))?;
    let child = command.spawn();
    // Back to where nothing can be unmounted or removed under us.
    let _ = std::env::set_current_dir("/");
    let child = child.map_err(at("interpreter"))?;
    Ok(Job { pid: child.id() as i32, pipes: [Some(out_from), Some(err_from)] })
}

fn write_script(path: &str, mut script: File) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o500).open(path)?;
    io::copy(&mut script, &mut file).map(drop)
}

type Variable = (std::ffi::OsString, std::ffi::OsString);

/// The job's variables: what is taken from the warden's own, then what the spec sets.
fn environment(cell: &CellSpec, own: impl Iterator<Item = Variable>) -> Vec<Variable> {
    let wanted = |name: &std::ffi::OsStr| {
        cell.inherit_env.iter().any(|one| {
            if one == "*" { !NOT_INHERITED.iter().any(|not| name == *not) } else { name == one.as_str() }
        })
    };
    let mut all: Vec<Variable> = own
        .filter(|(name, _)| wanted(name) && !cell.env.iter().any(|(set, _)| set.as_slice() == name.as_bytes()))
        .collect();
    let text = |bytes: &Vec<u8>| std::ffi::OsString::from_vec(bytes.clone());
    all.extend(cell.env.iter().map(|(key, value)| (text(key), text(value))));
    all
}

impl Job {
    /// The descriptor of a pipe that is still open.
    pub fn pipe(&self, index: usize) -> Option<RawFd> {
        self.pipes[index].as_ref().map(AsRawFd::as_raw_fd)
    }

    /// True when both pipes are at their end.
    pub fn drained(&self) -> bool {
        self.pipes.iter().all(Option::is_none)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_gives_its_variables_and_the_spec_wins() {
        let cell = CellSpec {
            env: vec![(b"PATH".to_vec(), b"/mine".to_vec())],
            inherit_env: vec!["*".into()],
            ..CellSpec::default()
        };
        let own = [("PATH", "/image"), ("JAVA_HOME", "/jdk"), ("HOME", "/root"), ("HOSTNAME", "x")];
        let mut found = environment(&cell, own.into_iter().map(|(key, value)| (key.into(), value.into())));
        found.sort();
        assert_eq!(found, [("JAVA_HOME".into(), "/jdk".into()), ("PATH".into(), "/mine".into())]);
    }
}

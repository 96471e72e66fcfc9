//! From a spec to what an exec needs. Pure: the warden's own environment is passed in.

use crate::mask::wipe;
use crate::place::Ways;
use crate::sys::{self, Launch};
use crate::wire::{CellSpec, Rlimit};
use std::ffi::{CString, OsString};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;

/// Stands for the script's path in an argv.
const SCRIPT: &str = "{script}";
/// Stands for all names in `inherit_env`.
const ALL_NAMES: &str = "*";
/// Never inherited by "all": they speak of the container, not of the image.
const NOT_INHERITED: [&[u8]; 3] = [b"HOME", b"HOSTNAME", b"TERM"];
/// Where programs are looked for when the job has no PATH.
const USUAL_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Name and value, as bytes: neither needs to be text.
pub(crate) type Variable = (Vec<u8>, Vec<u8>);

#[derive(Debug)]
pub(crate) struct Plan {
    /// Candidates, in the order of PATH.
    pub(crate) programs: Vec<CString>,
    pub(crate) argv: Vec<CString>,
    pub(crate) envp: Vec<CString>,
    pub(crate) cwd: CString,
    pub(crate) rlimits: Vec<Rlimit>,
    /// Its control group, if it has one of its own: see [`Own`](crate::groups::Own).
    pub(crate) doors: Arc<Vec<OwnedFd>>,
}

impl Plan {
    /// Overwrites the variables of one that has been started.
    pub(crate) fn forget(self) {
        for variable in self.envp {
            wipe(&mut variable.into_bytes());
        }
    }

    /// What the start needs, with these for standard input, output and error, by the ways of a place.
    pub(crate) fn launch(&self, stdio: [&OwnedFd; 3], ways: Ways) -> Launch<'_> {
        Launch {
            programs: &self.programs,
            argv: &self.argv,
            envp: &self.envp,
            cwd: &self.cwd,
            rlimits: &self.rlimits,
            doors: self.doors.iter().map(AsRawFd::as_raw_fd).collect(),
            stdio: stdio.map(AsRawFd::as_raw_fd),
            umask: ways.umask,
            borrows: ways.borrows,
        }
    }
}

/// Plans what runs after a stop, where there is such a thing: in the job's own surroundings.
pub(crate) fn clean_up(spec: &CellSpec, own_env: &[Variable]) -> Result<Option<Plan>, String> {
    if spec.on_cancel.is_empty() {
        return Ok(None);
    }
    let spec = CellSpec { argv: spec.on_cancel.clone(), ..spec.clone() };
    plan(&spec, own_env).map(Some).map_err(|text| format!("on_cancel: {text}"))
}

/// Plans the start of `spec`. Error: what about it cannot be run.
pub(crate) fn plan(spec: &CellSpec, own_env: &[Variable]) -> Result<Plan, String> {
    let argv: Vec<CString> = spec
        .argv
        .iter()
        .map(|item| match item.as_str() {
            SCRIPT if spec.script_path.is_empty() => Err("argv names {script}, and there is none".to_owned()),
            SCRIPT => text(spec.script_path.as_str(), "script_path"),
            item => text(item, "argv"),
        })
        .collect::<Result<_, _>>()?;
    let Some(program) = argv.first().map(|first| first.as_bytes().to_vec()).filter(|first| !first.is_empty()) else {
        return Err("argv names no program".to_owned());
    };
    let env = environment(spec, own_env)?;
    let path = env.iter().find(|(key, _)| key == b"PATH").map_or(USUAL_PATH, |(_, value)| value);
    let programs = candidates(&program, path).into_iter().map(|path| text(path, "argv")).collect::<Result<_, _>>()?;
    let envp = env.into_iter().map(|(key, value)| text([key, value].join(&b'='), "env")).collect::<Result<_, _>>()?;
    let cwd = text(if spec.cwd.is_empty() { "/" } else { spec.cwd.as_str() }, "cwd")?;
    let rlimits = spec.rlimits.iter().map(within_ours).collect();
    Ok(Plan { programs, argv, envp, cwd, rlimits, doors: Arc::default() })
}

fn text(bytes: impl Into<Vec<u8>>, field: &str) -> Result<CString, String> {
    CString::new(bytes).map_err(|_| format!("{field} holds a zero byte"))
}

/// The job's variables are complete: nothing is inherited but the names asked for, where they are not set.
fn environment(spec: &CellSpec, own_env: &[Variable]) -> Result<Vec<Variable>, String> {
    if let Some((key, _)) = spec.env.iter().find(|(key, _)| key.is_empty() || key.contains(&b'=')) {
        return Err(format!("env has the name {:?}, which no variable can have", String::from_utf8_lossy(key)));
    }
    let mut env = spec.env.clone();
    let asked = |key: &[u8]| {
        spec.inherit_env.iter().any(|name| match name.as_str() {
            ALL_NAMES => !NOT_INHERITED.contains(&key),
            name => name.as_bytes() == key,
        })
    };
    for (key, value) in own_env {
        if asked(key) && !spec.env.iter().any(|(set, _)| set == key) {
            env.push((key.clone(), value.clone()));
        }
    }
    Ok(env)
}

/// This process's own variables, as bytes.
pub(crate) fn own_env() -> Vec<Variable> {
    std::env::vars_os().map(|(key, value): (OsString, OsString)| (key.into_vec(), value.into_vec())).collect()
}

fn candidates(program: &[u8], path: &[u8]) -> Vec<Vec<u8>> {
    if program.contains(&b'/') {
        return vec![program.to_vec()];
    }
    path.split(|byte| *byte == b':')
        // An empty part means the working directory, by an old custom that has cost many people dearly.
        .filter(|folder| !folder.is_empty())
        .map(|folder| [folder, program].join(&b'/'))
        .collect()
}

/// A limit above our own hard one could not be set, and ours binds anyway.
fn within_ours(limit: &Rlimit) -> Rlimit {
    let most = sys::hard_limit(limit.resource).unwrap_or(u64::MAX);
    Rlimit { resource: limit.resource, soft: limit.soft.min(limit.hard).min(most), hard: limit.hard.min(most) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> CellSpec {
        CellSpec {
            argv: vec!["bash".into(), "{script}".into(), "a b".into()],
            env: vec![(b"PATH".to_vec(), b"/bin::/x/y".to_vec()), (b"A".to_vec(), b"\xff=".to_vec())],
            cwd: "/workspace".into(),
            script_path: "/workspace/s".into(),
            ..CellSpec::default()
        }
    }

    fn shown(texts: &[CString]) -> Vec<String> {
        texts.iter().map(|text| text.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn programs_follow_the_path_and_the_script_has_its_place() {
        let plan = plan(&spec(), &[]).expect("can be run");
        assert_eq!(shown(&plan.programs), ["/bin/bash", "/x/y/bash"]);
        assert_eq!(shown(&plan.argv), ["bash", "/workspace/s", "a b"]);
        assert_eq!(plan.envp[1].as_bytes(), b"A=\xff=");
    }

    #[test]
    fn a_path_is_taken_as_it_is_and_no_path_is_the_usual_one() {
        let with = |argv: &str| {
            let spec = CellSpec { argv: vec![argv.into()], ..CellSpec::default() };
            shown(&plan(&spec, &[]).expect("can be run").programs)
        };
        assert_eq!(with("./x"), ["./x"]);
        assert_eq!(with("x").len(), 6);
    }

    #[test]
    fn only_what_is_asked_for_is_inherited() {
        let own = [("PATH", "/image"), ("HOME", "/root"), ("LANG", "C"), ("SECRET", "s")]
            .map(|(key, value)| (key.as_bytes().to_vec(), value.as_bytes().to_vec()));
        let with = |inherit: &[&str]| {
            let inherit_env = inherit.iter().map(|name| (*name).to_owned()).collect();
            let spec = CellSpec { inherit_env, ..spec() };
            shown(&plan(&spec, &own).expect("can be run").envp[2..])
        };
        assert!(with(&[]).is_empty());
        assert_eq!(with(&["LANG", "PATH", "NONE"]), ["LANG=C"]);
        assert_eq!(with(&["*"]), ["LANG=C", "SECRET=s"]);
        assert_eq!(with(&["*", "HOME"]), ["HOME=/root", "LANG=C", "SECRET=s"]);
    }

    #[test]
    fn what_cannot_be_run_is_said() {
        let refused = |change: fn(&mut CellSpec)| {
            let mut spec = spec();
            change(&mut spec);
            plan(&spec, &[]).expect_err("cannot be run")
        };
        assert!(refused(|spec| spec.argv.clear()).contains("no program"));
        assert!(refused(|spec| spec.argv[0].clear()).contains("no program"));
        assert!(refused(|spec| spec.argv[2] = "a\0b".into()).contains("argv"));
        assert!(refused(|spec| spec.script_path.clear()).contains("{script}"));
        assert!(refused(|spec| spec.env[1].0 = b"A=B".to_vec()).contains("A=B"));
        assert!(refused(|spec| spec.env[1].1 = b"\0".to_vec()).contains("env"));
        assert!(refused(|spec| spec.cwd = "\0".into()).contains("cwd"));
    }

    #[test]
    fn limits_stay_within_ours() {
        const NOFILE: u32 = 7;
        let ours = sys::hard_limit(NOFILE).expect("known");
        let asked = Rlimit { resource: NOFILE, soft: u64::MAX, hard: u64::MAX };
        assert_eq!(within_ours(&asked), Rlimit { resource: NOFILE, soft: ours, hard: ours });
    }
}

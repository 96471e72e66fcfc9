//! Keys that this process is given: in a variable, in a file that a variable names, or as a credential of systemd's.
//!
//! A file is read only if nobody else can write it and strangers cannot read it: whose key it has rules what runs here.

use crate::config::operator_file::{self, Whose};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Keys have 68 characters.
const LARGEST: u64 = 4096;
/// Where systemd says that credentials are.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// A key that a process can be given, by the ways in which it can.
#[derive(Debug, Clone, Copy)]
pub(super) struct GivenKey {
    /// The variable; with `_FILE` behind it, the variable that names a file.
    pub(super) variable: &'static str,
    /// The name of the credential.
    pub(super) credential: &'static str,
}

/// Of who calls the API.
pub(super) const API: GivenKey = GivenKey { variable: "JOBCELL_API_KEY", credential: "jobcell-api-key" };
/// Of an agent, at its server.
pub(super) const AGENT: GivenKey = GivenKey { variable: "JOBCELL_AGENT_KEY", credential: "jobcell-agent-key" };
/// With which an agent gets in once.
pub(super) const JOIN: GivenKey = GivenKey { variable: "JOBCELL_JOIN_TOKEN", credential: "jobcell-join-token" };

impl GivenKey {
    /// The key; `None` when none was given. Errors: a file that was named cannot be read, or others can write or read it.
    pub(super) fn read(&self) -> Result<Option<String>, String> {
        self.read_with(&|name| std::env::var_os(name))
    }

    fn read_with(&self, variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Option<String>, String> {
        let said = |name: &str| variable(name).filter(|value| !value.is_empty());
        if let Some(key) = said(self.variable) {
            let text = key.into_string().map_err(|_| format!("{}: it is no text", self.variable))?;
            return Ok(Some(text.trim().to_owned()));
        }
        let named = format!("{}_FILE", self.variable);
        if let Some(file) = said(&named) {
            return of_file(Path::new(&file), Whose::Kept).map(Some).map_err(|reason| format!("{named}: {reason}"));
        }
        // Who gives a service credentials for something else gives none here.
        let credential = said(CREDENTIALS).map(|folder| PathBuf::from(folder).join(self.credential));
        match credential.filter(|path| path.exists()) {
            // systemd lets only the service read it, by a way that the mode does not always show.
            Some(path) => {
                let read = of_file(&path, Whose::Operator);
                read.map(Some).map_err(|reason| format!("credential {}: {reason}", self.credential))
            }
            None => Ok(None),
        }
    }
}

/// The key in a file. Errors: why it is not read, and what helps.
pub(super) fn of_file(path: &Path, whose: Whose) -> Result<String, String> {
    let (_, text) = operator_file::read(path, LARGEST, whose, "name another file");
    let text = text.map_err(|(reason, fix)| format!("{}: {reason}; {fix}", path.display()))?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_comes_from_a_variable_a_file_or_a_credential_in_this_order() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).expect("writes");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("sets");
            path
        };
        let (named, given) = (file("key", "jca_file\n"), file("jobcell-agent-key", "jca_credential\n"));
        let read = |variables: &[(&str, &Path)]| {
            let all: BTreeMap<&str, OsString> = variables.iter().map(|(name, value)| (*name, value.into())).collect();
            AGENT.read_with(&|name| all.get(name).cloned())
        };
        let (variable, folder) = (("JOBCELL_AGENT_KEY", Path::new("jca_variable")), (CREDENTIALS, dir.path()));
        let by_file = ("JOBCELL_AGENT_KEY_FILE", named.as_path());
        let key = |text: &str| Ok(Some(text.to_owned()));
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[folder]), key("jca_credential"));
        assert_eq!(read(&[folder, by_file]), key("jca_file"));
        assert_eq!(read(&[folder, by_file, variable]), key("jca_variable"));
        assert_eq!(read(&[("JOBCELL_AGENT_KEY", Path::new("")), by_file]), key("jca_file"));
        std::fs::remove_file(&given).expect("removes");
        assert_eq!(read(&[folder]), Ok(None), "credentials for something else");

        let mode = |mode| std::fs::set_permissions(&named, std::fs::Permissions::from_mode(mode)).expect("sets");
        mode(0o640);
        assert_eq!(read(&[by_file]), key("jca_file"), "a group that root lets read it");
        for (bad, what) in [(0o644, "strangers can read it"), (0o620, "others than its owner can write it")] {
            mode(bad);
            let error = read(&[by_file]).expect_err("is refused");
            assert!(error.starts_with("JOBCELL_AGENT_KEY_FILE: ") && error.contains(what), "{error}");
        }
        let error = read(&[("JOBCELL_AGENT_KEY_FILE", Path::new("/nowhere/key"))]).expect_err("is not there");
        assert!(error.contains("/nowhere/key"), "{error}");
    }
}

//! The seccomp profiles, as the engine takes them.
//!
//! Owns their texts: ours, and the one that an operator may put in place of our default. Never the engine's, which differs from version to
//! version and lets through what it should not.

use crate::job::{Cause, MismatchLine, Seccomp};
use serde_json::Value;

const TEXTS: [&str; 4] = [
    include_str!("../../../seccomp/default.json"),
    include_str!("../../../seccomp/offline.json"),
    include_str!("../../../seccomp/strict.json"),
    include_str!("../../../seccomp/tripwire.json"),
];

/// The profiles of this agent.
#[derive(Debug, Clone)]
pub struct Profiles {
    /// In the order of [`Seccomp::ALL`].
    texts: [String; 4],
    least: Seccomp,
}

impl Profiles {
    /// Ours; every job gets at least `least`.
    pub fn built_in(least: Seccomp) -> Self {
        let texts = TEXTS.map(|text| bare(text).expect("a profile of ours, as a test says"));
        Self { texts, least }
    }

    /// With `own` in place of the default one. Errors: it is no profile.
    pub fn with_default(mut self, own: &str) -> Result<Self, String> {
        self.texts[Seccomp::Default as usize] = bare(own)?;
        Ok(self)
    }

    /// What a job gets that asks for `asked`. Errors: the cell cannot be as strong as the job and the operator want it.
    pub(super) fn in_force(&self, asked: Option<Seccomp>) -> Result<Seccomp, Cause> {
        Seccomp::in_force(asked, self.least).map_err(|none| {
            let mismatch = MismatchLine {
                key: "seccomp_profile".to_owned(),
                wanted: none.asked.name().to_owned(),
                got: format!("{} (docker.seccomp)", none.least.name()),
            };
            Cause::CellWeaker { mismatches: vec![mismatch] }
        })
    }

    /// Its text.
    pub(super) fn text(&self, profile: Seccomp) -> &str {
        &self.texts[profile as usize]
    }
}

/// Without the comments, which would travel with every container. Errors: it is no profile.
fn bare(text: &str) -> Result<String, String> {
    let mut profile: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let rules = profile.get_mut("syscalls").and_then(Value::as_array_mut).ok_or("it has no list `syscalls`")?;
    for rule in rules {
        if let Some(rule) = rule.as_object_mut() {
            rule.remove("comment");
        }
    }
    Ok(profile.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_has_its_own_text_and_no_comments() {
        let profiles = Profiles::built_in(Seccomp::Default);
        for profile in Seccomp::ALL {
            let text = profiles.text(profile);
            assert!(!text.contains("comment") && text.contains("SCMP_ARCH_X86_64"));
            assert_eq!(text.contains("SCMP_ACT_TRACE"), profile == Seccomp::Tripwire);
            // EAFNOSUPPORT: the answer to a job that asks for IPv4 without a network.
            assert_eq!(text.contains("\"errnoRet\":97"), profile == Seccomp::Offline);
            assert_eq!(text.contains("\"inotify_init\""), profile != Seccomp::Strict);
        }
    }

    #[test]
    fn an_own_default_takes_the_place_of_ours_only() {
        let own = r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "comment": "x"}]}"#;
        let profiles = Profiles::built_in(Seccomp::Default).with_default(own).expect("a profile");
        assert!(profiles.text(Seccomp::Default).contains(r#"[{"names":["read"]}]"#));
        assert!(profiles.text(Seccomp::Strict).contains("\"openat2\""));
        for bad in ["", "{}", "[]", "{\"syscalls\": 1}"] {
            assert!(Profiles::built_in(Seccomp::Default).with_default(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_job_that_cannot_have_what_it_asks_for_is_told() {
        let profiles = Profiles::built_in(Seccomp::Strict);
        assert_eq!(profiles.in_force(None), Ok(Seccomp::Strict));
        assert_eq!(profiles.in_force(Some(Seccomp::Default)), Ok(Seccomp::Strict));
        let refused = profiles.in_force(Some(Seccomp::Offline)).expect_err("strict has INET sockets");
        assert!(
            refused.to_string().contains("seccomp_profile is strict (docker.seccomp) instead of offline"),
            "{refused}"
        );
    }
}

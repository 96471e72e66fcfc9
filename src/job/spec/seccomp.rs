//! Which system calls a job may make.

use crate::job::Problems;
use crate::job::fields::{Fields, shown, suggestion};
use serde::Serialize;

/// A profile of system calls. What each takes away is said in seccomp/README.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Seccomp {
    /// What ordinary jobs need.
    #[default]
    Default,
    /// The same without IPv4 and IPv6 sockets.
    Offline,
    /// What shells, Python, node, C compilers, git and curl need, and no more.
    Strict,
    /// As the default; a call that no honest job makes ends the job.
    Tripwire,
}

impl Seccomp {
    /// All there are.
    pub const ALL: [Self; 4] = [Self::Default, Self::Offline, Self::Strict, Self::Tripwire];
    /// Their names.
    pub const NAMES: [&str; 4] = ["default", "offline", "strict", "tripwire"];

    /// The profile of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|profile| profile.name() == name)
    }

    /// The stable lowercase name.
    pub const fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// Whether it takes away all that `other` does: everything is at least the default, and of the others none replaces another.
    pub const fn is_at_least(self, other: Self) -> bool {
        matches!(other, Self::Default) || self as u8 == other as u8
    }

    /// What a job gets that asks for `asked` where the operator wants `least`: the one that is at least as strong as both. Errors: there is
    /// none.
    pub fn in_force(asked: Option<Self>, least: Self) -> Result<Self, NoCommonProfile> {
        match asked {
            None => Ok(least),
            Some(asked) if asked.is_at_least(least) => Ok(asked),
            Some(asked) if least.is_at_least(asked) => Ok(least),
            Some(asked) => Err(NoCommonProfile { asked, least }),
        }
    }
}

/// Neither of two profiles takes away all that the other does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoCommonProfile {
    /// What the job asks for.
    pub asked: Seccomp,
    /// What the operator wants.
    pub least: Seccomp,
}

pub(super) fn check(fields: &mut Fields<'_>, p: &mut Problems) -> Option<Seccomp> {
    let text = fields.text("seccomp", p)?;
    let found = Seccomp::named(text);
    if found.is_none() {
        p.add("seccomp", format!("`{}` is not a profile", shown(text)), suggestion(text, &Seccomp::NAMES));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_order() {
        for profile in Seccomp::ALL {
            assert_eq!(Seccomp::named(profile.name()), Some(profile));
            assert_eq!(serde_json::to_value(profile).expect("serialises"), profile.name());
        }
        assert_eq!(Seccomp::named("none"), None);
    }

    #[test]
    fn what_is_in_force_is_never_weaker_than_either_wants() {
        for least in Seccomp::ALL {
            assert_eq!(Seccomp::in_force(None, least), Ok(least));
            for asked in Seccomp::ALL {
                match Seccomp::in_force(Some(asked), least) {
                    Ok(found) => assert!(found.is_at_least(asked) && found.is_at_least(least), "{asked:?} {least:?}"),
                    Err(none) => {
                        assert_eq!(none, NoCommonProfile { asked, least });
                        assert!(!asked.is_at_least(least) && !least.is_at_least(asked));
                    }
                }
            }
        }
        assert_eq!(Seccomp::in_force(Some(Seccomp::Default), Seccomp::Strict), Ok(Seccomp::Strict));
        assert_eq!(Seccomp::in_force(Some(Seccomp::Offline), Seccomp::Default), Ok(Seccomp::Offline));
        assert!(Seccomp::in_force(Some(Seccomp::Offline), Seccomp::Strict).is_err());
    }
}

//! When a job's image is asked for at its registry.

use crate::job::Problems;
use crate::job::fields::{Fields, shown, suggestion};
use serde::Serialize;

/// When a registry is asked for an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pull {
    /// When the engine does not have it.
    #[default]
    IfAbsent,
    /// Before each job: a tag that was moved is followed. What is there already is not fetched again.
    Always,
    /// Never: the engine has it, or the job does not run.
    Never,
}

impl Pull {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::IfAbsent, Self::Always, Self::Never];
    /// Their names.
    pub const NAMES: [&str; 3] = ["if_absent", "always", "never"];

    /// The one of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|pull| pull.name() == name)
    }

    /// The stable lowercase name.
    pub const fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

pub(super) fn check(fields: &mut Fields<'_>, p: &mut Problems) -> Option<Pull> {
    let text = fields.text("pull", p)?;
    let found = Pull::named(text);
    if found.is_none() {
        p.add("pull", format!("`{}` is no way to get an image", shown(text)), suggestion(text, &Pull::NAMES));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_order() {
        for pull in Pull::ALL {
            assert_eq!(Pull::named(pull.name()), Some(pull));
            assert_eq!(serde_json::to_value(pull).expect("serialises"), pull.name());
        }
    }
}

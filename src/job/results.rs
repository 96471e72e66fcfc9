//! What a job gives back beside its output: files that its spec asks for, values that it names, how far it says it is, and its steps.
//! All of it comes from the job, so all of it is bounded.

use super::{Digest, Millis, UnixMillis};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Files that a job's own document names; the list of them has all. Fewer of those whose paths are long: an end has to fit into a request,
/// whatever a job calls its files.
const FILES_SHOWN: usize = 50;
const SHOWN_BYTES: usize = 64 * 1024;
/// Bytes that a list of files has at most.
pub const ARTIFACT_LIST_MOST: u64 = 64 << 20;
/// Bytes of a backend's reason.
const MOST_REASON: usize = 500;
/// Problems with files that are told one by one.
pub const PROBLEMS_SHOWN: usize = 32;
/// Names of files in a problem are cut to this.
const MOST_SHOWN: usize = 200;

/// Everything that a try has given back.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Results {
    /// Values by their names.
    #[serde(default)]
    pub outputs: BTreeMap<String, String>,
    /// What was wrong with what it wrote as outputs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub output_problems: Vec<String>,
    /// How far it said it was, last.
    #[serde(default)]
    pub progress: Option<Progress>,
    /// Parts that it named itself, in the order of their begins.
    #[serde(default)]
    pub steps: Vec<JobStep>,
    /// Its files; absent when none were asked for.
    #[serde(default)]
    pub artifacts: Option<Artifacts>,
}

impl Results {
    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// How far a job says it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// 0 to 100.
    pub percent: u8,
    /// In its words; at most 200 bytes.
    pub message: String,
    /// When it said so.
    pub at: UnixMillis,
    /// When it will be done, if it goes on as it did so far; absent before the first percent, and when it is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta: Option<UnixMillis>,
}

impl Progress {
    /// With the moment at which all of it is done, for a job that began at `began`: what is left takes as long as what is done.
    #[must_use]
    pub fn with_eta(self, began: Option<UnixMillis>) -> Self {
        let eta = began.filter(|_| (1..100).contains(&self.percent)).map(|began| {
            let spent = self.at.as_u64().saturating_sub(began.as_u64());
            let percent = u64::from(self.percent);
            self.at.plus(Millis::new(spent.saturating_mul(100 - percent) / percent))
        });
        Self { eta, ..self }
    }
}

/// A part of a job that it named itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStep {
    /// Its name; at most 64 bytes.
    pub name: String,
    /// When it began.
    pub began_at: UnixMillis,
    /// When it ended; absent when it never did.
    #[serde(default)]
    pub ended_at: Option<UnixMillis>,
}

/// A file of a job that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// Beneath the workspace.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u16,
    /// Last change of its content.
    pub modified_at: UnixMillis,
    /// Its content.
    pub digest: Digest,
}

/// Why a file is not kept, or a rule not kept to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactProblem {
    /// The file, or the rule's pattern; what is no text in it is escaped.
    pub path: String,
    /// Which kind of problem.
    pub code: String,
    /// In words.
    pub sentence: String,
}

impl ArtifactProblem {
    /// About this path, which may be any bytes.
    pub fn new(path: &[u8], code: &str, sentence: impl Into<String>) -> Self {
        let text: String = match std::str::from_utf8(path) {
            Ok(text) => text.chars().take(MOST_SHOWN).collect(),
            Err(_) => path.escape_ascii().to_string().chars().take(MOST_SHOWN).collect(),
        };
        Self { path: text, code: code.to_owned(), sentence: sentence.into() }
    }
}

/// The files of a try.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Artifacts {
    /// How many are kept.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Everything that the rules mean is kept.
    pub complete: bool,
    /// The first of them, by their paths.
    pub files: Vec<Artifact>,
    /// The document with all of them; absent when there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub list: Option<Digest>,
    /// What is not kept, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<ArtifactProblem>,
    /// Problems that are not named for want of room.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_problems: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Artifacts {
    /// Tells of a problem.
    pub fn tell(&mut self, problem: ArtifactProblem) {
        if self.problems.len() < PROBLEMS_SHOWN {
            self.problems.push(problem);
        } else {
            self.more_problems += 1;
        }
    }

    /// Those of these files that a job's document names.
    pub fn first(files: &[Artifact]) -> Vec<Artifact> {
        let mut left = SHOWN_BYTES;
        let fits = |file: &&Artifact| {
            // As it is written: what is no letter takes up to six bytes.
            let bytes = serde_json::to_string(&file.path).map_or(usize::MAX, |path| path.len());
            let fits = bytes <= left;
            left = left.saturating_sub(bytes);
            fits
        };
        files.iter().take(FILES_SHOWN).take_while(fits).cloned().collect()
    }

    /// They are kept nowhere, for this reason.
    pub fn not_delivered(&mut self, reason: &str) {
        (self.complete, self.list) = (false, None);
        (self.count, self.bytes) = (0, 0);
        self.files.clear();
        let sentence = format!("the backend has none of them: {}", super::one_line(reason, MOST_REASON));
        self.problems.insert(0, ArtifactProblem::new(b"", "not_delivered", sentence));
        self.problems.truncate(PROBLEMS_SHOWN);
    }

    /// What the names of those begin with who hold contents for an attempt's files.
    pub const HOLDERS: &str = "artifacts:";

    /// Who holds the contents of an attempt's files.
    pub fn holder(attempt: super::AttemptId) -> String {
        format!("{}{attempt}", Self::HOLDERS)
    }
}

/// Whether a path may name an artifact: what comes from a cell is no path until it was looked at.
pub fn is_artifact_path(path: &str) -> bool {
    !path.is_empty()
        && path.len() <= 4095
        && !path.contains('\0')
        && path.split('/').all(|name| !name.is_empty() && name != "." && name != ".." && name.len() <= 255)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_takes_as_long_as_what_is_done() {
        let at = |percent| Progress { percent, message: String::new(), at: UnixMillis::new(3000), eta: None };
        let eta =
            |percent, began: Option<u64>| at(percent).with_eta(began.map(UnixMillis::new)).eta.map(UnixMillis::as_u64);
        assert_eq!(eta(25, Some(1000)), Some(9000));
        assert_eq!(eta(50, Some(1000)), Some(5000));
        assert_eq!((eta(0, Some(1000)), eta(100, Some(1000)), eta(50, None)), (None, None, None));
        assert_eq!(eta(1, Some(9000)), Some(3000), "a clock that was set is not believed");
    }

    #[test]
    fn paths_that_lead_elsewhere_are_none() {
        for good in ["a", "a/b.txt", "..a/b..", "a\nb", "ü/日"] {
            assert!(is_artifact_path(good), "{good:?}");
        }
        for bad in ["", "/a", "a/", "a//b", ".", "..", "a/../b", "./a", "a\0b", "a/..", &"x".repeat(256)] {
            assert!(!is_artifact_path(bad), "{bad:?}");
        }
    }

    #[test]
    fn an_end_names_as_many_files_as_fit_into_it() {
        let file = |path: String| Artifact {
            path,
            size: 1,
            mode: 0o644,
            modified_at: UnixMillis::new(0),
            digest: Digest::of(b"x"),
        };
        let plain: Vec<Artifact> = (0..100).map(|n| file(format!("out/{n}"))).collect();
        assert_eq!(Artifacts::first(&plain).len(), FILES_SHOWN);
        let wild: Vec<Artifact> = (0..100).map(|n| file(format!("{n}{}", "/\u{1}".repeat(2000)))).collect();
        let shown = serde_json::to_vec(&Artifacts::first(&wild)).expect("is written");
        assert!(shown.len() < SHOWN_BYTES + 10_000 && Artifacts::first(&wild).len() >= 4, "{}", shown.len());
    }

    #[test]
    fn problems_are_bounded_and_their_names_are_text() {
        let mut artifacts = Artifacts::default();
        for n in 0..100 {
            artifacts.tell(ArtifactProblem::new(format!("{n}{}", "x".repeat(4000)).as_bytes(), "link", "a link"));
        }
        assert_eq!((artifacts.problems.len(), artifacts.more_problems), (PROBLEMS_SHOWN, 68));
        assert_eq!(artifacts.problems[0].path.len(), MOST_SHOWN);
        assert_eq!(ArtifactProblem::new(b"a\xff\n", "bad_name", "").path, "a\\xff\\n");
    }
}

//! Patterns of an operator's policy, and what they match. Matching takes at most pattern times text, whatever is in them.

use std::fmt;

/// Longest pattern, bytes: as long as an image reference can be.
const LONGEST: usize = 455;

/// A text in which `*` stands for any run of characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Glob(String);

impl Glob {
    /// Errors: what is wrong with it.
    pub(crate) fn new(text: &str) -> Result<Self, &'static str> {
        match text {
            "" => Err("is empty"),
            _ if text.len() > LONGEST => Err("is longer than 455 bytes"),
            _ if text.chars().any(char::is_control) => Err("has control characters"),
            _ => Ok(Self(text.to_owned())),
        }
    }

    pub(crate) fn matches(&self, text: &str) -> bool {
        glob(&self.0, text)
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn glob(pattern: &str, text: &str) -> bool {
    run(pattern.as_bytes(), text.as_bytes(), |part| *part == b'*', |part, byte| part == byte)
}

/// Whether `pattern` matches all of `items`, where what is `many` stands for any number of them.
fn run<P, T>(pattern: &[P], items: &[T], many: impl Fn(&P) -> bool, one: impl Fn(&P, &T) -> bool) -> bool {
    let (mut p, mut i) = (0, 0);
    // The last `many`, and up to where it reaches: an earlier one need never be looked at again.
    let mut back = None;
    loop {
        match (pattern.get(p), items.get(i)) {
            (Some(part), _) if many(part) => {
                back = Some((p, i));
                p += 1;
            }
            (None, None) => return true,
            (Some(_), None) => return false,
            (Some(part), Some(item)) if one(part, item) => (p, i) = (p + 1, i + 1),
            (_, Some(_)) => {
                let Some((at, reach)) = back else { return false };
                (p, i) = (at + 1, reach + 1);
                back = Some((at, reach + 1));
            }
        }
    }
}

/// An argument list: each element is a glob, and an element `**` stands for any number of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Argv(Vec<String>);

impl Argv {
    /// Errors: what is wrong with it.
    pub(crate) fn new(elements: Vec<String>) -> Result<Self, &'static str> {
        match elements.first() {
            None => Err("is empty"),
            Some(first) if first == "**" => Err("begins with `**`, so it would allow every program"),
            Some(_) => Ok(Self(elements)),
        }
    }

    pub(crate) fn matches(&self, argv: &[String]) -> bool {
        run(&self.0, argv, |part| part == "**", |part, item| glob(part, item))
    }
}

/// Images by name, and by tag or digest where these are given.
///
/// A name is taken apart as the engine does: without a host it is of docker.io, without a folder there of `library`. `*` stands for
/// any run of characters within one part between slashes, a part `**` for any number of parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImagePattern {
    text: String,
    name: Vec<String>,
    version: Version,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Version {
    Any,
    Tag(String),
    Digest(String),
}

/// A reference in its parts.
struct Reference<'a> {
    name: Vec<&'a str>,
    tag: Option<&'a str>,
    digest: Option<&'a str>,
}

impl<'a> Reference<'a> {
    fn of(text: &'a str) -> Self {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        // A colon after the last slash starts the tag; one before it belongs to the registry's port.
        let last = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[last..].find(':') {
            Some(colon) => (&rest[..last + colon], Some(&rest[last + colon + 1..])),
            None => (rest, None),
        };
        let mut parts: Vec<&str> = name.split('/').collect();
        let first = parts[0];
        let has_host = parts.len() > 1 && (first.contains(['.', ':']) || first == "localhost");
        // What begins with any number of parts begins with any host too.
        if !has_host && first != "**" {
            parts.insert(0, "docker.io");
        }
        if parts[0] == "index.docker.io" {
            parts[0] = "docker.io";
        }
        if parts.len() == 2 && parts[0] == "docker.io" && parts[1] != "**" {
            parts.insert(1, "library");
        }
        Self { name: parts, tag, digest }
    }
}

impl ImagePattern {
    /// Errors: what is wrong with it.
    pub(crate) fn new(text: &str) -> Result<Self, &'static str> {
        Glob::new(text)?;
        let known = |c: char| c.is_ascii_alphanumeric() || "._-/:@*".contains(c);
        if !text.chars().all(known) {
            return Err("has characters that no image's name has");
        }
        let Reference { name, tag, digest } = Reference::of(text);
        if name.iter().any(|part| part.is_empty()) {
            return Err("has an empty part between slashes");
        }
        if name.iter().any(|part| part.contains("**") && *part != "**") {
            return Err("has `**` beside other characters; it stands for whole parts between slashes");
        }
        let version = match (tag, digest) {
            (None, None) => Version::Any,
            (Some(""), _) => return Err("has an empty tag"),
            (Some(tag), None) => Version::Tag(tag.to_owned()),
            (None, Some(digest)) => Version::Digest(digest.to_owned()),
            (Some(_), Some(_)) => return Err("has a tag and a digest; an engine looks at the digest alone"),
        };
        if let Version::Digest(digest) = &version {
            let hex = digest.strip_prefix("sha256:");
            if !hex.is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))) {
                return Err("has a digest that is not sha256: and 64 hex characters");
            }
        }
        let name = name.into_iter().map(str::to_owned).collect();
        Ok(Self { text: text.to_owned(), name, version })
    }

    pub(crate) fn matches(&self, image: &str) -> bool {
        let Reference { name, tag, digest } = Reference::of(image);
        let version = match &self.version {
            Version::Any => true,
            // An engine that is given a digest does not look at the tag, so the tag says nothing.
            Version::Tag(wanted) => digest.is_none() && glob(wanted, tag.unwrap_or("latest")),
            Version::Digest(wanted) => digest == Some(wanted),
        };
        version && run(&self.name, &name, |part| part == "**", |part, item| glob(part, item))
    }
}

impl fmt::Display for ImagePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Whether a reference names its content.
pub(crate) fn has_digest(image: &str) -> bool {
    Reference::of(image).digest.is_some()
}

/// Whether an engine could take a reference for an image's id, or the beginning of one.
pub(crate) fn may_be_id(image: &str) -> bool {
    let hex = image.strip_prefix("sha256:").unwrap_or(image);
    !hex.is_empty() && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What a glob means, as slowly as it can be said.
    fn slow(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern, text) {
            ([], []) => true,
            ([b'*', rest @ ..], _) => (0..=text.len()).any(|skip| slow(rest, &text[skip..])),
            ([one, rest @ ..], [byte, more @ ..]) => one == byte && slow(rest, more),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn globs_mean_what_they_say(pattern in "[ab*]{0,7}", text in "[ab]{0,9}") {
            prop_assert_eq!(glob(&pattern, &text), slow(pattern.as_bytes(), text.as_bytes()), "{} {}", pattern, text);
        }
    }

    proptest! {
        /// Who writes a reference down as it is means that image, under each of its names, and no image of another host.
        #[test]
        fn a_reference_is_a_pattern_for_itself(
            host in prop::option::of("[a-z]{1,3}\\.[a-z]{2}(:[1-9][0-9]{0,3})?"), path in "[a-z]{1,3}(/[a-z]{1,3}){0,2}", tag in "(:[a-z0-9.]{1,4})?",
        ) {
            let short = format!("{path}{tag}");
            let full = match (&host, path.contains('/')) {
                (Some(host), _) => format!("{host}/{short}"),
                (None, true) => format!("docker.io/{short}"),
                (None, false) => format!("docker.io/library/{short}"),
            };
            let own = if host.is_some() { full.clone() } else { short };
            for (pattern, reference) in [(&own, &own), (&own, &full), (&full, &own)] {
                prop_assert!(image(pattern, reference), "{} {}", pattern, reference);
            }
            let foreign = format!("evil.example/{own}");
            prop_assert!(!image(&own, &foreign) && !image(&full, &foreign));
        }
    }

    fn image(pattern: &str, reference: &str) -> bool {
        ImagePattern::new(pattern).expect("a pattern").matches(reference)
    }

    #[test]
    fn images_are_matched_as_an_engine_reads_them() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let pinned = |name: &str| format!("{name}@{digest}");
        for (pattern, reference) in [
            ("debian", "debian:12"),
            ("debian", "docker.io/library/debian"),
            ("docker.io/library/*", "debian"),
            ("jobcell/*", "jobcell/bash:1"),
            ("jobcell/**", "docker.io/jobcell/a/b"),
            ("**", "r.example:5000/a/b/c:1"),
            ("r.example:5000/team/**", "r.example:5000/team/x"),
            ("*.example/x", "r.example/x"),
            ("debian:12*", "debian:12.5"),
            ("debian:latest", "debian"),
            ("debian", &pinned("debian:12")),
            (&pinned("debian"), &pinned("debian:12")),
        ] {
            assert!(image(pattern, reference), "{pattern} {reference}");
        }
        for (pattern, reference) in [
            ("debian", "evil/debian"),
            ("debian", "r.example/debian"),
            ("debian", "r.example/library/debian"),
            ("jobcell/*", "r.example/jobcell/bash"),
            ("jobcell/*", "jobcell/a/b"),
            ("jobcell/*", "jobcell:1"),
            ("r.example:5000/team/**", "r.example/team/x"),
            ("r.example/team/**", "r.example.evil/team/x"),
            ("*", "r.example/x"),
            ("debian:12", "debian:12.5"),
            ("debian:12", "debian"),
            // The digest decides what runs, whatever the tag says.
            ("debian:12", &pinned("debian:12")),
            (&pinned("debian"), "debian"),
        ] {
            assert!(!image(pattern, reference), "{pattern} {reference}");
        }
        for bad in ["", "a b", "a//b", "a/", "a:", "a/x**", "a@sha256:1", &pinned("a:1"), "имя", &"a".repeat(500)] {
            assert!(ImagePattern::new(bad).is_err(), "{bad}");
        }
        assert!(has_digest(&pinned("a:1")) && !has_digest("a:1"));
    }

    #[test]
    fn what_is_only_hex_may_be_an_id() {
        let long = "a".repeat(64);
        for id in ["9c7a54a9a43c", &long, &format!("sha256:{long}"), "sha256:9c7a", "cafe"] {
            assert!(may_be_id(id), "{id}");
        }
        for name in ["debian", "cafe:1", "docker.io/library/cafe", "r.example/9c7a", &format!("cafe@sha256:{long}"), ""]
        {
            assert!(!may_be_id(name), "{name}");
        }
    }

    #[test]
    fn arguments_are_matched_one_by_one() {
        let own = |parts: &[&str]| parts.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>();
        let matches = |pattern: &[&str], argv: &[&str]| Argv::new(own(pattern)).expect("a pattern").matches(&own(argv));
        assert!(matches(&["make", "*"], &["make", "all tests"]));
        assert!(matches(&["git", "clone", "https://r.example/*", "**"], &["git", "clone", "https://r.example/a/b"]));
        assert!(matches(&["ls", "**"], &["ls", "-l", "/"]) && matches(&["ls", "**"], &["ls"]));
        assert!(!matches(&["make", "*"], &["make"]) && !matches(&["make", "*"], &["make", "a", "b"]));
        assert!(!matches(&["make"], &["make; rm"]) && !matches(&["make"], &["/tmp/make"]));
        assert!(Argv::new(vec![]).is_err() && Argv::new(own(&["**"])).is_err());
    }
}

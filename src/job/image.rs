//! Names of images, taken apart as an engine does it, and what a name was found to stand for. Pure.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The registry of a name that names none.
pub const DEFAULT_REGISTRY: &str = "docker.io";

/// A name in full: `registry/path:tag`, or `registry/path@sha256:…`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageName {
    registry: String,
    path: String,
    version: Version,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Version {
    Tag(String),
    Digest(String),
}

impl ImageName {
    /// Takes a reference apart. `None` for what is no name: an image's id, or an ill-formed reference. A tag beside a digest says nothing:
    /// the digest alone decides.
    pub fn parse(reference: &str) -> Option<Self> {
        // An id is no name, however much it looks like one with a tag.
        if reference.starts_with("sha256:") || super::spec::image_fault(reference).is_some() {
            return None;
        }
        let (rest, digest) = match reference.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (reference, None),
        };
        // A colon after the last slash starts the tag; one before it belongs to the registry's port.
        let last = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[last..].find(':') {
            Some(colon) => (&rest[..last + colon], &rest[last + colon + 1..]),
            None => (rest, "latest"),
        };
        let (registry, path) = match name.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path),
            _ => (DEFAULT_REGISTRY, name),
        };
        let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
        let path = match registry {
            DEFAULT_REGISTRY if !path.contains('/') => format!("library/{path}"),
            _ => path.to_owned(),
        };
        let version = digest.map_or_else(|| Version::Tag(tag.to_owned()), |digest| Version::Digest(digest.to_owned()));
        Some(Self { registry: registry.to_owned(), path, version })
    }

    /// Host of the registry, with the port where there is one.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Registry and path, without tag or digest: what an engine pulls from.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.registry, self.path)
    }

    /// Tag, or digest.
    pub fn version(&self) -> &str {
        match &self.version {
            Version::Tag(text) | Version::Digest(text) => text,
        }
    }

    /// Whether it says which content it has.
    pub fn is_pinned(&self) -> bool {
        matches!(self.version, Version::Digest(_))
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self { registry, path, .. }, mark) = (self, if self.is_pinned() { '@' } else { ':' });
        write!(f, "{registry}/{path}{mark}{}", self.version())
    }
}

/// The image that a job ran in: what its name stood for at that moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedImage {
    /// The name, as the job or its preset has it.
    pub reference: String,
    /// The engine's id of the image: the cell was made of this one, whatever became of the name.
    pub id: String,
    /// `repository@sha256:…`, by which the same content can be had again; absent for an image that never was in a registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// A registry was asked for it.
    #[serde(default)]
    pub pulled: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart_as_an_engine_does() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, registry, full) in [
            ("debian", "docker.io", "docker.io/library/debian:latest"),
            ("debian:12", "docker.io", "docker.io/library/debian:12"),
            ("jobcell/bash:1", "docker.io", "docker.io/jobcell/bash:1"),
            ("index.docker.io/x", "docker.io", "docker.io/library/x:latest"),
            ("docker.io/library/x:2", "docker.io", "docker.io/library/x:2"),
            ("localhost/x", "localhost", "localhost/x:latest"),
            ("127.0.0.1:5000/a/b:v1", "127.0.0.1:5000", "127.0.0.1:5000/a/b:v1"),
            (&format!("r.example/x:1@{digest}"), "r.example", &format!("r.example/x@{digest}")),
            // As an engine has no image of this name, it would take any whose id begins so; in full it cannot.
            ("7f26dd249869", "docker.io", "docker.io/library/7f26dd249869:latest"),
        ] {
            let name = ImageName::parse(text).expect(text);
            assert_eq!((name.registry(), name.to_string().as_str()), (registry, full));
            assert_eq!(name.is_pinned(), text.contains('@'));
            assert_eq!(ImageName::parse(&name.to_string()), Some(name.clone()), "in full it is the same");
            assert!(name.to_string().starts_with(&name.repository()));
        }
        for none in [digest.as_str(), "", "-x", "A", "a b"] {
            assert_eq!(ImageName::parse(none), None, "{none}");
        }
    }
}

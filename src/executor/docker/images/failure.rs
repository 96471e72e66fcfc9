//! Why an image did not come, told from what the engine says. Pure.
//!
//! An engine hands a registry's answers on as sentences, and its own troubles in the same way; the sentences here are those of Docker 20.10
//! to 28. What is not recognised is the engine's failure, never the job's.

use crate::job::{Cause, ImageName, Millis};

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// There is no such image, or the engine has none and nobody may be asked.
    Missing(String),
    /// Not for these credentials, or not without some.
    Denied(String),
    /// What came is not what was promised.
    Corrupt(String),
    /// No answer, or none of a registry.
    Unreachable(String),
    /// Too many requests.
    Limited(String),
    /// Out of time; with how far it was.
    Late(Millis, String),
    /// The engine failed, or its disk is full.
    Engine(String),
    /// The engine does not answer: nothing can be made here.
    NoEngine(String),
}

/// Parts of sentences, and what one of them means.
type Sign = (&'static [&'static str], fn(String) -> Failure);

/// Sentences by what they mean; the first that is found counts.
const SAID: [Sign; 6] = [
    (&["toomanyrequests", "too many requests", "status: 429", "rate limit"], Failure::Limited),
    (
        &[
            "unauthorized",
            "access denied",
            "access to the resource is denied",
            "authentication required",
            "no basic auth credentials",
            "incorrect username or password",
            "denied:",
            "401 ",
            "403 ",
        ],
        Failure::Denied,
    ),
    (
        &[
            "manifest unknown",
            "name unknown",
            "name_unknown",
            "no matching manifest",
            "repository name not known",
            "not found: manifest",
        ],
        Failure::Missing,
    ),
    (&["no space left", "disk quota exceeded", "read-only file system"], Failure::Engine),
    (
        &[
            "verification failed",
            "digest mismatch",
            "does not match digest",
            "unexpected digest",
            "invalid checksum",
            "failed to register layer",
            "unexpected eof",
            "unexpected end of json",
            "invalid character",
            "gzip:",
            "archive/tar",
            "unsupported media type",
            "mediatype in manifest",
            "missing signature key",
            "size mismatch",
            "blob unknown",
            "unknown blob",
        ],
        Failure::Corrupt,
    ),
    (
        &[
            "connection refused",
            "connection reset",
            "no such host",
            "no route to host",
            "network is unreachable",
            "timeout",
            "timed out",
            "deadline exceeded",
            "dial tcp",
            "server misbehaving",
            "certificate",
            "tls:",
            "http response to https",
            "unexpected http",
            "unexpected status",
            "http status",
            "server error",
            "service unavailable",
            "bad gateway",
            "unknown: ",
            "eof",
            "proxyconnect",
        ],
        Failure::Unreachable,
    ),
];

/// What a sentence of the engine about a pull of `name` means. The name itself, which is whatever a job has written, is passed over.
pub(super) fn read(status: Option<u16>, said: &str, name: &ImageName) -> Failure {
    let mut text = said.to_ascii_lowercase();
    let repository = name.repository().to_ascii_lowercase();
    let path = repository.strip_prefix(&format!("{}/", name.registry().to_ascii_lowercase())).unwrap_or(&repository);
    // With what engines add to a name, and without.
    for part in [&repository, path, path.strip_prefix("library/").unwrap_or(path), &name.version().to_ascii_lowercase()]
    {
        text = without(&text, part);
    }
    let found = SAID.iter().find(|(parts, _)| parts.iter().any(|part| text.contains(part)));
    match (found, status) {
        (Some((_, make)), _) => make(said.to_owned()),
        (None, Some(404)) => Failure::Missing(said.to_owned()),
        (None, _) => Failure::Engine(said.to_owned()),
    }
}

/// What stands before a name where it is one. `access denied for denied:1` has it once.
const BEFORE_NAMES: [&str; 12] =
    ["/", ":", "@", "for ", "repository ", "image ", "image: ", "reference ", "\"", "'", "`", "name "];

/// The text without a name that stands in it by itself, where names stand.
fn without(text: &str, name: &str) -> String {
    let part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find(name).filter(|_| !name.is_empty()) {
        let (before, after) = (&rest[..at], &rest[at + name.len()..]);
        out.push_str(before);
        let named = BEFORE_NAMES.iter().any(|word| out.ends_with(word));
        if !named || out.ends_with(part) || after.starts_with(part) {
            out.push_str(name);
        }
        rest = after;
    }
    out + rest
}

impl Failure {
    /// The end of a job that wanted `image`.
    pub(crate) fn cause(self, image: &str) -> Cause {
        let image = image.to_owned();
        match self {
            Self::Missing(reason) => Cause::ImageMissing { image, reason },
            Self::Denied(reason) => Cause::ImageDenied { image, reason },
            Self::Corrupt(reason) => Cause::ImageCorrupt { image, reason },
            Self::Unreachable(reason) => Cause::RegistryUnreachable { image, reason },
            Self::Limited(reason) => Cause::RegistryLimited { image, reason },
            Self::Late(limit, reached) => Cause::PullTimeout { image, limit, reached },
            Self::Engine(reason) | Self::NoEngine(reason) => Cause::EngineFailed { step: "pull".to_owned(), reason },
        }
    }

    /// Whether the registry was there and answered, for its breaker.
    pub(super) const fn answered(&self) -> bool {
        !matches!(self, Self::Unreachable(_) | Self::Late(..))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_engines_say_has_a_class() {
        for (status, said, wanted) in [
            (404, "manifest for 127.0.0.1:5000/x:1 not found: manifest unknown: manifest unknown", "image_missing"),
            (404, "no matching manifest for linux/amd64 in the manifest list entries", "image_missing"),
            (404, "repository x not found", "image_missing"),
            (500, "Head http://127.0.0.1:5000/v2/x/manifests/1: no basic auth credentials", "image_denied"),
            (500, "Get http://r/v2/x/manifests/1: unauthorized: authentication required", "image_denied"),
            (
                404,
                "pull access denied for nosuch, repository does not exist or may require 'docker login': denied: requested access to the resource is denied",
                "image_denied",
            ),
            (500, "toomanyrequests: You have reached your pull rate limit.", "registry_limited"),
            (
                500,
                "error parsing HTTP 429 response body: invalid character 'T': \"Too Many Requests\"",
                "registry_limited",
            ),
            (
                500,
                "Get http://127.0.0.1:1/v2/: dial tcp 127.0.0.1:1: connect: connection refused",
                "registry_unreachable",
            ),
            (500, "Get https://r.invalid/v2/: dial tcp: lookup r.invalid: no such host", "registry_unreachable"),
            (500, "Get https://r/v2/: x509: certificate signed by unknown authority", "registry_unreachable"),
            (
                500,
                "Get https://r/v2/: net/http: request canceled (Client.Timeout exceeded while awaiting headers)",
                "registry_unreachable",
            ),
            (500, "received unexpected HTTP status: 500 Internal Server Error", "registry_unreachable"),
            (500, "filesystem layer verification failed for digest sha256:aa", "image_corrupt"),
            (500, "manifest verification failed for digest sha256:aa", "image_corrupt"),
            (500, "unexpected EOF", "image_corrupt"),
            (
                500,
                "failed to register layer: Error processing tar file(exit status 1): unexpected EOF",
                "image_corrupt",
            ),
            (
                500,
                "failed to register layer: Error processing tar file: write /x: no space left on device",
                "engine_failed",
            ),
            (500, "something new", "engine_failed"),
        ] {
            let cause = read(Some(status), said, &name("r/x:1")).cause("x");
            assert_eq!(cause.code(), wanted, "{said}");
            assert!(cause.to_string().contains(said) && cause.hint().is_some(), "{cause}");
        }
    }

    fn name(text: &str) -> ImageName {
        ImageName::parse(text).expect("a name")
    }

    #[test]
    fn an_images_name_says_nothing_of_what_went_wrong() {
        for (image, said, wanted) in [
            ("eof:1", "manifest for eof:1 not found: manifest unknown: manifest unknown", "image_missing"),
            ("denied:timeout", "manifest for denied:timeout not found: manifest unknown", "image_missing"),
            (
                "r.example:5000/certificate/tls:v1",
                "Get https://r.example:5000/v2/certificate/tls/manifests/v1: new",
                "engine_failed",
            ),
            (
                "r.example/unauthorized:1",
                "Get https://r.example/v2/: dial tcp: lookup r.example: no such host",
                "registry_unreachable",
            ),
            ("x:1", "unexpected EOF", "image_corrupt"),
            // And what the engine says stays said.
            ("eof:1", "unexpected EOF", "image_corrupt"),
            (
                "denied:1",
                "pull access denied for denied, repository does not exist or may require 'docker login': denied: requested access to the resource is denied",
                "image_denied",
            ),
            (
                "unauthorized:1",
                "Get http://r/v2/unauthorized/manifests/1: unauthorized: authentication required",
                "image_denied",
            ),
            (
                "timeout:1",
                "Get https://registry-1.docker.io/v2/: net/http: timeout awaiting headers",
                "registry_unreachable",
            ),
            (
                "refused:1",
                "Get http://r/v2/: dial tcp 127.0.0.1:1: connect: connection refused",
                "registry_unreachable",
            ),
        ] {
            assert_eq!(read(Some(500), said, &name(image)).cause(image).code(), wanted, "{image}: {said}");
        }
    }
}

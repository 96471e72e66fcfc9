//! Image references: `[host[:port]/]name[/name…][:tag][@sha256:digest]`, and nothing else.

/// Longest reference accepted, in bytes: the distribution spec allows 255 for the name; tag and digest come on top.
const MAX_REFERENCE: usize = 255 + 1 + 128 + 1 + 71;

/// What is wrong with `reference`, or `None` when it is well formed.
pub(in crate::job) fn fault(reference: &str) -> Option<&'static str> {
    if reference.is_empty() {
        return Some("is empty");
    }
    if reference.len() > MAX_REFERENCE {
        return Some("is longer than an image reference can be");
    }
    let (rest, digest) = match reference.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (reference, None),
    };
    if let Some(digest) = digest {
        let hex = digest.strip_prefix("sha256:");
        if !hex.is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))) {
            return Some("has a digest that is not sha256: and 64 hex characters");
        }
    }
    // A colon after the last slash starts the tag; one before it belongs to the registry's port.
    let name_start = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match rest[name_start..].find(':') {
        Some(colon) => (&rest[..name_start + colon], Some(&rest[name_start + colon + 1..])),
        None => (rest, None),
    };
    if let Some(tag) = tag {
        let first = tag.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
        let others = tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
        if !(first && others && tag.len() <= 128) {
            return Some("has a tag with characters that tags cannot have");
        }
    }
    let mut parts = name.split('/').peekable();
    let first = parts.peek().copied().unwrap_or_default();
    let is_host = name.contains('/') && (first.contains(['.', ':']) || first == "localhost");
    if is_host {
        parts.next();
        if !host_ok(first) {
            return Some("has a registry host that is not a host name with an optional port");
        }
    }
    if parts.all(component_ok) {
        None
    } else {
        Some("has a name part that is not lowercase letters, digits and single . _ -")
    }
}

fn host_ok(host: &str) -> bool {
    let (name, port) = host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port)));
    let label_ok = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    name.split('.').all(label_ok) && port.is_none_or(is_port)
}

/// Digits alone: a number of Rust's may begin with a plus.
fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port > 0)
}

fn component_ok(part: &str) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let all = part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-'));
    edge(part.bytes().next()) && edge(part.bytes().next_back()) && all && !part.contains("..") && !part.contains("___")
}

#[cfg(test)]
mod tests {
    use super::fault;

    #[test]
    fn real_references_pass() {
        let digest = format!("debian@sha256:{}", "a".repeat(64));
        for good in [
            "debian",
            "debian:12",
            "jobcell/bash",
            "ghcr.io/a/b:v1",
            "localhost:5000/x",
            "r.example:443/a/b__c",
            &digest,
        ] {
            assert_eq!(fault(good), None, "{good}");
        }
    }

    #[test]
    fn tricks_do_not() {
        let long = "a".repeat(4096);
        for bad in [
            "",
            "-v",
            "--privileged",
            "3:+485/34",
            "a b",
            "A/B",
            "../x",
            "x/../y",
            "x//y",
            "/x",
            "x/",
            "x:",
            "x:-t",
            "x@sha256:zz",
            "h:99999/x",
            "h.io:/x",
            "x\n",
            "x\0",
            "имя",
            "a:b:c",
            &long,
        ] {
            assert!(fault(bad).is_some(), "{bad:?}");
        }
    }
}

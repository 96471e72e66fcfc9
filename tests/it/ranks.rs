//! A room may only use rooms of a lower rank, and only certain rooms may name certain crates.

use super::stage::root;
use std::path::{Path, PathBuf};

const RANKS: [(&str, u8); 25] = [
    ("crc", 0),
    ("job", 0),
    ("config", 1),
    ("protocol", 1),
    ("telemetry", 1),
    ("supervise", 1),
    ("net", 1),
    ("database", 1),
    ("archive", 1),
    ("crash", 1),
    ("queue", 2),
    ("journal", 2),
    ("logstore", 2),
    ("blobs", 2),
    ("secrets", 2),
    ("audit", 2),
    ("tls", 2),
    ("backend", 3),
    ("egress", 4),
    ("backup", 4),
    ("executor", 5),
    ("admission", 5),
    ("agent", 6),
    ("server", 6),
    ("cli", 7),
];

/// Crates that only these places may name.
const CONFINED: [(&str, &[&str]); 19] = [
    ("crc32c", &["src/crc"]),
    ("russh", &["src/executor/ssh"]),
    ("bollard", &["src/executor/docker"]),
    ("chacha20poly1305", &["src/secrets"]),
    ("figment", &["src/config"]),
    ("axum", &["src/server"]),
    ("hyper_util", &["src/server/connections"]),
    ("rusqlite", &["src/database", "src/queue", "src/journal", "src/blobs"]),
    ("tokio_tungstenite", &["src/cli", "src/backend/http"]),
    ("reqwest", &["src/cli", "src/backend/http", "src/telemetry/traces"]),
    ("object_store", &["src/blobs"]),
    ("backon", &["src/net"]),
    ("simple_dns", &["src/egress"]),
    ("clap", &["src/cli"]),
    ("cap_std", &["src/cli"]),
    ("utoipa", &["src/server"]),
    ("rustls", &["src/tls", "src/server/connections"]),
    ("rustls_native_certs", &["src/tls"]),
    ("tokio_rustls", &["src/tls", "src/server/connections"]),
];

/// Uses inside one rank that are meant: config's log format is telemetry's.
const SAME_RANK: [(&str, &str); 1] = [("config", "telemetry")];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            found.push(path);
        }
    }
}

fn rank(room: &str) -> u8 {
    RANKS.iter().find(|(name, _)| *name == room).unwrap_or_else(|| panic!("room {room} has no rank")).1
}

/// Names that follow `prefix` in a text.
fn names<'a>(text: &'a str, prefix: &str) -> Vec<&'a str> {
    let word = |rest: &'a str| &rest[..rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())];
    text.match_indices(prefix).map(|(at, _)| word(&text[at + prefix.len()..])).collect()
}

#[test]
fn imports_point_to_lower_ranks_only() {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    let mut edges = 0;
    for file in &files {
        let relative = file.strip_prefix(root().join("src")).expect("below src");
        let first = relative.components().next().expect("a name").as_os_str().to_string_lossy();
        let room = first.trim_end_matches(".rs");
        // Deliberate bugs and dice of tests are everybody's.
        if matches!(room, "main" | "lib" | "seeded") {
            continue;
        }
        let own = rank(room);
        let text = std::fs::read_to_string(file).expect("reads");
        for used in names(&text, "crate::") {
            // A macro or a type at the top of the crate would have no rank; there is none.
            if used == room || !RANKS.iter().any(|(name, _)| *name == used) {
                continue;
            }
            edges += 1;
            let allowed = rank(used) < own || SAME_RANK.contains(&(room, used));
            assert!(allowed, "{}: {room} (rank {own}) uses {used} (rank {})", relative.display(), rank(used));
        }
    }
    assert!(edges > 30, "only {edges} imports were found: the test does not see them");
}

#[test]
fn crates_stay_in_their_rooms() {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    for (name, places) in CONFINED {
        let mut seen = 0;
        for file in &files {
            let text = std::fs::read_to_string(file).expect("reads");
            if !text.contains(&format!("{name}::")) {
                continue;
            }
            seen += 1;
            let place = file.strip_prefix(root()).expect("below the root");
            let allowed =
                places.iter().any(|allowed| place.starts_with(allowed) || place == Path::new(&format!("{allowed}.rs")));
            assert!(allowed, "{} names {name}", place.display());
        }
        assert!(seen > 0, "nobody names {name}");
    }
}

//! Writes the seccomp profiles and the warden's list of trips from seccomp/profiles.yaml. With `--check` it writes nothing and fails
//! when a file is not what it would write; `cargo test` does the same.

mod generator;

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let check = std::env::args().any(|argument| argument == "--check");
    let files = std::fs::read_to_string(root.join(generator::SOURCE))
        .map_err(|error| error.to_string())
        .and_then(|text| generator::files(&text));
    let files = match files {
        Ok(files) => files,
        Err(reason) => {
            eprintln!("{}: {reason}", generator::SOURCE);
            return ExitCode::FAILURE;
        }
    };
    let mut stale = false;
    for (name, text) in files {
        let path = root.join(&name);
        if std::fs::read_to_string(&path).is_ok_and(|found| found == text) {
            continue;
        }
        stale = true;
        if check {
            eprintln!("{name} is not what {} makes", generator::SOURCE);
        } else if let Err(error) = std::fs::write(&path, text) {
            eprintln!("{name}: {error}");
            return ExitCode::FAILURE;
        } else {
            println!("wrote {name}");
        }
    }
    if check && stale { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

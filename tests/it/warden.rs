//! The warden is compiled by the build script and is no part of the library, so its own tests are built and run here.

use super::stage::root;
use std::process::Command;

#[test]
fn the_wardens_own_tests_pass() {
    let dir = tempfile::tempdir().expect("a folder");
    let program = dir.path().join("warden-tests");
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let built = Command::new(rustc)
        .args(["--edition", "2024", "--test", "-D", "warnings", "-C", "opt-level=1", "-o"])
        .arg(&program)
        .arg(root().join("warden/src/main.rs"))
        .output()
        .expect("rustc runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let run = Command::new(&program).output().expect("runs");
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{said}");
    let passed = said.split("test result: ok. ").nth(1).and_then(|rest| rest.split(' ').next());
    assert!(passed.and_then(|count| count.parse::<u32>().ok()).is_some_and(|count| count > 40), "{said}");
}

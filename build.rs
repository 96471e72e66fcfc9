//! Builds the warden: a static program that is embedded in the agent. It is compiled by calling rustc, not as a
//! dependency, because it needs flags of its own and must be optimised whatever the agent's profile is.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=warden/src");
    let target = std::env::var("TARGET").unwrap_or_default();
    if target != "x86_64-unknown-linux-gnu" {
        fail(&format!("jobcell is for x86_64-unknown-linux-gnu; this build is for {target}"));
    }
    let out = PathBuf::from(std::env::var("OUT_DIR").unwrap_or_default()).join("warden");
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let built = Command::new(rustc)
        .args(["--edition", "2024", "--crate-name", "warden", "--crate-type", "bin", "--target", &target])
        .args([
            "-C",
            "opt-level=3",
            "-C",
            "panic=abort",
            "-C",
            "lto=fat",
            "-C",
            "codegen-units=1",
            "-C",
            "strip=symbols",
        ])
        // No shared library and no fixed address: it runs in an empty image, and its layout differs from run to run.
        .args(["-C", "target-feature=+crt-static", "-C", "relocation-model=pie", "-D", "warnings"])
        .env("WARDEN_BUILD", std::env::var("CARGO_PKG_VERSION").unwrap_or_default())
        .arg("-o")
        .arg(&out)
        .arg("warden/src/main.rs")
        .output();
    match built {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr);
            let hint = if text.contains("cannot find -l") {
                "\nthe linker lacks a static library: install glibc's (libc6-dev on Debian, glibc-static on Fedora)"
            } else {
                ""
            };
            fail(&format!("the warden does not build:\n{text}{hint}"));
        }
        Err(error) => fail(&format!("rustc cannot be run for the warden: {error}")),
    }
}

fn fail(message: &str) -> ! {
    eprintln!("{message}");
    std::process::exit(1)
}

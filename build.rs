//! Builds the warden, the program that is process 1 of every cell, into `OUT_DIR/warden`, from where it is embedded.
//!
//! It is one file tree that needs the standard library only, so the compiler is called directly: static, always
//! optimised whatever the profile of the agent is, and without a second package. Same source and same compiler make the
//! same bytes, wherever the package lies: cells find the warden by its hash.

use std::path::PathBuf;
use std::process::{Command, exit};

/// The only platform that cells exist for.
const TARGET: &str = "x86_64-unknown-linux-gnu";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=warden/src");
    let target = var("TARGET");
    if target != TARGET {
        fail(&format!("jobcell is built for {TARGET} only, not for {target}: its warden and seccomp profiles are"));
    }
    let root = PathBuf::from(var("CARGO_MANIFEST_DIR"));
    let to = PathBuf::from(var("OUT_DIR")).join("warden");
    let source = root.join("warden/src/main.rs");
    let mut remap = root.clone().into_os_string();
    remap.push("=jobcell");
    let output = Command::new(var("RUSTC"))
        .args(["--edition", "2024", "--crate-name", "warden", "--crate-type", "bin", "--target", TARGET])
        .args(["-C", "opt-level=3", "-C", "codegen-units=1", "-C", "lto=fat"])
        .args(["-C", "panic=abort", "-C", "strip=symbols"])
        // Static: nothing is needed in the image. SSE4.2: the checksum of every byte of output is one instruction.
        .args(["-C", "target-feature=+crt-static,+sse4.2"])
        .arg("--remap-path-prefix")
        .arg(remap)
        .arg("-o")
        .arg(&to)
        .arg(&source)
        .env("JOBCELL_WARDEN_BUILD", var("CARGO_PKG_VERSION"))
        .output();
    match output {
        Err(error) => fail(&format!("the warden was not compiled: cannot run {}: {error}", var("RUSTC"))),
        Ok(output) if output.status.success() => {
            for line in String::from_utf8_lossy(&output.stderr).lines() {
                println!("cargo:warning=warden: {line}");
            }
        }
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr);
            eprintln!("{text}");
            let signs = ["linker `", "linking with", "unable to find library", "cannot find -l"];
            if signs.iter().any(|sign| text.contains(sign)) {
                eprintln!(
                    "The warden is linked statically and needs a C linker and glibc's static library: install gcc and \
                     libc6-dev (Debian, Ubuntu), or gcc and glibc-static (Fedora, RHEL)."
                );
            }
            fail("the warden was not compiled; see above");
        }
    }
}

fn var(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| fail(&format!("{name} is not set; run this by cargo")))
}

fn fail(text: &str) -> ! {
    eprintln!("error: {text}");
    exit(1)
}

//! What is said to a host's shell so that the warden is there and runs. Pure.
//!
//! The program keeps to the rules of plain mode's: nothing in it is read by a login shell in its own way, and nothing of a job is among
//! its arguments. It looks at the folder, has the warden's program brought if it is not there byte for byte, and becomes the connector.

use super::super::plain::{SIGN, command};
use crate::executor::warden::{WARDEN, warden_digest};
use crate::job::OwnerId;

/// In the home of the login; what is below belongs to one installation each.
const BASE: &str = ".jobcell";
/// The machine that the program is for.
const MACHINE: &str = "x86_64";
/// What a file of a program is called; its version and its whole SHA-256 follow.
const PROGRAM: &str = "warden-";
/// Hex characters of a SHA-256.
const DIGEST: usize = 64;

/// $1 the installation's folder, $2 the program's file in it, $3 its SHA-256, $4 its bytes or 0 if it is not to be brought, $5 the machine that
/// it is for, $6 the installation.
///
/// What it makes is the login's alone; what jobs make is as the login has it. The folder is the login's alone, or nothing in it is believed. What lies there under the program's name and is not the program is
/// replaced and never run. `dd`, since the `head` of some systems reads more than it is asked for. Programs of other versions go when
/// nobody listens by their names any more (a hub's own /proc is closed to its login), and none has on any host for a month, since a home
/// can be that of many; what another opener is about to bring has a name of its own, is left alone for an hour, and takes the name's place in
/// one step: two that come at once do not undo each other. A step that a lack of processes can fail is not taken for an answer. A host that ends what a login leaves behind (`KillUserProcesses` without lingering) cannot have a warden that stays.
/// The last word is on standard output: what comes before it there is the login's own, and what comes after it is the connector's.
const OPENER: &str = concat!(
    r#"u=$(umask); umask 077; b="$HOME/$1"; v="$2"; h="$3"; n="$4"; i="$6"; t=; "#,
    r#"f() { [ -z "$t" ] || rm -f "$t"; printf "\036jobcell fail %s\n" "$*" >&2; exit 70; }; "#,
    r#"m=$(uname -m) && [ -n "$m" ] || m=unknown; [ "$m" = "$5" ] || f machine "$m"; "#,
    r#"command -v sha256sum >/dev/null || f sha256sum; "#,
    r#"[ -d "$b" ] || mkdir -p "$b" 2>/dev/null || [ -d "$b" ] || f folder "$b"; "#,
    r#"for d in "${b%/*}" "$b"; do [ -L "$d" ] && f owner "$d"; [ -O "$d" ] || f owner "$d"; chmod 700 "$d" || f folder "$d"; done; "#,
    r#"b=$(cd "$b" && pwd -P) && [ -n "$b" ] || f folder "$1"; w="$b/$v"; "#,
    r#"if [ -n "$XDG_SESSION_ID" ] && command -v busctl >/dev/null && [ "$(id -u)" -gt 0 ]; then "#,
    r#"case "$(busctl get-property org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager KillUserProcesses 2>/dev/null)" in "#,
    r#"*true) [ -e "/var/lib/systemd/linger/$(id -un)" ] || f logind;; esac; fi; "#,
    r#"s() { set -- "$1" $(sha256sum < "$1" 2>/dev/null); [ "$2" = "$h" ] && return; "#,
    r#"[ "${#2}" = 64 ] && return 1; [ -r "$1" ] || [ "$n" = 0 ] || return 1; f sum; }; "#,
    r#"if [ -f "$w" ] && [ -O "$w" ] && s "$w"; then [ -x "$w" ] || chmod 700 "$w" || f program; "#,
    r#"elif [ "$n" = 0 ]; then f missing; else "#,
    r#"find "$b" -type f -name ".warden.*" -mmin +60 -exec rm -f {} +; r=; { read -r r < /proc/sys/kernel/random/uuid; } 2>/dev/null; "#,
    r#"t="$b/.warden.$$.$r"; rm -f "$t"; printf "\036jobcell want\n" >&2; "#,
    r#"dd bs="$n" count=1 iflag=fullblock > "$t" 2>/dev/null || f disk; s "$t" || f brought; chmod 700 "$t" || f program; "#,
    r#"if [ -d "$w" ] || [ -L "$w" ]; then rm -rf "$w"; fi; mv -f "$t" "$w" || f disk; t=; fi; [ -x "$w" ] || f noexec; "#,
    r#"for o in "$b"/warden-*; do [ "$o" = "$w" ] && continue; [ -f "$o" ] && [ -x "$o" ] || continue; "#,
    r#"x="${o##*/}"; grep -qsF "@$x.sock" /proc/net/unix; [ "$?" = 1 ] || continue; "#,
    r#"l=$(find "$b" -name ".*@$x.sock" -mtime -30) && [ -z "$l" ] || continue; rm -f "$o" "$b"/.*@"$x".sock "$b"/.*@"$x".lock; "#,
    r#"rm -rf "$b"/.*@"$x".spare-*; done; "#,
    r#"cd "$b" || f folder "$b"; printf "\036jobcell mux\n"; exec "$w" connect --dir "$b" --owner "$i" --umask "$u""#
);

/// Begins what the connector says, behind what a login prints.
pub(super) const MUX: &[u8] = b"\x1ejobcell mux\n";

/// The name of the file of this agent's program.
pub(super) fn program() -> String {
    format!("{PROGRAM}{}-{}", env!("CARGO_PKG_VERSION"), warden_digest())
}

/// Whether a file can have this name: it becomes an argument.
pub(in crate::executor::ssh) fn is_program(name: &str) -> bool {
    let digest = name.rsplit('-').next().unwrap_or_default();
    let grammar = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'+');
    let hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    name.starts_with(PROGRAM)
        && name.len() < 200
        && name.bytes().all(grammar)
        && digest.len() == DIGEST
        && digest.bytes().all(hex)
}

/// The command that becomes the connector to the warden of this program, which is this agent's or one of before. The latter is not
/// brought: nobody has it.
pub(super) fn opener(owner: &OwnerId, name: &str) -> String {
    let own = name == program();
    let digest = name.rsplit('-').next().unwrap_or_default();
    let bytes = if own { WARDEN.len() } else { 0 };
    let (base, id) = (format!("{BASE}/{owner}"), owner.to_string());
    command(OPENER, "jobcell-connect", &[&base, name, digest, &bytes.to_string(), MACHINE, &id])
}

/// What the opener says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    /// The program is to be brought.
    Want,
    /// It cannot go on, and will not be able to until somebody changes the host: why, for people.
    Fail(String),
    /// It cannot go on now.
    NotNow(String),
    /// This agent's program is not there, and cannot be brought.
    Missing,
}

/// The lines of the opener's among what was heard, in order, up to the last whole one; and how much of it that was.
pub(super) fn lines(heard: &[u8]) -> (Vec<Said>, usize) {
    let mut said = Vec::new();
    let mut at = 0;
    while let Some(end) = heard[at..].iter().position(|byte| *byte == b'\n').map(|end| at + end) {
        let line = &heard[at..end];
        at = end + 1;
        // A login may end what it prints without a line's end.
        let Some(sign) = line.windows(SIGN.len()).position(|window| window == SIGN) else { continue };
        let word = String::from_utf8_lossy(&line[sign + SIGN.len()..]).into_owned();
        match word.split_once(' ').unwrap_or((&word, "")) {
            ("want", _) => said.push(Said::Want),
            ("fail", "missing") => said.push(Said::Missing),
            ("fail", step) if is_passing(step) => said.push(Said::NotNow(why(step))),
            ("fail", step) => said.push(Said::Fail(why(step))),
            _ => {}
        }
    }
    (said, at)
}

/// Whether what failed may go well the next time, as with a full disk.
fn is_passing(step: &str) -> bool {
    // With too many processes a program is not begun, or is killed before it has said anything.
    step == "machine unknown"
        || matches!(step.split(' ').next(), Some("folder" | "disk" | "brought" | "program" | "sum"))
}

fn why(step: &str) -> String {
    let (step, what) = step.split_once(' ').unwrap_or((step, ""));
    let what = crate::job::shown(what);
    match step {
        "machine" if what == "unknown" => "its shell cannot tell its processor now".to_owned(),
        "machine" => format!("its processor is {what}, and the warden is built for {MACHINE}"),
        "sha256sum" => "it has no sha256sum".to_owned(),
        "folder" => format!("the folder {what} cannot be made or used"),
        "owner" => format!("{what} is not the login's own folder"),
        "logind" => {
            "it ends what a login leaves behind (KillUserProcesses=yes, and no `loginctl enable-linger`)".to_owned()
        }
        "disk" => "the warden's program could not be written there".to_owned(),
        "brought" => "the warden's program did not arrive as it was sent".to_owned(),
        "sum" => "the warden's program there cannot be looked at now".to_owned(),
        "noexec" => {
            "the warden's program cannot be run there: the file system of its home runs no programs (noexec)".to_owned()
        }
        "program" => "the warden's program cannot be made executable".to_owned(),
        other => format!("{} failed", crate::job::shown(other)),
    }
}

#[cfg(test)]
#[path = "shell_tests.rs"]
mod tests;

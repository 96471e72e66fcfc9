//! What plain mode says to a host's shell. Pure.
//!
//! Owns the programs that run beside a job there, and how values get into them. They are arguments of `/bin/sh` and pass a login
//! shell of any kind first, so nothing in them is read by one in its own way: no single quote, no exclamation mark, no new line, and
//! no backslash but before a digit or a letter. Nothing of a job is ever among these arguments: it comes by standard input.
//!
//! ```text
//!  opener   makes the job's folder, says who it is, takes the job, starts the guard, and becomes the job: so its number is the
//!           job's, and whoever runs it tells a code from a signal
//!  guard    a session of its own: sends the signals that it is told, ends the job when its lease is over, and when its input ends, which
//!           it does with the connection, ends what is left of the job and removes the folder
//!  sweeper  the end of a job whose guard cannot be talked to any more
//! ```

use crate::job::OwnerId;

/// Begins each line of the opener's. No program writes it by chance. `go` is said on both streams, since nothing else tells on each what
/// comes before the job; all else on standard error.
pub(in crate::executor::ssh) const SIGN: &[u8] = b"\x1ejobcell ";
/// The variable by which what belongs to a job is known, wherever its processes have gone.
const MARK: &str = "JOBCELL_CELL";
/// In a job's folder: where it begins, apart from what looks after it.
pub(in crate::executor::ssh) const WORK: &str = "work";
/// In the home of the login; what is below belongs to one installation each.
const BASE: &str = ".jobcell";

/// $1 the installation's folder, $2 the job's in it, $3 the guard, $4 the grace in seconds.
///
/// The installation's folder goes with the last job in it, which can be between two steps of the next one's opener. A folder that is not
/// there in full is not begun: `commit` is the last word of what is taken. `dd`, since the `head` of some systems reads more than it is
/// asked for. A connection that goes before the job has begun must not end it by what it writes: it reads the end of its input, and removes what it
/// has made. The input of what runs in the background would be /dev/null by itself. What it makes is the job's alone; what the job makes
/// is as the login has it.
const OPENER: &str = concat!(
    r#"trap "" PIPE; o=$(umask); umask 077; b="$HOME/$1"; own="$2"; d="$b/$own"; i="$3"; w="$4"; "#,
    r#"f() { printf "\036jobcell fail %s\n" "$*" >&2; exit 70; }; "#,
    r#"mk() { [ -d "$b" ] || mkdir -p "$b"; mkdir "$d" "$d/work" 2>/dev/null; }; mk || mk || mk || mkdir "$d" "$d/work" || f folder "$d"; cd "$d" || f folder "$d"; "#,
    r#"q() { cd /; rm -rf "$d"; rmdir "$b" 2>/dev/null; exit 0; }; "#,
    r#"t=0; if { read -r s < /proc/$$/stat; } 2>/dev/null; then s="${s##*) }"; set -- $s; "#,
    r#"[ "$3" = "$$" ] || { rm -rf "$d"; f group; }; t="${20}"; fi; "#,
    r#"command -v setsid >/dev/null || { rm -rf "$d"; f setsid; }; "#,
    r#"printf "%s %s\n" "$$" "$t" > pid || f folder "$d"; "#,
    r#"printf "\036jobcell ready %s %s %s\n" "$$" "$t" "$d" >&2; "#,
    r#"read -r n m k l || q; "#,
    r#"u() { [ "$1" = 0 ] || dd bs="$1" count=1 iflag=fullblock > "$2" 2>/dev/null; }; "#,
    r#"e=; if [ "$n" = 0 ]; then IFS= read -r e || q; fi; "#,
    r#"u "$n" run && u "$m" script && u "$k" stdin || { cd /; rm -rf "$d"; f disk; }; "#,
    r#"read -r c || q; [ "$c" = commit ] || q; "#,
    r#"if [ "$l" = 0 ]; then :; elif { read -r c r < /proc/uptime; } 2>/dev/null; then echo "$((${c%.*}+l))" > lease; fi; "#,
    r#"trap - PIPE; exec 3<&0; setsid /bin/sh -c "$i" jobcell-guard "$$" "$d" "$w" "$own" <&3 3<&- >/dev/null 2>&1 & "#,
    r#"if [ "$k" = 0 ]; then exec </dev/null 3<&-; else exec <stdin 3<&-; fi; cd work; umask "$o"; "#,
    r#"if [ "$n" = 0 ]; then eval "$e"; else . ../run; fi"#
);

/// $1 the job's process group, $2 its folder, $3 the grace in seconds, $4 its name.
///
/// A connection that nobody cuts and nothing comes over does not end: so the lease holds here too, by the host's own clock since its start.
/// Whatever has left the group is found by the variable that all of it has. When the job itself has ended, what it left gets no grace.
/// The last thing it does is to end its own group, and so itself and who watches the lease: among thousands of short jobs those who
/// sleep would be most of what the next guard has to look at.
const GUARD: &str = concat!(
    r#"trap "" HUP INT TERM; k() { kill -s "$1" -- "-$p" 2>/dev/null; }; p="$1"; d="$2"; w="$3"; own="$4"; cd "$d"; "#,
    r#"[ -f lease ] && ( while sleep 2; [ -d "$d" ]; do t=0; read -r t < "$d/lease"; read -r c r < /proc/uptime || exit; "#,
    r#"[ "${c%.*}" -lt "$t" ] || { k TERM; k CONT; sleep "$w"; k KILL; exit; }; done ) & "#,
    r#"while read -r c n; do case "$c" in TERM|STOP|CONT) k "$c";; KILL) k KILL; w=0;; "#,
    r#"LEASE) read -r c r < /proc/uptime && echo "$((${c%.*}+n))" > lease.new && mv lease.new lease;; esac; done; "#,
    r#"kill -s 0 "$p" 2>/dev/null || w=0; "#,
    r#"if k TERM; then k CONT; n=0; while k 0 && [ "$n" -lt "$w"0 ]; do sleep 0.1 || sleep 1; n=$((n+1)); done; k KILL; fi; "#,
    r#"for e in $(grep -lsF -e "JOBCELL_CELL=$own." /proc/[0-9]*/environ); do e="${e#/proc/}"; kill -s KILL "${e%/environ}"; done; "#,
    r#"cd "${d%/*}" && { rm -rf "$d" || { chmod -R u+rwx "$d"; rm -rf "$d"; }; }; set -- *; [ -e "$1" ] || rmdir "${d%/*}"; "#,
    r#"kill -s KILL -- "-$$""#
);

/// $1 the installation's folder, $2 the job's in it. Says `gone`, `folder` when nothing runs and something lies there that cannot be
/// removed, or `left` and what runs.
///
/// A warden has a job's secrets in memory, and may have been killed with it: their folders are the job's too.
/// A number that is another process's by now is left alone: no group has a number that a process has which is not of it. What runs as
/// another user cannot be killed, and is seen by its group.
const SWEEPER: &str = concat!(
    r#"d="$HOME/$1/$2"; own="$2"; m="jobcell-${1##*/}-"; p=; "#,
    r#"if [ -f "$d/pid" ] && read -r p t < "$d/pid"; then "#,
    r#"if { read -r s < "/proc/$p/stat"; } 2>/dev/null; then s="${s##*) }"; set -- $s; [ "${20}" = "$t" ] || p=; fi; "#,
    r#"[ -z "$p" ] || kill -s KILL -- "-$p" 2>/dev/null; fi; "#,
    r#"n=0; while l=$(grep -lsF -e "JOBCELL_CELL=$own." /proc/[0-9]*/environ; :) && [ -n "$l" ] && [ "$n" -lt 20 ]; do "#,
    r#"for e in $l; do e="${e#/proc/}"; kill -s KILL "${e%/environ}" 2>/dev/null; done; sleep 0.1 || sleep 1; n=$((n+1)); done; "#,
    r#"if [ -n "$p" ]; then for e in /proc/[0-9]*/stat; do { read -r s < "$e"; } 2>/dev/null || continue; s="${s##*) }"; set -- $s; "#,
    r#"if [ "$3" = "$p" ] || [ "$4" = "$p" ]; then case "$1" in Z|X) ;; *) l="$l $e";; esac; fi; done; fi; "#,
    r#"rm -rf "${XDG_RUNTIME_DIR:-/run/user/$(id -u)}/$m"????????"-$own" "/dev/shm/$m"????????"-$own" 2>/dev/null; "#,
    r#"rm -rf "$d" 2>/dev/null || { chmod -R u+rwx "$d"; rm -rf "$d"; }; rmdir "${d%/*}" 2>/dev/null; "#,
    r#"if [ -n "$l" ]; then set -- left $l; elif [ -d "$d" ]; then set -- folder; else set -- gone; fi; printf "\036jobcell %s\n" "$*""#
);

/// Where a job is on its host, beneath the home of its login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::executor::ssh) struct Place {
    /// The installation's folder.
    base: String,
    /// The job's.
    own: String,
}

impl Place {
    /// That of a cell of this name.
    pub(in crate::executor::ssh) fn new(owner: &OwnerId, own: &str) -> Self {
        Self { base: format!("{BASE}/{owner}"), own: own.to_owned() }
    }

    /// The command that opens it. TERM is followed by KILL after `grace` seconds when nobody is there to say so.
    pub(in crate::executor::ssh) fn opener(&self, grace: u64) -> String {
        command(OPENER, "jobcell", &[&self.base, &self.own, GUARD, &grace.to_string()])
    }

    /// The command that ends it from outside.
    pub(in crate::executor::ssh) fn sweeper(&self) -> String {
        command(SWEEPER, "jobcell-sweeper", &[&self.base, &self.own])
    }
}

/// What a sweeper says of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::executor::ssh) enum Swept {
    /// Nothing is left.
    Gone,
    /// Nothing runs, and its folder cannot be removed.
    Folder,
    /// This runs.
    Left(String),
}

/// Reads what a sweeper said, behind whatever a login prints. `None`: it said nothing.
pub(in crate::executor::ssh) fn swept(said: &[u8]) -> Option<Swept> {
    let at = said.windows(SIGN.len()).rposition(|window| window == SIGN)? + SIGN.len();
    let end = at + said[at..].iter().position(|byte| *byte == b'\n')?;
    let line = String::from_utf8_lossy(&said[at..end]);
    Some(match line.split_once(' ').map_or((line.as_ref(), ""), |parts| parts) {
        ("gone", _) => Swept::Gone,
        ("folder", _) => Swept::Folder,
        (_, left) => Swept::Left(crate::job::shown(left)),
    })
}

/// A program for `/bin/sh` as a login shell of any kind takes it. Neither it nor its arguments may have a single quote.
pub(in crate::executor::ssh) fn command(program: &str, name: &str, arguments: &[&str]) -> String {
    let mut command = format!("exec /bin/sh -c '{program}' {name}");
    for argument in arguments {
        command.push_str(&format!(" '{argument}'"));
    }
    command
}

/// A value as it stands in the job's program.
fn quoted(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len() + 2);
    out.push(b'\'');
    for byte in value {
        match byte {
            b'\'' => out.extend_from_slice(br"'\''"),
            other => out.push(*other),
        }
    }
    out.push(b'\'');
    out
}

/// What a job is, for the opener.
#[derive(Debug, Default)]
pub(super) struct Job<'a> {
    /// Program and arguments; `{script}` stands for the script's path.
    pub(super) argv: &'a [String],
    /// Variables.
    pub(super) env: &'a [(Vec<u8>, Vec<u8>)],
    /// Where it begins; without it, in its own folder.
    pub(super) workdir: &'a str,
    /// Its script.
    pub(super) script: &'a [u8],
    /// What it reads.
    pub(super) stdin: &'a [u8],
    /// Open files of each process.
    pub(super) nofile: Option<u64>,
    /// It has secrets among its variables: what brought them is removed before it begins.
    pub(super) secrets: bool,
    /// Seconds of its lease; 0 for none.
    pub(super) lease: u64,
}

/// All that the opener takes, to its last word. `dir` is what it said its folder is.
pub(super) fn given(job: &Job<'_>, place: &Place, dir: &str) -> Vec<u8> {
    let mut steps: Vec<Vec<u8>> = Vec::new();
    let mut step = |parts: &[&[u8]]| steps.push(parts.concat());
    // With an end, so that no name is the beginning of another one.
    step(&[b"export ", MARK.as_bytes(), b"=", place.own.as_bytes(), b"."]);
    for (name, value) in job.env {
        step(&[b"export ", name, b"=", &quoted(value)]);
    }
    if let Some(most) = job.nofile {
        step(&[b"ulimit -n ", most.to_string().as_bytes(), b" || f nofile"]);
    }
    if !job.workdir.is_empty() {
        // A folder is not an option, whatever it is called.
        step(&[b"cd -- ", &quoted(job.workdir.as_bytes()), b" 2>/dev/null || f workdir"]);
    }
    let script = format!("{dir}/script");
    let argument = |argument: &String| quoted(if argument == SCRIPT_ARGUMENT { &script } else { argument }.as_bytes());
    let argv: Vec<Vec<u8>> = job.argv.iter().map(argument).collect();
    if let Some(program) = argv.first() {
        step(&[b"jobcell_p=$(command -v -- ", program, b" 2>/dev/null) || f program"]);
        // What is no path is the shell's own word for something, and may be a program too.
        step(&[br#"case "$jobcell_p" in */*) [ -f "$jobcell_p" ] && [ -x "$jobcell_p" ] || f noexec;; esac"#]);
    }
    step(&[br#"printf "\036jobcell go\n"; printf "\036jobcell go\n" >&2"#]);
    step(&[b"exec ", &argv.join(&b' ')]);
    let length = steps.iter().map(|step| step.len() + 2).sum::<usize>();
    // A short one goes on a line, and no process is needed to put it into a file.
    let in_a_line = length <= MOST_LINE && !steps.iter().any(|step| step.contains(&b'\n'));
    if job.secrets && !in_a_line {
        // First: here the folder is still the job's own, and the way to programs is the login's.
        steps.insert(0, b"rm -f ../run".to_vec());
    }
    let (run, run_length) = if in_a_line {
        (steps.join(b"; ".as_slice()), 0)
    } else {
        let mut run = steps.join(&b'\n');
        run.push(b'\n');
        let length = run.len();
        (run, length)
    };
    let mut given = format!("{run_length} {} {} {}\n", job.script.len(), job.stdin.len(), job.lease).into_bytes();
    given.extend_from_slice(&run);
    if in_a_line {
        given.push(b'\n');
    }
    given.extend_from_slice(job.script);
    given.extend_from_slice(job.stdin);
    given.extend_from_slice(b"commit\n");
    given
}

/// A shell reads a line byte by byte, each by a call to the kernel.
const MOST_LINE: usize = 2048;

/// The argument that stands for the script's path, as in every cell.
const SCRIPT_ARGUMENT: &str = "{script}";

/// What the opener says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    /// It waits for the job.
    Ready {
        /// Its number, and its group's.
        pid: u32,
        /// The job's folder.
        dir: String,
    },
    /// The next thing is the job.
    Go,
    /// It cannot go on: at this step.
    Fail(String),
}

/// Reads a line of the opener's, without its sign. `None`: it is none.
pub(super) fn said(line: &[u8]) -> Option<Said> {
    let line = std::str::from_utf8(line).ok()?;
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    match word {
        "ready" => {
            let mut parts = rest.splitn(3, ' ');
            let (pid, _start, dir) = (parts.next()?.parse().ok()?, parts.next()?, parts.next()?);
            dir.starts_with('/').then(|| Said::Ready { pid, dir: dir.to_owned() })
        }
        "go" => Some(Said::Go),
        "fail" => Some(Said::Fail(rest.to_owned())),
        _ => None,
    }
}

#[cfg(test)]
#[path = "shell_tests.rs"]
mod tests;

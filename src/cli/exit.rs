//! What this program ends with. One table: the code, the man page and docs/operations.md have it from here.

/// Wrong usage, or a job's spec with problems.
pub(super) const USAGE: u8 = 2;
/// Something that is needed is not there.
pub(super) const UNAVAILABLE: u8 = 69;
/// Enough time was waited, as `--timeout` asked.
pub(super) const WAITED_OUT: u8 = 124;
/// The user ended the command, or the job.
pub(super) const INTERRUPTED: u8 = 130;
/// Try again, or a stop that had to end jobs.
pub(super) const TEMPORARY: u8 = 75;
/// The settings are bad.
pub(super) const CONFIG: u8 = 78;

/// Every exit code and what it says. From 124 on, and `the job's own`, they are those of commands that wait for a job.
pub const EXIT_CODES: [(&str, &str); 12] = [
    ("0", "success"),
    ("1", "failure"),
    ("2", "wrong usage, or a job's spec with problems"),
    ("69", "something that is needed is not there: the engine, the API, the data directory"),
    ("75", "try again later; of `up`: the stop had to end jobs"),
    ("78", "bad settings"),
    ("the job's own", "the job exited with it"),
    ("124", "the job ran out of its time; or `--timeout` was over, and the job goes on"),
    ("125", "the cell, the engine or the host failed the job"),
    ("126, 127", "the job's program cannot be executed, was not found"),
    ("128+n", "signal n ended the job; 137 also: it ran out of memory, 153: it wrote too much"),
    ("130", "the job was canceled"),
];

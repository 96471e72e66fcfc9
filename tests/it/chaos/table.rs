//! What came out: a row for each fault. Each is printed when it is known, and written to the file that `JOBCELL_CHAOS_REPORT` names,
//! from which the scripts make one table at the end.

use super::checker::Findings;
use std::io::Write;

/// One fault, from its first round to its last. Dropped in a panic, it says that it did not come to its end.
pub(super) struct Fault {
    name: String,
    rounds: u32,
    found: [usize; 4],
    over: bool,
}

impl Fault {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), rounds: 0, found: [0; 4], over: false }
    }

    /// Adds so many rounds; panics when the checker found something.
    pub(super) fn judge(&mut self, rounds: u32, findings: &Findings) {
        self.rounds += rounds;
        let Findings { lost, doubled, orphans, gaps } = findings;
        for (count, found) in self.found.iter_mut().zip([lost, doubled, orphans, gaps]) {
            *count += found.len();
        }
        assert_eq!(self.found, [0; 4], "{}: {findings:#?}", self.name);
    }

    pub(super) fn over(mut self) {
        self.over = true;
    }
}

impl Drop for Fault {
    fn drop(&mut self) {
        let [lost, doubled, orphans, gaps] = self.found;
        let end = if self.over { "" } else { " (not finished)" };
        let row = format!("{}{end}\t{}\t{lost}\t{doubled}\t{orphans}\t{gaps}\n", self.name, self.rounds);
        eprint!("chaos: {row}");
        let Some(file) = std::env::var_os("JOBCELL_CHAOS_REPORT") else { return };
        let opened = std::fs::File::options().create(true).append(true).open(&file);
        // One write, so that rows of tests at the same time do not mix.
        if let Err(error) = opened.and_then(|mut file| file.write_all(row.as_bytes())) {
            eprintln!("JOBCELL_CHAOS_REPORT={}: {error}", file.display());
        }
    }
}

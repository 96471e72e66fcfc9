//! Named places at which the process can be made to die, as if by `kill -9`, so that tests can kill it where it hurts.
//!
//! `crash_point!("after-intent");` is such a place. With `JOBCELL_CRASH_AT=after-intent` in its environment the process ends
//! there, with `JOBCELL_CRASH_AT=after-intent:3` when it comes there for the third time: at once, without a destructor and
//! without a flush. Only builds with debug assertions have any of it; in a release the macro is nothing. Must never be how
//! anything ends but a test.

/// All of them, in the order in which an attempt comes by.
pub const POINTS: [&str; 11] = [
    "after-intent",
    "after-create",
    "after-start",
    "after-commit",
    "after-spec-sent",
    "mid-output",
    "after-exit",
    "after-end",
    "after-report",
    "after-removal",
    "after-forget",
];

/// A place at which a test can have the process die; see [`crate::crash`].
macro_rules! crash_point {
    ($name:literal) => {
        #[cfg(debug_assertions)]
        $crate::crash::reached($name);
    };
}

#[cfg(debug_assertions)]
pub(crate) use armed::reached;

#[cfg(debug_assertions)]
mod armed {
    use super::POINTS;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    const VARIABLE: &str = "JOBCELL_CRASH_AT";

    static ARMED: OnceLock<Option<(String, u32)>> = OnceLock::new();
    static TIMES: AtomicU32 = AtomicU32::new(0);

    /// Ends the process if it is to end here.
    pub(crate) fn reached(point: &str) {
        let armed = ARMED.get_or_init(|| {
            let text = std::env::var(VARIABLE).ok()?;
            // A test that kills nothing would look like one that passes.
            Some(parse(&text).unwrap_or_else(|why| die(&why)))
        });
        if let Some((name, nth)) = armed
            && name == point
            && TIMES.fetch_add(1, Ordering::SeqCst) + 1 == *nth
        {
            die(&format!("{VARIABLE}={name}:{nth}: the process ends here"));
        }
    }

    pub(super) fn parse(text: &str) -> Result<(String, u32), String> {
        let (name, nth) = text.split_once(':').unwrap_or((text, "1"));
        if !POINTS.contains(&name) {
            return Err(format!("{VARIABLE}: there is no point {name:?}; use one of {}", POINTS.join(", ")));
        }
        match nth.parse() {
            Ok(nth) if nth > 0 => Ok((name.to_owned(), nth)),
            _ => Err(format!("{VARIABLE}: {nth:?} is no number from 1; write name or name:number")),
        }
    }

    /// By a signal, so that whoever waits can tell this from an exit; standard error has no buffer that could be lost.
    fn die(why: &str) -> ! {
        eprintln!("{why}");
        std::process::abort()
    }
}

#[cfg(test)]
mod tests {
    use super::POINTS;
    use std::path::Path;

    fn places(dir: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                places(&path, found);
            } else if !path.ends_with("crash.rs") {
                let text = std::fs::read_to_string(&path).expect("reads");
                let names = text.split("crash_point!(\"").skip(1).filter_map(|rest| rest.split_once('"'));
                found.extend(names.map(|(name, _)| name.to_owned()));
            }
        }
    }

    #[test]
    fn each_point_is_at_one_place() {
        let mut found = Vec::new();
        places(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
        found.sort();
        let mut wanted = POINTS.map(str::to_owned);
        wanted.sort();
        assert_eq!(found, wanted);
    }

    #[cfg(debug_assertions)]
    #[test]
    fn a_point_that_is_not_there_is_refused() {
        use super::armed::parse;
        assert_eq!(parse("after-intent"), Ok(("after-intent".to_owned(), 1)));
        assert_eq!(parse("mid-output:7"), Ok(("mid-output".to_owned(), 7)));
        for (text, says) in [("after-lunch", "after-lunch"), ("", "no point"), ("mid-output:0", "number from 1")] {
            let why = parse(text).expect_err("is wrong");
            assert!(why.starts_with("JOBCELL_CRASH_AT: ") && why.contains(says), "{why}");
        }
    }
}

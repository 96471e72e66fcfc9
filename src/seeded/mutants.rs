//! Deliberate bugs. Each is one line in the code that it breaks, and is switched on for a run of the simulation, which has to
//! notice it.

use std::cell::Cell;

macro_rules! mutants {
    ($($name:ident: $what:literal,)*) => {
        /// A deliberate bug.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Mutant { $(#[doc = $what] $name,)* }

        impl Mutant {
            /// All there are.
            pub(crate) const ALL: &[Self] = &[$(Self::$name,)*];

            /// What it does.
            pub(crate) const fn what(self) -> &'static str {
                match self { $(Self::$name => $what,)* }
            }
        }
    };
}

mutants! {
    NoIntent: "the intent is not journaled",
    CommittedNotJournaled: "that the job may run is not journaled",
}

thread_local! {
    static ACTIVE: Cell<Option<Mutant>> = const { Cell::new(None) };
}

/// Whether this bug is there now.
pub(crate) fn active(mutant: Mutant) -> bool {
    ACTIVE.get() == Some(mutant)
}

/// Runs `work` with this bug.
pub(crate) fn with_mutant<T>(mutant: Option<Mutant>, work: impl FnOnce() -> T) -> T {
    struct Back(Option<Mutant>);
    impl Drop for Back {
        fn drop(&mut self) {
            ACTIVE.set(self.0);
        }
    }
    let _back = Back(ACTIVE.replace(mutant));
    work()
}

//! The inventory of a file, as it is now. A file that is bad, or gone, changes nothing but what is said: the last good one holds.

use super::{Inventory, KnownFiles, usual_known_hosts};
use crate::config::operator_file::{self, Mark, Whose};
use crate::job::Problems;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A larger file is no inventory.
const LARGEST: u64 = 64 << 20;

/// Clones are the same one.
#[derive(Debug, Clone)]
pub struct LiveInventory(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    file: Option<PathBuf>,
    usual: KnownFiles,
    inventory: Arc<Inventory>,
    /// What the file was when it was read, whatever came of that.
    seen: Option<Mark>,
    refused: Option<String>,
}

/// What a look at the file came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It is as it was.
    Same,
    /// It holds from now on.
    Loaded,
    /// It does not; the last good one does.
    Refused(String),
}

impl LiveInventory {
    /// The inventory of `file`; without known_hosts of its own it has the system's and the one of `data_dir`. Errors: what is wrong with it.
    pub fn load(file: &Path, data_dir: &Path) -> Result<Self, Problems> {
        let usual = usual_known_hosts(data_dir);
        let (seen, inventory) = read(file, &usual);
        let inventory = Arc::new(inventory?);
        let state = State { file: Some(file.to_owned()), usual, inventory, seen, refused: None };
        Ok(Self(Arc::new(Mutex::new(state))))
    }

    /// An inventory that stays.
    pub fn fixed(inventory: Inventory) -> Self {
        let inventory = Arc::new(inventory);
        let state = State { file: None, usual: KnownFiles::default(), inventory, seen: None, refused: None };
        Self(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What holds now.
    pub fn current(&self) -> Arc<Inventory> {
        Arc::clone(&self.state().inventory)
    }

    /// Why the file as it is does not hold, if so.
    pub fn refused(&self) -> Option<String> {
        self.state().refused.clone()
    }

    /// Reads the file again if it is another one than before, or in any case. Blocks for as long as the file system does.
    pub fn look(&self, in_any_case: bool) -> Found {
        let (path, usual, before) = {
            let state = self.state();
            let Some(path) = state.file.clone() else { return Found::Same };
            (path, state.usual.clone(), state.seen)
        };
        // None when it is gone, and that is told once too.
        let now = Mark::at(&path);
        if !in_any_case && now == before {
            return Found::Same;
        }
        let (seen, read) = read(&path, &usual);
        let mut state = self.state();
        state.seen = seen.or(now);
        match read {
            Ok(inventory) => {
                state.inventory = Arc::new(inventory);
                state.refused = None;
                Found::Loaded
            }
            Err(problems) => {
                let reason = format!("{}: {problems}", path.display());
                state.refused = Some(reason.clone());
                Found::Refused(reason)
            }
        }
    }
}

fn read(path: &Path, usual: &KnownFiles) -> (Option<Mark>, Result<Inventory, Problems>) {
    let (seen, text) = operator_file::read(path, LARGEST, Whose::Operator, "leave ssh.inventory empty");
    let inventory = text
        .map_err(|(reason, fix)| Problems::one("", format!("cannot be read: {reason}"), fix))
        .and_then(|text| Inventory::read(&text, usual));
    (seen, inventory)
}

//! Reads the files of known hosts, again when they are others than before.

use super::KnownHosts;
use crate::config::operator_file::{self, Mark, Whose};
use crate::executor::ssh::inventory::KnownFiles;
use crate::supervise;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// A larger file is none of known hosts.
const LARGEST: u64 = 64 << 20;

type Read = (Vec<(PathBuf, Option<Mark>)>, Arc<KnownHosts>);

/// What was read last.
#[derive(Debug, Default)]
pub(in crate::executor::ssh) struct KnownCache(Mutex<Option<Read>>);

impl KnownCache {
    /// What the files say now. Errors: one of them cannot be had, and so nobody is believed.
    pub(in crate::executor::ssh) async fn load(self: &Arc<Self>, from: &KnownFiles) -> Result<Arc<KnownHosts>, String> {
        let (cache, from) = (Arc::clone(self), from.clone());
        supervise::blocking(move || cache.read(&from)).await
    }

    fn read(&self, from: &KnownFiles) -> Result<Arc<KnownHosts>, String> {
        let marks: Vec<_> = from.files.iter().map(|file| (file.clone(), Mark::at(file))).collect();
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known)) = last.as_ref().filter(|(seen, _)| *seen == marks) {
            return Ok(Arc::clone(known));
        }
        let mut known = KnownHosts::default();
        for (file, mark) in &marks {
            // A file that nobody named need not be there.
            if mark.is_none() && !from.named {
                continue;
            }
            let (_, text) =
                operator_file::read(file, LARGEST, Whose::Operator, "take it out of known_hosts of the inventory");
            let text = text.map_err(|(reason, fix)| format!("{}: {reason}; {fix}", file.display()))?;
            known.add(&file.display().to_string(), &text)?;
        }
        tracing::debug!(lines = known.len(), "known hosts were read");
        let known = Arc::new(known);
        *last = Some((marks, Arc::clone(&known)));
        Ok(known)
    }
}

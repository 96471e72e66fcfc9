//! What a cell is given before its job: a stream of plain entries, as the warden takes it.

use crate::job::Cause;
use crate::protocol::wire::InputTotals;
use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Pieces that wait for the warden. Full: whoever reads them waits, and so does whoever it reads from.
pub const PIECES: usize = 4;

/// A piece of the stream.
#[derive(Debug)]
pub enum InputPiece {
    /// The next bytes.
    Bytes(Bytes),
    /// All of them were there; and what they were.
    End(InputTotals),
    /// They cannot be had to their end.
    Failed(Cause),
}

type Open = dyn Fn() -> mpsc::Receiver<InputPiece> + Send + Sync;

/// Inputs, which can be read as often as need be: a link that is lost in the middle begins again.
#[derive(Clone)]
pub struct Inputs {
    /// The folder in the cell that they go to.
    pub root: String,
    open: Arc<Open>,
}

impl Inputs {
    /// Each call of `open` gives the whole stream from its beginning. Whoever does not want the rest drops it.
    pub fn new(root: &str, open: impl Fn() -> mpsc::Receiver<InputPiece> + Send + Sync + 'static) -> Self {
        Self { root: root.to_owned(), open: Arc::new(open) }
    }

    /// The stream, from its beginning.
    pub fn open(&self) -> mpsc::Receiver<InputPiece> {
        (self.open)()
    }
}

impl std::fmt::Debug for Inputs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Inputs(to {})", self.root)
    }
}

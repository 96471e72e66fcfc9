//! How far a pull is, put together from what the engine says of each layer. Pure.

use std::collections::HashMap;
use std::fmt;

/// Layers that are told apart; an image has at most 127. What is said of more is passed over.
const MOST_LAYERS: usize = 256;

/// How far a pull is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    layers: HashMap<String, Layer>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Layer {
    fetched: u64,
    size: u64,
    there: bool,
}

impl Progress {
    /// Takes one line of the engine: which layer, what it says, and so many bytes of so many.
    pub(super) fn hear(&mut self, layer: &str, status: &str, fetched: u64, size: u64) {
        // Of the image as a whole: its tag stands where a layer's id does.
        let known = [
            "Pulling fs layer",
            "Waiting",
            "Downloading",
            "Verifying",
            "Download",
            "Extracting",
            "Pull complete",
            "Already",
            "Retrying",
        ];
        if !known.iter().any(|word| status.starts_with(word)) {
            return;
        }
        if self.layers.len() >= MOST_LAYERS && !self.layers.contains_key(layer) {
            return;
        }
        let layer = self.layers.entry(layer.to_owned()).or_default();
        match status {
            "Downloading" => *layer = Layer { fetched, size: size.max(fetched), there: false },
            // Unpacking is counted in bytes too, which are not those of the network.
            "Verifying Checksum" | "Download complete" | "Extracting" => layer.fetched = layer.size,
            "Pull complete" | "Already exists" => {
                layer.fetched = layer.size;
                layer.there = true;
            }
            _ => {}
        }
    }

    /// Bytes that came.
    pub(super) fn fetched(&self) -> u64 {
        self.layers.values().map(|layer| layer.fetched).sum()
    }
}

/// In words: `12.0 of 40.1 MiB, 3 of 5 layers`.
impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let size = self.layers.values().map(|layer| layer.size).sum();
        let there = self.layers.values().filter(|layer| layer.there).count();
        write!(f, "{:.1} of {:.1} MiB, {there} of {} layers", mib(self.fetched()), mib(size), self.layers.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_add_up() {
        let mut progress = Progress::default();
        let mut hear = |layer: &str, status: &str, fetched: u64, size: u64| {
            progress.hear(layer, status, fetched << 20, size << 20);
            progress.to_string()
        };
        assert_eq!(hear("1", "Pulling from x", 0, 0), "0.0 of 0.0 MiB, 0 of 0 layers");
        hear("a", "Pulling fs layer", 0, 0);
        hear("b", "Already exists", 0, 0);
        assert_eq!(hear("a", "Downloading", 3, 8), "3.0 of 8.0 MiB, 1 of 2 layers");
        assert_eq!(hear("a", "Extracting", 20, 40), "8.0 of 8.0 MiB, 1 of 2 layers");
        assert_eq!(hear("a", "Pull complete", 0, 0), "8.0 of 8.0 MiB, 2 of 2 layers");
        // A registry that names layers without end costs no memory without end.
        let told = (0..10_000).map(|n| hear(&n.to_string(), "Waiting", 0, 0)).last().expect("some");
        assert_eq!(told, "8.0 of 8.0 MiB, 2 of 256 layers");
    }
}

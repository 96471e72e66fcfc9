//! What of a bench was asked for: `cargo bench --bench X -- [--short] [NAME…]`.

pub(crate) struct Asked {
    pub(crate) short: bool,
    names: Vec<String>,
}

impl Asked {
    pub(crate) fn read() -> Self {
        // Cargo adds `--bench` by itself.
        let (flags, names): (Vec<String>, Vec<String>) =
            std::env::args().skip(1).partition(|argument| argument.starts_with("--"));
        Self { short: flags.iter().any(|flag| flag == "--short"), names }
    }

    /// Whether this part is to be run: all are, unless some are named.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.names.is_empty() || self.is_named(name)
    }

    #[allow(dead_code, reason = "not every bench has parts that are only run when they are named")]
    /// Whether this part is named.
    pub(crate) fn is_named(&self, name: &str) -> bool {
        self.names.iter().any(|asked| asked == name)
    }
}

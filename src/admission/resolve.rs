//! From a spec to image and argument list, by the operator's presets. Pure.

use crate::job::{Cause, JobSpec, Program, Source, TARGET_INTERPRETER};
use std::collections::BTreeMap;

/// The element of an argument list that stands for the script's path in the cell.
const SCRIPT: &str = "{script}";

/// A language environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preset {
    /// The image.
    pub image: String,
    /// What runs a script that names no interpreter.
    pub interpreter: Vec<String>,
}

/// Presets by name.
pub type Presets = BTreeMap<String, Preset>;

/// Image and arguments of a job; the image is empty for one on a target. Errors: a preset that is not there.
pub fn resolve(spec: &JobSpec, presets: &Presets) -> Result<(String, Vec<String>), Cause> {
    let preset = match spec.source() {
        Source::Image(_) | Source::Target(_) | Source::FanOut(_) => None,
        Source::Preset(name) => Some(presets.get(name).ok_or_else(|| Cause::PresetMissing { preset: name.clone() })?),
    };
    let image = match (spec.source(), preset) {
        (Source::Image(image), _) => image.clone(),
        (Source::Preset(_), preset) => preset.map(|preset| preset.image.clone()).unwrap_or_default(),
        (Source::Target(_) | Source::FanOut(_), _) => String::new(),
    };
    let argv = match spec.program() {
        Program::Command(argv) => argv.clone(),
        Program::Script { interpreter, .. } => {
            let own = interpreter.as_ref().or(preset.map(|preset| &preset.interpreter)).cloned();
            let of_host = || spec.source().is_elsewhere().then(|| vec![TARGET_INTERPRETER.to_owned()]);
            let mut argv = own.or_else(of_host).unwrap_or_default();
            argv.push(SCRIPT.to_owned());
            argv
        }
    };
    Ok((image, argv))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::SpecRules;
    use serde_json::json;

    fn presets() -> Presets {
        let bash = Preset { image: "jobcell/bash:1".into(), interpreter: vec!["/bin/bash".into()] };
        Presets::from([("bash".to_owned(), bash)])
    }

    fn resolved(document: &serde_json::Value) -> Result<(String, Vec<String>), Cause> {
        resolve(&JobSpec::check(document, &SpecRules::default()).expect("valid"), &presets())
    }

    #[test]
    fn presets_give_image_and_interpreter_and_the_job_may_name_its_own() {
        let own = |argv: &[&str]| argv.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>();
        let found = resolved(&json!({"preset": "bash", "script": "x"})).expect("resolves");
        assert_eq!(found, ("jobcell/bash:1".to_owned(), own(&["/bin/bash", "{script}"])));
        let found =
            resolved(&json!({"preset": "bash", "script": "x", "interpreter": ["/bin/sh", "-e"]})).expect("resolves");
        assert_eq!(found.1, own(&["/bin/sh", "-e", "{script}"]));
        let found = resolved(&json!({"image": "debian", "command": ["ls", "{script}"]})).expect("resolves");
        assert_eq!(found, ("debian".to_owned(), own(&["ls", "{script}"])));
        let found = resolved(&json!({"target": {"host": "web1"}, "script": "x"})).expect("resolves");
        assert_eq!(found, (String::new(), own(&["/bin/sh", "{script}"])));
        let found = resolved(&json!({"target": {"host": "web1"}, "script": "x", "interpreter": "/bin/bash"}));
        assert_eq!(found.expect("resolves").1, own(&["/bin/bash", "{script}"]));
        assert!(matches!(resolved(&json!({"preset": "go", "script": "x"})), Err(Cause::PresetMissing { .. })));
    }
}

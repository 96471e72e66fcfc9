//! The documents are held to the code.

use super::stage::root;
use jobcell::job::Cause;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn text(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).expect("reads")
}

/// Every code of a cause, read from the function that names them all.
pub(crate) fn causes() -> BTreeSet<String> {
    let source = text("src/job/ending.rs");
    let (_, body) = source.split_once("pub const fn code(&self)").expect("the function");
    let (body, _) = body.split_once("/// Whose doing").expect("its end");
    body.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn the_error_catalogue_is_complete_and_has_nothing_else() {
    let mut codes = causes();
    assert!(codes.len() > 15 && codes.contains(Cause::Canceled.code()));
    codes.extend(jobcell::server::ERROR_CODES.iter().map(|(code, ..)| (*code).to_owned()));
    let documented: BTreeSet<String> =
        text("docs/errors.md").lines().filter_map(|line| line.strip_prefix("### ")).map(str::to_owned).collect();
    assert_eq!(documented, codes);
}

#[test]
fn every_metric_is_described() {
    let page = text("docs/operations.md");
    let rendered = jobcell::telemetry::Metrics::new().render();
    let source = text("src/telemetry/metrics.rs");
    let named = source.split('"').filter(|part| part.starts_with("jobcell_") && !part.contains('{'));
    for name in named.chain(rendered.lines().filter_map(|line| line.strip_prefix("# TYPE jobcell_")?.split(' ').next()))
    {
        assert!(page.contains(name), "{name} is not in docs/operations.md");
    }
}

#[test]
fn the_exit_codes_are_those_of_the_code() {
    let page = text("docs/operations.md");
    let (_, part) = page.split_once("### Exit codes\n").expect("the part");
    let rows: Vec<Vec<&str>> = part
        .lines()
        .skip_while(|line| !line.starts_with("|---"))
        .skip(1)
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let table: Vec<Vec<&str>> = jobcell::cli::EXIT_CODES.iter().map(|(code, meaning)| vec![*code, *meaning]).collect();
    assert_eq!(rows, table);
}

#[test]
fn every_limit_that_a_policy_can_bound_is_described() {
    let page = text("docs/policy.md");
    for limit in &jobcell::job::LIMITS {
        assert!(page.contains(&format!("`{}`", limit.path)), "{} is not in docs/policy.md", limit.path);
    }
}

fn pages(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && !name.starts_with('.') && name != "target" {
            pages(&path, found);
        } else if name.ends_with(".md") {
            found.push(path);
        }
    }
}

#[test]
fn links_between_pages_lead_somewhere() {
    let mut all = Vec::new();
    pages(root(), &mut all);
    let mut links = 0;
    for page in &all {
        let text = std::fs::read_to_string(page).expect("reads");
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split(')').next().unwrap_or_default();
            if target.starts_with("http") || target.starts_with('#') {
                continue;
            }
            links += 1;
            let file = target.split('#').next().unwrap_or_default();
            assert!(page.with_file_name(file).exists(), "{}: {target}", page.display());
        }
    }
    assert!(links > 8, "only {links} links were found");
}

#[test]
fn the_readmes_job_and_the_examples_are_valid() {
    let readme = text("README.md");
    let (_, block) = readme.split_once("```yaml\n").expect("a job");
    let (block, _) = block.split_once("```").expect("its end");
    let rules = jobcell::job::SpecRules { presets: Some(vec!["bash".into(), "python".into()]) };
    jobcell::job::JobSpec::from_yaml(block, &rules).expect("the README's job is valid");
    jobcell::job::JobSpec::from_yaml(&text("examples/hello.yaml"), &rules).expect("the example is valid");
}

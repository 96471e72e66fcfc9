//! The pages of docs/reference are what the code makes.

use super::stage::root;

#[test]
fn the_reference_pages_are_current() {
    for (name, made) in [("configuration.md", jobcell::config::reference()), ("cli.md", jobcell::cli::reference())] {
        let path = root().join("docs/reference").join(name);
        if std::env::var_os("JOBCELL_REGENERATE").is_some() {
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("makes");
            std::fs::write(&path, &made).expect("writes");
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            kept == made,
            "docs/reference/{name} is not what the code makes: run this test with JOBCELL_REGENERATE=1 and read the difference"
        );
        assert!(made.len() > 10_000 && !made.contains("…\n\n…"), "{name}");
    }
}

use super::*;
use crate::archive::{Bounds, Tree, unpack};
use crate::job::{ByteSize, JobSpec, Millis, SpecRules};
use std::os::unix::fs::symlink;

fn args(file: &[String], input: &[String]) -> InputArgs {
    InputArgs { given_files: file.to_vec(), given_inputs: input.to_vec() }
}

async fn store() -> (tempfile::TempDir, BlobStore) {
    let dir = tempfile::tempdir().expect("a folder");
    let settings = crate::blobs::BlobSettings {
        max_bytes: ByteSize::from_mib(64),
        max_blob: ByteSize::from_mib(64),
        grace: Millis::from_secs(60),
    };
    let store = BlobStore::open(dir.path(), settings).await.expect("opens");
    (dir, store)
}

#[derive(Default)]
struct Names(Vec<String>);

impl crate::archive::Sink for Names {
    fn folder(&mut self, path: &str) -> io::Result<()> {
        self.0.push(format!("{path}/"));
        Ok(())
    }
    fn file(&mut self, path: &str, executable: bool, bytes: u64) -> io::Result<()> {
        self.0.push(format!("{path} {bytes}{}", if executable { "*" } else { "" }));
        Ok(())
    }
    fn data(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
    fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.0.push(format!("{path} -> {target}"));
        Ok(())
    }
}

#[tokio::test]
async fn files_and_folders_become_inputs_that_the_api_takes() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |path: &str| dir.path().join(path);
    std::fs::create_dir_all(at("tree/sub")).expect("a folder");
    std::fs::write(at("small"), "text").expect("writes");
    std::fs::write(at("bytes"), [0xff, 0]).expect("writes");
    std::fs::write(at("big"), vec![7; 10_000]).expect("writes");
    std::fs::write(at("tree/sub/run"), "#!/bin/sh").expect("writes");
    std::fs::set_permissions(at("tree/sub/run"), std::fs::Permissions::from_mode(0o700)).expect("is ours");
    std::fs::write(at(&format!("tree/{}", "n".repeat(200))), "long").expect("writes");
    symlink("sub/run", at("tree/a")).expect("a link");
    symlink("../a", at("tree/sub/up")).expect("a link");
    let flag = |path: &str, local: &str| format!("{path}={}", at(local).display());
    let given = args(
        &[flag("s", "small"), flag("b/x", "bytes"), flag("big", "big")],
        &[at("tree").display().to_string(), flag("lib", "tree")],
    );
    let (_kept, blobs) = store().await;
    let spec = json!({"preset": "bash", "script": "x", "inputs": [{"path": "first", "text": "1"}]});
    let spec = given.add_to(spec, &Target::Here(&blobs)).await.expect("can be given");
    let checked = JobSpec::check(&spec, &SpecRules::default()).expect("is valid");
    assert_eq!(checked.inputs().len(), 6);
    assert_eq!(spec["inputs"][1], json!({"path": "s", "text": "text", "mode": "0644"}));
    assert_eq!(spec["inputs"][2]["content_base64"], "/wA=");
    assert_eq!(spec["inputs"][3]["blob"], json!(Digest::of(&[7; 10_000])));
    // The same folder is one content, wherever it goes.
    assert_eq!(
        (spec["inputs"][4]["blob"].clone(), &spec["inputs"][4]["path"]),
        (spec["inputs"][5]["blob"].clone(), &json!("."))
    );
    assert_eq!(blobs.held().await.expect("answers").blobs, 2);
    let digest: Digest = spec["inputs"][4]["blob"].as_str().expect("a name").parse().expect("a name");
    let pieces: Vec<Bytes> =
        futures_util::TryStreamExt::try_collect(blobs.read(digest, 0..u64::MAX).await.expect("is there"))
            .await
            .expect("reads");
    let (mut tree, mut names) = (Tree::new(Bounds::MOST), Names::default());
    unpack(pieces.concat().as_slice(), ".", &mut tree, &mut names).expect("is good");
    let long = format!("{} 4", "n".repeat(200));
    assert_eq!(names.0, ["a -> sub/run", &long, "sub/", "sub/run 9*", "sub/up -> ../a"]);
}

#[tokio::test]
async fn what_cannot_be_given_is_named_before_anything_is_sent() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |path: &str| dir.path().join(path);
    for folder in ["outward", "absolute", "fifo", "own", "around"] {
        std::fs::create_dir(at(folder)).expect("a folder");
    }
    symlink("../../etc", at("outward/x")).expect("a link");
    symlink("/etc", at("absolute/x")).expect("a link");
    symlink("a/../../x", at("around/x")).expect("a link");
    std::fs::write(at("own/.jobcell-script"), "x").expect("writes");
    assert!(std::process::Command::new("mkfifo").arg(at("fifo/p")).status().expect("mkfifo").success());
    let local = |path: &str| at(path).display().to_string();
    let (_kept, blobs) = store().await;
    for (file, input, wanted) in [
        (vec!["x".to_owned()], vec![], "write PATH=LOCAL"),
        (vec![format!("x={}", local("none"))], vec![], "No such file"),
        (vec![format!("x={}", local("own"))], vec![], "give a folder by --input"),
        (vec![format!("../x={}", local("own/.jobcell-script"))], vec![], "has `..` in it"),
        (vec![], vec![format!("/x={}", local("own"))], "begins with /"),
        (vec![], vec![local("outward")], "out of the folder"),
        (vec![], vec![local("absolute")], "out of the folder"),
        (vec![], vec![local("around")], "out of the folder"),
        (vec![], vec![local("fifo")], "is neither a file"),
        (vec![], vec![local("own")], "jobcell's own"),
    ] {
        let given = args(&file, &input);
        let failure = given.add_to(json!({}), &Target::Here(&blobs)).await.expect_err(wanted);
        assert!(failure.message.contains(wanted), "{failure}");
    }
    assert_eq!(blobs.held().await.expect("answers").blobs, 0);
}

#[tokio::test]
async fn what_is_no_archive_is_told_before_anything_is_sent() {
    let dir = tempfile::tempdir().expect("a folder");
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).expect("writes");
        path.to_str().expect("text").to_owned()
    };
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(1);
    header.set_mode(0o644);
    tar.append_data(&mut header, "a", &b"1"[..]).expect("is written");
    let tar = tar.into_inner().expect("is written");
    let mut old = tar.clone();
    // A header of before POSIX has no word that says what it is.
    old[257..265].fill(0);
    old[148..156].fill(b' ');
    let sum: u32 = old[..512].iter().map(|byte| u32::from(*byte)).sum();
    old[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    for (name, bytes) in [("t.tar", &tar[..]), ("old.tar", &old), ("e.tar", &[0; 1024]), ("z", b"\x28\xb5\x2f\xfd")] {
        let file = write(name, bytes);
        args(&[], &[file]).read().map(|_| ()).expect(name);
    }
    for (name, bytes, wanted) in [
        ("notes.txt", &b"some words"[..], "is no tar archive; give a file by `--file notes.txt="),
        ("long.bin", &[5; 4096], "is no tar archive"),
        ("t.tgz", b"\x1f\x8b\x08", "is packed by gzip; give a plain tar"),
        ("t.zip", b"PK\x03\x04", "is packed by zip"),
    ] {
        let file = write(name, bytes);
        let told = args(&[], &[format!("d={file}")]).read().map(|_| ()).expect_err(name);
        assert!(told.message.contains(wanted) && told.message.starts_with("--input d="), "{}", told.message);
    }
    let gone = args(&["a=/nowhere/at/all".to_owned()], &[]).read().map(|_| ()).expect_err("is not there");
    assert!(gone.message.starts_with("--file a=/nowhere/at/all: /nowhere/at/all: No such file"), "{}", gone.message);
}

//! Archives made by hand, good and hostile, each with what has to come of it. For tests: of the reader, and of the whole way into a cell.

use super::Bounds;

/// What the crafted archives are read with.
pub const BOUNDS: Bounds = Bounds { entries: 500, bytes: 1 << 20 };

/// One archive.
#[derive(Debug)]
pub struct Case {
    /// What it is about.
    pub name: &'static str,
    /// The bytes.
    pub archive: Vec<u8>,
    /// The paths that it makes, in order of their names; or the code of its refusal.
    pub outcome: Result<Vec<&'static str>, &'static str>,
}

/// Writes a tar by hand: what no decent packer would write, too.
#[derive(Debug, Default)]
pub struct Tar(Vec<u8>);

/// A header with a right checksum.
pub fn header(path: &str, kind: u8, size: u64, mode: u32) -> Vec<u8> {
    raw(path.as_bytes(), kind, size, mode, b"")
}

fn raw(path: &[u8], kind: u8, size: u64, mode: u32, target: &[u8]) -> Vec<u8> {
    let mut block = vec![0; 512];
    let name = &path[..path.len().min(100)];
    block[..name.len()].copy_from_slice(name);
    block[100..108].copy_from_slice(format!("{mode:07o}\0").as_bytes());
    block[108..124].copy_from_slice(b"0000000\x000000000\0");
    block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    block[136..148].copy_from_slice(b"00000000000\0");
    block[156] = kind;
    let target = &target[..target.len().min(100)];
    block[157..157 + target.len()].copy_from_slice(target);
    block[257..265].copy_from_slice(b"ustar  \0");
    sum(&mut block);
    block
}

/// Makes the checksum of a header right.
pub fn sum(block: &mut [u8]) {
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// Packs by zstd.
pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 3).expect("a vector takes everything")
}

/// A tar with its end.
pub fn tar(make: impl FnOnce(Tar) -> Tar) -> Vec<u8> {
    make(Tar::default()).end()
}

impl Tar {
    /// Anything.
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// An entry with a content, padded.
    pub fn entry(self, header: &[u8], content: &[u8]) -> Self {
        let padding = content.len().wrapping_neg() % 512;
        self.raw(header).raw(content).raw(&vec![0; padding])
    }

    /// A file.
    pub fn file(self, path: &str, content: &[u8]) -> Self {
        self.entry(&header(path, b'0', content.len() as u64, 0o644), content)
    }

    /// A folder.
    pub fn folder(self, path: &str) -> Self {
        self.raw(&header(&format!("{path}/"), b'5', 0, 0o755))
    }

    /// A symbolic link.
    pub fn link(self, path: &str, target: &str) -> Self {
        self.raw(&raw(path.as_bytes(), b'2', 0, 0o777, target.as_bytes()))
    }

    /// A name as GNU tar writes long ones.
    fn long_name(self, kind: u8, name: &[u8]) -> Self {
        let content = [name, b"\0"].concat();
        self.entry(&raw(b"././@LongLink", kind, content.len() as u64, 0o644, b""), &content)
    }

    /// What POSIX writes beside a header.
    fn pax(self, kind: u8, records: &[(&str, &[u8])]) -> Self {
        let mut content = Vec::new();
        for (key, value) in records {
            let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
            let length = (1..).find(|length: &usize| length.to_string().len() + body.len() == *length).unwrap_or(0);
            content.extend_from_slice(length.to_string().as_bytes());
            content.extend_from_slice(&body);
        }
        self.entry(&header("pax", kind, content.len() as u64, 0o644), &content)
    }

    fn end(self) -> Vec<u8> {
        self.raw(&[0; 1024]).0
    }
}

/// All of them.
pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut case = |name, archive: Vec<u8>, outcome| cases.push(Case { name, archive, outcome });
    let refused = |code: &'static str| -> Result<Vec<&'static str>, &'static str> { Err(code) };
    let file = |path: &str| tar(|tar| tar.file(path, b"x"));
    let kind = |kind: u8| tar(|tar| tar.raw(&raw(b"x", kind, 0, 0o644, b"y")));
    let mode = |mode: u32| tar(|tar| tar.raw(&header("x", b'0', 0, mode)));

    // What people pack.
    let good = tar(|tar| tar.folder("a").file("a/f", b"hello").file("g", b"").link("a/l", "f"));
    case("good", good.clone(), Ok(vec!["a", "a/f", "a/l", "g"]));
    case("good, packed", zstd(&good), Ok(vec!["a", "a/f", "a/l", "g"]));
    case("packed in two frames", [zstd(&good[..700]), zstd(&good[700..])].concat(), Ok(vec!["a", "a/f", "a/l", "g"]));
    case("nothing in it", tar(|tar| tar), Ok(vec![]));
    case("folders are made on the way", file("a/b/c"), Ok(vec!["a", "a/b", "a/b/c"]));
    case("begins with ./", tar(|tar| tar.raw(&header("./", b'5', 0, 0o755)).file("./a", b"x")), Ok(vec!["a"]));
    case("a folder twice", tar(|tar| tar.folder("a").folder("a")), Ok(vec!["a"]));
    case("a folder of the old kind", tar(|tar| tar.raw(&header("a/", b'0', 0, 0o755))), Ok(vec!["a"]));
    case("a file of the old kind", tar(|tar| tar.raw(&header("a", 0, 0, 0o644))), Ok(vec!["a"]));
    case("dots in names", file("a..b/.c..."), Ok(vec!["a..b", "a..b/.c..."]));
    case("letters of all kinds", file("grüße/日本"), Ok(vec!["grüße", "grüße/日本"]));
    case("a name as long as may be", tar(|tar| tar.long_name(b'L', LONG.as_bytes()).file("x", b"x")), Ok(vec![LONG]));
    case(
        "a name by POSIX",
        tar(|tar| tar.pax(b'x', &[("path", b"p/q"), ("mtime", b"1.5")]).file("x", b"x")),
        Ok(vec!["p", "p/q"]),
    );
    case("a link by POSIX", tar(|tar| tar.pax(b'x', &[("linkpath", b"b")]).link("l", "/etc")), Ok(vec!["l"]));
    case("a comment for all", tar(|tar| tar.pax(b'g', &[("comment", b"0123")]).file("x", b"x")), Ok(vec!["x"]));
    case("a link up and down", tar(|tar| tar.link("a/b/l", "../../c")), Ok(vec!["a", "a/b", "a/b/l"]));
    case("a link to nothing yet", tar(|tar| tar.link("l", "./later")), Ok(vec!["l"]));
    case("much padding", tar(|tar| tar.file("x", b"x").raw(&[0; 50 * 512])), Ok(vec!["x"]));

    // Out of the workspace.
    case("..", file("../x"), refused("parent"));
    case(".. in the middle", file("a/../../x"), refused("parent"));
    case(".. at the end", file("a/.."), refused("parent"));
    case(".. alone", tar(|tar| tar.folder("..")), refused("parent"));
    case(".. behind ./", file("./../x"), refused("parent"));
    case("absolute", file("/etc/passwd"), refused("absolute"));
    case("absolute, twice", file("//etc/passwd"), refused("absolute"));
    case("absolute folder", tar(|tar| tar.folder("/tmp")), refused("absolute"));
    case("the root", tar(|tar| tar.raw(&header("/", b'5', 0, 0o755))), refused("empty_name"));
    case(".. by GNU", tar(|tar| tar.long_name(b'L', b"../x").file("x", b"x")), refused("parent"));
    case("absolute by POSIX", tar(|tar| tar.pax(b'x', &[("path", b"/etc/x")]).file("x", b"x")), refused("absolute"));
    case("link outside", tar(|tar| tar.link("l", "../x")), refused("link_outside"));
    case("link to the root", tar(|tar| tar.link("l", "/")), refused("link_outside"));
    case("link outside by GNU", tar(|tar| tar.long_name(b'K', b"/etc").link("l", "x")), refused("link_outside"));
    case("link down and up", tar(|tar| tar.link("l", "a/../../x")), refused("link_outside"));
    case("link up behind a name", tar(|tar| tar.link("a/l", "b/../c")), refused("link_outside"));
    case("link to nothing", tar(|tar| tar.link("l", "")), refused("bad_link"));
    case("file through a link", tar(|tar| tar.link("l", ".").file("l/x", b"x")), refused("through_link"));
    case(
        "file through a link to a folder",
        tar(|tar| tar.folder("a").link("a/l", "..").file("a/l/x", b"x")),
        refused("through_link"),
    );
    case("folder through a link", tar(|tar| tar.link("l", "a").folder("l/x")), refused("through_link"));
    case("link through a link", tar(|tar| tar.link("l", "a").link("l/x", "b")), refused("through_link"));
    case("file in place of a link", tar(|tar| tar.link("l", "a").file("l", b"x")), refused("duplicate"));
    case("folder in place of a link", tar(|tar| tar.link("l", "a").folder("l")), refused("duplicate"));
    case("link in place of a folder", tar(|tar| tar.folder("a").link("a", "b")), refused("duplicate"));
    case("hard link", kind(b'1'), refused("hardlink"));
    case("hard link outside", tar(|tar| tar.raw(&raw(b"x", b'1', 0, 0o644, b"/etc/passwd"))), refused("hardlink"));

    // What is no file.
    case("character device", kind(b'3'), refused("device"));
    case("block device", kind(b'4'), refused("device"));
    case("FIFO", kind(b'6'), refused("fifo"));
    case("holes", kind(b'S'), refused("sparse"));
    case("holes by POSIX", tar(|tar| tar.pax(b'x', &[("GNU.sparse.map", b"0,1")]).file("x", b"x")), refused("sparse"));
    case("unknown type", kind(b'Z'), refused("unknown_type"));
    case("several volumes", kind(b'M'), refused("unknown_type"));
    case("setuid", mode(0o4755), refused("setuid"));
    case("setgid", mode(0o2755), refused("setuid"));
    case("sticky", mode(0o1755), refused("setuid"));
    case("setgid folder", tar(|tar| tar.raw(&header("d/", b'5', 0, 0o2755))), refused("setuid"));

    // Names.
    case("the same name twice", tar(|tar| tar.file("a", b"1").file("a", b"2")), refused("duplicate"));
    case("the same name, with ./", tar(|tar| tar.file("a", b"1").file("./a", b"2")), refused("duplicate"));
    case("file and folder", tar(|tar| tar.file("a", b"1").folder("a")), refused("duplicate"));
    case("folder and file", tar(|tar| tar.folder("a").file("a", b"1")), refused("duplicate"));
    case("file through a file", tar(|tar| tar.file("a", b"1").file("a/b", b"2")), refused("through_file"));
    case("case of letters", tar(|tar| tar.file("a", b"1").file("A", b"2")), refused("case_clash"));
    case("case of letters in a folder", tar(|tar| tar.file("Src/a", b"1").file("src/b", b"2")), refused("case_clash"));
    case("case of other letters", tar(|tar| tar.file("ä", b"1").file("Ä", b"2")), refused("case_clash"));
    case("no UTF-8", tar(|tar| tar.entry(&raw(b"a\xff", b'0', 1, 0o644, b""), b"x")), refused("not_utf8"));
    case("link to no UTF-8", tar(|tar| tar.raw(&raw(b"l", b'2', 0, 0o777, b"\xff"))), refused("not_utf8"));
    case("line break", file("a\nb"), refused("unprintable"));
    case("line break by POSIX", tar(|tar| tar.pax(b'x', &[("path", b"a\nb")]).file("x", b"x")), refused("unprintable"));
    case("escape", file("a\x1b[2Jb"), refused("unprintable"));
    case("text that runs backwards", file("a\u{202e}gnp.exe"), refused("unprintable"));
    case("zero byte", tar(|tar| tar.pax(b'x', &[("path", b"a\0b")]).file("x", b"x")), refused("unprintable"));
    case("no name", tar(|tar| tar.entry(&raw(b"", b'0', 1, 0o644, b""), b"x")), refused("empty_name"));
    case("empty name in the middle", file("a//b"), refused("odd_path"));
    case(". in the middle", file("a/./b"), refused("odd_path"));
    case("a file with a slash behind", tar(|tar| tar.raw(&raw(b"a/", b'2', 0, 0o777, b"x"))), refused("odd_path"));
    case("jobcell's own name", file(".jobcell-script"), refused("own_name"));
    case("jobcell's own folder", file(".jobcell/x"), refused("own_name"));
    case("long name", tar(|tar| tar.long_name(b'L', &[b'n'; 256]).file("x", b"x")), refused("long_name"));
    case(
        "long path",
        tar(|tar| tar.long_name(b'L', ("abc/".repeat(300) + "x").as_bytes()).file("x", b"x")),
        refused("long_path"),
    );
    case("deep path", file(&("d/".repeat(33) + "x")), refused("deep"));
    case("a name of 20 KiB", tar(|tar| tar.long_name(b'L', &[b'n'; 20_000]).file("x", b"x")), refused("long_path"));
    case(
        "a name of 8 GiB",
        tar(|tar| tar.raw(&raw(b"././@LongLink", b'L', (8 << 30) - 1, 0o644, b""))),
        refused("long_path"),
    );
    case("one name for all", tar(|tar| tar.pax(b'g', &[("path", b"x")]).file("a", b"x")), refused("bad_header"));

    // Bombs.
    case("too many bytes", tar(|tar| tar.raw(&header("x", b'0', (1 << 20) + 1, 0o644))), refused("too_large"));
    case(
        "8 EiB",
        tar(|tar| tar.pax(b'x', &[("size", b"9223372036854775807")]).raw(&header("x", b'0', 0, 0o644))),
        refused("too_large"),
    );
    case(
        "too many bytes in small files",
        tar(|tar| (0..257).fold(tar, |tar, n| tar.file(&format!("f{n}"), b"x"))),
        refused("too_large"),
    );
    case("too many entries", tar(|tar| (0..501).fold(tar, |tar, n| tar.folder(&format!("d{n}")))), refused("too_many"));
    case("too many headers", tar(|tar| (0..2001).fold(tar, |tar, _| tar.folder("d"))), refused("too_many"));
    case("endless headers", tar(|tar| (0..2001).fold(tar, |tar, _| tar.pax(b'g', &[]))), refused("too_many"));
    case("a bomb of zeros", bomb(80 << 20), refused("ratio"));
    case("a wide window", wide_window(&good), refused("bad_zstd"));

    // Damage.
    case("no bytes", Vec::new(), refused("cut_off"));
    case("text", b"hello world, this is no archive at all".repeat(40), refused("bad_header"));
    case("gzip", b"\x1f\x8b\x08\0\0\0\0\0\0\x03".to_vec(), refused("foreign_packing"));
    case("zip", b"PK\x03\x04\x14\0\0\0".to_vec(), refused("foreign_packing"));
    case("xz", b"\xfd7zXZ\0\0\x04".to_vec(), refused("foreign_packing"));
    case("cut in a header", good[..300].to_vec(), refused("cut_off"));
    case("cut in a content", good[..1026].to_vec(), refused("cut_off"));
    case("cut behind a content", good[..1100].to_vec(), refused("cut_off"));
    case("cut between entries", good[..1536].to_vec(), refused("cut_off"));
    case("packing cut", zstd(&good)[..60].to_vec(), refused("cut_off"));
    case("packing damaged", damaged(zstd(&good)), refused("bad_zstd"));
    case(
        "wrong checksum",
        {
            let mut bad = good.clone();
            bad[0] ^= 1;
            bad
        },
        refused("bad_header"),
    );
    case("a folder with a content", tar(|tar| tar.entry(&header("a/", b'5', 1, 0o755), b"x")), refused("bad_header"));
    case("a link with a content", tar(|tar| tar.entry(&raw(b"l", b'2', 1, 0o777, b"x"), b"x")), refused("bad_header"));
    case(
        "POSIX without lengths",
        tar(|tar| tar.entry(&header("pax", b'x', 9, 0o644), b"path=/etc")),
        refused("bad_header"),
    );
    case(
        "POSIX with a wrong length",
        tar(|tar| tar.entry(&header("pax", b'x', 9, 0o644), b"99 path=x")),
        refused("bad_header"),
    );
    case("something behind the end", [good.clone(), good].concat(), refused("behind_end"));
    cases
}

/// 250 bytes.
const LONG: &str = "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn";

/// Zeros behind the end of an archive, and little of the packing.
fn bomb(zeros: usize) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).expect("a vector takes everything");
    let piece = vec![0; 1 << 20];
    for _ in 0..zeros >> 20 {
        std::io::Write::write_all(&mut encoder, &piece).expect("a vector takes everything");
    }
    encoder.finish().expect("a vector takes everything")
}

/// A frame whose header asks for 128 MiB to look back to.
fn wide_window(content: &[u8]) -> Vec<u8> {
    let mut frame = b"\x28\xb5\x2f\xfd\x00".to_vec();
    frame.push((27 - 10) << 3);
    // One block, the last one, as it is.
    let size = content.len() as u32;
    frame.extend_from_slice(&(size << 3 | 1).to_le_bytes()[..3]);
    frame.extend_from_slice(content);
    frame
}

fn damaged(mut packed: Vec<u8>) -> Vec<u8> {
    for byte in &mut packed[8..24] {
        *byte = 0xff;
    }
    packed
}

//! Which paths a rule means. Bytes, since names are bytes; pure, bounded in time by the product of both lengths.

/// Whether `pattern` means `path`, or a folder above it. Both are relative, with `/` between names. In a name `*` stands for any
/// characters and `?` for one; a name `**` stands for any number of folders, also none.
pub fn matches(pattern: &[u8], path: &[u8]) -> bool {
    let pattern: Vec<&[u8]> = pattern.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect();
    let path: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
    // What a folder's rule means is everything beneath it, so the pattern may end before the path does.
    (1..=path.len()).any(|names| names_match(&pattern, &path[..names]))
}

/// As a `*` among characters is to a text, a `**` is to names: on a mismatch the last one takes one name more.
fn names_match(pattern: &[&[u8]], path: &[&[u8]]) -> bool {
    let (mut p, mut n, mut last) = (0, 0, None);
    while n < path.len() {
        match pattern.get(p) {
            Some(&b"**") => {
                last = Some((p, n));
                p += 1;
            }
            Some(name) if name_matches(name, path[n]) => (p, n) = (p + 1, n + 1),
            _ => match last {
                Some((star, taken)) => {
                    last = Some((star, taken + 1));
                    (p, n) = (star + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|name| *name == b"**")
}

fn name_matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n, mut last) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                last = Some((p, n));
                p += 1;
            }
            Some(b'?') => (p, n) = (p + 1, n + character(&name[n..])),
            Some(byte) if *byte == name[n] => (p, n) = (p + 1, n + 1),
            _ => match last {
                Some((star, taken)) => {
                    last = Some((star, taken + 1));
                    (p, n) = (star + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// Bytes of the first character; a byte that is none stands for itself.
fn character(text: &[u8]) -> usize {
    let most = text.len().min(4);
    (2..=most)
        .find(|bytes| std::str::from_utf8(&text[..*bytes]).is_ok_and(|text| text.chars().count() == 1))
        .unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns_mean_what_they_say() {
        for (pattern, path, wanted) in [
            ("a", "a", true),
            ("a", "a/b/c", true),
            ("a/", "a/b", true),
            ("a", "ab", false),
            ("a", "b/a", false),
            ("*.xml", "x.xml", true),
            ("*.xml", ".xml", true),
            ("*.xml", "d/x.xml", false),
            ("**/*.xml", "x.xml", true),
            ("**/*.xml", "d/e/x.xml", true),
            ("**", "d/e/x", true),
            ("d/**/x", "d/x", true),
            ("d/**/x", "d/1/2/x", true),
            ("d/**/x", "d/1/2/y", false),
            ("**/a/**/b", "a/c/a/c/b", true),
            ("a?c", "abc", true),
            ("a?c", "a\u{e9}c", true),
            ("a?c", "ac", false),
            ("?", "\u{65e5}", true),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b*", "xxbxxaxx", false),
            ("dir*/f", "dir1/f", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), path.as_bytes()), wanted, "{pattern} {path}");
        }
        assert!(matches(b"*", b"\xff\xfe") && matches(b"??", b"\xff\xfe") && matches(b"a*", b"a\nb"));
    }

    #[test]
    fn the_worst_patterns_end_soon() {
        let (name, path) = ("a".repeat(255), vec!["a"; 60].join("/"));
        assert!(!matches(format!("{}b", "*a".repeat(120)).as_bytes(), name.as_bytes()));
        assert!(!matches(format!("{}b", "**/a/".repeat(30)).as_bytes(), path.as_bytes()));
    }
}

//! From seccomp/profiles.yaml to the profiles in Docker's form, and to the warden's list of trips. Pure.
//!
//! Owns the rules that every profile keeps (seccomp/README.md): what breaks one is an error here and never becomes a file.

use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// What everything is made of.
pub const SOURCE: &str = "seccomp/profiles.yaml";
/// The profiles, and how many names each may allow at most.
pub const PROFILES: [(&str, usize); 4] = [("default", 290), ("offline", 290), ("strict", 219), ("tripwire", 290)];
/// The only one with trips.
const TRIPWIRE: &str = "tripwire";
const TABLE: &str = "warden/src/tripwire/table.rs";
/// What a call gets that no entry names: EPERM.
const DEFAULT_ERRNO: u32 = 1;
const WHOLE: u32 = u32::MAX;
/// Lines of the files are no longer than this, where they can be broken.
const WIDTH: usize = 130;

/// One entry of the source.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    #[serde(default)]
    calls: Vec<String>,
    #[serde(default)]
    trip: BTreeMap<String, u32>,
    why: String,
    #[serde(default)]
    when: Vec<Condition>,
    answer: Option<u32>,
    #[serde(default, rename = "in")]
    only: Vec<String>,
    #[serde(default)]
    but: Vec<String>,
}

/// What an argument has to be: one of `is`, `not` and `bits`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Condition {
    arg: u8,
    mask: Option<u32>,
    is: Option<Vec<u32>>,
    not: Option<Vec<u32>>,
    bits: Option<Vec<u32>>,
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It is made.
    Allow,
    /// It is answered with this error number.
    Errno(u32),
    /// It is not made, and whoever has installed a listener behind this filter hears of it.
    Trip,
}

/// The low 32 bits of argument `index`, as far as `mask` goes, are `value`. The only comparison there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Match {
    /// Which argument, from 0.
    pub index: u8,
    /// The bits that count; none above 32.
    pub mask: u32,
    /// What they are.
    pub value: u32,
}

/// One rule of a profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The calls.
    pub names: Vec<String>,
    /// What becomes of them.
    pub action: Action,
    /// All of these hold.
    pub when: Vec<Match>,
    /// Who needs it.
    pub comment: String,
}

/// Every file, by its path in the project.
pub fn files(source: &str) -> Result<BTreeMap<String, String>, String> {
    let groups = parse(source)?;
    let mut files = BTreeMap::from([(TABLE.to_owned(), table(&groups)?)]);
    for (profile, most) in PROFILES {
        let rules = rules(&groups, profile)?;
        check(&rules, most).map_err(|reason| format!("{profile}: {reason}"))?;
        files.insert(format!("seccomp/{profile}.json"), json(&rules));
    }
    Ok(files)
}

fn parse(source: &str) -> Result<Vec<Group>, String> {
    let groups: Vec<Group> = serde_saphyr::from_str(source).map_err(|error| error.to_string())?;
    for group in &groups {
        let known = |name: &String| PROFILES.iter().any(|(profile, _)| profile == name);
        if let Some(name) = group.only.iter().chain(&group.but).find(|name| !known(name)) {
            return Err(format!("{}: there is no profile {name}", group.title()));
        }
        if group.calls.is_empty() == group.trip.is_empty() {
            return Err(format!("{}: give either calls or trips", group.title()));
        }
    }
    Ok(groups)
}

impl Group {
    fn title(&self) -> String {
        let first = self.calls.first().or(self.trip.keys().next());
        format!("{} ({})", first.map_or("an entry without calls", String::as_str), self.why)
    }

    fn is_in(&self, profile: &str) -> bool {
        if !self.trip.is_empty() {
            return profile == TRIPWIRE;
        }
        (self.only.is_empty() || self.only.iter().any(|name| name == profile))
            && !self.but.iter().any(|name| name == profile)
    }

    /// Every way to meet all conditions at once.
    fn alternatives(&self) -> Result<Vec<Vec<Match>>, String> {
        let mut all = vec![Vec::new()];
        for condition in &self.when {
            let ways = condition.ways().map_err(|reason| format!("{}: {reason}", self.title()))?;
            let longer = |one: &Vec<Match>| {
                let one = one.clone();
                ways.iter().map(move |way| one.iter().copied().chain([*way]).collect()).collect::<Vec<Vec<Match>>>()
            };
            all = all.iter().flat_map(longer).collect();
        }
        Ok(all)
    }
}

impl Condition {
    fn ways(&self) -> Result<Vec<Match>, String> {
        if self.arg > 5 {
            return Err(format!("a system call has no argument {}", self.arg));
        }
        let ways = |pairs: Vec<(u32, u32)>| {
            pairs.into_iter().map(|(mask, value)| Match { index: self.arg, mask, value }).collect()
        };
        let mask = self.mask.unwrap_or(WHOLE);
        match (&self.is, &self.not, &self.bits) {
            (Some(is), None, None) => Ok(ways(is.iter().map(|value| (mask, *value)).collect())),
            (None, Some(not), None) if self.mask.is_none() && !not.is_empty() => Ok(ways(all_but(not))),
            (None, None, Some(bits)) if self.mask.is_none() => Ok(ways(bits.iter().map(|bit| (*bit, *bit)).collect())),
            _ => Err(format!("argument {}: give one of `is`, `not` and `bits`, and a mask only with `is`", self.arg)),
        }
    }
}

/// Masks and values that meet every number but `values`, as there is no exception from an allow: one for each bit above those in which
/// the values differ, and blocks that fill what is left between them.
fn all_but(values: &[u32]) -> Vec<(u32, u32)> {
    let first = values[0];
    let differ = values.iter().fold(0, |bits, value| bits | (value ^ first));
    let low_bits = u32::BITS - differ.leading_zeros();
    let mut ways: Vec<(u32, u32)> = (low_bits..u32::BITS).rev().map(|bit| (1 << bit, !first & (1 << bit))).collect();
    let base = if low_bits == u32::BITS { 0 } else { first >> low_bits << low_bits };
    fill(base, low_bits, values, &mut ways);
    ways
}

/// The largest aligned blocks of the 2^`bits` numbers from `from` on that hold none of `values`.
fn fill(from: u32, bits: u32, values: &[u32], ways: &mut Vec<(u32, u32)>) {
    let mask = WHOLE.checked_shl(bits).unwrap_or(0);
    if !values.iter().any(|value| value & mask == from) {
        ways.push((mask, from));
    } else if bits > 0 {
        fill(from, bits - 1, values, ways);
        fill(from | 1 << (bits - 1), bits - 1, values, ways);
    }
}

fn rules(groups: &[Group], profile: &str) -> Result<Vec<Rule>, String> {
    let mut rules = Vec::new();
    for group in groups.iter().filter(|group| group.is_in(profile)) {
        let (names, action) = match group.answer {
            _ if !group.trip.is_empty() => (group.trip.keys().cloned().collect(), Action::Trip),
            Some(answer) => (group.calls.clone(), Action::Errno(answer)),
            None => (group.calls.clone(), Action::Allow),
        };
        for (n, when) in group.alternatives()?.into_iter().enumerate() {
            let names: Vec<String> = Vec::clone(&names);
            // What follows on the first one differs in numbers only.
            let comment = if n == 0 { group.why.clone() } else { format!("{}, continued.", names.join(", ")) };
            rules.push(Rule { names, action, when, comment });
        }
    }
    Ok(rules)
}

/// The rules that every profile keeps. `most`: names that it may allow.
pub fn check(rules: &[Rule], most: usize) -> Result<(), String> {
    let mut allowed = BTreeSet::new();
    let mut plain: BTreeMap<&str, usize> = BTreeMap::new();
    let mut all: BTreeMap<&str, usize> = BTreeMap::new();
    for rule in rules {
        let title = rule.names.join(" ");
        if rule.names.is_empty() || rule.comment.is_empty() {
            return Err(format!("{title}: a rule has calls, and says who needs them"));
        }
        if rule.action == Action::Errno(DEFAULT_ERRNO) {
            return Err(format!("{title}: runc drops a rule whose action is the default's"));
        }
        let indexes: BTreeSet<u8> = rule.when.iter().map(|one| one.index).collect();
        if indexes.len() != rule.when.len() {
            return Err(format!("{title}: runc makes two rules of one that tests an argument twice"));
        }
        if let Some(bad) = rule.when.iter().find(|one| one.mask == 0 || one.value & !one.mask != 0) {
            return Err(format!("{title}: {:#x} under the mask {:#x} is everything, or nothing", bad.value, bad.mask));
        }
        for name in &rule.names {
            *all.entry(name).or_default() += 1;
            if rule.when.is_empty() {
                *plain.entry(name).or_default() += 1;
            }
            if rule.action == Action::Allow {
                allowed.insert(name);
            }
        }
    }
    if let Some((name, _)) = plain.iter().find(|(name, _)| all[*name] > 1) {
        return Err(format!("{name}: a rule without conditions swallows every other one of the same name"));
    }
    if allowed.len() > most {
        return Err(format!("{} names are allowed; at most {most} may be", allowed.len()));
    }
    Ok(())
}

fn json(rules: &[Rule]) -> String {
    let mut text = format!(
        "{{\n  \"defaultAction\": \"SCMP_ACT_ERRNO\",\n  \"defaultErrnoRet\": {DEFAULT_ERRNO},\n  \
         \"architectures\": [\"SCMP_ARCH_X86_64\"],\n  \"syscalls\": ["
    );
    for (n, rule) in rules.iter().enumerate() {
        text.push_str(if n == 0 { "\n    {\n" } else { ",\n    {\n" });
        text.push_str(&names(&rule.names));
        match rule.action {
            Action::Allow => text.push_str("      \"action\": \"SCMP_ACT_ALLOW\",\n"),
            // Without a tracer, which nobody in a cell can become, the answer is ENOSYS.
            Action::Trip => text.push_str("      \"action\": \"SCMP_ACT_TRACE\",\n"),
            Action::Errno(number) => {
                let _ = write!(text, "      \"action\": \"SCMP_ACT_ERRNO\",\n      \"errnoRet\": {number},\n");
            }
        }
        if !rule.when.is_empty() {
            let one = |one: &Match| {
                format!(
                    "        {{\"index\": {}, \"value\": {}, \"valueTwo\": {}, \"op\": \"SCMP_CMP_MASKED_EQ\"}}",
                    one.index, one.mask, one.value
                )
            };
            let args: Vec<String> = rule.when.iter().map(one).collect();
            let _ = write!(text, "      \"args\": [\n{}\n      ],\n", args.join(",\n"));
        }
        let comment = serde_json::to_string(&rule.comment).expect("a string");
        let _ = write!(text, "      \"comment\": {comment}\n    }}");
    }
    text.push_str("\n  ]\n}\n");
    text
}

/// The list of calls, in lines.
fn names(names: &[String]) -> String {
    let mut lines = vec![String::new()];
    for name in names {
        let word = format!("\"{name}\", ");
        if lines.last().is_some_and(|line| 8 + line.len() + word.len() > WIDTH) {
            lines.push(String::new());
        }
        lines.last_mut().expect("one at least").push_str(&word);
    }
    let all = lines.iter().map(|line| line.trim_end()).collect::<Vec<_>>().join("\n        ");
    let all = all.trim_end_matches(',');
    if lines.len() == 1 {
        format!("      \"names\": [{all}],\n")
    } else {
        format!("      \"names\": [\n        {all}\n      ],\n")
    }
}

/// The warden's list, as Rust.
fn table(groups: &[Group]) -> Result<String, String> {
    let mut text = format!(
        "//! Made of {SOURCE} by `cargo run --example seccomp-profiles`; not to be edited.\n\n\
         use super::Trip;\n\n/// What no honest job calls.\npub(crate) const TRIPS: &[Trip] = &[\n"
    );
    for group in groups.iter().filter(|group| !group.trip.is_empty()) {
        for (name, number) in &group.trip {
            for when in group.alternatives()? {
                let when = match when[..] {
                    [] => "None".to_owned(),
                    [Match { index, mask, value }] => format!("Some(({index}, {mask:#x}, {value:#x}))"),
                    _ => return Err(format!("{}: a trip looks at one argument", group.title())),
                };
                let _ = writeln!(text, "    Trip {{ number: {number}, name: \"{name}\", when: {when} }},");
            }
        }
    }
    text.push_str("];\n");
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(name: &str, action: Action, when: &[Match]) -> Rule {
        Rule { names: vec![name.to_owned()], action, when: when.to_vec(), comment: "somebody".to_owned() }
    }

    fn equals(index: u8, value: u32) -> Match {
        Match { index, mask: WHOLE, value }
    }

    #[test]
    fn all_but_some_is_exactly_that() {
        let lists: [&[u32]; 6] =
            [&[0x5412, 0x541C, 0x5423], &[26, 50, 51, 52], &[0], &[u32::MAX], &[0, u32::MAX], &[7, 7]];
        for values in lists {
            let ways = all_but(values);
            let met = |number: u32| ways.iter().any(|(mask, value)| number & mask == *value);
            let near = values.iter().flat_map(|value| (0..32).map(move |bit| value ^ (1 << bit)));
            let near = near.chain((0..2048).map(|n| n * 2_097_143)).chain(values.iter().copied());
            for number in near {
                assert_eq!(met(number), !values.contains(&number), "{number:#x} of {values:x?}");
            }
        }
    }

    #[test]
    fn what_breaks_a_rule_becomes_no_file() {
        assert_eq!(
            check(&[rule("a", Action::Allow, &[equals(0, 1)]), rule("a", Action::Allow, &[equals(0, 2)])], 1),
            Ok(())
        );
        let twice = Match { mask: 4, value: 4, ..equals(0, 0) };
        for (bad, rules) in [
            ("default's", vec![rule("a", Action::Errno(1), &[])]),
            ("twice", vec![rule("a", Action::Allow, &[equals(0, 1), twice])]),
            ("swallows", vec![rule("a", Action::Allow, &[]), rule("a", Action::Errno(38), &[equals(0, 1)])]),
            ("swallows", vec![rule("a", Action::Allow, &[]), rule("a", Action::Errno(38), &[])]),
            ("mask", vec![rule("a", Action::Allow, &[Match { index: 0, mask: 1, value: 2 }])]),
            ("mask", vec![rule("a", Action::Allow, &[Match { index: 0, mask: 0, value: 0 }])]),
            ("at most 1", vec![rule("a", Action::Allow, &[]), rule("b", Action::Allow, &[])]),
            ("who needs", vec![Rule { comment: String::new(), ..rule("a", Action::Allow, &[]) }]),
        ] {
            let refused = check(&rules, 1).expect_err(bad);
            assert!(refused.contains(bad), "{bad}: {refused}");
        }
    }

    #[test]
    fn what_the_source_may_not_say() {
        for (bad, source) in [
            ("no profile", "[{calls: [read], why: x, in: [lenient]}]"),
            ("either calls or trips", "[{why: x}]"),
            ("either calls or trips", "[{calls: [bpf], trip: {bpf: 321}, why: x}]"),
            ("unknown field", "[{calls: [read], why: x, unless: []}]"),
            ("one of", "[{calls: [read], why: x, when: [{arg: 0}]}]"),
            ("one of", "[{calls: [read], why: x, when: [{arg: 0, is: [1], not: [2]}]}]"),
            ("one of", "[{calls: [read], why: x, when: [{arg: 0, mask: 3, not: [2]}]}]"),
            ("no argument 6", "[{calls: [read], why: x, when: [{arg: 6, is: [1]}]}]"),
            ("one argument", "[{trip: {bpf: 321}, why: x, when: [{arg: 0, is: [1]}, {arg: 1, is: [1]}]}]"),
        ] {
            let refused = files(source).expect_err(bad);
            assert!(refused.contains(bad), "{bad}: {refused}");
        }
    }

    #[test]
    fn conditions_are_multiplied() {
        let source = "[{calls: [socket], why: x, when: [{arg: 0, is: [2, 10]}, {arg: 1, mask: 15, is: [1, 2]}]}]";
        let rules = rules(&parse(source).expect("reads"), "strict").expect("makes");
        let found: Vec<Vec<(u8, u32, u32)>> =
            rules.iter().map(|rule| rule.when.iter().map(|one| (one.index, one.mask, one.value)).collect()).collect();
        let pair = |family, kind| vec![(0, WHOLE, family), (1, 15, kind)];
        assert_eq!(found, [pair(2, 1), pair(2, 2), pair(10, 1), pair(10, 2)]);
    }
}

//! What an installation has left behind, for a sweep by hand while no agent of it runs: found, judged, removed.
//!
//! [`judge`] is pure and decides; what carries another owner's label is never a candidate. Volumes with a warden in them carry no
//! owner: every installation with the same warden shares one, and whoever misses it makes it again.

use super::engine::{Engine, EngineError, Listed};
use super::shims::{self, Shim};
use super::sweep;
use super::volume::{self, WARDEN_VOLUME};
use crate::executor::warden::warden_build;
use crate::job::{AttemptId, OwnerId};
use std::collections::{BTreeSet, HashMap, HashSet};

/// Whose leftovers are looked for, and what of them is none.
#[derive(Debug, Clone)]
pub struct Scope {
    /// Whose.
    pub owner: OwnerId,
    /// Attempts that the next start goes on with.
    pub open: BTreeSet<AttemptId>,
    /// Also volumes with wardens of other builds.
    pub wardens: bool,
}

/// What something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A container.
    Container,
    /// A network.
    Network,
    /// A volume.
    Volume,
    /// A process that an engine started for a container, and forgot.
    Shim,
}

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// What it is.
    pub kind: Kind,
    /// Its name; of a shim, the id of its container.
    pub name: String,
    /// A container that runs.
    pub running: bool,
    /// It is not to be removed.
    pub kept: bool,
    /// Why it is to go or to stay.
    pub why: String,
    shim: Option<Shim>,
}

/// What an engine has.
#[derive(Debug, Default)]
struct World {
    /// Everybody's: they say which volumes are in use.
    containers: Vec<Listed>,
    /// Those with the owner's label, with all their labels.
    networks: Vec<(String, HashMap<String, String>)>,
    /// Everybody's, with their labels.
    volumes: Vec<(String, HashMap<String, String>)>,
}

/// Looks. Takes two seconds when shims are seen that may be left over. Errors: the engine does not answer.
pub async fn find(engine: &Engine, scope: &Scope) -> Result<Vec<Leftover>, EngineError> {
    let owner = scope.owner.to_string();
    let world = World {
        containers: engine.list().await?,
        networks: engine.list_networks("jobcell.owner", &owner).await?,
        volumes: engine.list_volumes().await?,
    };
    let mut found = judge(&world, scope);
    if engine.is_local() {
        let left = shims::left(engine, &scope.owner).await?;
        found.extend(left.into_iter().map(|shim| Leftover {
            kind: Kind::Shim,
            name: shim.container.clone(),
            running: false,
            kept: false,
            why: format!("process {} runs nothing, and the engine does not know its container", shim.pid),
            shim: Some(shim),
        }));
    }
    Ok(found)
}

/// Removes something that was found. One that is gone counts as done. Errors: what was said.
pub async fn remove(engine: &Engine, leftover: &Leftover) -> Result<(), String> {
    let removed = match (&leftover.shim, leftover.kind) {
        (Some(shim), _) => return shim.end().await,
        (None, Kind::Container) => engine.remove(&leftover.name).await,
        (None, Kind::Network) => engine.remove_network(&leftover.name).await,
        (None, Kind::Volume | Kind::Shim) => engine.remove_volume(&leftover.name).await,
    };
    removed.map_err(|error| error.short())
}

/// In the order in which they are to be removed: what uses others before these.
fn judge(world: &World, scope: &Scope) -> Vec<Leftover> {
    let owner = scope.owner.to_string();
    let is_owners = |labels: &HashMap<String, String>| labels.get("jobcell.owner") == Some(&owner);
    let one = |kind, name: &str, kept, why: &str| Leftover {
        kind,
        name: name.to_owned(),
        running: false,
        kept,
        why: why.to_owned(),
        shim: None,
    };
    let mut found = Vec::new();
    let mut in_use: HashSet<&str> = HashSet::new();
    for container in &world.containers {
        let ours = is_owners(&container.labels);
        let open = ours && sweep::attempt(&container.labels).is_some_and(|attempt| scope.open.contains(&attempt));
        if !ours || open {
            in_use.extend(container.volumes.iter().map(String::as_str));
        }
        if ours {
            let why = if open { "the next start goes on with it" } else { "nothing that is open has it" };
            let leftover = one(Kind::Container, &container.name, open, why);
            found.push(Leftover { running: container.running, ..leftover });
        }
    }
    for (name, labels) in &world.networks {
        let open = sweep::attempt(labels).is_some_and(|attempt| scope.open.contains(&attempt));
        let why = if open { "the next start goes on with its cell" } else { "it has the owner's label" };
        found.push(one(Kind::Network, name, open, why));
    }
    for (name, labels) in &world.volumes {
        let used = in_use.contains(name.as_str());
        if is_owners(labels) {
            let why = if used { "a container that stays uses it" } else { "it has the owner's label" };
            found.push(one(Kind::Volume, name, used, why));
        } else if scope.wardens && !used && is_another_wardens(name, labels) {
            found.push(one(Kind::Volume, name, false, "it has the warden of another build, and no container uses it"));
        }
    }
    found
}

/// By its name alone when it has no label: an engine that is asked for a container on a volume that is gone makes one without.
fn is_another_wardens(name: &str, labels: &HashMap<String, String>) -> bool {
    let build = name.strip_prefix(WARDEN_VOLUME).filter(|build| {
        build.len() == warden_build().len() && build.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    });
    let labelled = labels.get(volume::WARDEN_LABEL).map(String::as_str);
    // Somebody else's label, whoever that is, is respected.
    let nobodys = !labels.contains_key("jobcell.owner");
    nobodys && build.is_some() && build != Some(warden_build()) && labelled.is_none_or(|label| Some(label) == build)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{JobId, UnixMillis};

    const OWNER: &str = "0a1b2c3d";

    fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn container(name: &str, labels: HashMap<String, String>, volume: &str) -> Listed {
        Listed { name: name.to_owned(), labels, running: true, volumes: vec![volume.to_owned()] }
    }

    fn attempt(number: u64) -> AttemptId {
        AttemptId::new(JobId::new(UnixMillis::new(number)), 1)
    }

    fn cell(owner: &str, attempt: AttemptId) -> HashMap<String, String> {
        labels(&[
            ("jobcell.owner", owner),
            ("jobcell.job", &attempt.job.to_string()),
            ("jobcell.attempt", "1"),
            ("jobcell.part", "0"),
        ])
    }

    fn scope(open: &[AttemptId], wardens: bool) -> Scope {
        let owner = OWNER.parse().expect("an owner");
        Scope { owner, open: open.iter().copied().collect(), wardens }
    }

    fn told(found: &[Leftover]) -> Vec<(&str, bool)> {
        found.iter().map(|one| (one.name.as_str(), one.kept)).collect()
    }

    #[test]
    fn what_is_the_owners_goes_but_for_what_is_open_and_nothing_of_others_does() {
        let (open, over) = (attempt(1), attempt(2));
        let world = World {
            containers: vec![
                container("open", cell(OWNER, open), "x"),
                container("over", cell(OWNER, over), "y"),
                container("door", labels(&[("jobcell.owner", OWNER)]), "y"),
                container("others", cell("00000000", open), "z"),
                container("strangers", labels(&[("jobcell.job", &open.job.to_string())]), "z"),
            ],
            networks: vec![("n".to_owned(), cell(OWNER, over)), ("open-net".to_owned(), cell(OWNER, open))],
            volumes: vec![
                ("x".to_owned(), labels(&[("jobcell.owner", OWNER)])),
                ("y".to_owned(), labels(&[("jobcell.owner", OWNER)])),
                ("z".to_owned(), labels(&[("jobcell.owner", "00000000")])),
                ("a stranger's".to_owned(), HashMap::new()),
            ],
        };
        let found = judge(&world, &scope(&[open], true));
        let wanted = [
            ("open", true),
            ("over", false),
            ("door", false),
            ("n", false),
            ("open-net", true),
            ("x", true),
            ("y", false),
        ];
        assert_eq!(told(&found), wanted);
        // Without a journal nothing is open.
        assert!(judge(&world, &scope(&[], false)).iter().all(|one| !one.kept));
    }

    #[test]
    fn wardens_of_other_builds_go_when_nothing_that_stays_uses_them() {
        let (other, used, ours) =
            ("jobcell-warden-0000000000000000", "jobcell-warden-1111111111111111", "jobcell-warden-2222222222222222");
        let (own, open) = (format!("{WARDEN_VOLUME}{}", warden_build()), attempt(2));
        let volume = |name: &str, pairs: &[(&str, &str)]| (name.to_owned(), labels(pairs));
        let world = World {
            containers: vec![
                container("another's", cell("00000000", attempt(1)), used),
                container("ours", cell(OWNER, open), ours),
            ],
            networks: Vec::new(),
            volumes: vec![
                volume(&own, &[(volume::WARDEN_LABEL, warden_build())]),
                volume(other, &[]),
                volume(used, &[(volume::WARDEN_LABEL, "1111111111111111")]),
                volume(ours, &[(volume::WARDEN_LABEL, "2222222222222222")]),
                volume("jobcell-warden-3333333333333333", &[(volume::WARDEN_LABEL, "something else")]),
                volume("jobcell-warden-4444444444444444", &[("jobcell.owner", "00000000")]),
                volume("jobcell-warden-data", &[]),
                volume("mine", &[(volume::WARDEN_LABEL, "5555555555555555")]),
            ],
        };
        assert_eq!(told(&judge(&world, &scope(&[], true))), [("ours", false), (other, false), (ours, false)]);
        assert_eq!(told(&judge(&world, &scope(&[open], true))), [("ours", true), (other, false)]);
        assert_eq!(told(&judge(&world, &scope(&[], false))), [("ours", false)]);
    }
}

//! Which hosts jobs may go to over SSH, as whom, and how: what an operator allows, and what comes of it for one job.
//!
//! It is what is really used that is judged: where a job names no login, the one that the inventory has. Pure: what the inventory
//! says is asked of [`Routes`].

use super::pattern::Glob;
use super::{Allowances, Checks, Facts, Outcome, all};
use crate::job::{JobSpec, Source, Target};
use ipnet::IpNet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// What an agent's inventory makes of a target.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reached {
    /// Its address or name, as it is dialled; absent for a host that the inventory does not name.
    pub address: Option<String>,
    /// The port that is the inventory's.
    pub port: Option<u16>,
    /// The login that is the inventory's.
    pub login: Option<String>,
    /// The credential that is the inventory's.
    pub credential: Option<String>,
    /// The way that is the inventory's.
    pub jump: Vec<String>,
    /// The login is proved with a password, with the credential that this target comes to.
    pub password: bool,
}

type Ask = dyn Fn(&Target) -> Reached + Send + Sync;

/// Asks the agent's inventory. The empty one knows no host.
#[derive(Clone, Default)]
pub struct Routes(Option<Arc<Ask>>);

impl Routes {
    /// One that asks `ask`, which has to answer at once.
    pub fn new(ask: impl Fn(&Target) -> Reached + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(ask)))
    }

    /// What the inventory makes of a target.
    pub fn of(&self, target: &Target) -> Reached {
        self.0.as_ref().map(|ask| ask(target)).unwrap_or_default()
    }
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Routes(inventory)" } else { "Routes(none)" })
    }
}

/// Hosts, by name or by address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum HostPattern {
    /// The name, as the job has it.
    Name(Glob),
    /// The address, as the job or the inventory has it. Names are not looked up for this.
    Net(IpNet),
}

impl HostPattern {
    pub(super) fn new(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Net(address.into()));
        }
        if text.contains('/') {
            let net =
                text.parse::<IpNet>().map_err(|_| "is no network of addresses, such as 10.1.0.0/16".to_owned())?;
            return Ok(Self::Net(net.trunc()));
        }
        Ok(Self::Name(Glob::new(&text.to_ascii_lowercase())?))
    }

    pub(super) fn matches(&self, host: &str, address: Option<&str>) -> bool {
        match self {
            Self::Name(glob) => glob.matches(&host.to_ascii_lowercase()),
            // What the inventory has under a name is dialled, whatever the name looks like.
            Self::Net(net) => address.unwrap_or(host).parse::<IpAddr>().is_ok_and(|address| net.contains(&address)),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(glob) => glob.fmt(f),
            Self::Net(net) if net.prefix_len() == net.max_prefix_len() => net.addr().fmt(f),
            Self::Net(net) => net.fmt(f),
        }
    }
}

/// Hosts that are allowed. Of what is `None`, only what the inventory has for the host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Reachable {
    /// `None`: all.
    pub(super) hosts: Option<Vec<HostPattern>>,
    pub(super) ports: Option<Vec<u16>>,
    pub(super) logins: Option<Vec<Glob>>,
    pub(super) credentials: Option<Vec<Glob>>,
    /// Hosts on the way.
    pub(super) jumps: Option<Vec<HostPattern>>,
    /// A password may prove the login.
    pub(super) passwords: bool,
}

/// What a job comes to use: its own word, or else the inventory's.
struct Used<'a> {
    host: &'a str,
    asked: &'a Target,
    reached: &'a Reached,
}

impl Used<'_> {
    fn login(&self) -> Option<&str> {
        self.asked.access.login.as_deref().or(self.reached.login.as_deref())
    }
    fn credential(&self) -> Option<&str> {
        self.asked.access.credential.as_deref().or(self.reached.credential.as_deref())
    }
    fn port(&self) -> Option<u16> {
        self.asked.access.port.or(self.reached.port)
    }
    fn jump(&self) -> &[String] {
        if self.asked.access.jump.is_empty() { &self.reached.jump } else { &self.asked.access.jump }
    }
}

/// A text against a list: without one, only what the inventory has.
fn text_fits(list: Option<&[Glob]>, used: Option<&str>, own: Option<&str>) -> bool {
    match (list, used) {
        (None, used) => used == own,
        // Nobody knows what it will be.
        (Some(list), used) => list.iter().any(|glob| glob.matches(used.unwrap_or_default())),
    }
}

impl Reachable {
    fn host(&self, used: &Used<'_>) -> bool {
        let fits = |one: &HostPattern| one.matches(used.host, used.reached.address.as_deref());
        self.hosts.as_ref().is_none_or(|hosts| hosts.iter().any(fits))
    }
    fn login(&self, used: &Used<'_>) -> bool {
        text_fits(self.logins.as_deref(), used.login(), used.reached.login.as_deref())
    }
    fn credential(&self, used: &Used<'_>) -> bool {
        text_fits(self.credentials.as_deref(), used.credential(), used.reached.credential.as_deref())
    }
    fn port(&self, used: &Used<'_>) -> bool {
        match &self.ports {
            None => used.port() == used.reached.port,
            Some(ports) => used.port().is_some_and(|port| ports.contains(&port)),
        }
    }
    fn jump(&self, used: &Used<'_>) -> bool {
        match &self.jumps {
            None => used.jump() == used.reached.jump,
            Some(hosts) => used.jump().iter().all(|jump| hosts.iter().any(|one| one.matches(jump, None))),
        }
    }
    fn password(&self, used: &Used<'_>) -> bool {
        self.passwords || !used.reached.password
    }
}

/// What a list says, or that it is the inventory's.
fn told<T: ToString>(lists: &[Option<&[T]>], own: Option<&str>) -> String {
    let named: Vec<String> = lists.iter().flatten().flat_map(|list| list.iter().map(ToString::to_string)).collect();
    match (named.is_empty(), own) {
        (false, _) => format!("allowed: {}", named.join(", ")),
        (true, Some(own)) => format!("allowed: the inventory's own, {own}"),
        (true, None) => "allowed: what the inventory has for it; leave it out".to_owned(),
    }
}

impl Allowances {
    /// Where it goes, if it goes to another host.
    pub(super) fn target(&self, spec: &JobSpec, facts: &Facts<'_>, checks: &mut Checks) {
        match spec.source() {
            Source::Image(_) | Source::Preset(_) => {}
            Source::Target(target) => self.one_target("target", target, facts, checks),
            // Whoever has such a job asks for each of its parts.
            Source::FanOut(_) => {
                let why = "a list of hosts is judged host by host".to_owned();
                checks.add("target.hosts", "", Outcome::Refused { code: "host_not_allowed" }, why);
            }
        }
    }

    fn one_target(&self, path: &str, target: &Target, facts: &Facts<'_>, checks: &mut Checks) {
        let reached = facts.routes.of(target);
        let used = Used { host: &target.host, asked: target, reached: &reached };
        let own = [Reachable::default()];
        let list = self.targets.as_deref();
        let mut found: Vec<(usize, &Reachable)> = list.unwrap_or(&own).iter().enumerate().collect();
        let refused = |checks: &mut Checks, field: &str, value: &str, code, why: String| {
            checks.add(&format!("{path}.{field}"), value, Outcome::Refused { code }, why);
        };
        let host = &target.host;

        found.retain(|(_, one)| one.host(&used));
        if found.is_empty() {
            let hosts: Vec<&HostPattern> =
                list.into_iter().flatten().flat_map(|one| one.hosts.iter().flatten()).collect();
            let why = format!("host `{host}` is not on the list; {}", all(Some(&hosts)));
            return refused(checks, "host", host, "host_not_allowed", why);
        }
        let before = found.clone();
        found.retain(|(_, one)| one.login(&used));
        if found.is_empty() {
            let lists: Vec<_> = before.iter().map(|(_, one)| one.logins.as_deref()).collect();
            let login = used.login().unwrap_or("(none)");
            let why = format!("login `{login}` at `{host}` is not allowed; {}", told(&lists, reached.login.as_deref()));
            return refused(checks, "login", login, "login_not_allowed", why);
        }
        let before = found.clone();
        found.retain(|(_, one)| one.credential(&used));
        if found.is_empty() {
            let lists: Vec<_> = before.iter().map(|(_, one)| one.credentials.as_deref()).collect();
            let credential = used.credential().unwrap_or("(none)");
            let allowed = told(&lists, reached.credential.as_deref());
            let why = format!("credential `{credential}` for `{host}` is not allowed; {allowed}");
            return refused(checks, "credential", credential, "credential_not_allowed", why);
        }
        let before = found.clone();
        found.retain(|(_, one)| one.port(&used));
        if found.is_empty() {
            let lists: Vec<_> = before.iter().map(|(_, one)| one.ports.as_deref()).collect();
            let port = used.port().map_or_else(|| "(none)".to_owned(), |port| port.to_string());
            let own = reached.port.map(|port| port.to_string());
            let why = format!("port {port} of `{host}` is not allowed; {}", told(&lists, own.as_deref()));
            return refused(checks, "port", &port, "port_not_allowed", why);
        }
        let before = found.clone();
        found.retain(|(_, one)| one.jump(&used));
        if found.is_empty() {
            let lists: Vec<_> = before.iter().map(|(_, one)| one.jumps.as_deref()).collect();
            let (way, own) = (used.jump().join(", "), reached.jump.join(", "));
            let own = Some(own.as_str()).filter(|own| !own.is_empty());
            let why = format!("the way to `{host}` over {way} is not allowed; {}", told(&lists, own));
            return refused(checks, "jump", &way, "jump_not_allowed", why);
        }
        found.retain(|(_, one)| one.password(&used));
        let Some((at, _)) = found.first() else {
            let (credential, fix) =
                (used.credential().unwrap_or("(none)"), "`passwords: true` in the policy allows it");
            let why = format!("credential `{credential}` for `{host}` is a password; {fix}, a key is better");
            return refused(checks, "credential", credential, "password_not_allowed", why);
        };
        let as_whom = used.login().map(|login| format!("{login}@")).unwrap_or_default();
        let with = used.credential().map(|name| format!(", credential {name}")).unwrap_or_default();
        let why = match list {
            None => "no list: the inventory's hosts, as it has them".to_owned(),
            Some(_) => format!("targets[{at}]"),
        };
        checks.add(path, format!("{as_whom}{host}{with}"), Outcome::Allowed, why);
    }
}

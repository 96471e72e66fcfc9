//! The settings held against the host: what they promise to jobs, and who gets in.

use super::{Check, size};
use crate::cli::node;
use crate::config::{Config, HostFacts};
use crate::job::Cpus;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Of a core, in thousandths, for each that there is: jobs seldom use all that they ask for, and twice as much is the default.
const MOST_PROMISED: u32 = 4000;
/// Pids of a job that asks for nothing, with the warden's.
const PIDS_OF_A_JOB: u64 = 132;

/// What was read.
#[derive(Debug, Default, Clone)]
pub(super) struct Facts {
    cores: u32,
    memory: u64,
    /// Processes that the host can have.
    pids: Option<u64>,
    /// Users of this host whose ids, or ids for their containers, are given to cells.
    users: Vec<String>,
    /// Files with keys that others may read.
    open_keys: Vec<String>,
    /// Rules of the operator's policy, or what is wrong with its file; none without a file.
    policy: Option<Result<usize, String>>,
    /// Hosts of the inventory, or what is wrong with its file; none without a file.
    inventory: Option<Result<usize, String>>,
}

impl Facts {
    pub(super) fn gather(root: &Path, config: &Config) -> Self {
        let host = HostFacts::read();
        let number = |file: &str| std::fs::read_to_string(root.join(file)).ok()?.trim().parse::<u64>().ok();
        let range =
            u64::from(config.docker.uid_start)..u64::from(config.docker.uid_start) + u64::from(config.docker.uid_count);
        let passwd = std::fs::read_to_string(root.join("etc/passwd")).unwrap_or_default();
        let user = |line: &str| {
            let mut parts = line.split(':');
            let (name, id) = (parts.next()?, parts.nth(1)?.parse::<u64>().ok()?);
            range.contains(&id).then(|| format!("{name} ({id})"))
        };
        let ids = std::fs::read_to_string(root.join("etc/subuid")).unwrap_or_default();
        let subordinate = |line: &str| {
            let mut parts = line.split(':');
            let name = parts.next()?;
            let (start, count) = (parts.next()?.parse::<u64>().ok()?, parts.next()?.parse::<u64>().ok()?);
            let apart = start.saturating_add(count) <= range.start || range.end <= start;
            (!apart).then(|| format!("{name}'s in /etc/subuid ({start}, {count} of them)"))
        };
        let users = passwd.lines().filter_map(user).chain(ids.lines().filter_map(subordinate)).collect();
        let mut keys: Vec<PathBuf> = vec![config.data_dir.join("admin.key")];
        keys.extend(config.backends.values().filter_map(|backend| backend.key_file.clone()));
        let open = |path: &PathBuf| std::fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o077 != 0);
        Self {
            cores: host.cores,
            memory: host.memory.as_u64(),
            pids: [number("proc/sys/kernel/pid_max"), number("proc/sys/kernel/threads-max")]
                .into_iter()
                .flatten()
                .min(),
            users,
            policy: config.policy_file.as_ref().map(|_| {
                node::policy(config).map(|policy| policy.current().rules()).map_err(|failure| failure.to_string())
            }),
            inventory: node::inventory(config)
                .map(|found| found.map(|inventory| inventory.current().hosts().count()))
                .map_err(|failure| failure.to_string())
                .transpose(),
            open_keys: keys.iter().filter(|path| open(path)).map(|path| path.display().to_string()).collect(),
        }
    }
}

pub(super) fn judge(config: &Config, facts: &Facts) -> Vec<Check> {
    let agent = &config.agent;
    let here = |address: IpAddr| address.is_loopback();
    let needed = u64::from(agent.slots) * PIDS_OF_A_JOB;
    vec![
        Check::warn_if(
            agent.cpu > Cpus::from_milli(facts.cores.saturating_mul(MOST_PROMISED)) && facts.cores > 0,
            "cores",
            format!("{} for jobs, {} on this host", agent.cpu, facts.cores),
            "lower agent.cpu: jobs that are busy at the same time get a fraction of what they asked for",
        ),
        Check::warn_if(
            agent.memory.as_u64() > facts.memory && facts.memory > 0,
            "memory",
            format!("{} for jobs, {} on this host", size(agent.memory.as_u64()), size(facts.memory)),
            "lower agent.memory: the kernel ends processes when jobs use what they were promised",
        ),
        Check::warn_if(
            facts.pids.is_some_and(|pids| pids < needed),
            "processes",
            match facts.pids {
                Some(pids) => format!("{pids} on this host, {needed} for full slots"),
                None => "not to be seen".to_owned(),
            },
            "raise kernel.pid_max and kernel.threads-max, or lower agent.slots",
        ),
        match &facts.users[..] {
            [] => Check::ok("user-ids", format!("{} from {}", config.docker.uid_count, config.docker.uid_start)),
            users => Check::warn(
                "user-ids",
                format!("cells get ids of users of this host: {}", users.join(", ")),
                "move docker.uid_range: limits of the kernel are counted for each id, and files of such a user are a cell's own",
            ),
        },
        match &facts.open_keys[..] {
            [] => Check::ok("keys", "readable by their owner only"),
            open => Check::warn("keys", format!("others may read {}", open.join(", ")), "chmod 600"),
        },
        Check::warn_if(
            !here(config.server.listen.ip()) && config.server.tls.is_none(),
            "api-door",
            format!("server.listen is {}", config.server.listen),
            "keys and output cross the network in clear: set server.tls, or listen on 127.0.0.1 behind something that speaks TLS",
        ),
        Check::warn_if(
            !here(agent.listen.ip()),
            "agent-door",
            format!("agent.listen is {}", agent.listen),
            "health and metrics are open to that network: listen on 127.0.0.1, or let only your monitoring in",
        ),
        match &facts.policy {
            None => Check::ok("policy", "none: no bounds but those of the settings, and no network"),
            Some(Ok(rules)) => Check::ok("policy", format!("{rules} rules")),
            Some(Err(reason)) => Check::fail(
                "policy",
                reason.replace('\n', "; "),
                "correct the file: an agent that runs keeps the last good policy, and none starts",
            ),
        },
        match &facts.inventory {
            None if !config.docker.enabled => Check::fail(
                "inventory",
                "none, and docker.enabled is false: this agent runs no job of any kind",
                "set ssh.inventory, or docker.enabled: true",
            ),
            None => Check::ok("inventory", "none: no jobs on other hosts"),
            Some(Ok(hosts)) => Check::ok("inventory", format!("{hosts} hosts; `jobcell ssh check` logs in at each")),
            Some(Err(reason)) => Check::fail(
                "inventory",
                reason.replace('\n', "; "),
                "correct the file: an agent that runs keeps the last good inventory, and none starts",
            ),
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::super::Verdict::{Fail, Warn};
    use super::super::tests::{config, not_ok};
    use super::*;

    #[test]
    fn settings_that_promise_too_much_or_let_others_in_are_named() {
        let good = Facts { cores: 4, memory: 8 << 30, pids: Some(1 << 22), ..Facts::default() };
        let with = |more: &str, facts: &Facts| not_ok(&judge(&config(more), facts));
        assert_eq!(with("", &good), []);
        assert_eq!(with("agent: {cpu: 17}", &good), [("cores", Warn)]);
        assert_eq!(with("agent: {memory: 9GiB}", &good), [("memory", Warn)]);
        assert_eq!(with("agent: {slots: 200}", &Facts { pids: Some(20_000), ..good.clone() }), [("processes", Warn)]);
        assert_eq!(with("server: {listen: \"0.0.0.0:7807\"}", &good), [("api-door", Warn)]);
        assert_eq!(with("server: {listen: \"0.0.0.0:7807\", tls: {cert: /c, key: /k}}", &good), []);
        assert_eq!(with("agent: {listen: \"[::]:7808\"}", &good), [("agent-door", Warn)]);
        assert_eq!(with("", &Facts { users: vec!["x (1)".into()], ..good.clone() }), [("user-ids", Warn)]);
        assert_eq!(with("", &Facts { open_keys: vec!["x".into()], ..good.clone() }), [("keys", Warn)]);
        assert_eq!(with("", &Facts { policy: Some(Ok(3)), ..good.clone() }), []);
        assert_eq!(with("", &Facts { policy: Some(Err("x\ny".into())), ..good.clone() }), [("policy", Fail)]);
        assert_eq!(with("", &Facts { inventory: Some(Err("x\ny".into())), ..good.clone() }), [("inventory", Fail)]);
        assert_eq!(with("docker: {enabled: false}", &Facts { inventory: Some(Ok(2)), ..good.clone() }), []);
        assert_eq!(with("docker: {enabled: false}", &good), [("inventory", Fail)]);
    }

    #[test]
    fn users_and_keys_are_read_from_files() {
        let root = tempfile::tempdir().expect("a folder");
        std::fs::create_dir_all(root.path().join("etc")).expect("is made");
        let passwd = "root:x:0:0::/:/bin/sh\nnear:x:299999:1::/:\nin:x:300000:1::/:\nlast:x:300009:1::/:\nout:x:300010:1::/:\nbroken\n";
        std::fs::write(root.path().join("etc/passwd"), passwd).expect("writes");
        let ids = "before:299000:1000\nover:299000:1001\nin:300005:1\nbehind:300010:65536\n";
        std::fs::write(root.path().join("etc/subuid"), ids).expect("writes");
        let key = root.path().join("admin.key");
        std::fs::write(&key, "x").expect("writes");
        let mode = |mode| std::fs::set_permissions(&key, PermissionsExt::from_mode(mode)).expect("is set");
        let text = format!(
            "data_dir: {}\nagent: {{slots: 4}}\ndocker: {{uid_range: {{start: 300000, count: 10}}}}",
            root.path().display()
        );
        let config = config(&text);
        mode(0o640);
        let facts = Facts::gather(root.path(), &config);
        let names: Vec<&str> = facts.users.iter().filter_map(|user| user.split([' ', '\'']).next()).collect();
        assert_eq!(names, ["in", "last", "over", "in"], "{:?}", facts.users);
        assert_eq!(facts.open_keys, [key.display().to_string()]);
        mode(0o600);
        assert!(Facts::gather(root.path(), &config).open_keys.is_empty());
    }
}

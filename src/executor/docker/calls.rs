//! The calls that are asked of an engine, as a table: all that somebody who stands between an agent and its engine has to let through.
//!
//! Only values and a pure check. The calls themselves are made in [`super::engine`]; a test runs everything that this program does with
//! an engine through a proxy that lets these pass and refuses all else, and sees each of them used. docs/engine.md and
//! deploy/socket-proxy/haproxy.cfg are held to the table. Every further call is a further right that operators have to give: it has to be
//! worth that.

use super::volume::WARDEN_VOLUME;

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct EngineCall {
    /// The method of HTTP.
    pub method: &'static str,
    /// The path behind the API's version. `{cell}` and `{network}` are names that begin with `jobcell-` and an owner's id, `{volume}` is
    /// that of a warden; `{container}` is a cell or a container's id; `{image}` is whatever jobs name.
    pub path: &'static str,
    /// What it is for.
    pub why: &'static str,
}

const fn call(method: &'static str, path: &'static str, why: &'static str) -> EngineCall {
    EngineCall { method, path, why }
}

/// All of them.
pub const ENGINE_CALLS: [EngineCall; 20] = [
    call("GET", "/version", "agree on a version of the API; `doctor`"),
    call("GET", "/info", "the engine's id, for the lock of one agent; where it keeps images; `doctor`"),
    call("GET", "/images/json", "which images may go when there is little room; `image ls`"),
    call("GET", "/images/{image}/json", "whether a job's image is there, and its digest"),
    call("POST", "/images/create", "pull an image; not needed with `images.pull: never` and a policy of the same mind"),
    call("DELETE", "/images/{image}", "remove an image that was pulled and is not used any more"),
    call("GET", "/containers/json", "whether the engine is well; which cells are there"),
    call("POST", "/containers/create", "make a cell, and the volume with its warden where there is none yet"),
    call("GET", "/containers/{container}/json", "why a cell ended; whether the engine still knows one"),
    call("POST", "/containers/{cell}/attach", "talk with the warden in a cell, as a raw stream in both directions"),
    call("POST", "/containers/{cell}/start", "start a cell"),
    call("POST", "/containers/{cell}/kill", "end a cell whose warden does not do it"),
    call("DELETE", "/containers/{cell}", "remove a cell"),
    call("HEAD", "/containers/{cell}/archive", "whether the warden in its volume is whole"),
    call("PUT", "/containers/{cell}/archive", "put the warden into its volume"),
    call("GET", "/networks", "networks that were left behind"),
    call("POST", "/networks/create", "the network of a cell that asks for one; not needed where no job may"),
    call("DELETE", "/networks/{network}", "remove it"),
    call("GET", "/volumes", "wardens of older versions, for `agent sweep`"),
    call("DELETE", "/volumes/{volume}", "remove them"),
];

impl EngineCall {
    /// The one that a request is; `target` as the request's first line has it. `None`: it is none of them.
    pub fn of(method: &str, target: &str) -> Option<&'static Self> {
        let path = target.split('?').next().unwrap_or_default();
        let path = without_version(path);
        ENGINE_CALLS.iter().find(|call| call.method == method && call.is_path(path))
    }

    fn is_path(&self, path: &str) -> bool {
        let Some((before, rest)) = self.path.split_once('{') else { return path == self.path };
        let (kind, after) = rest.split_once('}').unwrap_or((rest, ""));
        let name = path.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
        name.is_some_and(|name| is_name(kind, name))
    }
}

/// Without `/v1.41` at its beginning, where that is there.
fn without_version(path: &str) -> &str {
    let rest = path.strip_prefix("/v1.").map(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit()));
    rest.filter(|rest| rest.starts_with('/')).unwrap_or(path)
}

/// Whether a text can be a name of this kind. Nothing that is one leads out of its place in the path.
fn is_name(kind: &str, name: &str) -> bool {
    let is_hex = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_cell = || {
        let parts = name.strip_prefix("jobcell-").and_then(|rest| rest.split_once('-'));
        parts.is_some_and(|(owner, rest)| {
            let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            is_hex(owner, 8) && !rest.is_empty() && rest.bytes().all(plain)
        })
    };
    match kind {
        "cell" | "network" => is_cell(),
        "container" => is_cell() || is_hex(name, 64),
        "volume" => name.strip_prefix(WARDEN_VOLUME).is_some_and(|build| is_hex(build, 16)),
        "image" => {
            let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b':' | b'@' | b'-');
            let mut parts = name.split('/');
            parts.all(|part| !part.is_empty() && !part.starts_with('.') && part.bytes().all(plain))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn there_are_few_and_each_stands_there_once() {
        let all: BTreeSet<_> = ENGINE_CALLS.iter().map(|call| (call.method, call.path)).collect();
        assert_eq!(all.len(), ENGINE_CALLS.len());
    }

    #[test]
    fn a_request_is_known_by_method_and_path() {
        let of = |method, target| EngineCall::of(method, target).map(|call| call.path);
        let id = "0123456789abcdef".repeat(4);
        for (method, target, path) in [
            ("GET", "/version", "/version"),
            ("GET", "/v1.41/info", "/info"),
            ("GET", "/v1.41/containers/json?all=true&filters=%7B%7D", "/containers/json"),
            ("POST", "/v1.41/containers/create?name=jobcell-0a1b2c3d-x", "/containers/create"),
            ("POST", "/v1.41/containers/jobcell-0a1b2c3d-x-1-0/attach?stream=true", "/containers/{cell}/attach"),
            ("HEAD", "/containers/jobcell-0a1b2c3d-fill-7/archive?path=/.jobcell/warden", "/containers/{cell}/archive"),
            ("GET", &format!("/v1.41/containers/{id}/json"), "/containers/{container}/json"),
            ("GET", "/v1.41/images/registry.example:5000/team/tool:3/json", "/images/{image}/json"),
            ("DELETE", "/v1.41/images/a@sha256:00", "/images/{image}"),
            ("DELETE", "/v1.41/networks/jobcell-0a1b2c3d-x-1-0-net", "/networks/{network}"),
            ("DELETE", "/v1.41/volumes/jobcell-warden-0011223344556677", "/volumes/{volume}"),
        ] {
            assert_eq!(of(method, target), Some(path), "{method} {target}");
        }
    }

    #[test]
    fn what_is_not_of_ours_is_none_of_them() {
        let id = "0123456789abcdef".repeat(4);
        for (method, target) in [
            ("POST", "/version"),
            ("GET", "/v1.41/version/"),
            ("GET", "/v1.41/v1.41/info"),
            ("GET", "/v2.41/info"),
            ("GET", "/v1.41"),
            ("GET", "/_ping"),
            ("POST", "/build"),
            ("GET", "/events"),
            ("POST", "/volumes/create"),
            ("POST", "/containers/jobcell-0a1b2c3d-x/exec"),
            ("POST", "/containers/jobcell-0a1b2c3d-/start"),
            ("POST", "/containers/jobcell-server-1/kill"),
            ("POST", "/containers/db/kill"),
            ("POST", &format!("/containers/{id}/kill")),
            ("GET", &format!("/containers/{}/json", &id[1..])),
            ("GET", "/containers/jobcell-0a1b2c3d-x/../../secrets/json"),
            ("GET", "/containers/jobcell-0a1b2c3d-x%2f..%2fdb/json"),
            ("GET", "/containers/jobcell-0a1b2c3d-x/y/json"),
            ("DELETE", "/containers/db"),
            ("DELETE", "/volumes/data"),
            ("DELETE", "/volumes/jobcell-warden-data"),
            ("DELETE", "/networks/bridge"),
            ("GET", "/images/../containers/db/json"),
            ("GET", "/images//json"),
            ("DELETE", "/images/"),
        ] {
            assert_eq!(EngineCall::of(method, target), None, "{method} {target}");
        }
    }
}

//! Jobs that may go out: what they reach by the proxy in their cell, what they do not, and that nothing of it holds up anything else.

use super::outside::{Dns, Server, proxied};
use super::policy::up_by;
use super::stage::{Up, cause, engine, id, until};
use reqwest::Method;
use serde_json::{Value, json};
use std::net::Ipv4Addr;

const TOOLS: &str = "jobcell/tools:1";
/// The tests' servers are on the loopback of the host, so that is named in all of them.
const POLICY: &str = "{version: 1, allow: {egress: ['127.0.0.1:1-65535', '*.test:1-65535', '[::1]:1-65535']}}";
const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;

fn code_of<'a>(job: &'a Value, host: &str) -> Vec<&'a str> {
    let refusals = job["usage"]["egress"]["refusals"].as_array().into_iter().flatten();
    refusals.filter(|one| one["host"] == host).filter_map(|one| one["code"].as_str()).collect()
}

async fn python(up: &Up, allow: &[String], script: &str) -> Value {
    up.run(&python_spec(allow, script)).await
}

fn python_spec(allow: &[String], script: &str) -> Value {
    json!({"preset": "python", "script": proxied(script), "egress": {"allow": allow}, "timeout": "80s"})
}

#[tokio::test]
async fn programs_go_out_by_the_proxy_and_nowhere_else() {
    let Some(host) = engine() else { return };
    let dns = Dns::start().await;
    dns.leads("files.test", &[HERE]);
    let server = Server::start().await;
    let up = up_by(&host, POLICY, &format!("egress: {{resolver: '{}'}}\n", dns.address)).await;
    let port = server.port;
    let script = format!(
        r#"
set -e
env | grep -i _proxy= | sort | sed 's/1:[0-9]*$/1:PORT/'
url=http://files.test:{port}
curl -sS $url/hello; curl -sSp $url/hello; curl -sS -x socks5h://${{http_proxy#http://}} $url/hello
python3 -c "import urllib.request as r; print(r.urlopen('$url/hello').read().decode(), end='')"
node -e "
const http = require('http'), proxy = new URL(process.env.http_proxy);
http.get({{host: proxy.hostname, port: proxy.port, path: '$url/hello'}}, answer => answer.pipe(process.stdout));"
curl -sS http://127.0.0.1:{port}/hello
git clone -q $url/repo.git cloned && cat cloned/README
curl -sS --data-binary @cloned/README $url/echo
curl -sS --noproxy '*' -m 2 http://127.0.0.1:{port}/hello || echo "no way past it: $?"
"#
    );
    let job = up
        .run(&json!({"image": TOOLS, "interpreter": ["bash"], "script": script, "egress": {"allow": [format!("files.test:{port}"), format!("127.0.0.1:{port}")]}}))
        .await;
    let (out, err) = (up.text(&job, "stdout").await, up.text(&job, "stderr").await);
    let proxy = "http://127.0.0.1:PORT";
    let mut wanted = String::new();
    for name in ["ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY"] {
        wanted.push_str(&format!("{name}={proxy}\n"));
    }
    // What is allowed by name is the host's: the proxy leads there.
    wanted.push_str("NO_PROXY=localhost,::1\n");
    for name in ["all_proxy", "http_proxy", "https_proxy"] {
        wanted.push_str(&format!("{name}={proxy}\n"));
    }
    wanted.push_str("no_proxy=localhost,::1\n");
    let mut lines: Vec<&str> = wanted.lines().collect();
    lines.sort_unstable();
    let mut told: Vec<&str> = out.lines().take(8).collect();
    told.sort_unstable();
    assert_eq!(told, lines, "{job}{err}");
    let rest: Vec<&str> = out.lines().skip(8).collect();
    assert_eq!(rest[..6], ["hello"; 6], "{out}{err}");
    assert_eq!(rest[6..], ["read me", "read me", "no way past it: 7"], "{out}{err}");
    let used = &job["usage"]["egress"];
    assert!(used["connections"].as_u64() >= Some(8), "{used}");
    assert!(used["bytes_in"].as_u64() > Some(100) && used["bytes_out"].as_u64() > Some(100), "{used}");
    assert_eq!(used["refused"], 0, "{used}");

    // What the job says of proxies itself is left as it is.
    let own = json!({"preset": "bash", "script": "echo $http_proxy $HTTP_PROXY $NO_PROXY", "env": {"http_proxy": "mine"}, "egress": {"allow": ["x.test"]}});
    let job = up.run(&own).await;
    assert_eq!(up.text(&job, "stdout").await, "mine localhost,127.0.0.1,::1\n");
    // And one that asks for nothing has nothing.
    let job = up.bash("env | grep -ic _proxy").await;
    assert_eq!((up.text(&job, "stdout").await.as_str(), &job["usage"]["egress"]), ("0\n", &Value::Null));
    up.stop().await;
}

/// Asks for places by a line of its own, as no client would write them, and tells how that was answered.
const ASK: &str = r#"
ask() {
  exec 3<>/dev/tcp/127.0.0.1/${http_proxy##*:}
  printf 'CONNECT %s HTTP/1.1\r\n\r\n' "$1" >&3
  read -r _ status _ <&3
  echo "$1 $status"
  exec 3<&- 3>&-
}
socks() {
  exec 3<>/dev/tcp/127.0.0.1/${http_proxy##*:}
  printf '\005\001\000' >&3; head -c 2 <&3 >/dev/null
  printf "\005\001\000$1" >&3
  echo "socks $(head -c 2 <&3 | od -An -tu1 | tr -d ' ')"
  exec 3<&- 3>&-
}
"#;

#[tokio::test]
async fn every_way_to_a_place_that_is_not_allowed_is_refused_and_told() {
    let Some(host) = engine() else { return };
    let dns = Dns::start().await;
    let server = Server::start().await;
    let up = up_by(&host, POLICY, &format!("egress: {{resolver: '{}'}}\n", dns.address)).await;
    let port = server.port;
    dns.leads("good.test", &[HERE]);
    dns.leads("metadata.test", &[Ipv4Addr::new(169, 254, 169, 254)]);
    dns.leads("private.test", &[Ipv4Addr::new(10, 0, 0, 1)]);
    dns.leads("mixed.test", &[HERE, Ipv4Addr::new(192, 168, 0, 1)]);
    dns.leads("gateway.test", &[Ipv4Addr::new(172, 17, 0, 1)]);
    dns.leads("zero.test", &[Ipv4Addr::UNSPECIFIED]);
    dns.leads_v6("mapped.test", "::ffff:127.0.0.1".parse().expect("an address"));
    dns.leads_v6("six.test", "fd00:ec2::254".parse().expect("an address"));
    dns.leads_v6("nat.test", "64:ff9b::7f00:1".parse().expect("an address"));
    let probes = [
        ("good.test", port, "200", ""),
        ("GOOD.Test.", port, "200", ""),
        ("127.0.0.1", port, "200", ""),
        ("good.test", port + 1, "403", "not_allowed"),
        ("evil.example", port, "403", "not_allowed"),
        ("good.test.evil.example", port, "403", "not_allowed"),
        ("169.254.169.254", port, "403", "not_allowed"),
        ("10.0.0.1", port, "403", "not_allowed"),
        ("127.0.0.2", port, "403", "not_allowed"),
        ("0177.0.0.1", port, "403", "bad_host"),
        ("0x7f.0.0.1", port, "403", "bad_host"),
        ("2130706433", port, "403", "bad_host"),
        ("127.1", port, "403", "bad_host"),
        ("127.0.0.1.", port, "403", "bad_host"),
        ("[::ffff:127.0.0.1]", port, "403", "bad_host"),
        ("[::ffff:7f00:1]", port, "403", "bad_host"),
        ("[fe80::1%lo]", port, "403", "bad_host"),
        ("[::]", port, "403", "not_allowed"),
        ("[64:ff9b::7f00:1]", port, "403", "not_allowed"),
        ("metadata.test", port, "403", "address_not_allowed"),
        ("private.test", port, "403", "address_not_allowed"),
        ("mixed.test", port, "403", "address_not_allowed"),
        ("gateway.test", port, "403", "address_not_allowed"),
        ("zero.test", port, "403", "address_not_allowed"),
        ("mapped.test", port, "403", "address_not_allowed"),
        ("six.test", port, "403", "address_not_allowed"),
        ("nat.test", port, "403", "address_not_allowed"),
        ("nowhere.test", port, "502", "name_not_found"),
    ];
    let mut script = ASK.to_owned();
    for (host, port, ..) in probes {
        script.push_str(&format!("ask '{host}:{port}'\n"));
    }
    let (high, low) = (port >> 8, port & 255);
    script.push_str(&format!("socks '\\001\\177\\000\\000\\001\\{high:03o}\\{low:03o}'\n"));
    script.push_str(&format!("socks '\\001\\251\\376\\251\\376\\{high:03o}\\{low:03o}'\n"));
    script.push_str(&format!("socks '\\003\\0120177.0.0.1\\{high:03o}\\{low:03o}'\n"));
    let allow = [format!("*.test:{port}"), format!("127.0.0.1:{port}")];
    let job = up.run(&json!({"preset": "bash", "script": script, "egress": {"allow": allow}})).await;
    let out = up.text(&job, "stdout").await;
    let mut lines = out.lines();
    for (host, port, status, code) in probes {
        assert_eq!(lines.next(), Some(format!("{host}:{port} {status}").as_str()), "{job}");
        let told = code_of(&job, host.trim_start_matches('[').trim_end_matches(']'));
        assert!(code.is_empty() || told.contains(&code), "{host}: {told:?} in {job}");
    }
    assert_eq!(lines.collect::<Vec<_>>(), ["socks 50", "socks 52", "socks 52"], "{job}");
    let used = &job["usage"]["egress"];
    let refused = probes.iter().filter(|(.., code)| !code.is_empty()).count() as u64 + 2;
    assert_eq!((used["connections"].as_u64(), used["refused"].as_u64()), (Some(4), Some(refused)), "{used}");
    assert_eq!(server.seen(), 4, "nobody else came to it");
    let reasons = used["refusals"].to_string();
    for word in
        ["octal", "hexadecimal", "decimal", "keys of its machines", "a private address", "this host", "mapped", "NAT64"]
    {
        assert!(reasons.contains(word), "{word}: {reasons}");
    }
    up.stop().await;
}

/// A name that leads somewhere else from one question to the next, and answers that lead on.
#[tokio::test]
async fn a_name_is_looked_up_once_and_a_redirect_is_judged_as_any_request() {
    let Some(host) = engine() else { return };
    let dns = Dns::start().await;
    let server = Server::start().await;
    let port = server.port;
    dns.leads("good.test", &[HERE]);
    dns.leads_in_turn("rebind.test", &[HERE, Ipv4Addr::new(169, 254, 169, 254)]);
    let up = up_by(&host, POLICY, &format!("egress: {{resolver: '{}'}}\n", dns.address)).await;
    let script = format!(
        "{ASK}for n in 1 2 3; do ask rebind.test:{port}; done
curl -sSL -o /dev/null -w '%{{http_code}} %{{num_redirects}}\\n' http://good.test:{port}/redirect-to-metadata
curl -sSL -w '%{{http_code}} %{{num_redirects}}\\n' http://good.test:{port}/redirect"
    );
    let spec = json!({"image": TOOLS, "interpreter": ["bash"], "script": script, "egress": {"allow": [format!("*.test:{port}"), format!("127.0.0.1:{port}")]}});
    let job = up.run(&spec).await;
    let out = up.text(&job, "stdout").await;
    let wanted =
        format!("rebind.test:{port} 200\nrebind.test:{port} 403\nrebind.test:{port} 200\n403 1\nhello\n200 1\n");
    assert_eq!(out, wanted, "{job}");
    assert_eq!(dns.asked("rebind.test"), 3, "once for each connection");
    assert_eq!(code_of(&job, "169.254.169.254"), ["not_allowed"]);
    up.stop().await;
}

#[tokio::test]
async fn what_is_not_within_the_policy_is_no_job() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let spec = |egress: Value| json!({"preset": "bash", "script": "true", "egress": egress});
    let refused = async |up: &Up, spec: &Value, wanted: u16| {
        let answer = up.call(Method::POST, "/v1/jobs", Some(spec)).await;
        assert_eq!(answer.status(), wanted, "{spec}");
        answer.text().await.expect("reads")
    };
    let told = refused(&up, &spec(json!({"allow": ["pypi.org:443"]})), 403).await;
    assert!(told.contains("egress_not_allowed") && told.contains("the list is empty"), "{told}");
    let told = refused(&up, &spec(json!({"allow": ["017.0.0.1:443"]})), 422).await;
    assert!(told.contains("egress.allow[0]") && told.contains("octal"), "{told}");
    up.stop().await;

    let up = up_by(
        &host,
        "{version: 1, allow: {egress: ['*.pypi.org:443', '10.0.0.0/8:80']}}",
        "docker: {seccomp: offline}\n",
    )
    .await;
    let told = refused(&up, &spec(json!({"allow": ["a.pypi.org:443", "pypi.org:443", "10.1.2.3"]})), 403).await;
    assert!(
        told.contains("egress.allow[1]") && told.contains("egress.allow[2]") && !told.contains("egress.allow[0]"),
        "{told}"
    );
    assert!(told.contains("egress_not_offered"), "{told}");
    up.stop().await;
}

#[tokio::test]
async fn a_job_gets_no_more_than_its_limits() {
    let Some(host) = engine() else { return };
    let server = Server::start().await;
    let port = server.port;
    let up = up_by(&host, POLICY, "").await;
    let ask = format!("{ASK}for n in 1 2 3 4 5; do ask 127.0.0.1:{port}; done");
    let egress = json!({"allow": [format!("127.0.0.1:{port}")], "connections": 3});
    let job = up.run(&json!({"preset": "bash", "script": ask, "egress": egress})).await;
    let statuses: Vec<String> =
        up.text(&job, "stdout").await.lines().filter_map(|line| line.split(' ').nth(1).map(str::to_owned)).collect();
    assert_eq!(statuses, ["200", "200", "200", "429", "429"]);
    assert_eq!(code_of(&job, "127.0.0.1"), ["too_many_connections"]);
    assert_eq!(job["usage"]["egress"]["refusals"][0]["times"], 2);

    let script = format!(
        "got = 0\ns = connect('127.0.0.1', {port}); s.sendall(b'GET /big HTTP/1.0\\r\\n\\r\\n')\ntry:\n  while True:\n    b = s.recv(65536)\n    if not b: break\n    got += len(b)\nexcept ConnectionError: print('cut off')\nprint(got <= 1 << 20)\n"
    );
    let egress = json!({"allow": [format!("127.0.0.1:{port}")], "bytes": "1MiB"});
    let job = up.run(&json!({"preset": "python", "script": proxied(&script), "egress": egress})).await;
    assert_eq!(up.text(&job, "stdout").await, "cut off\nTrue\n", "{job}");
    assert_eq!(code_of(&job, "127.0.0.1"), ["too_many_bytes"]);
    up.stop().await;
}

#[tokio::test]
async fn connections_do_not_hold_each_other_up() {
    let Some(host) = engine() else { return };
    let server = Server::start().await;
    let port = server.port;
    let up = up_by(&host, POLICY, "").await;
    let allow = [format!("127.0.0.1:{port}")];
    // One that asks for much and takes none of it, beside one that goes on; and one that says all and then listens.
    let job = python(
        &up,
        &allow,
        &format!(
            "slow = connect('127.0.0.1', {port}); slow.sendall(b'GET /big HTTP/1.0\\r\\n\\r\\n')
time.sleep(0.5)
for _ in range(20): assert fetch('127.0.0.1', {port}, '/mega') == 1 << 20
print('beside it')
half = connect('127.0.0.1', {port}); half.sendall(b'COUNT ' + b'x' * 300000); half.shutdown(socket.SHUT_WR)
print(half.makefile().read())
got = 0
while got < 10 << 20: got += len(slow.recv(65536))
print('and then it')
"
        ),
    )
    .await;
    assert_eq!(
        up.text(&job, "stdout").await,
        "beside it\n300000\nand then it\n",
        "{job}{}",
        up.text(&job, "stderr").await
    );

    // A thousand at once: each is served, though the proxy takes 64 at a time.
    let job = python(
        &up,
        &allow,
        &format!(
            "import threading
done = []
async def one():
    r, w = await asyncio.open_connection('127.0.0.1', PORT)
    w.write(b'CONNECT 127.0.0.1:{port} HTTP/1.1\\r\\n\\r\\n'); await r.readuntil(b'\\r\\n\\r\\n')
    w.write(b'GET /hello HTTP/1.0\\r\\n\\r\\n')
    done.append((await r.read()).endswith(b'hello\\n')); w.close()
async def all(): await asyncio.gather(*(one() for _ in range(1000)))
asyncio.run(all())
print(len(done), set(done))
"
        ),
    )
    .await;
    assert_eq!(up.text(&job, "stdout").await, "1000 {True}\n", "{job}{}", up.text(&job, "stderr").await);
    assert_eq!(job["usage"]["egress"]["connections"], 1000);

    // A flood of output beside a download: both come through whole.
    let job = python(
        &up,
        &allow,
        &format!(
            "t = threading.Thread(target=lambda: [sys.stdout.write('x' * 99 + '\\n') for _ in range(200000)]); t.start()
for _ in range(20): assert fetch('127.0.0.1', {port}, '/mega') == 1 << 20
t.join(); print('whole', file=sys.stderr)
"
        ),
    )
    .await;
    assert_eq!(up.text(&job, "stderr").await, "whole\n", "{job}");
    assert_eq!(
        (job["log"]["stdout"]["bytes"].as_u64(), &job["log"]["complete"]),
        (Some(20_000_000), &Value::Bool(true))
    );
    up.stop().await;
}

#[tokio::test]
async fn an_end_closes_all_and_a_crash_of_the_agent_cuts_off_and_lets_begin_anew() {
    let Some(host) = engine() else { return };
    let server = Server::start().await;
    let port = server.port;
    let mut up = up_by(&host, POLICY, "").await;
    let allow = [format!("127.0.0.1:{port}")];
    let endless = format!(
        "s = connect('127.0.0.1', {port}); s.sendall(b'GET /endless HTTP/1.0\\r\\n\\r\\n')\nprint('begun', flush=True)\nwhile s.recv(65536): pass\n"
    );
    let job = up.submit(&python_spec(&allow, &endless)).await;
    until("a download", || async { up.text(&job, "stdout").await.contains("begun").then_some(()) }).await;
    // More than lies in the buffers of two sockets.
    until("bytes", || async { (server.sent() > 16 << 20).then_some(()) }).await;
    up.call(Method::POST, &format!("/v1/jobs/{}/cancel", id(&job)), None).await;
    let job = up.ended(&job).await;
    assert_eq!(cause(&job), "canceled");
    assert!(job["usage"]["egress"]["bytes_in"].as_u64() > Some(1 << 20), "{job}");
    until("the server's end", || async { (server.open() == 0).then_some(()) }).await;

    let script = format!(
        "s = connect('127.0.0.1', {port}); s.sendall(b'GET /silent HTTP/1.0\\r\\n\\r\\n')
print('begun', flush=True)
try:
  while s.recv(65536): pass
  print('ended')
except ConnectionResetError: print('cut off', flush=True)
print(fetch('127.0.0.1', {port}, '/mega'))
"
    );
    let job = up.submit(&python_spec(&allow, &script)).await;
    until("a connection", || async { up.text(&job, "stdout").await.contains("begun").then_some(()) }).await;
    up.crash().await;
    let job = up.ended(&job).await;
    assert_eq!(up.text(&job, "stdout").await, "begun\ncut off\n1048576\n", "{job}");
    assert_eq!(job["ending"]["verdict"], "succeeded", "{job}");
    until("the server's end", || async { (server.open() == 0).then_some(()) }).await;
    up.stop().await;
}

#[tokio::test]
async fn the_command_line_allows_and_shows() {
    let Some(host) = engine() else { return };
    let server = Server::start().await;
    let port = server.port;
    let up = up_by(&host, POLICY, "").await;
    let place = format!("127.0.0.1:{port}");
    let script = format!("{ASK}ask {place}; ask 127.0.0.1:1");
    let said = |output: &std::process::Output| String::from_utf8_lossy(&output.stdout).into_owned();
    let output = up.command(&["job", "exec", "--no-stdin", "--allow", &place, "--", "bash", "-c", &script]).await;
    assert_eq!(said(&output), format!("{place} 200\n127.0.0.1:1 403\n"), "{output:?}");
    let file = up.dir.path().join("job.yaml");
    std::fs::write(&file, json!({"preset": "bash", "script": script, "egress": {"allow": ["x.test:1"]}}).to_string())
        .expect("writes");
    let file = file.display().to_string();
    let output = up.command(&["job", "submit", "--follow", "--allow", &place, &file]).await;
    assert_eq!(said(&output), format!("{place} 200\n127.0.0.1:1 403\n"), "{output:?}");
    let jobs = up.get("/v1/jobs").await;
    let shown = said(&up.command(&["job", "get", id(&jobs["jobs"][0])]).await);
    assert!(
        shown.contains("egress    1 connection") && shown.contains("refused   127.0.0.1:1: port 1 of it is not"),
        "{shown}"
    );
    let explained = said(&up.command(&["policy", "explain", &file]).await);
    assert!(explained.contains("egress.allow[0]") && explained.contains("x.test:1"), "{explained}");
    up.stop().await;
}

/// Where a job wants to go is in its result and in logs; a secret that lands there by accident is stopped before.
#[tokio::test]
async fn a_host_that_has_a_secret_in_it_is_told_to_nobody() {
    let Some(host) = engine() else { return };
    let dns = Dns::start().await;
    let up = up_by(&host, POLICY, &format!("egress: {{resolver: '{}'}}\n", dns.address)).await;
    let script = format!("{ASK}ask \"$TOKEN.test:443\"\nask \"other.test:443\"\n");
    let job = up
        .run(&json!({"preset": "bash", "script": script, "egress": {"allow": ["*.test:443"]},
            "secrets": {"TOKEN": {"value": "hush-hush-4711"}}}))
        .await;
    assert_eq!(up.text(&job, "stdout").await, "***.test:443 403\nother.test:443 502\n", "{job}");
    assert_eq!(job["usage"]["egress"]["refused"], 1, "{}", job["usage"]);
    assert!(!job.to_string().contains("hush-hush") && !up.log().contains("hush-hush"), "{job}");
    up.stop().await;
}

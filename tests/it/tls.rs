//! TLS of the API: who is believed, what is said when somebody is not, and another certificate while the server works.

use super::stage::{JOBCELL, PATIENCE, engine, read, said, until};
use jobcell::supervise::spawn;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use reqwest::Client;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio_rustls::TlsAcceptor;

/// Somebody who signs certificates.
pub(crate) struct Authority {
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("is made").pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate for these names until that year, and its key.
    pub(crate) fn issue(&self, names: &[&str], until: i32) -> (String, String) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("good names");
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().expect("a key");
        (params.signed_by(&key, &self.issuer).expect("is made").pem(), key.serialize_pem())
    }
}

/// Puts a file there in one step, as whoever renews certificates does.
fn put(path: &Path, text: &str, mode: u32) {
    let fresh = path.with_extension("fresh");
    std::fs::write(&fresh, text).expect("writes");
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(mode)).expect("sets the mode");
    std::fs::rename(fresh, path).expect("renames");
}

fn install(dir: &Path, (certificate, key): &(String, String)) {
    put(&dir.join("key.pem"), key, 0o600);
    put(&dir.join("cert.pem"), certificate, 0o644);
}

/// A `jobcell server` that speaks TLS, on all addresses of this machine.
struct Server {
    child: Child,
    dir: TempDir,
    port: u16,
    key: String,
}

fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(JOBCELL);
    let settings = format!("server: {{tls: {{cert: '{0}/cert.pem', key: '{0}/key.pem'}}}}", dir.display());
    std::fs::write(dir.join("config.yaml"), settings).expect("writes");
    let log = std::fs::File::options().create(true).append(true).open(dir.join("log")).expect("opens");
    command.args(args).arg("--data-dir").arg(dir.join("data")).arg("--config").arg(dir.join("config.yaml"));
    command.env("RUST_LOG", "info").stdin(Stdio::null()).stdout(log.try_clone().expect("clones")).stderr(log);
    command.kill_on_drop(true);
    command
}

impl Server {
    async fn start(pair: &(String, String)) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        install(dir.path(), pair);
        let child = command(dir.path(), &["server", "--listen", "0.0.0.0:0"]).spawn().expect("starts");
        let data = dir.path().join("data");
        let url = until("the endpoint file", || async { read(&data.join("endpoint")) }).await;
        let port = url.strip_prefix("https://0.0.0.0:").expect("TLS").parse().expect("a port");
        let key = read(&data.join("admin.key")).expect("is there");
        Self { child, dir, port, key }
    }

    fn at(&self, host: &str) -> String {
        format!("https://{host}:{}", self.port)
    }

    /// A command as somebody elsewhere gives it.
    async fn at_other_host(&self, url: &str, env: &[(&str, &str)], args: &[&str]) -> (i32, String, String) {
        let other = self.dir.path().join("elsewhere");
        let mut command = Command::new(JOBCELL);
        command.arg("--data-dir").arg(other).args(["--server", url]).args(args).stdin(Stdio::null());
        command.env("JOBCELL_API_KEY", &self.key).env_remove("SSL_CERT_FILE").envs(env.iter().copied());
        said(&tokio::time::timeout(PATIENCE, command.output()).await.expect("ends").expect("runs"))
    }

    async fn stop(mut self) {
        let pid = self.child.id().expect("runs").to_string();
        assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().expect("runs").success());
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("ends").expect("is waited for");
        assert_eq!(ended.code(), Some(0), "{}", self.log());
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

fn file(dir: &Path, name: &str, text: &str) -> String {
    put(&dir.join(name), text, 0o644);
    dir.join(name).display().to_string()
}

fn believing(authorities: &[&Authority]) -> reqwest::ClientBuilder {
    let certificate =
        |authority: &&Authority| reqwest::Certificate::from_pem(authority.pem.as_bytes()).expect("is one");
    Client::builder().no_proxy().timeout(PATIENCE).tls_certs_only(authorities.iter().map(certificate))
}

#[tokio::test]
async fn a_certificate_is_believed_or_the_reason_is_said() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let server = Server::start(&ours.issue(&["localhost", "127.0.0.1"], 2090)).await;
    let dir = server.dir.path();
    let (ca, other) = (file(dir, "ca.pem", &ours.pem), file(dir, "other.pem", &theirs.pem));
    let list = ["job", "list", "--output", "json"];
    let by = |ca: &str| {
        let ca = ca.to_owned();
        let mut args = vec!["--ca-file".to_owned(), ca];
        args.extend(list.map(str::to_owned));
        args
    };
    let ask = async |url: String, env: &[(&str, &str)], args: &[String]| {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        server.at_other_host(&url, env, &args).await
    };
    let plain = list.map(str::to_owned);

    for host in ["localhost", "127.0.0.1"] {
        let (code, out, err) = ask(server.at(host), &[], &by(&ca)).await;
        assert!(code == 0 && out.contains("jobs"), "{host}: {err}");
    }
    assert_eq!(ask(server.at("localhost"), &[("SSL_CERT_FILE", &ca)], &plain).await.0, 0);
    assert_eq!(ask(server.at("localhost"), &[("JOBCELL_CA_FILE", &ca)], &plain).await.0, 0);
    // On its own host its data directory says which certificate is meant.
    let local = Command::new(JOBCELL).arg("--data-dir").arg(dir.join("data")).args(list).output();
    let (code, _, err) = said(&local.await.expect("runs"));
    assert_eq!(code, 0, "{err}");
    let health = Command::new(JOBCELL).arg("--data-dir").arg(dir.join("data")).arg("health").output();
    assert_eq!(said(&health.await.expect("runs")).0, 0);

    for (url, args, wanted) in [
        (server.at("localhost"), plain.to_vec(), "of an authority that is not trusted here"),
        (server.at("localhost"), by(&other), "of an authority that is not trusted here"),
        (server.at("127.0.0.2"), by(&ca), "is for localhost, 127.0.0.1, not for 127.0.0.2"),
    ] {
        let (code, _, err) = ask(url, &[], &args).await;
        assert!(code == 69 && err.contains(wanted), "{code}: {err}");
    }
    let (code, _, err) = ask(server.at("localhost"), &[], &by("/nowhere.pem")).await;
    assert!(code == 78 && err.contains("ca_file: /nowhere.pem"), "{code}: {err}");

    // Who forgets the s is told, and who asks for TLS where there is none.
    let spoken = Client::new().get(format!("http://127.0.0.1:{}/livez", server.port)).send().await.expect("answers");
    assert_eq!(spoken.status().as_u16(), 400);
    assert!(spoken.text().await.expect("text").contains("https://"));
    let (plain_port, expired_port) = (speaking_plain().await, speaking(&ours.issue(&["localhost"], 2021)).await);
    let (code, _, err) = ask(format!("https://localhost:{plain_port}"), &[], &by(&ca)).await;
    assert!(code == 69 && err.contains("no TLS is spoken there"), "{code}: {err}");
    let (code, _, err) = ask(format!("https://localhost:{expired_port}"), &[], &by(&ca)).await;
    assert!(code == 69 && err.contains("is over since 2021-01-01"), "{code}: {err}");
    server.stop().await;
}

/// Somebody who answers in clear.
async fn speaking_plain() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let port = listener.local_addr().expect("has one").port();
    spawn("plain", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
        }
    });
    port
}

fn acceptor((certificate, key): &(String, String)) -> TlsAcceptor {
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("is one")];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("is one");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("versions").with_no_client_auth().with_single_cert(chain, key).expect("is a pair");
    TlsAcceptor::from(Arc::new(config))
}

/// Somebody who shows this certificate and passes on what comes to `to`.
pub(crate) async fn before(pair: &(String, String), to: SocketAddr) -> u16 {
    let acceptor = acceptor(pair);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let port = listener.local_addr().expect("has one").port();
    spawn("before", async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            spawn("one before", async move {
                let (Ok(mut outer), Ok(mut inner)) = (acceptor.accept(stream).await, TcpStream::connect(to).await)
                else {
                    return;
                };
                let _ = tokio::io::copy_bidirectional(&mut outer, &mut inner).await;
            });
        }
    });
    port
}

/// Somebody who shows this certificate, whatever it is worth.
async fn speaking(pair: &(String, String)) -> u16 {
    let acceptor = acceptor(pair);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let port = listener.local_addr().expect("has one").port();
    spawn("expired", async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = acceptor.accept(stream).await;
        }
    });
    port
}

#[tokio::test]
async fn a_server_begins_with_no_certificate_that_is_over_or_that_others_can_read() {
    let ours = Authority::new("ours");
    let dir = tempfile::tempdir().expect("a folder");
    let refused = async |wanted: &str| {
        let mut child = command(dir.path(), &["server", "--listen", "127.0.0.1:0"]).spawn().expect("starts");
        let ended = tokio::time::timeout(PATIENCE, child.wait()).await.expect("ends").expect("is waited for");
        let log = std::fs::read_to_string(dir.path().join("log")).expect("is there");
        assert!(ended.code() == Some(78) && log.contains(wanted), "{ended}: {wanted}: {log}");
    };
    refused("server.tls.cert").await;
    install(dir.path(), &ours.issue(&["localhost"], 2021));
    refused("is over since 2021-01-01").await;
    let (certificate, _) = ours.issue(&["localhost"], 2090);
    let (_, other) = ours.issue(&["localhost"], 2090);
    install(dir.path(), &(certificate, other));
    refused("not the key of the certificate").await;
    install(dir.path(), &ours.issue(&["localhost"], 2090));
    std::fs::set_permissions(dir.path().join("key.pem"), std::fs::Permissions::from_mode(0o644)).expect("sets");
    refused("strangers can read it").await;
}

#[tokio::test]
async fn another_certificate_is_taken_under_load_a_broken_one_is_not_and_no_request_is_lost() {
    let (first, second) = (Authority::new("first"), Authority::new("second"));
    let server = Server::start(&first.issue(&["localhost"], 2090)).await;
    let dir: PathBuf = server.dir.path().to_owned();
    let (url, asked, failed) = (server.at("localhost"), Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let over = Arc::new(AtomicBool::new(false));
    let both = || believing(&[&first, &second]);
    let mut load = Vec::new();
    for n in 0..4 {
        // Two with a connection for each request, two with one for all.
        let http = if n < 2 { both().pool_max_idle_per_host(0) } else { both() }.build().expect("builds");
        let (url, key, over) = (url.clone(), server.key.clone(), Arc::clone(&over));
        let (asked, failed) = (Arc::clone(&asked), Arc::clone(&failed));
        load.push(spawn("load", async move {
            while !over.load(Ordering::Relaxed) {
                let sent = http.get(format!("{url}/v1/jobs?limit=1")).bearer_auth(&key).send().await;
                asked.fetch_add(1, Ordering::Relaxed);
                if !matches!(&sent, Ok(answer) if matches!(answer.status().as_u16(), 200 | 429)) {
                    eprintln!("{sent:?}");
                    failed.fetch_add(1, Ordering::Relaxed);
                }
            }
        }));
    }
    let probe = both().build().expect("builds");
    let tls_is = async |state: &str, reason: &str| {
        until(&format!("TLS that is {state}: {reason}"), || async {
            let all: Value = probe.get(format!("{url}/healthz")).send().await.ok()?.json().await.ok()?;
            let tls = &all["components"]["tls"];
            (tls["state"] == state && tls["reason"].as_str().unwrap_or_default().contains(reason)).then_some(())
        })
        .await;
    };
    let expiry = async || {
        let text = probe.get(format!("{url}/metrics")).send().await.expect("answers").text().await.expect("text");
        let line = text.lines().find_map(|line| line.strip_prefix("jobcell_tls_certificate_expiry_timestamp_seconds "));
        line.expect("a line").parse::<u64>().expect("a number")
    };
    tls_is("ok", "").await;
    assert_eq!(expiry().await, 3_786_912_000, "the first of January 2090");
    let opened = TcpStream::connect(("127.0.0.1", server.port)).await.expect("connects");
    put(&dir.join("cert.pem"), "broken", 0o644);
    tls_is("degraded", "no certificate in it").await;
    // A handshake that is begun now, too, is one with the old certificate.
    let alone = |authority| believing(&[authority]).build().expect("builds").get(format!("{url}/livez")).send();
    assert_eq!(alone(&first).await.expect("the old one is shown").status().as_u16(), 200);
    install(&dir, &second.issue(&["localhost"], 2091));
    let pid = server.child.id().expect("runs").to_string();
    assert!(std::process::Command::new("kill").args(["-HUP", &pid]).status().expect("runs").success());
    tls_is("ok", "").await;
    until("the new one", || async { alone(&second).await.ok() }).await;
    assert!(alone(&first).await.is_err(), "the old one is shown to nobody any more");
    assert_eq!(expiry().await, 3_818_448_000);
    // Clients on this host are told.
    let list = Command::new(JOBCELL).arg("--data-dir").arg(dir.join("data")).args(["job", "list"]).output();
    let (code, _, err) = said(&list.await.expect("runs"));
    assert_eq!(code, 0, "{err}");
    let before = asked.load(Ordering::Relaxed);
    until("more of the load", || async { (asked.load(Ordering::Relaxed) > before + 50).then_some(()) }).await;
    over.store(true, Ordering::Relaxed);
    for task in load {
        task.await.expect("ends");
    }
    drop(opened);
    assert_eq!(failed.load(Ordering::Relaxed), 0, "of {}: {}", asked.load(Ordering::Relaxed), server.log());
    server.stop().await;
}

#[tokio::test]
async fn an_agent_gets_its_jobs_and_brings_their_output_over_tls() {
    let Some(host) = engine() else { return };
    let ours = Authority::new("ours");
    let server = Server::start(&ours.issue(&["localhost"], 2090)).await;
    let dir = server.dir.path();
    let (url, ca) = (server.at("localhost"), file(dir, "ca.pem", &ours.pem));
    let (code, key, err) =
        server.at_other_host(&url, &[], &["--ca-file", &ca, "--quiet", "agents", "add", "one"]).await;
    assert_eq!(code, 0, "{err}");
    let agent = |ca: Option<&str>| {
        let log = std::fs::File::create(dir.join("agent.log")).expect("opens");
        let mut agent = Command::new(JOBCELL);
        agent.args(["agent", "--listen", "127.0.0.1:0", "--backend", &url, "--data-dir"]).arg(dir.join("agent"));
        agent.env("JOBCELL_AGENT_KEY", key.trim()).env("DOCKER_HOST", &host).env("JOBCELL_DOCKER__SHARED", "true");
        agent.env_remove("SSL_CERT_FILE").env("RUST_LOG", "info").stdin(Stdio::null());
        agent.stdout(log.try_clone().expect("clones")).stderr(log).kill_on_drop(true);
        if let Some(ca) = ca {
            agent.args(["--ca-file", ca]);
        }
        agent.spawn().expect("starts")
    };
    let log = || std::fs::read_to_string(dir.join("agent.log")).unwrap_or_default();
    // One that does not know whom to believe says so.
    let mut lost = agent(None);
    until("the reason", || async { log().contains("authority that is not trusted here").then_some(()) }).await;
    lost.kill().await.expect("ends");
    let mut good = agent(Some(&ca));
    let run = ["--ca-file", &ca, "exec", "--", "sh", "-c", "echo over tls; seq 20000"];
    let (code, out, err) = server.at_other_host(&url, &[], &run).await;
    assert_eq!(code, 0, "{err}\n{}", log());
    assert!(out.starts_with("over tls\n") && out.ends_with("20000\n"), "{} bytes", out.len());
    let pid = good.id().expect("runs").to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().expect("runs").success());
    let ended = tokio::time::timeout(PATIENCE, good.wait()).await.expect("ends").expect("is waited for");
    assert_eq!(ended.code(), Some(0), "{}", log());
    assert!(!log().contains("log stream is cut"), "{}", log());
    server.stop().await;
}

//! Passwords, against a server of the test's own: a user of this machine with a password that stands in a test would be an open door.

use super::settings;
use super::sshd::{Folder, must, present};
use jobcell::executor::ssh::inventory::{Destination, LiveInventory};
use jobcell::executor::ssh::{ConnectError, Pool};
use jobcell::supervise;
use russh::keys::PrivateKey;
use russh::server::{Auth, Config, Handler, Response, run_stream};
use russh::{MethodKind, MethodSet};
use std::borrow::Cow;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// How the server asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asks {
    Password,
    OneQuestion,
    TwoQuestions,
    AgainAndAgain,
}

struct Server(Asks);

fn methods(kind: MethodKind) -> MethodSet {
    MethodSet::from(&[kind][..])
}

impl Handler for Server {
    type Error = russh::Error;

    async fn auth_password(&mut self, user: &str, password: &str) -> Result<Auth, Self::Error> {
        if self.0 != Asks::Password {
            let proceed_with_methods = Some(methods(MethodKind::KeyboardInteractive));
            return Ok(Auth::Reject { proceed_with_methods, partial_success: false });
        }
        Ok(if (user, password) == ("me", "hunter2") { Auth::Accept } else { Auth::reject() })
    }

    async fn auth_keyboard_interactive<'a>(
        &'a mut self,
        user: &str,
        _submethods: &str,
        response: Option<Response<'a>>,
    ) -> Result<Auth, Self::Error> {
        let answers: Vec<_> = response.into_iter().flatten().collect();
        let good = user == "me" && answers.iter().any(|answer| answer == "hunter2".as_bytes());
        if good && self.0 != Asks::AgainAndAgain {
            return Ok(Auth::Accept);
        }
        let password = (Cow::Borrowed("Password: "), false);
        let prompts = match self.0 {
            Asks::TwoQuestions => vec![password, (Cow::Borrowed("One-time code: "), true)],
            _ => vec![password],
        };
        Ok(Auth::Partial { name: "".into(), instructions: "".into(), prompts: prompts.into() })
    }
}

/// What logging in with this password comes to.
async fn outcome(asks: Asks, password: &str) -> Result<(), ConnectError> {
    let folder = Folder::new();
    folder.keygen("hk", &["-t", "ed25519"]);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let port = listener.local_addr().expect("an address").port();
    let keys = vec![PrivateKey::from_openssh(folder.read("hk")).expect("a key")];
    let config = Arc::new(Config { keys, auth_rejection_time: std::time::Duration::ZERO, ..Config::default() });
    let serving = supervise::spawn("a test's task", async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(session) = run_stream(Arc::clone(&config), stream, Server(asks)).await {
                drop(supervise::spawn("a test's session", async move { drop(session.await) }));
            }
        }
    });
    folder.write("known_hosts", &format!("[127.0.0.1]:{port} {}\n", folder.public("hk")));
    let file = folder.write("password", password);
    must("chmod", &["600", &folder.shown("password")]);
    let text = format!(
        "passwords: true\nhosts: {{web: {{address: 127.0.0.1, port: {port}, login: me, credential: pass}}}}\n\
         credentials: {{pass: {{password_file: {}}}}}\nknown_hosts: [{}]\n",
        file.display(),
        folder.shown("known_hosts")
    );
    let live = LiveInventory::load(&folder.write("inventory.yaml", &text), &folder.path("data")).expect("loads");
    let route = live.current().route(&Destination { host: "web", ..Destination::default() }).expect("a route");
    let stop = CancellationToken::new();
    let result = Pool::new(settings(), live, stop.clone()).check(&route).await;
    stop.cancel();
    serving.abort();
    result
}

#[tokio::test]
async fn a_password_opens_where_the_inventory_has_one_and_answers_one_question_once() {
    if !present() {
        return;
    }
    for asks in [Asks::Password, Asks::OneQuestion] {
        assert_eq!(outcome(asks, "hunter2\n").await, Ok(()), "{asks:?}");
    }
    for (asks, password, wanted) in [
        (Asks::Password, "hunter3", "did not take it"),
        (Asks::OneQuestion, "hunter3", "asks for the password again, so it did not take it"),
        (Asks::TwoQuestions, "hunter2", "the host asks more than a password: Password:, One-time code:"),
        (Asks::AgainAndAgain, "hunter2", "asks for the password again, so it did not take it"),
    ] {
        let error = outcome(asks, password).await.expect_err("is not let in");
        let said = error.to_string();
        assert!(error.is_permanent() && said.contains(wanted) && !said.contains("hunter"), "{asks:?}: {said}");
    }
}

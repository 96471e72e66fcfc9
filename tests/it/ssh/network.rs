//! A host in a network of its own, which loses everything for a while, or refuses it: nobody tells the agent, and nothing of a job is lost.

use super::super::stage::{Up, cause, until};
use super::jobs::{inventory, processes, stop, up_with};
use super::resident::{has_said, hubs, script};
use super::sshd::{Folder, must, present};
use serde_json::{Value, json};
use std::process::Command;

/// A namespace with one cable to this one. It goes with what is dropped.
struct Network {
    name: String,
    address: String,
}

impl Network {
    /// `None`, said loudly, where nobody may make one.
    fn new(nth: u32) -> Option<Self> {
        let can = rustix::process::geteuid().is_root() && Command::new("iptables").arg("--version").output().is_ok();
        if !can {
            assert!(
                std::env::var("JOBCELL_TEST_ENGINE").as_deref() != Ok("required"),
                "no network can be made, and JOBCELL_TEST_ENGINE=required: be root, with ip and iptables"
            );
            eprintln!("SKIPPED: no network can be made here");
            return None;
        }
        let number = std::process::id() % 200;
        let (name, cable) = (format!("jct-{number}-{nth}"), format!("jct{number}v{nth}"));
        let (here, there) = (format!("10.213.{number}.{}", 4 * nth + 1), format!("10.213.{number}.{}", 4 * nth + 2));
        must("ip", &["netns", "add", &name]);
        let network = Self { name, address: there.clone() };
        must("ip", &["link", "add", &cable, "type", "veth", "peer", "name", "e0", "netns", &network.name]);
        must("ip", &["addr", "add", &format!("{here}/30"), "dev", &cable]);
        must("ip", &["link", "set", &cable, "up"]);
        for args in [
            ["addr", "add", &format!("{there}/30"), "dev", "e0"].as_slice(),
            &["link", "set", "e0", "up"],
            &["link", "set", "lo", "up"],
        ] {
            must("ip", &[&["-n", &network.name], args].concat());
        }
        Some(network)
    }

    fn rules(&self, how: &str, rule: &[&str]) {
        for (chain, end) in [("INPUT", "--dport"), ("OUTPUT", "--sport")] {
            let args =
                [&["netns", "exec", &self.name, "iptables", how, chain, "-p", "tcp", end, "22", "-j"], rule].concat();
            must("ip", &args);
        }
    }

    /// Nothing of what is sent arrives, until it is asked to.
    fn lose(&self) {
        self.rules("-I", &["DROP"]);
    }

    /// All is answered with a reset.
    fn refuse(&self) {
        self.rules("-I", &["REJECT", "--reject-with", "tcp-reset"]);
    }

    fn heal(&self) {
        must("ip", &["netns", "exec", &self.name, "iptables", "-F"]);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // The cable goes with its end.
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

const COUNT: u32 = 300;

fn counting() -> Value {
    script(&format!("echo \"pid $$\"; i=0; while [ $i -lt {COUNT} ]; do echo $i; i=$((i+1)); sleep 0.1; done"))
}

async fn connections(up: &Up, wanted: u32) {
    until(&format!("{wanted} connections"), || async {
        let (_, text) = up.plain("/metrics").await?;
        text.contains(&format!("\njobcell_ssh_connections {wanted}\n")).then_some(())
    })
    .await;
}

/// Runs a job through what happens to its host's network, and finds all of it at its end.
async fn through(nth: u32, happens: fn(&Network)) {
    if !present() {
        return;
    }
    let Some(network) = Network::new(nth) else { return };
    let folder = Folder::new();
    let sshd = folder.sshd_in(&network.name, &network.address, "");
    let up = up_with(&folder, &inventory(&folder, &sshd), "queue: {max_attempts: 1}\n").await;
    let job = up.submit(&counting()).await;
    has_said(&up, &job, "\n10\n").await;
    let before = hubs(&up);
    happens(&network);
    connections(&up, 0).await;
    assert!(!processes(&job).is_empty(), "it runs on");
    network.heal();
    connections(&up, 1).await;
    let job = up.ended(&job).await;
    assert_eq!((cause(&job), &job["ending"]["verdict"]), ("exit_code", &json!("succeeded")), "{job}\n{}", up.log());
    assert_eq!((&job["attempt"], &job["log"]["complete"]), (&json!(1), &json!(true)), "{job}");
    let out = up.text(&job, "stdout").await;
    let (first, rest) = out.split_once('\n').expect("a line");
    assert!(first.starts_with("pid ") && out.matches("pid").count() == 1, "{out}");
    assert_eq!(rest, (0..COUNT).map(|n| format!("{n}\n")).collect::<String>());
    assert_eq!(hubs(&up), before, "the same warden");
    stop(up).await;
}

#[tokio::test]
async fn a_network_that_loses_everything_costs_a_job_nothing() {
    through(0, Network::lose).await;
}

#[tokio::test]
async fn a_network_that_resets_everything_costs_a_job_nothing() {
    through(1, Network::refuse).await;
}

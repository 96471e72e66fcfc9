//! What systemd is told of a service of type `notify`: that it is ready, what it does in a sentence, that it lives, that it stops.
//!
//! Without `NOTIFY_SOCKET` all of it is nothing. Must never be what keeps the service from its work: nothing here is waited for.

use crate::agent::{BackendState, Status, is_of_a_start};
use crate::supervise::spawn;
use crate::telemetry::Pulse;
use sd_notify::NotifyState;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// An agent that did not turn for so long gets no more words of life, whatever `WatchdogSec` is: a probe has its own deadline, and this is
/// beyond all of them.
const STUCK: Duration = Duration::from_secs(90);

/// Characters of a status.
const LONGEST: usize = 500;

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd was not told");
    }
}

/// Whether systemd started this process as a service that tells how it is.
pub(super) fn is_here() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// The service does its work from now on.
pub(super) fn ready(sentence: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(sentence)]);
}

/// It was asked to stop.
pub(super) fn stopping(sentence: &str) {
    tell(&[NotifyState::Stopping, NotifyState::Status(sentence)]);
}

/// It ends before it did any work, or in the middle of it: why, in one line, which `systemctl status` shows from then on.
pub(super) fn failed(reason: &str) {
    if is_here() {
        tell(&[NotifyState::Status(&one_line(reason))]);
    }
}

/// As much of a text as a status has room for.
fn one_line(text: &str) -> String {
    let line = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// Tells what the agent does whenever that changes, and that it lives for as long as it gets on.
pub(super) fn follow(mut status: watch::Receiver<Status>, pulse: Pulse) -> Option<JoinHandle<()>> {
    if !is_here() {
        return None;
    }
    let watchdog = sd_notify::watchdog_enabled();
    Some(spawn("systemd", async move {
        // Twice in its time: one that comes late is no reason for a restart.
        let every = watchdog.map_or(Duration::from_secs(60), |limit| limit / 2);
        let (mut said, mut ready_told, mut stopping_told) = (String::new(), false, false);
        loop {
            let now = status.borrow_and_update().clone();
            let sentence = sentence(&now);
            if sentence != said {
                tell(&[NotifyState::Status(&sentence)]);
                said = sentence;
            }
            if !ready_told {
                ready_told = true;
                ready(&said);
            }
            if now.draining && !stopping_told {
                stopping_told = true;
                stopping(&said);
            }
            match pulse.stopped_for(STUCK) {
                None if watchdog.is_some() => tell(&[NotifyState::Watchdog]),
                None => {}
                Some(reason) => tracing::error!(reason, "the watchdog is not fed"),
            }
            tokio::select! {
                changed = status.changed() => if changed.is_err() {
                    return;
                },
                () = tokio::time::sleep(every) => {}
            }
        }
    }))
}

/// What an agent does, in a line of `systemctl status`.
fn sentence(status: &Status) -> String {
    let jobs = match status.held {
        1 => "1 job".to_owned(),
        many => format!("{many} jobs"),
    };
    let slots = format!("{jobs}, {} slots free", status.free.slots);
    if status.draining {
        return format!("draining: {jobs} left, {} ends to tell", status.undelivered);
    }
    // An engine that is away keeps it from having started, too, and is what somebody wants to know.
    match &status.unavailable {
        // Nobody has looked yet.
        Some(reason) if is_of_a_start(reason) => return format!("starting; {slots}"),
        Some(reason) => return format!("takes no jobs: {reason}; {slots}"),
        None => {}
    }
    if status.starting {
        return format!("starting; {slots}");
    }
    let drained = status.drained.iter().map(|(name, reason)| format!("{name} hands out none: {reason}"));
    let failing = status.backends.iter().filter_map(|(name, state)| match state {
        BackendState::Failing(reason) => Some(format!("{name} away: {reason}")),
        BackendState::Refusing(reason) => Some(format!("{name} refuses this agent: {reason}")),
        BackendState::Unknown | BackendState::Well => None,
    });
    let away = status.away.iter().map(|(kind, reason)| format!("no {kind} jobs: {reason}"));
    let troubles: Vec<String> = away.chain(drained).chain(failing).collect();
    match troubles.as_slice() {
        [] => format!("{slots}, backend ok"),
        troubles => format!("{slots}; {}", troubles.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::STARTING;
    use crate::job::Capacity;

    #[test]
    fn a_status_is_one_line_of_a_bounded_length() {
        assert_eq!(
            one_line("the settings have problems:\n  agent.slots: is no number\n\n"),
            "the settings have problems: agent.slots: is no number"
        );
        let long = one_line(&"é".repeat(LONGEST + 1));
        assert_eq!((long.chars().count(), long.chars().last()), (LONGEST + 1, Some('…')));
        assert_eq!(one_line(&"x".repeat(LONGEST)).len(), LONGEST);
    }

    #[test]
    fn the_sentence_says_what_keeps_it_from_work() {
        let well = Status { held: 1, free: Capacity { slots: 3, ..Capacity::default() }, ..Status::default() };
        assert_eq!(sentence(&well), "1 job, 3 slots free, backend ok");
        let starting = Status { starting: true, ..well.clone() };
        assert_eq!(sentence(&starting), "starting; 1 job, 3 slots free");
        let not_looked = Status { unavailable: Some(STARTING.into()), ..starting.clone() };
        assert_eq!(sentence(&not_looked), "starting; 1 job, 3 slots free");
        let no_engine = Status { unavailable: Some("no engine".into()), ..well.clone() };
        assert_eq!(sentence(&no_engine), "takes no jobs: no engine; 1 job, 3 slots free");
        let not_yet = Status { starting: true, ..no_engine };
        assert_eq!(sentence(&not_yet), "takes no jobs: no engine; 1 job, 3 slots free");
        let away = Status { backends: vec![("main".into(), BackendState::Failing("refused".into()))], ..well.clone() };
        assert_eq!(sentence(&away), "1 job, 3 slots free; main away: refused");
        let refuses = BackendState::Refusing("401".into());
        let refused = Status { backends: vec![("main".into(), refuses)], ..well.clone() };
        assert_eq!(sentence(&refused), "1 job, 3 slots free; main refuses this agent: 401");
        let drained = Status { drained: vec![("main".into(), "upgrade".into())], ..well.clone() };
        assert_eq!(sentence(&drained), "1 job, 3 slots free; main hands out none: upgrade");
        let no_engine = Status { away: [("docker", "no engine".to_owned())].into(), ..well.clone() };
        assert_eq!(sentence(&no_engine), "1 job, 3 slots free; no docker jobs: no engine");
        let draining = Status { draining: true, undelivered: 2, held: 4, ..well };
        assert_eq!(sentence(&draining), "draining: 4 jobs left, 2 ends to tell");
    }
}

//! The end of a job that its hub is asked for, which takes as long as there is something to end and to remove.
//!
//! Owns who waits for that, and how long. Must never end a connection because one job takes its time: all others there would pay for it.

use super::{ANSWER, Hub, Shared};
use crate::protocol::wire::ToHub;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

/// For all of a job to be dead and its folder removed: hundreds of thousands of files go within it. Who has waited so long gives up alone.
const KILL: Duration = Duration::from_secs(180);

/// Somebody who waits for a job to be ended. Forgotten when it is dropped.
struct Asked<'a> {
    hub: &'a Shared,
    name: &'a str,
    told: oneshot::Receiver<Result<(), String>>,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.told.close();
        let mut state = self.hub.state();
        if let Some(all) = state.kills.get_mut(self.name) {
            all.retain(|tell| !tell.is_closed());
            if all.is_empty() {
                state.kills.remove(self.name);
            }
        }
        state.look_whether_unused();
        drop(state);
        self.hub.news.notify_one();
    }
}

impl Hub {
    /// Ends all of a job at once and removes its folder; one that is not there counts as ended. Errors: what was said, or that it takes too
    /// long.
    pub(in crate::executor::ssh) async fn kill(&self, name: &str) -> Result<(), String> {
        let (tell, told) = oneshot::channel();
        {
            let mut state = self.0.state();
            if let Some(reason) = &state.ended {
                return Err(reason.clone());
            }
            state.kills.entry(name.to_owned()).or_default().push(tell);
            state.idle = None;
            ToHub::Kill { name: name.to_owned() }.encode(&mut state.out);
        }
        self.0.news.notify_one();
        let mut asked = Asked { hub: &self.0, name, told };
        let until = Instant::now() + KILL;
        while Instant::now() < until {
            if let Ok(told) = timeout(ANSWER, &mut asked.told).await {
                return told.unwrap_or_else(|_| Err("the task that talks to it ended".to_owned()));
            }
            // It may have much to remove, or be stuck: one that is not stuck answers this at once.
            self.is_alive().await?;
        }
        Err(format!("it has not been ended for {} s", KILL.as_secs()))
    }

    /// Asks for something that costs nothing. Errors: there is no answer, and nothing more is said over this connection.
    async fn is_alive(&self) -> Result<(), String> {
        let mut named = self.0.named.subscribe();
        {
            let mut state = self.0.state();
            if let Some(reason) = &state.ended {
                return Err(reason.clone());
            }
            ToHub::List.encode(&mut state.out);
        }
        self.0.news.notify_one();
        match timeout(ANSWER, named.changed()).await {
            Ok(_) => Ok(()),
            Err(_) => Err(self.stuck()),
        }
    }
}

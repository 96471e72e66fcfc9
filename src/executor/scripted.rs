//! An executor for tests: its cells are tasks in this process that speak the wire as a warden does, and misbehave on
//! demand. No engine, no waiting: it runs under a paused clock.

use super::{Cell, CellOrder, Executor, Link, NoCell, Present, Seen};
use crate::job::{Cause, Program};
use crate::protocol::wire::{CellSpec, Decoder, Exit, ExitKind, FromWarden, Mismatch, ToWarden, WardenState};
use futures_util::stream;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What a cell does; chosen by the first word of the job's command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Play {
    /// `echo N`: N frames of output, then exit 0.
    Echo(u64),
    /// `sleep MS`: nothing for so long, then exit 0; a stop ends it.
    Sleep(u64),
    /// `deaf`: runs until it is killed from outside; hears no stop.
    Deaf,
    /// `cut N`: N frames, and the link breaks in the middle of each second one.
    Cut(u64),
    /// `garbage`: bytes that are no frames, then a proper job.
    Garbage,
    /// `weak`: refuses the receipt.
    Weak,
    /// `mute`: never says a word.
    Mute,
    /// `forge`: says that another attempt runs here.
    Forge,
}

impl Play {
    fn of(order: &CellOrder) -> Self {
        let Program::Command(argv) = order.spec.program() else { return Self::Echo(1) };
        let number = || argv.get(1).and_then(|number| number.parse().ok()).unwrap_or(1);
        match argv[0].as_str() {
            "sleep" => Self::Sleep(number()),
            "deaf" => Self::Deaf,
            "cut" => Self::Cut(number()),
            "garbage" => Self::Garbage,
            "weak" => Self::Weak,
            "mute" => Self::Mute,
            "forge" => Self::Forge,
            _ => Self::Echo(number()),
        }
    }
}

/// What is seen of an executor from a test.
#[derive(Debug, Default)]
pub(crate) struct World {
    /// Cells that are there, by attempt, with whether they run.
    pub(crate) cells: BTreeMap<String, bool>,
    /// How many there ever were.
    pub(crate) made: usize,
    /// How often a job was started, by attempt.
    pub(crate) started: BTreeMap<String, u32>,
    /// No cell can be made, and why.
    pub(crate) unavailable: Option<String>,
    /// What the wardens remember, by attempt.
    wardens: BTreeMap<String, Arc<Mutex<Memory>>>,
}

/// The executor.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scripted(Arc<Mutex<World>>);

impl Scripted {
    pub(crate) fn world(&self) -> std::sync::MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A cell: what it does, and what its warden remembers over links.
pub(crate) struct ScriptedCell {
    executor: Scripted,
    attempt: String,
    play: Play,
    spec: CellSpec,
    memory: Arc<Mutex<Memory>>,
}

#[derive(Debug, Default)]
struct Memory {
    committed: bool,
    stopped: u8,
    links: u32,
    /// Virtual start, for the end of a sleep.
    began: Option<tokio::time::Instant>,
}

impl Executor for Scripted {
    type Cell = ScriptedCell;

    async fn probe(&self) -> Result<(), String> {
        self.world().unavailable.clone().map_or(Ok(()), Err)
    }

    async fn acquire(&self, order: &CellOrder) -> Result<(ScriptedCell, Link), NoCell> {
        // An engine takes its time.
        tokio::time::sleep(Duration::from_millis(200)).await;
        if let Some(reason) = self.world().unavailable.clone() {
            return Err(NoCell::Unavailable(reason));
        }
        if order.image == "missing" {
            let reason = "no such image".to_owned();
            return Err(NoCell::Failed(Cause::ImageMissing { image: order.image.clone(), reason }));
        }
        let attempt = order.attempt.to_string();
        let cell = ScriptedCell {
            executor: self.clone(),
            attempt: attempt.clone(),
            play: Play::of(order),
            spec: CellSpec { attempt: attempt.clone(), ..CellSpec::default() },
            memory: Arc::default(),
        };
        let mut world = self.world();
        assert!(world.cells.insert(attempt, true).is_none(), "no attempt has two cells");
        world.made += 1;
        world.wardens.insert(cell.attempt.clone(), Arc::clone(&cell.memory));
        drop(world);
        let link = cell.link();
        Ok((cell, link))
    }

    async fn present(&self) -> Result<Vec<Present>, String> {
        let world = self.world();
        if let Some(reason) = &world.unavailable {
            return Err(reason.clone());
        }
        let present = |(name, running): (&String, &bool)| Present {
            name: name.clone(),
            attempt: name.parse().ok(),
            running: *running,
        };
        Ok(world.cells.iter().map(present).collect())
    }

    async fn adopt(&self, order: &CellOrder) -> Result<ScriptedCell, String> {
        let attempt = order.attempt.to_string();
        let memory = self.world().wardens.get(&attempt).cloned().ok_or("no such cell")?;
        let spec = CellSpec { attempt: attempt.clone(), ..CellSpec::default() };
        Ok(ScriptedCell { executor: self.clone(), attempt, play: Play::of(order), spec, memory })
    }

    async fn remove(&self, name: &str) {
        let mut world = self.world();
        world.cells.remove(name);
        world.wardens.remove(name);
    }
}

impl Cell for ScriptedCell {
    fn cell_spec(&self) -> &CellSpec {
        &self.spec
    }

    async fn attach(&self) -> Result<Link, String> {
        Ok(self.link())
    }

    async fn look(&self) -> Result<Seen, String> {
        match self.executor.world().cells.get(&self.attempt) {
            Some(true) => Ok(Seen::Running),
            _ => Ok(Seen::Gone("it was killed".to_owned())),
        }
    }

    async fn kill(&self) -> Result<(), String> {
        self.executor.world().cells.insert(self.attempt.clone(), false);
        Ok(())
    }

    async fn destroy(self) {
        self.executor.remove(&self.attempt).await;
    }
}

impl ScriptedCell {
    fn link(&self) -> Link {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let (read, write) = tokio::io::split(ours);
        let warden = Script {
            executor: self.executor.clone(),
            attempt: self.attempt.clone(),
            play: self.play,
            memory: Arc::clone(&self.memory),
            stream: theirs,
            epoch: 0,
        };
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).links += 1;
        crate::supervise::spawn("scripted warden", warden.run());
        let output = stream::unfold(read, |mut read| async move {
            let mut bytes = vec![0; 4096];
            match read.read(&mut bytes).await {
                Ok(count) if count > 0 => {
                    bytes.truncate(count);
                    Some((Ok(bytes::Bytes::from(bytes)), read))
                }
                _ => None,
            }
        });
        Link { output: Box::pin(output), input: Box::pin(write) }
    }
}

struct Script {
    executor: Scripted,
    attempt: String,
    play: Play,
    memory: Arc<Mutex<Memory>>,
    stream: tokio::io::DuplexStream,
    epoch: u32,
}

impl Script {
    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn say(&mut self, message: FromWarden, seq: u64) {
        let mut bytes = Vec::new();
        message.encode(self.epoch, seq, &mut bytes);
        let _ = self.stream.write_all(&bytes).await;
    }

    async fn run(mut self) {
        if self.play == Play::Mute {
            return std::future::pending().await;
        }
        let mut decoder = Decoder::new();
        let mut stored = 0;
        let mut bytes = [0; 4096];
        loop {
            let until = self.memory().began.map(|began| began + Duration::from_millis(self.sleep_ms()));
            let read = tokio::select! {
                read = self.stream.read(&mut bytes) => read,
                () = tokio::time::sleep_until(until.unwrap_or_else(tokio::time::Instant::now)), if until.is_some() => {
                    self.say_exit(0).await;
                    self.memory().began = None;
                    continue;
                }
            };
            let Ok(count @ 1..) = read else { return };
            decoder.feed(&bytes[..count]);
            while let Some(frame) = decoder.next() {
                let (epoch, message) = (frame.epoch, ToWarden::decode(&frame).expect("the agent's frames are whole"));
                if let ToWarden::Attach { stored: there, .. } = &message {
                    self.epoch = epoch;
                    stored = *there;
                }
                if !self.hear(message, stored).await {
                    return;
                }
            }
        }
    }

    fn sleep_ms(&self) -> u64 {
        match self.play {
            Play::Sleep(ms) => ms,
            _ => u64::MAX / 2_000_000,
        }
    }

    /// False when the link ends.
    async fn hear(&mut self, message: ToWarden, stored: u64) -> bool {
        match message {
            ToWarden::Attach { .. } => {
                let committed = self.memory().committed;
                let attempt = if self.play == Play::Forge { "other/1/0".to_owned() } else { String::new() };
                let state = if committed { WardenState::Running } else { WardenState::Waiting };
                let receipt = vec![("scripted".to_owned(), "1".to_owned())];
                let hello = FromWarden::Hello { version: 1, build: "t".into(), attempt, state, next_seq: 1, receipt };
                self.say(hello, 0).await;
                if committed {
                    return self.perform(stored).await;
                }
            }
            ToWarden::Commit { .. } => {
                if self.play == Play::Weak {
                    let mismatch = Mismatch { key: "uid".into(), wanted: "7".into(), got: "0".into() };
                    self.say(FromWarden::Refused { mismatches: vec![mismatch] }, 0).await;
                    return true;
                }
                if std::mem::replace(&mut self.memory().committed, true) {
                    return true;
                }
                *self.executor.world().started.entry(self.attempt.clone()).or_default() += 1;
                self.say(FromWarden::Started { pid: 2, time_us: 1 }, 0).await;
                return self.perform(stored).await;
            }
            ToWarden::Stop { reason, .. } if self.play != Play::Deaf => {
                self.memory().stopped = reason;
                self.memory().began = None;
                self.say_exit(0).await;
            }
            ToWarden::Ping { nonce } => self.say(FromWarden::Pong { nonce, stalled: 0 }, 0).await,
            ToWarden::Stop { .. }
            | ToWarden::SpecChunk { .. }
            | ToWarden::Ack { .. }
            | ToWarden::Lease { .. }
            | ToWarden::Close => {}
        }
        true
    }

    async fn perform(&mut self, stored: u64) -> bool {
        match self.play {
            Play::Echo(frames) => self.output(stored, frames, u64::MAX).await,
            Play::Garbage => {
                let noise: Vec<u8> = (0..9_000u32).map(|n| (n * 7 % 251) as u8).collect();
                let _ = self.stream.write_all(&noise).await;
                self.output(stored, 3, u64::MAX).await
            }
            // Two whole frames a link, then half of the next one.
            Play::Cut(frames) => self.output(stored, frames, stored + 2).await,
            Play::Sleep(_) => {
                self.memory().began.get_or_insert_with(tokio::time::Instant::now);
                true
            }
            Play::Deaf | Play::Weak | Play::Mute | Play::Forge => true,
        }
    }

    async fn output(&mut self, stored: u64, frames: u64, cut_after: u64) -> bool {
        for seq in stored + 1..=frames {
            let output = FromWarden::Output { stream: 1, time_us: seq, bytes: line(seq) };
            if seq > cut_after {
                let mut bytes = Vec::new();
                output.encode(self.epoch, seq, &mut bytes);
                let _ = self.stream.write_all(&bytes[..bytes.len() / 2]).await;
                return false;
            }
            self.say(output, seq).await;
        }
        self.say_exit(frames).await;
        true
    }

    async fn say_exit(&mut self, frames: u64) {
        let stop_reason = self.memory().stopped;
        let exit = Exit {
            last_seq: frames,
            kind: ExitKind::Exited,
            code: 0,
            step: String::new(),
            stop_reason,
            started_us: 1,
            ended_us: 2,
            wall_ms: 1,
            utime_us: 0,
            stime_us: 0,
            max_rss_bytes: 0,
            peak_memory_bytes: 0,
            oom_kills: 0,
            peak_pids: 0,
            stdout_bytes: (1..=frames).map(|seq| line(seq).len() as u64).sum(),
            stderr_bytes: 0,
            leftover: 0,
        };
        self.say(FromWarden::Exit(exit), 0).await;
    }
}

/// What frame `seq` of a scripted job says.
pub(crate) fn line(seq: u64) -> Vec<u8> {
    format!("line {seq}\n").into_bytes()
}

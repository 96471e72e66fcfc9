//! What a cell runs and what must be in force in it: section 0 of a spec, and the comparison with the receipt.

use super::fields::{BadPayload, Reader, Writer};
use super::inputs::InputTotals;
use super::parts;
use super::results::Collect;
use super::secrets::Secret;

/// A fact and its value, as read or tried from inside a cell.
pub type Fact = (String, String);

/// How an expectation compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// The same text.
    Eq,
    /// A number not above.
    AtMost,
    /// A number not below.
    AtLeast,
    /// One of the texts between commas.
    OneOf,
    /// There at all.
    Present,
    /// Not there.
    Absent,
}

impl Op {
    const ALL: [Self; 6] = [Self::Eq, Self::AtMost, Self::AtLeast, Self::OneOf, Self::Present, Self::Absent];
}

/// One thing that must be in force before the job starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expect {
    /// The fact.
    pub key: String,
    /// The comparison.
    pub op: Op,
    /// What to compare with.
    pub value: String,
}

impl Expect {
    /// The fact has exactly this value.
    pub fn eq(key: &str, value: &str) -> Self {
        Self { key: key.to_owned(), op: Op::Eq, value: value.to_owned() }
    }
    /// The fact is a number not above `value`.
    pub fn at_most(key: &str, value: u64) -> Self {
        Self { key: key.to_owned(), op: Op::AtMost, value: value.to_string() }
    }
    /// The fact is one of the texts between commas.
    pub fn one_of(key: &str, values: &str) -> Self {
        Self { key: key.to_owned(), op: Op::OneOf, value: values.to_owned() }
    }

    fn met_by(&self, got: Option<&str>) -> bool {
        let numbers = || Some((got?.parse::<u64>().ok()?, self.value.parse::<u64>().ok()?));
        match self.op {
            Op::Eq => got == Some(&self.value),
            Op::AtMost => numbers().is_some_and(|(got, most)| got <= most),
            Op::AtLeast => numbers().is_some_and(|(got, least)| got >= least),
            Op::OneOf => got.is_some_and(|got| self.value.split(',').any(|value| value == got)),
            Op::Present => got.is_some(),
            Op::Absent => got.is_none(),
        }
    }

    fn wanted(&self) -> String {
        match self.op {
            Op::Eq => self.value.clone(),
            Op::AtMost => format!("at most {}", self.value),
            Op::AtLeast => format!("at least {}", self.value),
            Op::OneOf => format!("one of {}", self.value),
            Op::Present => "anything".to_owned(),
            Op::Absent => "nothing".to_owned(),
        }
    }
}

/// An expectation that is not met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// The fact.
    pub key: String,
    /// What was asked for.
    pub wanted: String,
    /// What is.
    pub got: String,
}

/// Every expectation that `facts` do not meet. A fact that could not be read meets none but [`Op::Absent`].
pub fn unmet(expect: &[Expect], facts: &[Fact]) -> Vec<Mismatch> {
    let value = |key: &str| facts.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
    expect
        .iter()
        .filter(|one| !one.met_by(value(&one.key)))
        .map(|one| Mismatch {
            key: one.key.clone(),
            wanted: one.wanted(),
            got: value(&one.key).unwrap_or("(not there)").to_owned(),
        })
        .collect()
}

/// A limit that the warden sets in the job's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rlimit {
    /// The kernel's number for it.
    pub resource: u32,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// Limits of a job that is in no container. Zero: no such limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GroupLimits {
    /// Memory, swap included.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Share of the processor, in thousandths of a core.
    pub cpu_milli: u32,
}

impl GroupLimits {
    /// Each that is asked for, by the name of what the kernel counts it with.
    pub fn asked(&self) -> impl Iterator<Item = &'static str> {
        let all = [("memory", self.memory_bytes > 0), ("pids", self.pids > 0), ("cpu", self.cpu_milli > 0)];
        all.into_iter().filter_map(|(name, is)| is.then_some(name))
    }
}

/// What a cell runs, and what must be in force before: section 0 of a spec.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CellSpec {
    /// The attempt's identity.
    pub attempt: String,
    /// Program and arguments; the element `{script}` stands for `script_path`.
    pub argv: Vec<String>,
    /// Variables.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// Names taken from the warden's own environment where `env` does not set them; `*` takes all but HOME, HOSTNAME,
    /// TERM.
    pub inherit_env: Vec<String>,
    /// Working directory.
    pub cwd: String,
    /// Where section 1 goes; empty when there is no script.
    pub script_path: String,
    /// Wall-clock limit from the start, milliseconds.
    pub wall_timeout_ms: u64,
    /// Between TERM and KILL, milliseconds.
    pub grace_ms: u32,
    /// The first term of the lease, milliseconds.
    pub lease_ms: u64,
    /// Limits of the job's processes.
    pub rlimits: Vec<Rlimit>,
    /// Size asked for the job's pipes.
    pub output_pipe_bytes: u32,
    /// What must be in force.
    pub expect: Vec<Expect>,
    /// The job is ended when it writes nothing for so long, milliseconds; 0 for ever.
    pub silence_ms: u64,
    /// Program and arguments that run after the job was ended by a cancel, its wall clock or its silence; empty for none.
    pub on_cancel: Vec<String>,
    /// How long that may run, milliseconds.
    pub on_cancel_ms: u32,
    /// Output that has no room is dropped and counted; otherwise the job waits.
    pub drop_output: bool,
    /// The job is ended when it makes a call that no honest job makes, and the call is told.
    pub tripwire: bool,
    /// Bytes of output on both streams together; 0 for no limit.
    pub output_limit: u64,
    /// What is beyond it is dropped and counted, and the job goes on; otherwise it is ended.
    pub cut_output: bool,
    /// What is kept of its results; without it, none of what belongs to that is said or understood.
    pub collect: Option<Collect>,
    /// What the job is given that nobody else may see.
    pub secrets: Vec<Secret>,
    /// Connections at a time of the proxy in the cell; 0 for no proxy.
    pub egress_connections: u16,
    /// What the job was given before the commit; without it, nothing may have been.
    pub inputs: Option<InputTotals>,
    /// What the warden holds the job to by a control group of its own, on a host. It leaves out what its login cannot make groups for, as it has said.
    pub limits: GroupLimits,
}

/// Number of the part with [`CellSpec::inputs`].
const INPUTS: u8 = 1;
/// Number of the part with [`CellSpec::collect`].
const COLLECT: u8 = 2;
/// Number of the part with [`CellSpec::secrets`].
const SECRETS: u8 = 3;
/// Number of the part with [`CellSpec::egress_connections`].
const EGRESS: u8 = 4;
/// Number of the part with [`CellSpec::limits`].
const LIMITS: u8 = 5;

impl CellSpec {
    /// Appends the encoded form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let writer = Writer::default()
            .text(&self.attempt)
            .list(&self.argv, |w, item| w.text(item))
            .list(&self.env, |w, (key, value)| w.bytes(key).bytes(value))
            .list(&self.inherit_env, |w, item| w.text(item))
            .text(&self.cwd)
            .text(&self.script_path)
            .u64(self.wall_timeout_ms)
            .u32(self.grace_ms)
            .u64(self.lease_ms)
            .list(&self.rlimits, |w, one| w.u32(one.resource).u64(one.soft).u64(one.hard))
            .u32(self.output_pipe_bytes)
            .list(&self.expect, |w, one| w.text(&one.key).u8(one.op as u8).text(&one.value))
            .u64(self.silence_ms)
            .list(&self.on_cancel, |w, item| w.text(item))
            .u32(self.on_cancel_ms)
            // One bit each.
            .u8(u8::from(self.drop_output) | u8::from(self.tripwire) << 1 | u8::from(self.cut_output) << 2)
            .u64(self.output_limit);
        let writer = parts::write(writer, INPUTS, self.inputs.as_ref(), InputTotals::write);
        let writer = parts::write(writer, COLLECT, self.collect.as_ref(), Collect::write);
        let secrets = Some(self.secrets.as_slice()).filter(|all| !all.is_empty());
        let writer = parts::write(writer, SECRETS, secrets.as_ref(), |all, w| Secret::write_all(all, w));
        let egress = Some(self.egress_connections).filter(|most| *most > 0);
        let writer = parts::write(writer, EGRESS, egress.as_ref(), |most, w| w.u32(u32::from(*most)));
        let limits = Some(self.limits).filter(|limits| *limits != GroupLimits::default());
        let writer = parts::write(writer, LIMITS, limits.as_ref(), |limits, w| {
            w.u64(limits.memory_bytes).u64(limits.pids).u32(limits.cpu_milli)
        });
        out.extend_from_slice(&writer.0);
    }

    /// Reads what [`encode`](Self::encode) wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadPayload> {
        let mut r = Reader(bytes);
        let mut spec = Self {
            attempt: r.text()?,
            argv: r.list(|r| r.text())?,
            env: r.list(|r| Ok((r.bytes()?.to_vec(), r.bytes()?.to_vec())))?,
            inherit_env: r.list(|r| r.text())?,
            cwd: r.text()?,
            script_path: r.text()?,
            wall_timeout_ms: r.u64()?,
            grace_ms: r.u32()?,
            lease_ms: r.u64()?,
            rlimits: r.list(|r| Ok(Rlimit { resource: r.u32()?, soft: r.u64()?, hard: r.u64()? }))?,
            output_pipe_bytes: r.u32()?,
            expect: r.list(|r| {
                let key = r.text()?;
                let op = *Op::ALL.get(r.u8()? as usize).ok_or(BadPayload("an unknown comparison"))?;
                Ok(Expect { key, op, value: r.text()? })
            })?,
            silence_ms: r.u64()?,
            on_cancel: r.list(|r| r.text())?,
            on_cancel_ms: r.u32()?,
            drop_output: false,
            tripwire: false,
            cut_output: false,
            output_limit: 0,
            collect: None,
            secrets: Vec::new(),
            egress_connections: 0,
            inputs: None,
            limits: GroupLimits::default(),
        };
        let bits = r.u8()?;
        (spec.drop_output, spec.tripwire, spec.cut_output) = (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0);
        spec.output_limit = r.u64()?;
        let (mut secrets, mut egress, mut limits) = (None, None, None);
        parts::read(&mut r, |tag, r| match tag {
            INPUTS => parts::once(&mut spec.inputs, InputTotals::read(r)?),
            COLLECT => parts::once(&mut spec.collect, Collect::read(r)?),
            SECRETS => parts::once(&mut secrets, Secret::read_all(r)?),
            EGRESS => parts::once(&mut egress, r.u32()?),
            LIMITS => {
                let read = GroupLimits { memory_bytes: r.u64()?, pids: r.u64()?, cpu_milli: r.u32()? };
                parts::once(&mut limits, read)
            }
            _ => Err(parts::UNKNOWN),
        })?;
        spec.secrets = secrets.unwrap_or_default();
        spec.limits = limits.unwrap_or_default();
        let most = u16::try_from(egress.unwrap_or_default());
        spec.egress_connections = most.map_err(|_| BadPayload("too many connections"))?;
        Ok(spec)
    }
}

//! The tripwire: the job is ended when one of its processes makes a call that no honest job makes, and the call is told.
//!
//! A second filter, put behind the one that the engine installed, hands such calls to the warden instead of the kernel. The engine's filter
//! refuses them all the same (its answer is the weaker of the two, so ours comes first), so nothing gets through when this one fails. Pure:
//! the list, the filter's program, and what a call is told as.

mod table;

pub(crate) use table::TRIPS;

/// A call that ends the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Trip {
    pub(crate) number: u32,
    pub(crate) name: &'static str,
    /// Argument, mask and value: only when the argument's low 32 bits are this under the mask.
    pub(crate) when: Option<(u8, u32, u32)>,
}

/// The kernel's `struct sock_filter`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instruction {
    code: u16,
    yes: u8,
    no: u8,
    value: u32,
}

/// A call that was not made, as the kernel tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caught {
    pub(crate) pid: u32,
    pub(crate) number: u32,
    pub(crate) arguments: [u64; 6],
}

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
const ALLOW: u32 = 0x7fff_0000;
const NOTIFY: u32 = 0x7fc0_0000;
const X86_64: u32 = 0xc000_003e;
/// Where things are in the kernel's `struct seccomp_data`; arguments are 64 bits wide, the low half first.
const AT_NUMBER: u32 = 0;
const AT_ARCHITECTURE: u32 = 4;
const AT_ARGUMENTS: u32 = 16;

/// The filter. What it does not hand to the warden is left to the filters before it: they end calls of other architectures.
pub(crate) fn program(trips: &[Trip]) -> Vec<Instruction> {
    let one = |code, value| Instruction { code, yes: 0, no: 0, value };
    let skip_unless = |value, no| Instruction { code: JUMP_IF_EQUAL, yes: 0, no, value };
    let mut all =
        vec![one(LOAD, AT_ARCHITECTURE), skip_unless(X86_64, 1), Instruction { yes: 1, ..skip_unless(X86_64, 0) }];
    all.extend([one(RETURN, ALLOW), one(LOAD, AT_NUMBER)]);
    for trip in trips {
        match trip.when {
            None => all.extend([skip_unless(trip.number, 1), one(RETURN, NOTIFY)]),
            Some((argument, mask, value)) => all.extend([
                skip_unless(trip.number, 5),
                one(LOAD, AT_ARGUMENTS + 8 * u32::from(argument)),
                one(AND, mask),
                skip_unless(value, 1),
                one(RETURN, NOTIFY),
                one(LOAD, AT_NUMBER),
            ]),
        }
    }
    all.push(one(RETURN, ALLOW));
    all
}

impl Caught {
    /// The call with the argument that made it one to tell; `name` is what its process calls itself.
    pub(crate) fn told(&self, name: &str) -> String {
        let low = |argument: u8| self.arguments.get(usize::from(argument)).map_or(0, |whole| *whole as u32);
        let trip = TRIPS.iter().find(|trip| {
            trip.number == self.number && trip.when.is_none_or(|(argument, mask, value)| low(argument) & mask == value)
        });
        let call = match trip {
            Some(Trip { name, when: Some((argument, ..)), .. }) => format!("{name}({:#x})", low(*argument)),
            Some(Trip { name, when: None, .. }) => (*name).to_owned(),
            None => format!("call-{}", self.number),
        };
        format!("{call} {} {name}", self.pid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would do with the program.
    fn run(program: &[Instruction], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let (mut at, mut sum) = (0, 0);
        loop {
            let one = program[at];
            at += 1;
            match one.code {
                LOAD => {
                    sum = match one.value {
                        AT_NUMBER => number,
                        AT_ARCHITECTURE => architecture,
                        at => arguments[(at - AT_ARGUMENTS) as usize / 8] as u32,
                    }
                }
                AND => sum &= one.value,
                JUMP_IF_EQUAL => at += usize::from(if sum == one.value { one.yes } else { one.no }),
                RETURN => return one.value,
                other => panic!("{other:#x} is not used"),
            }
        }
    }

    #[test]
    fn calls_on_the_list_are_handed_over_and_no_others() {
        let program = program(TRIPS);
        assert!(program.len() < 4096, "as many as the kernel takes");
        for (number, first, told) in [
            (272, 0x1000_0000, Some("unshare(0x10000000) 9 x")),
            (272, 0x400, None),
            (272, 0x80, Some("unshare(0x80) 9 x")),
            // The kernel reads 32 bits of it, and so do we.
            (56, 0x7_4000_0011, Some("clone(0x40000011) 9 x")),
            (56, 0x0120_0011, None),
            (165, 0, Some("mount 9 x")),
            (321, 7, Some("bpf 9 x")),
            (101, 0, None),
            (101, 16, Some("ptrace(0x10) 9 x")),
            (101, 0x4206, Some("ptrace(0x4206) 9 x")),
            (0, 16, None),
            (425, 0, None),
        ] {
            let arguments = [first, 0, 0, 0, 0, 0];
            let wanted = if told.is_some() { NOTIFY } else { ALLOW };
            assert_eq!(run(&program, X86_64, number, arguments), wanted, "{number} {first:#x}");
            assert_eq!(run(&program, 0x4000_0003, number, arguments), ALLOW, "the filter before ends those");
            if let Some(told) = told {
                assert_eq!(Caught { pid: 9, number, arguments }.told("x"), told);
            }
        }
        for trip in TRIPS {
            let mut arguments = [0; 6];
            if let Some((argument, _, value)) = trip.when {
                arguments[usize::from(argument)] = u64::from(value);
            }
            assert_eq!(run(&program, X86_64, trip.number, arguments), NOTIFY, "{trip:?}");
        }
    }

    #[test]
    fn a_call_that_is_on_no_list_is_told_by_its_number() {
        assert_eq!(Caught { pid: 3, number: 5000, arguments: [0; 6] }.told("a b"), "call-5000 3 a b");
    }
}

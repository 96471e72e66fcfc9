//! What is reserved: slots, cores and memory, atomically. Memory is that of whole cells, so what is reserved is what can be used. A permit gives everything back when it is dropped, so the sum
//! of what is reserved always equals the live permits.

use crate::job::{Beside, ByteSize, Capacity, Cause, Cpus, Resources};
use std::sync::{Arc, Mutex, PoisonError};

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Reserved {
    slots: u32,
    cpu_milli: u64,
    memory: u64,
}

impl Reserved {
    /// All that a job may come to use: also what its cell takes beside it. One that runs on another host takes its slot alone.
    fn of(asked: Option<Resources>, beside: Beside) -> Self {
        let Some(asked) = asked else { return Self { slots: 1, ..Self::default() } };
        let memory = beside.with(asked.memory, asked.disk).as_u64();
        Self { slots: 1, cpu_milli: u64::from(asked.cpu.as_milli()), memory }
    }

    /// No spec asks for so much that this overflows.
    fn with(self, part: Self) -> Self {
        Self {
            slots: self.slots + part.slots,
            cpu_milli: self.cpu_milli + part.cpu_milli,
            memory: self.memory.saturating_add(part.memory),
        }
    }
}

/// The ledger.
#[derive(Debug, Clone)]
pub struct Ledger {
    capacity: Capacity,
    reserved: Arc<Mutex<Reserved>>,
}

/// A reservation.
#[derive(Debug)]
pub struct Permit {
    part: Reserved,
    reserved: Arc<Mutex<Reserved>>,
}

impl Ledger {
    /// Nothing reserved.
    pub fn new(capacity: Capacity) -> Self {
        Self { capacity, reserved: Arc::default() }
    }

    /// Slots that are free.
    pub fn free_slots(&self) -> u32 {
        self.capacity.slots.saturating_sub(self.lock().slots)
    }

    /// What is free.
    pub fn free(&self) -> Capacity {
        let reserved = *self.lock();
        let cpu = u64::from(self.capacity.cpu.as_milli()).saturating_sub(reserved.cpu_milli);
        Capacity {
            slots: self.capacity.slots.saturating_sub(reserved.slots),
            cpu: Cpus::from_milli(u32::try_from(cpu).unwrap_or(u32::MAX)),
            memory: ByteSize::new(self.capacity.memory.as_u64().saturating_sub(reserved.memory)),
            beside: self.capacity.beside,
        }
    }

    /// What there is in all.
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// Whether a job can ever fit. Errors: the cause to refuse it with. Here and below, `asked` is `None` for a job that takes nothing of
    /// this host but a slot.
    pub fn could_fit(&self, asked: impl Into<Option<Resources>>) -> Result<(), Cause> {
        let Some(asked) = asked.into() else { return Ok(()) };
        let too_large = |resource: &str, asked: String, capacity: String| {
            Err(Cause::TooLarge { resource: resource.to_owned(), asked, capacity })
        };
        if asked.cpu > self.capacity.cpu {
            return too_large("cpu", asked.cpu.to_string(), self.capacity.cpu.to_string());
        }
        let memory = self.capacity.beside.with(asked.memory, asked.disk);
        if memory > self.capacity.memory {
            let told = self.capacity.beside.told(asked.memory, asked.disk);
            return too_large("memory", told, self.capacity.memory.to_string());
        }
        Ok(())
    }

    /// Reserves all of what a job asks for, or nothing.
    pub fn reserve(&self, asked: impl Into<Option<Resources>>) -> Option<Permit> {
        let mut reserved = self.lock();
        let part = Reserved::of(asked.into(), self.capacity.beside);
        let after = reserved.with(part);
        let fits = after.slots <= self.capacity.slots
            && after.cpu_milli <= u64::from(self.capacity.cpu.as_milli())
            && after.memory <= self.capacity.memory.as_u64();
        if !fits {
            return None;
        }
        *reserved = after;
        Some(Permit { part, reserved: Arc::clone(&self.reserved) })
    }

    /// Reserves for a job that runs already, whether it fits or not: with smaller limits than before, what was there stays, and
    /// nothing new is taken until there is room again.
    pub fn keep(&self, asked: impl Into<Option<Resources>>) -> Permit {
        let part = Reserved::of(asked.into(), self.capacity.beside);
        let mut reserved = self.lock();
        *reserved = reserved.with(part);
        Permit { part, reserved: Arc::clone(&self.reserved) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Reserved> {
        self.reserved.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        reserved.slots -= self.part.slots;
        reserved.cpu_milli -= self.part.cpu_milli;
        reserved.memory -= self.part.memory;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn capacity() -> Capacity {
        let beside = Beside::default();
        Capacity { slots: 4, cpu: Cpus::from_milli(3000), memory: ByteSize::from_mib(1000), beside }
    }

    fn asks(cpu: u32, mib: u64) -> Resources {
        Resources { cpu: Cpus::from_milli(cpu), memory: ByteSize::from_mib(mib), ..Resources::default() }
    }

    #[test]
    fn what_a_cell_takes_beside_its_job_is_reserved_with_it() {
        let beside = Beside { fixed: ByteSize::from_mib(80), disk: ByteSize::from_mib(20) };
        let ledger = Ledger::new(Capacity { beside, ..capacity() });
        let with_disk = |mib| Resources { disk: Some(ByteSize::from_mib(mib)), ..asks(1, 100) };
        // 1000 MiB: 200, then 680, and no more than 120 are left.
        let _first = ledger.reserve(asks(1, 100)).expect("fits");
        let _second = ledger.reserve(with_disk(500)).expect("fits");
        assert_eq!(ledger.free().memory, ByteSize::from_mib(120));
        assert!(ledger.reserve(asks(1, 100)).is_none() && ledger.reserve(asks(1, 20)).is_some());
        assert!(ledger.could_fit(with_disk(820)).is_ok());
        assert!(
            matches!(ledger.could_fit(with_disk(821)), Err(Cause::TooLarge { resource, .. }) if resource == "memory")
        );
    }

    #[test]
    fn a_job_on_another_host_takes_a_slot_and_nothing_else() {
        let beside = Beside { fixed: ByteSize::from_mib(80), disk: ByteSize::from_mib(20) };
        let ledger = Ledger::new(Capacity { beside, ..capacity() });
        assert_eq!(ledger.could_fit(None), Ok(()));
        let there: Vec<Permit> = (0..4).map(|_| ledger.reserve(None).expect("a slot is free")).collect();
        assert_eq!(ledger.free(), Capacity { slots: 0, beside, ..capacity() });
        assert!(ledger.reserve(None).is_none(), "a slot it does take");
        drop(there);
        assert_eq!(*ledger.lock(), Reserved::default());
    }

    #[test]
    fn a_job_that_can_never_fit_is_told_which_resource() {
        let ledger = Ledger::new(capacity());
        let asked = Resources { memory: ByteSize::from_mib(2000), ..Resources::default() };
        assert!(matches!(ledger.could_fit(asked), Err(Cause::TooLarge { resource, .. }) if resource == "memory"));
    }

    proptest! {
        #[test]
        fn what_runs_already_is_kept_and_leaves_room_for_nothing_else(kept in 1usize..9) {
            let ledger = Ledger::new(capacity());
            let asked = asks(1000, 100);
            let mut live: Vec<Permit> = (0..kept).map(|_| ledger.keep(asked)).collect();
            while live.len() >= 3 {
                prop_assert!(ledger.reserve(asked).is_none());
                live.pop();
            }
            prop_assert!(ledger.reserve(asked).is_some());
        }

        #[test]
        fn reserved_equals_the_sum_of_live_permits(steps in prop::collection::vec((0usize..6, 100u32..2000, 1u64..600), 1..60)) {
            let ledger = Ledger::new(capacity());
            let mut live: Vec<Permit> = Vec::new();
            for (step, cpu, mib) in steps {
                if step < 4 {
                    live.extend(ledger.reserve(asks(cpu, mib)));
                } else if !live.is_empty() {
                    live.remove(step % live.len());
                }
                let sum = live.iter().fold(Reserved::default(), |sum, permit| Reserved {
                    slots: sum.slots + permit.part.slots,
                    cpu_milli: sum.cpu_milli + permit.part.cpu_milli,
                    memory: sum.memory + permit.part.memory,
                });
                prop_assert_eq!(*ledger.lock(), sum);
                prop_assert!(sum.slots <= 4 && sum.cpu_milli <= 3000 && sum.memory <= 1000 << 20);
            }
            drop(live);
            prop_assert_eq!(*ledger.lock(), Reserved::default());
        }
    }
}

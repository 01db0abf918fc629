//! Tables that fail now and then, for tests.

use std::io;

use crate::model::Family;

use super::{PerformError, Snapshot, Step, TableError, Tables};

/// Fails a step, and the reading, about one time in `1 / rate`; the same seed, the same failures.
#[derive(Clone, Debug)]
pub struct Faulty<T> {
    tables: T,
    seed: u64,
    one_in: u64,
}

impl<T> Faulty<T> {
    /// One step in `one_in` fails; zero: none.
    pub fn new(tables: T, seed: u64, one_in: u64) -> Self {
        Self { tables, seed, one_in }
    }

    /// Changes how often a step fails.
    pub fn set_rate(&mut self, one_in: u64) {
        self.one_in = one_in;
    }

    /// The tables behind.
    pub fn inner(&self) -> &T {
        &self.tables
    }

    /// The tables behind.
    pub fn into_inner(self) -> T {
        self.tables
    }

    /// SplitMix64.
    fn fails(&mut self) -> bool {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.seed ^ self.seed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.one_in > 0 && (mixed ^ mixed >> 31).is_multiple_of(self.one_in)
    }
}

fn interrupted(operation: &'static str) -> TableError {
    let source = io::ErrorKind::Interrupted.into();
    TableError::System { map: "FAULTY", operation, source }
}

impl<T: Tables> Tables for Faulty<T> {
    fn perform(&mut self, steps: &[Step]) -> Result<(), PerformError> {
        let failing = steps.iter().position(|_| self.fails());
        self.tables.perform(&steps[..failing.unwrap_or(steps.len())])?;
        failing.map_or(Ok(()), |done| Err(PerformError { done, source: interrupted("update") }))
    }

    fn snapshot(&mut self) -> Result<Snapshot, TableError> {
        if self.fails() { Err(interrupted("lookup")) } else { self.tables.snapshot() }
    }

    fn backend_capacity(&self, family: Family) -> u32 {
        self.tables.backend_capacity(family)
    }
}

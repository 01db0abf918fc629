//! Tables on which a script makes writes fail, or the agent die.

use std::{collections::BTreeMap, io};

use lb_agent::{
    dataplane::{
        FrontendAddress, PerformError, Snapshot, Step, TableError, Tables,
        fake::{FakeTables, FrontendMeaning},
    },
    model::Family,
};

/// What happens in place of a write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Fault {
    /// It fails; the next one may succeed.
    Fails,
    /// The agent dies before it: nothing is written until there is another one.
    Kills,
}

/// Faults by the number of the write, counted from zero over all agents of a story.
pub(crate) type Script = BTreeMap<usize, Fault>;

/// A frontend as a program met it after a write; `None`: it was gone.
pub(crate) type Sight = (FrontendAddress, Option<FrontendMeaning>);

/// [`FakeTables`], which check each step, behind a script of faults.
#[derive(Debug, Default)]
pub(crate) struct Trial {
    tables: FakeTables,
    script: Script,
    writes: usize,
    dead: bool,
    sights: Vec<Sight>,
}

impl Trial {
    pub(crate) fn new(script: Script) -> Self {
        Self { script, ..Self::default() }
    }

    /// Writes and readings so far, those that a fault prevented included.
    pub(crate) fn writes(&self) -> usize {
        self.writes
    }

    /// Has the agent died?
    pub(crate) fn is_dead(&self) -> bool {
        self.dead
    }

    /// The agent dies: nothing is written until there is another one.
    pub(crate) fn kill(&mut self) {
        self.dead = true;
    }

    /// There is another agent.
    pub(crate) fn revive(&mut self) {
        self.dead = false;
    }

    /// The tables behind.
    pub(crate) fn inner(&mut self) -> &mut FakeTables {
        &mut self.tables
    }

    /// What programs have met since the last call, write by write.
    pub(crate) fn take_sights(&mut self) -> Vec<Sight> {
        std::mem::take(&mut self.sights)
    }

    /// Counts a write, and says whether it takes place.
    fn attempt(&mut self) -> Result<(), TableError> {
        if !self.dead {
            let fault = self.script.get(&self.writes).copied();
            self.dead = fault == Some(Fault::Kills);
            self.writes += 1;
            if fault.is_none() {
                return Ok(());
            }
        }
        let source = io::ErrorKind::Interrupted.into();
        Err(TableError::System { map: "TRIAL", operation: "update", source })
    }

    fn see(&mut self, step: &Step) {
        if let Step::PutFrontend(at, _) | Step::RemoveFrontend(at) = step {
            self.sights.push((*at, self.tables.meaning_at(at)));
        }
    }
}

impl Tables for Trial {
    fn perform(&mut self, steps: &[Step]) -> Result<(), PerformError> {
        for (done, step) in steps.iter().enumerate() {
            let error = |source| PerformError { done, source };
            self.attempt().map_err(error)?;
            let performed = self.tables.perform(std::slice::from_ref(step));
            performed.map_err(|failure| error(failure.source))?;
            self.see(step);
        }
        Ok(())
    }

    fn snapshot(&mut self) -> Result<Snapshot, TableError> {
        self.attempt()?;
        self.tables.snapshot()
    }

    fn backend_capacity(&self, family: Family) -> u32 {
        self.tables.backend_capacity(family)
    }
}

//! Brings the kernel's tables to what they should hold, and keeps them there.
//!
//! [`Reconciler`] is level-triggered: it knows what is wanted and, step by step, what has been
//! written, and plans the difference for the Service ports that changed. What fails stays pending
//! for [`Reconciler::retry`]; one Service port that fails never stops the others. Not for: rules of
//! Kubernetes (`desired`), and when to run (the caller's).

mod entries;
mod held;
mod ids;
mod names;
mod plan;
mod problems;
mod regions;
mod restore;
mod run;
mod sources;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    dataplane::{ServiceId, Snapshot, TableError, Tables},
    desired::{Delta, PortKey},
    model::{ObjectName, Problem},
};

pub use names::{BackendName, ServiceNames};
use plan::Pools;
use problems::Blocked;
use restore::{Ids, Restored, Wanted};

/// What a call did.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Steps that were performed.
    pub steps: usize,
    /// Was a backend removed, or an address given to a Service port: may known flows lead where
    /// they no longer should (S11)?
    pub retired: bool,
    /// Service ports that were looked at.
    pub visited: usize,
    /// Ids whose names may differ; [`Reconciler::names`] tells them.
    pub services: BTreeSet<ServiceId>,
    /// All of each Service's problems with room in the tables, where they changed; empty where
    /// they are solved.
    pub problems: BTreeMap<ObjectName, Vec<Problem>>,
    /// The last failure that another try may mend: call [`Reconciler::retry`] later.
    pub failure: Option<TableError>,
}

/// Writes what is wanted into tables.
#[derive(Debug)]
pub struct Reconciler<T> {
    tables: T,
    wanted: Wanted,
    /// Is `wanted` complete (S16)?
    listed: bool,
    /// `None` until the tables have been read.
    state: Option<State>,
}

/// What the tables hold, and what is still to be done about it.
#[derive(Debug)]
struct State {
    ids: Ids,
    keys: BTreeMap<ServiceId, PortKey>,
    realized: held::Realized,
    pools: Pools,
    dirty: BTreeSet<ServiceId>,
    /// Service ports without room: tried again when something becomes free.
    blocked: Blocked,
    /// The tables were read: what they no longer name may still be read by a program.
    must_settle: bool,
}

impl<T: Tables> Reconciler<T> {
    /// Nothing is wanted yet, and nothing is written before [`Self::listed`].
    pub fn new(tables: T) -> Self {
        Self { tables, wanted: Wanted::new(), listed: false, state: None }
    }

    /// Takes in a change, and writes it if the lists are complete.
    pub fn apply(&mut self, delta: Delta) -> Outcome {
        for (key, tables) in delta.ports {
            if let Some(state) = &mut self.state {
                state.touch(&key);
            }
            match tables {
                Some(tables) => self.wanted.insert(key, tables),
                None => self.wanted.remove(&key),
            };
        }
        self.run()
    }

    /// Everything has been listed once: takes over what the tables hold, writes what differs, and
    /// removes what nothing wants (S16).
    pub fn listed(&mut self) -> Outcome {
        self.listed = true;
        self.run()
    }

    /// Tries again what is pending.
    pub fn retry(&mut self) -> Outcome {
        if let Some(state) = &mut self.state {
            state.touch_blocked();
        }
        self.run()
    }

    /// Reads the tables again and mends what differs: [`Outcome::steps`] counts the repairs.
    pub fn resync(&mut self) -> Outcome {
        if !self.listed {
            return Outcome::default();
        }
        match self.read() {
            Ok(()) => self.run(),
            Err(failure) => Outcome { failure: Some(failure), ..Outcome::default() },
        }
    }

    /// The names behind an id; `None` when it is not in use.
    pub fn names(&self, id: ServiceId) -> Option<ServiceNames> {
        let state = self.state.as_ref()?;
        let key = state.keys.get(&id)?;
        let held = state.realized.ports.get(&id)?;
        Some(ServiceNames::new(id, key, self.wanted.get(key)?, held))
    }

    /// Is there anything that another try could write?
    pub fn is_pending(&self) -> bool {
        self.listed && self.state.as_ref().is_none_or(|state| !state.dirty.is_empty())
    }

    /// Is there something of the Service that is not written, for now or for want of room?
    pub fn is_behind(&self, service: &ObjectName) -> bool {
        self.state.as_ref().is_none_or(|state| {
            let is_dirty = |id| state.keys.get(id).is_some_and(|key| key.service == *service);
            state.dirty.iter().any(is_dirty) || state.blocked.has(service)
        })
    }

    /// Chunks of slots in use.
    pub fn used_chunks(&self) -> u32 {
        self.state.as_ref().map_or(0, |state| state.pools.regions.used_chunks())
    }

    /// The tables that are written.
    pub fn tables(&mut self) -> &mut T {
        &mut self.tables
    }

    /// Gives the tables back.
    pub fn into_tables(self) -> T {
        self.tables
    }

    /// Makes the tables' content the realized state, and looks at everything again.
    fn read(&mut self) -> Result<(), TableError> {
        let snapshot = self.tables.snapshot()?;
        let earlier = self.state.take();
        self.state = Some(State::read(&snapshot, &self.wanted, earlier, &self.tables));
        Ok(())
    }
}

impl State {
    fn read(
        snapshot: &Snapshot,
        wanted: &Wanted,
        earlier: Option<Self>,
        tables: &impl Tables,
    ) -> Self {
        let none = Ids::new();
        let known = earlier.as_ref().map_or(&none, |state| &state.ids);
        let Restored { ids, realized, mut pools } =
            restore::restore(snapshot, wanted, known, |family| tables.backend_capacity(family));
        let blocked = earlier.map_or_else(Blocked::default, |earlier| {
            pools.remember(&earlier.pools);
            earlier.blocked
        });
        let keys = ids.iter().map(|(key, id)| (*id, key.clone())).collect();
        let dirty = realized.ports.keys().copied().collect();
        let must_settle = *snapshot != Snapshot::default();
        let mut state = Self { ids, keys, realized, pools, dirty, blocked, must_settle };
        for key in restore::in_order(wanted) {
            state.touch(key);
        }
        state
    }

    /// Has the Service port looked at in the next run.
    fn touch(&mut self, key: &PortKey) {
        let id = match self.ids.get(key) {
            Some(id) => *id,
            None => match self.pools.services.allocate() {
                Some((number, _)) => ServiceId(number),
                None => return self.blocked.wait_for_id(key),
            },
        };
        self.ids.insert(key.clone(), id);
        self.keys.insert(id, key.clone());
        self.dirty.insert(id);
    }

    fn touch_blocked(&mut self) {
        for key in self.blocked.keys() {
            self.touch(&key);
        }
    }
}

//! One run: the puts of all Service ports that changed, then the removals, each step noted.

use std::collections::BTreeMap;

use crate::{
    dataplane::{FrontendAddress, ServiceId, Step, TableError, Tables},
    desired::PortTables,
};

use super::{
    Outcome, Reconciler, State,
    plan::{self, Plan, Pools, Removals},
    restore::Wanted,
};

/// Service ports planned at once: bounds the memory that their slots take before they are written.
const BATCH: usize = 1024;
/// Failed system calls after which a run gives up.
const PATIENCE: usize = 16;

/// What went wrong in a run.
#[derive(Debug, Default)]
struct Failures {
    ports: BTreeMap<ServiceId, TableError>,
    /// A failure that is no single Service port's.
    common: Option<TableError>,
    system_calls: usize,
}

impl Failures {
    fn add(&mut self, owner: Option<ServiceId>, error: TableError) {
        self.system_calls += usize::from(matches!(error, TableError::System { .. }));
        match owner {
            Some(owner) => {
                self.ports.insert(owner, error);
            }
            None => self.common = Some(error),
        }
    }

    /// The Service ports whose writes are tried again soon.
    fn retried(&self) -> impl Iterator<Item = ServiceId> {
        let ports = self.ports.iter();
        ports.filter(|(_, error)| !matches!(error, TableError::Full { .. })).map(|(id, _)| *id)
    }

    fn give_up(&self) -> bool {
        self.common.is_some() || self.system_calls >= PATIENCE
    }
}

impl<T: Tables> Reconciler<T> {
    /// Writes what is pending, if the lists are complete.
    pub(super) fn run(&mut self) -> Outcome {
        let mut outcome = Outcome::default();
        if !self.listed {
            return outcome;
        }
        if self.state.is_none()
            && let Err(failure) = self.read()
        {
            outcome.failure = Some(failure);
            return outcome;
        }
        if let Some(state) = &mut self.state {
            let (tables, wanted) = (&mut self.tables, &self.wanted);
            let mut pass = Pass { tables, wanted, state, reduced: BTreeMap::new(), retired: false };
            let has_freed = pass.run(&mut outcome);
            if has_freed && !pass.state.blocked.is_empty() {
                pass.state.touch_blocked();
                pass.run(&mut outcome);
            }
            outcome.retired = pass.retired;
            outcome.problems = state.blocked.take_changed();
        }
        outcome
    }
}

/// One way through all that is dirty.
struct Pass<'a, T> {
    tables: &'a mut T,
    wanted: &'a Wanted,
    state: &'a mut State,
    /// What is written for Service ports that have no room for all their endpoints.
    reduced: BTreeMap<ServiceId, PortTables>,
    /// May a step have parted known flows from their backends?
    retired: bool,
}

impl<T: Tables> Pass<'_, T> {
    /// Tells whether something became free.
    fn run(&mut self, outcome: &mut Outcome) -> bool {
        let ids: Vec<ServiceId> = std::mem::take(&mut self.state.dirty).into_iter().collect();
        outcome.visited += ids.len();
        outcome.services.extend(&ids);
        let mut failures = Failures::default();
        self.reduced.clear();
        for batch in ids.chunks(BATCH) {
            let ready = self.prepare(batch, &mut failures);
            let ports = ready.iter().filter_map(|id| Some((*id, self.wanted(*id)?)));
            let plan = plan::puts(ports, &self.state.realized);
            outcome.steps += self.settle_before(&plan, &mut failures);
            outcome.steps += self.perform(plan, &mut failures);
        }
        let mut has_freed = false;
        if !failures.give_up() {
            has_freed = self.remove(&ids, &mut failures, outcome);
        }
        self.finish(&ids, failures, outcome);
        has_freed
    }

    fn wanted(&self, id: ServiceId) -> Option<&PortTables> {
        let key = self.state.keys.get(&id)?;
        let all = self.wanted.get(key)?;
        Some(self.reduced.get(&id).unwrap_or(all))
    }

    /// Takes ids and regions for the Service ports that are wanted, and tells which have them all.
    fn prepare(&mut self, ids: &[ServiceId], failures: &mut Failures) -> Vec<ServiceId> {
        let mut ready = Vec::new();
        for id in ids {
            let State { realized, pools, keys, .. } = &mut *self.state;
            let held = realized.ports.entry(*id).or_default();
            plan::release_unwritten(held, pools);
            let Some(tables) = keys.get(id).and_then(|key| self.wanted.get(key)) else { continue };
            if let Err(error) = plan::prepare(tables, held, pools) {
                failures.add(Some(*id), error);
                plan::release_unwritten(held, pools);
                // Endpoints that leave must still leave, and so make room.
                let rest = tables.reduced(|address| held.backends.contains_key(address));
                if plan::prepare(&rest, held, pools).is_err() {
                    plan::release_unwritten(held, pools);
                    continue;
                }
                self.reduced.insert(*id, rest);
            }
            ready.push(*id);
        }
        ready
    }

    /// Waits for programs that may still read what an earlier agent, or a foreign hand, let go of.
    fn settle_before(&mut self, plan: &Plan, failures: &mut Failures) -> usize {
        if plan.steps.is_empty() || !self.state.must_settle {
            return 0;
        }
        let steps = self.perform(Plan::settle(), failures);
        self.state.must_settle = steps == 0;
        steps
    }

    /// Performs a plan; where a step fails, goes on without the Service port that it is for.
    fn perform(&mut self, mut plan: Plan, failures: &mut Failures) -> usize {
        let mut performed = 0;
        while !plan.steps.is_empty() && !failures.give_up() {
            let result = self.tables.perform(&plan.steps);
            let done = result.as_ref().map_or_else(|error| error.done, |()| plan.steps.len());
            self.record(&plan, done);
            performed += done;
            let Err(error) = result else { break };
            let owner = plan.owners.get(done).copied().flatten();
            failures.add(owner, error.source);
            let Some(owner) = owner else { break };
            plan = plan.rest(done, owner);
        }
        performed
    }

    fn record(&mut self, plan: &Plan, done: usize) {
        for (step, owner) in plan.steps.iter().zip(&plan.owners).take(done) {
            self.retired |= self.state.realized.is_parted_by(step);
            if let Some(owner) = owner {
                self.state.realized.record(*owner, step);
            }
            if let Step::RemoveBackend(id) = step {
                plan::release_backend(*id, &mut self.state.pools);
            }
        }
    }

    /// Removes what is not wanted, and tells whether that freed anything.
    fn remove(
        &mut self,
        ids: &[ServiceId],
        failures: &mut Failures,
        outcome: &mut Outcome,
    ) -> bool {
        let ports = ids.iter().map(|id| (*id, self.wanted(*id)));
        let awaited = |address: &FrontendAddress| {
            let wants = |id| self.wanted(id).is_some_and(|port| port.frontend(address).is_some());
            failures.retried().any(wants)
        };
        let Removals { plan, regions, keepers } =
            plan::removals(ports, &self.state.realized, awaited);
        self.state.dirty.extend(keepers);
        self.state.realized.disown(&regions);
        let planned = plan.steps.len();
        let mut own = Failures { system_calls: failures.system_calls, ..Failures::default() };
        let steps = self.perform(plan, &mut own);
        let mut has_freed = steps > 0;
        for (id, region) in regions {
            let is_done = steps == planned || !own.give_up() && !own.ports.contains_key(&id);
            if is_done && let Some(held) = self.state.realized.ports.get_mut(&id) {
                held.regions.retain(|held| held.region != region);
                self.state.pools.regions.release(region);
                has_freed = true;
            }
        }
        failures.ports.append(&mut own.ports);
        failures.common = failures.common.take().or(own.common);
        failures.system_calls = own.system_calls;
        outcome.steps += steps;
        has_freed
    }

    /// Keeps what failed for later and forgets what is gone.
    fn finish(&mut self, ids: &[ServiceId], mut failures: Failures, outcome: &mut Outcome) {
        let gave_up = failures.give_up();
        for id in ids {
            let failure = failures.ports.remove(id);
            let State { realized, keys, blocked, dirty, .. } = &mut *self.state;
            match (failure, keys.get(id)) {
                (Some(error @ TableError::Full { .. }), Some(key)) => blocked.add(key, &error),
                (Some(error), _) => {
                    dirty.insert(*id);
                    outcome.failure = Some(error);
                }
                (None, Some(key)) if !gave_up => blocked.remove(key),
                (None, _) => {}
            }
            if gave_up {
                dirty.insert(*id);
            }
            if let Some(held) = realized.ports.get_mut(id) {
                let entries = &realized.frontends;
                held.frontends.retain(|address| {
                    entries.get(address).is_some_and(|entry| entry.service == *id)
                });
            }
            self.state.forget_if_gone(*id, self.wanted);
        }
        outcome.failure = failures.common.or(outcome.failure.take());
    }
}

impl State {
    /// Frees the id of a Service port that is neither wanted nor in the tables.
    fn forget_if_gone(&mut self, id: ServiceId, wanted: &Wanted) {
        let is_wanted = self.keys.get(&id).is_some_and(|key| wanted.contains_key(key));
        let is_empty = self.realized.ports.get(&id).is_none_or(super::held::Held::is_empty);
        if is_wanted || !is_empty {
            return;
        }
        self.realized.ports.remove(&id);
        self.dirty.remove(&id);
        if let Some(key) = self.keys.remove(&id) {
            self.ids.remove(&key);
            self.blocked.remove(&key);
        }
        self.pools.services.release(id.0);
    }
}

impl Pools {
    /// Takes over what `earlier` knows of generations.
    pub(super) fn remember(&mut self, earlier: &Self) {
        for (family, pool) in &mut self.backends {
            if let Some(earlier) = earlier.backends.get(family) {
                pool.remember(earlier.generations());
            }
        }
    }
}

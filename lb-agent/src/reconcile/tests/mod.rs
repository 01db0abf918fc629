//! Order of writes, ids, faults, restarts and room, on fake tables.

use std::{collections::BTreeMap, net::SocketAddr};

use lb_common::abi::{FrontendFlags, Region};

use super::*;
use crate::{
    dataplane::{
        BackendId, FrontendAddress, PerformError, Step,
        fake::{Capacity, Checks, FakeTables},
        faulty::Faulty,
    },
    desired::{Desired, fixture::*},
    model::{Endpoint, EndpointSlice, Event, Family, Model, Protocol, Service, TrafficPolicy},
};

mod affinity;
mod failures;
mod properties;
mod restore;
mod scale;
mod sources;

/// A model, what should follow from it, and the tables.
struct World<T> {
    model: Model,
    desired: Desired,
    reconciler: Reconciler<T>,
}

impl<T: Tables> World<T> {
    fn new(tables: T) -> Self {
        let (model, desired) = (Model::default(), Desired::new(facts()));
        Self { model, desired, reconciler: Reconciler::new(tables) }
    }

    fn listed(mut self) -> Self {
        self.reconciler.listed();
        self
    }

    fn apply(&mut self, event: Event) -> Outcome {
        match self.model.apply(event) {
            crate::model::Change::Services(names) => {
                let delta = self.desired.update(&self.model, &names);
                self.reconciler.apply(delta)
            }
            _ => Outcome::default(),
        }
    }

    fn service(&mut self, service: Service) -> Outcome {
        self.apply(Event::ServiceApplied(service))
    }

    fn slice(&mut self, slice: EndpointSlice) -> Outcome {
        self.apply(Event::SliceApplied(slice))
    }

    fn delete(&mut self, name: &str) -> Outcome {
        self.apply(Event::ServiceDeleted(ObjectName::new("default", name)))
    }

    /// Another agent with the same cluster takes over the tables.
    fn restart(self) -> (Self, Outcome) {
        let mut next = Self::new(self.reconciler.into_tables());
        next.model = self.model;
        let names: Vec<ObjectName> = next.model.services().map(|s| s.name.clone()).collect();
        let delta = next.desired.update(&next.model, &names);
        let before = next.reconciler.apply(delta);
        assert_eq!(before.steps, 0, "S16: nothing before the lists are complete");
        let outcome = next.reconciler.listed();
        (next, outcome)
    }
}

impl World<FakeTables> {
    fn snapshot(&mut self) -> Snapshot {
        self.reconciler.tables().snapshot().unwrap()
    }

    /// The pods that a frontend leads to, for clients on this node.
    fn pods(&mut self, address: FrontendAddress) -> Vec<SocketAddr> {
        let mut pods = self.reconciler.tables().meaning().frontends[&address].internal.clone();
        pods.sort_unstable();
        pods.dedup();
        pods
    }
}

fn web(family: Family, pods: &[u8]) -> EndpointSlice {
    let endpoints = pods.iter().map(|n| endpoint(family, *n, "here")).collect();
    slice(family, "web-1", "web", endpoints)
}

fn vip(family: Family, n: u8) -> FrontendAddress {
    FrontendAddress { ip: ip(family, CLUSTER, n), port: 80, protocol: Protocol::Tcp }
}

fn pod(family: Family, n: u8) -> SocketAddr {
    SocketAddr::new(ip(family, PODS, n), 8080)
}

/// Tables that keep a list of what was done to them.
struct Recording {
    tables: FakeTables,
    steps: Vec<Step>,
}

impl Tables for Recording {
    fn perform(&mut self, steps: &[Step]) -> Result<(), PerformError> {
        self.steps.extend_from_slice(steps);
        self.tables.perform(steps)
    }

    fn snapshot(&mut self) -> Result<Snapshot, TableError> {
        self.tables.snapshot()
    }

    fn backend_capacity(&self, family: Family) -> u32 {
        self.tables.backend_capacity(family)
    }
}

fn kinds(steps: &[Step]) -> Vec<&'static str> {
    let kind = |step: &Step| match step {
        Step::PutBackend(..) => "PutBackend",
        Step::PutRegion(..) => "PutRegion",
        Step::PutFrontend(..) => "PutFrontend",
        Step::PutSourceRange(..) => "PutSourceRange",
        Step::RemoveFrontend(..) => "RemoveFrontend",
        Step::Settle => "Settle",
        Step::RemoveBackend(..) => "RemoveBackend",
        Step::RemoveSourceRange(..) => "RemoveSourceRange",
    };
    steps.iter().map(kind).collect()
}

#[test]
fn backends_come_first_and_go_last_with_a_grace_period_before() {
    for family in FAMILIES {
        let recording = Recording { tables: FakeTables::default(), steps: Vec::new() };
        let mut world = World::new(recording).listed();
        world.slice(web(family, &[1]));
        world.service(service(family, "web", 1));
        let taken =
            |world: &mut World<Recording>| std::mem::take(&mut world.reconciler.tables().steps);
        assert_eq!(kinds(&taken(&mut world)), ["PutBackend", "PutRegion", "PutFrontend"]);
        world.slice(web(family, &[2]));
        let replaced = ["PutBackend", "PutRegion", "PutFrontend", "Settle", "RemoveBackend"];
        assert_eq!(kinds(&taken(&mut world)), replaced);
        world.delete("web");
        let removed = ["RemoveFrontend", "Settle", "RemoveBackend"];
        assert_eq!(kinds(&taken(&mut world)), removed);
        assert_eq!(world.reconciler.used_chunks(), 0);
    }
}

#[test]
fn nothing_is_freed_nothing_is_waited_for() {
    let recording = Recording { tables: FakeTables::default(), steps: Vec::new() };
    let mut world = World::new(recording).listed();
    world.service(service(Family::V4, "web", 1));
    world.delete("web");
    assert_eq!(kinds(&world.reconciler.tables().steps), ["PutFrontend", "RemoveFrontend"]);
}

#[test]
fn what_an_earlier_agent_let_go_of_is_waited_for_once() {
    let recording = Recording { tables: FakeTables::default(), steps: Vec::new() };
    let mut world = World::new(recording).listed();
    world.service(service(Family::V4, "web", 1));
    let mut world = world.restart().0;
    world.reconciler.tables().steps.clear();
    world.slice(web(Family::V4, &[1]));
    let first = ["Settle", "PutBackend", "PutRegion", "PutFrontend"];
    assert_eq!(kinds(&std::mem::take(&mut world.reconciler.tables().steps)), first);
    world.service(service(Family::V4, "other", 2));
    assert_eq!(kinds(&world.reconciler.tables().steps), ["PutFrontend"]);
}

#[test]
fn both_families_of_a_service_port_have_one_id() {
    let mut world = World::new(FakeTables::default()).listed();
    let mut both = service(Family::V4, "web", 1);
    both.cluster_ips.push(ip(Family::V6, CLUSTER, 1));
    world.service(both);
    let ids: BTreeSet<ServiceId> =
        world.snapshot().frontends.values().map(|entry| entry.service).collect();
    assert_eq!(ids.len(), 1);
}

#[test]
fn equal_lists_share_a_region_and_an_unchanged_list_keeps_it() {
    for family in FAMILIES {
        let mut world = World::new(FakeTables::default()).listed();
        world.slice(web(family, &[1, 2]));
        let outside = Service {
            external_ips: vec![ip(family, OUTSIDE, 6)],
            external_policy: TrafficPolicy::Local,
            ..service(family, "web", 1)
        };
        world.service(outside.clone());
        let regions: BTreeSet<u32> = world.snapshot().regions.into_keys().collect();
        assert_eq!(regions.len(), 1);
        let outcome = world.service(Service { affinity_timeout: Some(60), ..outside });
        assert_eq!(outcome.steps, 4, "the backends and the frontends, two each");
        assert_eq!(world.snapshot().regions.into_keys().collect::<BTreeSet<u32>>(), regions);
        let mut changed = web(family, &[1, 2]);
        changed.endpoints[1].node = Some("there".into());
        world.slice(changed);
        assert_eq!(world.snapshot().regions.len(), 2, "the Local list is shorter");
    }
}

#[test]
fn s5_a_service_without_endpoints_keeps_its_frontends_with_empty_regions() {
    let mut world = World::new(FakeTables::default()).listed();
    world.slice(web(Family::V4, &[1]));
    world.service(service(Family::V4, "web", 1));
    world.slice(web(Family::V4, &[]));
    let entry = world.snapshot().frontends[&vip(Family::V4, 1)];
    assert_eq!((entry.internal, entry.flags), (Region::EMPTY, FrontendFlags::NONE));
    assert!(world.snapshot().backends.is_empty());
}

#[test]
fn s16_a_restart_with_an_unchanged_cluster_writes_nothing() {
    let mut world = World::new(FakeTables::default()).listed();
    for (n, family) in (1..).zip(FAMILIES) {
        world.slice(web(family, &[1, 2, 3]));
        let name = format!("web{n}");
        world.slice(EndpointSlice {
            name: ObjectName::new("default", &name),
            service: ObjectName::new("default", &name),
            ..web(family, &[4, 5])
        });
        world.service(service(family, &name, n));
        world.service(service(family, "web", 9));
    }
    world.slice(web(Family::V6, &[3, 6]));
    let before = world.snapshot();
    let (mut world, outcome) = world.restart();
    assert_eq!(outcome.steps, 0);
    assert_eq!(world.snapshot(), before);
    let again = world.slice(web(Family::V6, &[3, 7]));
    assert!(again.failure.is_none() && again.steps > 0);
}

#[test]
fn s16_what_a_restarted_agent_does_not_know_is_pruned_only_when_listed() {
    let mut world = World::new(FakeTables::default()).listed();
    world.slice(web(Family::V4, &[1]));
    world.service(service(Family::V4, "web", 1));
    world.service(service(Family::V4, "gone", 2));
    world.model.apply(Event::ServiceDeleted(ObjectName::new("default", "gone")));
    let (mut world, outcome) = world.restart();
    assert_eq!(outcome.steps, 1);
    assert_eq!(world.snapshot().frontends.into_keys().collect::<Vec<_>>(), [vip(Family::V4, 1)]);
}

#[test]
fn a_backend_id_used_again_has_another_generation() {
    let small = Capacity { backends: 4, frontends: 10 };
    let mut world = World::new(FakeTables::new(small, Checks::Everything)).listed();
    world.service(service(Family::V4, "web", 1));
    let mut uses: BTreeMap<BackendId, BTreeSet<u32>> = BTreeMap::new();
    for n in 1..20 {
        world.slice(web(Family::V4, &[n, n + 1]));
        for (id, entry) in world.snapshot().backends {
            uses.entry(id).or_default().insert(entry.generation);
        }
        if n == 10 {
            world = world.restart().0;
        }
    }
    assert!(uses.values().all(|generations| generations.len() > 4), "{uses:?}");
}

#[test]
fn s21_a_loser_takes_the_address_over_without_a_moment_in_which_nobody_has_it() {
    let recording = Recording { tables: FakeTables::default(), steps: Vec::new() };
    let mut world = World::new(recording).listed();
    world.slice(web(Family::V4, &[1]));
    world.service(Service { created: 1, ..service(Family::V4, "old", 1) });
    world.service(service(Family::V4, "web", 1));
    world.reconciler.tables().steps.clear();
    world.delete("old");
    let steps = std::mem::take(&mut world.reconciler.tables().steps);
    assert_eq!(kinds(&steps), ["PutBackend", "PutRegion", "PutFrontend"]);
    let names = world.reconciler.names(ServiceId(2)).unwrap();
    assert_eq!(&*names.port.service.name, "web");
    assert_eq!(world.reconciler.names(ServiceId(1)), None, "its id is free");
}

#[test]
fn a_full_backend_table_names_map_size_flag_and_service_and_stops_nobody_else() {
    for family in FAMILIES {
        let small = Capacity { backends: 4, frontends: 10 };
        let mut world = World::new(FakeTables::new(small, Checks::Everything)).listed();
        world.slice(web(family, &[1, 2]));
        world.service(service(family, "web", 1));
        world.slice(web(family, &[1, 2, 3, 4]));
        let outcome = world.reconciler.retry();
        assert!(outcome.problems.is_empty(), "told once");
        let service_name = ObjectName::new("default", "web");
        assert!(world.reconciler.is_behind(&service_name), "for want of room");
        assert_eq!(world.pods(vip(family, 1)), [pod(family, 1), pod(family, 2)], "as before");
        world.slice(EndpointSlice {
            name: ObjectName::new("default", "other"),
            service: ObjectName::new("default", "other"),
            ..web(family, &[9])
        });
        world.service(service(family, "other", 2));
        assert_eq!(world.pods(vip(family, 2)), [pod(family, 9)]);
        let problems = world.slice(web(family, &[1, 2, 3, 4, 5])).problems;
        assert!(problems.is_empty(), "the same problem");
        let solved = world.slice(web(family, &[1, 3]));
        assert_eq!(solved.problems[&ObjectName::new("default", "web")], []);
        assert_eq!(world.pods(vip(family, 1)), [pod(family, 1), pod(family, 3)]);
    }
}

#[test]
fn a_full_table_is_one_clear_problem() {
    let small = Capacity { backends: 4, frontends: 1 };
    let mut world = World::new(FakeTables::new(small, Checks::Everything)).listed();
    world.service(service(Family::V4, "web", 1));
    let text = |outcome: Outcome| -> Vec<String> {
        outcome.problems.values().flatten().map(ToString::to_string).collect()
    };
    assert_eq!(
        text(world.slice(web(Family::V4, &[1, 2, 3, 4]))),
        ["Service default/web: spec.ports: port \"http\" (TCP): map BACKENDS_V4 is full at 4 \
          entries; raise --max-backends"]
    );
    assert_eq!(
        text(world.service(service(Family::V4, "other", 2))),
        ["Service default/other: spec.ports: port \"http\" (TCP): map FRONTENDS_V4 is full at 1 \
          entries; raise --max-frontends"]
    );
}

#[test]
fn a_blocked_service_gets_in_as_soon_as_another_leaves() {
    let small = Capacity { backends: 100, frontends: 1 };
    let mut world = World::new(FakeTables::new(small, Checks::Everything)).listed();
    world.service(service(Family::V4, "first", 1));
    world.service(service(Family::V4, "second", 2));
    let outcome = world.delete("first");
    assert_eq!(outcome.problems[&ObjectName::new("default", "second")], []);
    assert_eq!(world.snapshot().frontends.into_keys().collect::<Vec<_>>(), [vip(Family::V4, 2)]);
}

#[test]
fn a_failed_step_stops_its_own_service_alone_and_is_tried_again() {
    let mut world = World::new(Faulty::new(FakeTables::default(), 1, 0)).listed();
    world.slice(web(Family::V4, &[1, 2]));
    world.reconciler.tables().set_rate(1);
    let failed = world.service(service(Family::V4, "web", 1));
    assert!(failed.failure.is_some() && world.reconciler.is_pending());
    let is_behind =
        |world: &World<_>, name| world.reconciler.is_behind(&ObjectName::new("default", name));
    assert_eq!(["web", "other"].map(|name| is_behind(&world, name)), [true, false]);
    world.reconciler.tables().set_rate(0);
    let retried = world.reconciler.retry();
    assert_eq!((retried.steps, retried.failure.is_none()), (4, true));
    assert!(!world.reconciler.is_pending() && !is_behind(&world, "web"));
}

#[test]
fn resync_repairs_what_a_foreign_hand_changed_and_counts_it() {
    for family in FAMILIES {
        let mut world = World::new(FakeTables::default()).listed();
        world.slice(web(family, &[1, 2]));
        world.service(service(family, "web", 1));
        assert_eq!(world.reconciler.resync().steps, 0);
        let good = world.reconciler.tables().meaning();
        world.reconciler.tables().lose_frontend(&vip(family, 1));
        let outcome = world.reconciler.resync();
        assert_eq!(outcome.steps, 3, "settle, the region that nobody named, the frontend");
        assert_eq!(world.reconciler.tables().meaning(), good);
        let region = world.snapshot().frontends[&vip(family, 1)].internal;
        world.reconciler.tables().spoil_region(region.first_chunk);
        assert_ne!(world.reconciler.tables().meaning(), good);
        assert_eq!(world.reconciler.resync().steps, 4, "settle, a fresh region, frontend, settle");
        assert_eq!(world.reconciler.tables().meaning(), good);
    }
}

#[test]
fn names_tell_service_pod_and_node_and_follow_the_pod() {
    let mut world = World::new(FakeTables::default()).listed();
    world.slice(web(Family::V4, &[1]));
    let outcome = world.service(service(Family::V4, "web", 1));
    let id = *outcome.services.first().unwrap();
    let names = world.reconciler.names(id).unwrap();
    assert_eq!(names.port.service, ObjectName::new("default", "web"));
    let backend = names.backends.values().next().unwrap();
    assert_eq!(backend.pod, Some(ObjectName::new("default", "pod-1")));
    assert_eq!(backend.node.as_deref(), Some("here"));
    let mut renamed = web(Family::V4, &[1]);
    renamed.endpoints[0].pod = Some(ObjectName::new("default", "next"));
    let outcome = world.slice(renamed);
    assert_eq!((outcome.steps, outcome.services.contains(&id)), (0, true));
    let names = world.reconciler.names(id).unwrap();
    assert_eq!(
        names.backends.values().next().unwrap().pod.as_ref().unwrap().to_string(),
        "default/next"
    );
}

//! What an agent makes of tables that it finds.

use std::collections::HashMap;

use lb_common::abi::FrontendKind;

use super::*;
use crate::{
    dataplane::FrontendEntry,
    reconcile::restore::{SERVICE_IDS, restore},
};

/// Tables that forget which generation a cleared backend had.
struct Forgetful(FakeTables);

impl Tables for Forgetful {
    fn perform(&mut self, steps: &[Step]) -> Result<(), PerformError> {
        self.0.perform(steps)
    }

    fn snapshot(&mut self) -> Result<Snapshot, TableError> {
        Ok(Snapshot { retired: BTreeMap::new(), ..self.0.snapshot()? })
    }

    fn backend_capacity(&self, family: Family) -> u32 {
        self.0.backend_capacity(family)
    }
}

#[test]
fn the_agent_remembers_generations_that_a_reading_does_not_show() {
    for family in FAMILIES {
        let mut world = World::new(Forgetful(FakeTables::default())).listed();
        world.service(service(family, "web", 1));
        for pod in 1..3 {
            world.slice(web(family, &[pod]));
            world.slice(web(family, &[]));
            assert_eq!(world.reconciler.resync().steps, 0);
        }
        world.slice(web(family, &[3]));
        let backends = world.reconciler.tables().snapshot().unwrap().backends;
        let found: Vec<_> =
            backends.iter().map(|(id, entry)| (id.index, entry.generation)).collect();
        assert_eq!(found, [(1, 3)]);
    }
}

/// What is wanted for these Services, of which the model holds the slices.
fn wanted(services: &[Service], slices: &[EndpointSlice]) -> Wanted {
    let mut world = World::new(FakeTables::default());
    for slice in slices {
        world.slice(slice.clone());
    }
    for service in services {
        world.service(service.clone());
    }
    world.reconciler.wanted
}

/// A frontend that leads nowhere, of that Service port.
fn entry(service: u32) -> FrontendEntry {
    FrontendEntry {
        service: ServiceId(service),
        kind: FrontendKind::CLUSTER_IP,
        flags: FrontendFlags::NONE,
        affinity_timeout: 0,
        internal: Region::EMPTY,
        external: Region::EMPTY,
    }
}

fn restored(snapshot: &Snapshot, wanted: &Wanted) -> Restored {
    restore(snapshot, wanted, &HashMap::new(), |_| 100)
}

fn ids(restored: &Restored) -> Vec<(&str, u32)> {
    restored.ids.iter().map(|(key, id)| (&*key.service.name, id.0)).collect()
}

#[test]
fn a_service_port_is_known_by_its_cluster_ip_before_its_other_addresses() {
    for family in FAMILIES {
        let external_ips = vec![ip(family, OUTSIDE, 6)];
        let wanted = wanted(&[Service { external_ips, ..service(family, "web", 1) }], &[]);
        let outside = FrontendAddress { ip: ip(family, OUTSIDE, 6), ..vip(family, 1) };
        let mut snapshot = Snapshot::default();
        snapshot.frontends.insert(outside, entry(3));
        assert_eq!(ids(&restored(&snapshot, &wanted)), [("web", 3)]);
        snapshot.frontends.insert(vip(family, 1), entry(5));
        assert_eq!(ids(&restored(&snapshot, &wanted)), [("web", 5)]);
    }
}

#[test]
fn an_id_is_given_to_one_service_port_and_one_out_of_range_to_none() {
    let names = ["a", "b", "c", "d"];
    let services = (1..).zip(names).map(|(n, name)| service(Family::V4, name, n));
    let wanted = wanted(&services.collect::<Vec<_>>(), &[]);
    let found = [7, 7, 0, SERVICE_IDS];
    let frontends = (1..).zip(found).map(|(n, id)| (vip(Family::V4, n), entry(id))).collect();
    let snapshot = Snapshot { frontends, ..Snapshot::default() };
    assert_eq!(ids(&restored(&snapshot, &wanted)), [("a", 7)]);
}

#[test]
fn a_cleared_backend_goes_on_in_its_own_family_alone() {
    for family in FAMILIES {
        let retired = [(BackendId { family, index: 1 }, 9)].into();
        let snapshot = Snapshot { retired, ..Snapshot::default() };
        let mut pools = restored(&snapshot, &Wanted::new()).pools;
        for other in FAMILIES {
            let generation = if other == family { 10 } else { 1 };
            let next = pools.backends.get_mut(&other).unwrap().allocate();
            assert_eq!(next, Some((1, generation)), "{other:?}");
        }
    }
}

#[test]
fn frontends_that_lead_nowhere_take_no_room() {
    let mut world = World::new(FakeTables::default()).listed();
    world.service(service(Family::V4, "web", 1));
    let (world, _) = world.restart();
    assert_eq!(world.reconciler.used_chunks(), 0);
}

#[test]
fn backends_that_are_there_several_times_go_but_for_one() {
    for family in FAMILIES {
        let mut world = World::new(FakeTables::default()).listed();
        world.slice(web(family, &[1]));
        world.service(service(family, "web", 1));
        let good = world.reconciler.tables().meaning();
        let (first, entry) = world.snapshot().backends.pop_first().unwrap();
        for index in 7..10 {
            let stray = Step::PutBackend(BackendId { index, ..first }, entry);
            world.reconciler.tables().perform(&[stray]).unwrap();
        }
        assert_eq!(world.reconciler.resync().steps, 4, "a grace period, and three go");
        assert_eq!(world.reconciler.tables().meaning(), good);
        assert_eq!(world.reconciler.resync().steps, 0);
    }
}

#[test]
fn equal_slots_of_both_families_stay_two_regions() {
    let mut world = World::new(FakeTables::default()).listed();
    let mut both = service(Family::V4, "web", 1);
    both.cluster_ips.push(ip(Family::V6, CLUSTER, 1));
    for family in FAMILIES {
        let name = ObjectName::new("default", if family == Family::V4 { "web-4" } else { "web-6" });
        world.slice(EndpointSlice { name, ..web(family, &[1]) });
    }
    world.service(both);
    let slots: Vec<_> = world.snapshot().regions.into_values().map(|(_, slots)| slots).collect();
    assert!(slots.len() == 2 && slots[0] == slots[1]);
    assert_eq!(world.restart().1.steps, 0);
}

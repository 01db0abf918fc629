//! What goes on while writes fail, and what waits.

use super::*;

/// Tables that fail the steps of which `fails` says so.
struct Failing {
    tables: FakeTables,
    fails: Option<fn(&Step) -> bool>,
    failures: usize,
}

impl Failing {
    fn nothing() -> Self {
        Self { tables: FakeTables::default(), fails: None, failures: 0 }
    }
}

impl Tables for Failing {
    fn perform(&mut self, steps: &[Step]) -> Result<(), PerformError> {
        let fails = self.fails;
        let failing = steps.iter().position(|step| fails.is_some_and(|fails| fails(step)));
        self.tables.perform(&steps[..failing.unwrap_or(steps.len())])?;
        let Some(done) = failing else { return Ok(()) };
        self.failures += 1;
        let source = std::io::ErrorKind::Interrupted.into();
        Err(PerformError {
            done,
            source: TableError::System { map: "FAILING", operation: "update", source },
        })
    }

    fn snapshot(&mut self) -> Result<Snapshot, TableError> {
        self.tables.snapshot()
    }

    fn backend_capacity(&self, family: Family) -> u32 {
        self.tables.backend_capacity(family)
    }
}

fn owner(world: &mut World<Failing>, family: Family) -> Option<ServiceId> {
    let address = FrontendAddress { ip: ip(family, OUTSIDE, 6), ..vip(family, 1) };
    let snapshot = world.reconciler.tables().snapshot().unwrap();
    snapshot.frontends.get(&address).map(|entry| entry.service)
}

/// Service `web` has the address; then `old` asks for it, which beats `web`, while steps fail.
fn handed_over(family: Family, fails: fn(&Step) -> bool) -> World<Failing> {
    let tables = Failing::nothing();
    let mut world = World::new(tables).listed();
    let shared = |name, n| Service {
        external_ips: vec![ip(family, OUTSIDE, 6)],
        ..service(family, name, n)
    };
    world.slice(web(family, &[1]));
    world.service(shared("web", 1));
    world.reconciler.tables().fails = Some(fails);
    let outcome = world.service(Service { created: 1, ..shared("old", 2) });
    assert!(outcome.failure.is_some() && world.reconciler.is_pending());
    world
}

#[test]
fn s21_the_old_owner_answers_until_the_new_one_is_written() {
    for family in FAMILIES {
        let mut world = handed_over(family, |step| matches!(step, Step::PutFrontend(..)));
        assert_eq!(owner(&mut world, family), Some(ServiceId(1)), "as before");
        world.reconciler.tables().fails = None;
        assert!(world.reconciler.retry().failure.is_none());
        assert_eq!(owner(&mut world, family), Some(ServiceId(2)));
        assert!(!world.reconciler.is_pending());
        world.delete("old");
        world.delete("web");
        assert_eq!(world.reconciler.used_chunks(), 0);
    }
}

#[test]
fn s11_flows_part_from_an_address_when_its_owner_is_another() {
    for family in FAMILIES {
        let mut world = World::new(FakeTables::default()).listed();
        let shared = |name, n, external_ips| Service { external_ips, ..service(family, name, n) };
        let address = vec![ip(family, OUTSIDE, 6)];
        world.slice(web(family, &[1]));
        assert!(
            world.service(shared("web", 1, address.clone())).retired,
            "it may have been another's"
        );
        assert!(!world.slice(web(family, &[1, 2])).retired);
        let outcome = world.service(Service { created: 1, ..shared("new", 2, address.clone()) });
        assert!(outcome.retired, "it was another's, who serves on");
        assert!(!world.service(shared("web", 1, Vec::new())).retired, "nobody's");
    }
}

#[test]
fn the_old_owner_that_is_deleted_meanwhile_leaves_nothing_behind() {
    for family in FAMILIES {
        let mut world = handed_over(family, |step| matches!(step, Step::PutFrontend(..)));
        world.delete("web");
        assert_eq!(owner(&mut world, family), Some(ServiceId(1)), "as before");
        world.reconciler.tables().fails = None;
        world.reconciler.retry();
        assert_eq!(owner(&mut world, family), Some(ServiceId(2)));
        assert_eq!(world.reconciler.names(ServiceId(1)), None, "its id is free");
        assert_eq!(world.reconciler.used_chunks(), 0);
    }
}

#[test]
fn nothing_is_removed_while_nothing_can_be_put() {
    for family in FAMILIES {
        let tables = Failing::nothing();
        let mut world = World::new(tables).listed();
        world.slice(web(family, &[1]));
        world.service(service(family, "web", 1));
        let mut world = world.restart().0;
        world.reconciler.tables().fails = Some(|step| matches!(step, Step::Settle));
        // The address goes to a Service that the restarted agent cannot write yet.
        let names = ["next", "web"].map(|name| ObjectName::new("default", name));
        world.model.apply(Event::ServiceDeleted(names[1].clone()));
        world.model.apply(Event::ServiceApplied(service(family, "next", 1)));
        let delta = world.desired.update(&world.model, &names);
        assert!(world.reconciler.apply(delta).failure.is_some());
        let snapshot = world.reconciler.tables().snapshot().unwrap();
        assert_eq!(snapshot.frontends[&vip(family, 1)].service, ServiceId(1));
    }
}

/// A region whose backends have begun to go is written anew, though the same pods are wanted again.
#[test]
fn a_list_that_comes_back_while_its_backends_go_gets_a_region_of_its_own() {
    for family in FAMILIES {
        let mut world = World::new(Failing::nothing()).listed();
        world.slice(web(family, &[1, 2]));
        world.service(service(family, "web", 1));
        let second = |step: &Step| matches!(step, Step::RemoveBackend(id) if id.index == 2);
        world.reconciler.tables().fails = Some(second);
        assert!(world.slice(web(family, &[])).failure.is_some());
        assert_eq!(world.reconciler.tables().snapshot().unwrap().backends.len(), 1);
        world.reconciler.tables().fails = None;
        assert!(world.slice(web(family, &[1, 2])).failure.is_none());
        let meaning = world.reconciler.tables().tables.meaning();
        let mut pods = meaning.frontends[&vip(family, 1)].internal.clone();
        pods.sort_unstable();
        pods.dedup();
        assert_eq!(pods, [1, 2].map(|n| pod(family, n)));
        assert_eq!(world.reconciler.used_chunks(), 16, "one region");
    }
}

#[test]
fn a_service_port_that_finds_no_id_waits_for_one_and_says_so() {
    let mut world = World::new(FakeTables::default()).listed();
    let none = ids::Pool::restored(1, BTreeMap::new());
    world.reconciler.state.as_mut().unwrap().pools.services = none;
    let outcome = world.service(service(Family::V4, "web", 1));
    let name = ObjectName::new("default", "web");
    let told: Vec<String> = outcome.problems[&name].iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        ["Service default/web: spec.ports: port \"http\" (TCP): service ids is full at 1048576 \
          entries; use fewer Services or endpoints"]
    );
    assert!(world.reconciler.is_behind(&name));
    let two = ids::Pool::restored(2, BTreeMap::new());
    world.reconciler.state.as_mut().unwrap().pools.services = two;
    assert_eq!(world.reconciler.retry().problems[&name], []);
    assert!(world.snapshot().frontends.contains_key(&vip(Family::V4, 1)));
}

/// Services `s1`, `s2` … each with a cluster IP and a pod, told of together.
fn together(world: &mut World<Failing>, family: Family, numbers: std::ops::Range<u8>) -> Outcome {
    let delta = numbered(world, family, numbers);
    world.reconciler.apply(delta)
}

fn numbered(world: &mut World<Failing>, family: Family, numbers: std::ops::Range<u8>) -> Delta {
    let mut names = Vec::new();
    for n in numbers {
        let name = format!("s{n}");
        let slice = slice(family, &name, &name, vec![endpoint(family, n, "here")]);
        world.model.apply(Event::SliceApplied(slice));
        world.model.apply(Event::ServiceApplied(service(family, &name, n)));
        names.push(ObjectName::new("default", &name));
    }
    world.desired.update(&world.model, &names)
}

#[test]
fn one_service_that_fails_stops_none_of_those_told_of_with_it() {
    for family in FAMILIES {
        let mut world = World::new(Failing::nothing()).listed();
        let second = |step: &Step| matches!(step, Step::PutBackend(id, _) if id.index == 2);
        world.reconciler.tables().fails = Some(second);
        assert!(together(&mut world, family, 1..4).failure.is_some());
        let written = world.reconciler.tables().snapshot().unwrap().frontends;
        let written: Vec<_> = written.into_keys().collect();
        assert_eq!(written, [vip(family, 1), vip(family, 3)]);
        assert_eq!(world.reconciler.tables().failures, 1, "tried once");
        world.reconciler.tables().fails = None;
        assert_eq!(world.reconciler.retry().steps, 3, "those of the second");
        assert_eq!(world.reconciler.tables().snapshot().unwrap().frontends.len(), 3);
    }
}

#[test]
fn a_kernel_that_refuses_everything_is_not_asked_for_each_service() {
    let mut world = World::new(Failing::nothing()).listed();
    world.reconciler.tables().fails = Some(|_| true);
    assert!(together(&mut world, Family::V4, 1..100).failure.is_some());
    assert_eq!(world.reconciler.tables().failures, 16);
    world.reconciler.tables().fails = None;
    world.reconciler.retry();
    assert_eq!(world.reconciler.tables().snapshot().unwrap().frontends.len(), 99);
    assert!(!world.reconciler.is_pending());
}

#[test]
fn writes_and_removals_that_fail_try_one_patience() {
    let mut world = World::new(Failing::nothing()).listed();
    together(&mut world, Family::V4, 1..11);
    let gone: Vec<_> = world.model.services().map(|service| service.name.clone()).collect();
    for name in &gone {
        world.model.apply(Event::ServiceDeleted(name.clone()));
    }
    let mut delta = world.desired.update(&world.model, &gone);
    delta.ports.extend(numbered(&mut world, Family::V4, 11..21).ports);
    world.reconciler.tables().fails = Some(|_| true);
    assert!(world.reconciler.apply(delta).failure.is_some());
    assert_eq!(world.reconciler.tables().failures, 16);
}

#[test]
fn a_run_that_gives_up_says_of_no_service_that_it_has_room() {
    let small = Capacity { backends: 100, frontends: 1 };
    let tables = FakeTables::new(small, Checks::Everything);
    let mut world = World::new(Failing { tables, ..Failing::nothing() }).listed();
    world.service(service(Family::V4, "first", 1));
    assert_eq!(world.service(service(Family::V4, "web", 2)).problems.len(), 1);
    world.reconciler.tables().fails = Some(|_| true);
    together(&mut world, Family::V4, 3..30);
    let outcome = world.reconciler.retry();
    assert!(outcome.failure.is_some() && outcome.problems.is_empty(), "{outcome:?}");
    assert!(world.reconciler.is_behind(&ObjectName::new("default", "web")));
}

#[test]
fn slots_that_run_out_are_one_clear_problem() {
    let mut pools = Pools {
        services: ids::Pool::restored(10, BTreeMap::new()),
        backends: FAMILIES.map(|family| (family, ids::Pool::restored(10, BTreeMap::new()))).into(),
        regions: regions::Regions::new(),
    };
    while pools.regions.allocate(65_521).is_some() {}
    let mut model = Model::default();
    model.apply(Event::ServiceApplied(service(Family::V4, "web", 1)));
    model.apply(Event::SliceApplied(web(Family::V4, &[1])));
    let mut desired = Desired::new(facts());
    let delta = desired.update(&model, &[ObjectName::new("default", "web")]);
    let tables = delta.ports.into_values().next().flatten().unwrap();
    let error = plan::prepare(&tables, &mut held::Held::default(), &mut pools).unwrap_err();
    assert!(matches!(error, TableError::Full { map: "SLOTS", capacity: 4_194_304, .. }));
}

#[test]
fn a_service_without_room_is_looked_at_again_only_when_something_is_freed() {
    let small = Capacity { backends: 100, frontends: 2 };
    let mut world = World::new(FakeTables::new(small, Checks::Everything)).listed();
    for (n, name) in (1..).zip(["first", "second", "third"]) {
        assert_eq!(world.service(service(Family::V4, name, n)).visited, 1, "{name}");
    }
    let affinity_timeout = Some(60);
    let changed = Service { affinity_timeout, ..service(Family::V4, "first", 1) };
    assert_eq!(world.service(changed).visited, 1, "nothing is freed");
    assert_eq!(world.delete("first").visited, 2, "its room is for the third");
}

#[test]
fn a_deleted_service_gives_its_id_and_its_slots_back() {
    let mut world = World::new(FakeTables::default()).listed();
    world.slice(web(Family::V4, &[1]));
    world.service(service(Family::V4, "web", 1));
    assert_eq!(world.reconciler.used_chunks(), 16, "251 slots");
    world.delete("web");
    let state = world.reconciler.state.as_ref().unwrap();
    assert!(state.ids.is_empty() && state.keys.is_empty() && state.realized.ports.is_empty());
    assert_eq!(world.reconciler.used_chunks(), 0);
}

#[test]
fn tables_that_cannot_be_read_are_a_failure() {
    let mut world = World::new(Faulty::new(FakeTables::default(), 1, 0)).listed();
    world.service(service(Family::V4, "web", 1));
    world.reconciler.tables().set_rate(1);
    assert!(world.reconciler.resync().failure.is_some());
}

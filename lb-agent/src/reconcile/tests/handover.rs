//! An address that goes from one Service to another while writes fail.

use super::*;

/// Tables that fail the steps of which `fails` says so.
struct Failing {
    tables: FakeTables,
    fails: Option<fn(&Step) -> bool>,
}

impl Tables for Failing {
    fn perform(&mut self, steps: &[Step]) -> Result<(), PerformError> {
        let fails = self.fails;
        let failing = steps.iter().position(|step| fails.is_some_and(|fails| fails(step)));
        self.tables.perform(&steps[..failing.unwrap_or(steps.len())])?;
        let Some(done) = failing else { return Ok(()) };
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
    let tables = Failing { tables: FakeTables::default(), fails: None };
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
        let tables = Failing { tables: FakeTables::default(), fails: None };
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

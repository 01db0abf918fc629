//! Ranges of sources (S9): when they appear, and when they go.

use super::*;

const RANGE: &str = "198.51.100.0/24";
const OTHER: &str = "203.0.113.0/24";

fn balancer(ranges: &[&str]) -> Service {
    let mut service = service(Family::V4, "web", 1);
    service.load_balancer_ips = vec![ip(Family::V4, OUTSIDE, 5)];
    service.source_ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
    service
}

fn recorded() -> World<Recording> {
    let recording = Recording { tables: FakeTables::default(), steps: Vec::new() };
    World::new(recording).listed()
}

impl World<Recording> {
    fn told(&mut self) -> Vec<&'static str> {
        kinds(&std::mem::take(&mut self.reconciler.tables().steps))
    }
}

#[test]
fn s9_ranges_come_before_the_frontends_that_check_them_and_go_a_grace_period_after() {
    let mut world = recorded();
    world.service(balancer(&[RANGE]));
    assert_eq!(world.told(), ["PutSourceRange", "PutFrontend", "PutFrontend"]);
    world.service(balancer(&[OTHER]));
    assert_eq!(world.told(), ["PutSourceRange", "Settle", "RemoveSourceRange"]);
    world.service(balancer(&[]));
    assert_eq!(world.told(), ["PutFrontend", "Settle", "RemoveSourceRange"]);
    world.service(balancer(&[RANGE, OTHER]));
    assert_eq!(world.told(), ["PutSourceRange", "PutSourceRange", "PutFrontend"]);
    world.delete("web");
    let gone =
        ["RemoveFrontend", "RemoveFrontend", "Settle", "RemoveSourceRange", "RemoveSourceRange"];
    assert_eq!(world.told(), gone);
}

/// Tables that refuse to take anything new while they are closed, but let go of what they hold.
struct Closed {
    tables: FakeTables,
    is_closed: bool,
}

impl Tables for Closed {
    fn perform(&mut self, steps: &[Step]) -> Result<(), PerformError> {
        let is_new = |step: &Step| matches!(step, Step::PutFrontend(..) | Step::PutSourceRange(..));
        let refused = steps.iter().position(|step| self.is_closed && is_new(step));
        self.tables.perform(&steps[..refused.unwrap_or(steps.len())])?;
        let source = std::io::ErrorKind::Interrupted.into();
        let source = TableError::System { map: "CLOSED", operation: "update", source };
        refused.map_or(Ok(()), |done| Err(PerformError { done, source }))
    }

    fn snapshot(&mut self) -> Result<Snapshot, TableError> {
        self.tables.snapshot()
    }

    fn backend_capacity(&self, family: Family) -> u32 {
        self.tables.backend_capacity(family)
    }
}

#[test]
fn s9_a_range_that_cannot_be_replaced_stays() {
    let tables = Closed { tables: FakeTables::default(), is_closed: false };
    let mut world = World::new(tables).listed();
    world.service(balancer(&[RANGE]));
    let before = world.reconciler.tables().tables.meaning();
    for other in [&[OTHER][..], &[]] {
        world.reconciler.tables().is_closed = true;
        assert!(world.service(balancer(other)).failure.is_some());
        assert_eq!(world.reconciler.tables().tables.meaning(), before);
    }
    world.reconciler.tables().is_closed = false;
    world.reconciler.retry();
    assert_eq!(world.reconciler.tables().tables.meaning().source_ranges, []);
}

#[test]
fn s9_ranges_outlive_the_agent_and_a_foreign_hand() {
    let mut world = World::new(FakeTables::default()).listed();
    world.service(balancer(&[RANGE]));
    let good = world.reconciler.tables().meaning();
    let id = world.snapshot().source_ranges.first().unwrap().0;
    let (mut world, outcome) = world.restart();
    assert_eq!(outcome.steps, 0);
    let foreign = Step::PutSourceRange(id, OTHER.parse().unwrap());
    world.reconciler.tables().perform(&[foreign]).unwrap();
    assert_eq!(world.reconciler.resync().steps, 2, "a grace period, and the range goes");
    assert_eq!(world.reconciler.tables().meaning(), good);
    let stray = Step::PutSourceRange(ServiceId(id.0 + 1), RANGE.parse().unwrap());
    world.reconciler.tables().perform(&[stray]).unwrap();
    world.reconciler.resync();
    assert_eq!(world.reconciler.tables().meaning(), good);
}

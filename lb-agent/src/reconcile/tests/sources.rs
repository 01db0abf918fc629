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

#[test]
fn s9_a_range_that_cannot_be_replaced_stays() {
    let mut world = World::new(Faulty::new(FakeTables::default(), 1, 0)).listed();
    world.service(balancer(&[RANGE]));
    let before = world.reconciler.tables().inner().meaning();
    for other in [&[OTHER][..], &[]] {
        world.reconciler.tables().set_rate(1);
        assert!(world.service(balancer(other)).failure.is_some());
        assert_eq!(world.reconciler.tables().inner().meaning(), before);
    }
    world.reconciler.tables().set_rate(0);
    world.reconciler.retry();
    assert_eq!(world.reconciler.tables().inner().meaning().source_ranges, []);
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

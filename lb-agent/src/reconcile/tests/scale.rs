//! Cost: it follows the change, not the cluster.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use super::*;

fn numbered(n: u32) -> (Service, EndpointSlice) {
    let name = format!("s{n}");
    let mut service = service(Family::V4, &name, 1);
    service.cluster_ips = vec![Ipv4Addr::from(0x0a60_0000 + n).into()];
    let endpoints = (0..10).map(|pod| Endpoint {
        address: Ipv4Addr::from(0x0b00_0000 + n * 16 + pod).into(),
        ..endpoint(Family::V4, 1, "there")
    });
    let slice = slice(Family::V4, &name, &name, endpoints.collect());
    (service, slice)
}

/// A cluster of that many Services with 10 endpoints each, and how long the first run took.
fn cluster(services: u32) -> (World<FakeTables>, Duration) {
    let capacity = Capacity { backends: 1 << 20, frontends: 1 << 20 };
    let mut world = World::new(FakeTables::new(capacity, Checks::TheStep));
    for n in 0..services {
        let (service, slice) = numbered(n);
        world.model.apply(Event::ServiceApplied(service));
        world.model.apply(Event::SliceApplied(slice));
    }
    let start = Instant::now();
    let names: Vec<ObjectName> = world.model.services().map(|s| s.name.clone()).collect();
    let delta = world.desired.update(&world.model, &names);
    world.reconciler.apply(delta);
    let outcome = world.reconciler.listed();
    assert_eq!(outcome.steps, 12 * services as usize, "10 backends, a region, a frontend");
    (world, start.elapsed())
}

#[test]
fn one_changed_endpoint_costs_the_same_at_10_and_at_10_000_services() {
    let (mut small, _) = cluster(10);
    let (_, tenth) = cluster(1_000);
    let (mut large, cold) = cluster(10_000);
    println!("cold: 1,000 Services in {tenth:?}, 10,000 with 100,000 endpoints in {cold:?}");
    assert!(cold < tenth * 40, "10 times the Services took {cold:?} after {tenth:?}");
    let change = |world: &mut World<FakeTables>| {
        let (_, mut slice) = numbered(7);
        slice.endpoints.truncate(9);
        let start = Instant::now();
        let outcome = world.slice(slice);
        println!("one change: {:?}", start.elapsed());
        (outcome.steps, outcome.visited)
    };
    // A region, a frontend, a grace period, a backend; one Service port.
    assert_eq!(change(&mut small), (4, 1));
    assert_eq!(change(&mut large), (4, 1));
}

#[test]
fn a_restart_at_10_000_services_writes_nothing() {
    let (world, _) = cluster(10_000);
    let start = Instant::now();
    let (_, outcome) = world.restart();
    println!("restart: {:?}", start.elapsed());
    assert_eq!(outcome.steps, 0);
}

#[test]
fn one_service_may_have_5_000_endpoints_and_another_100_ports() {
    let mut world = World::new(FakeTables::default()).listed();
    let endpoints = (0..5_000).map(|n| Endpoint {
        address: Ipv4Addr::from(0x0b00_0000 + n).into(),
        ..endpoint(Family::V4, 1, "there")
    });
    world.slice(slice(Family::V4, "web-1", "web", endpoints.collect()));
    world.service(service(Family::V4, "web", 1));
    assert_eq!(world.pods(vip(Family::V4, 1)).len(), 5_000);
    let mut ports = service(Family::V4, "ports", 2);
    ports.ports = (1..=100).map(|n| port(&format!("p{n}"), n)).collect();
    assert_eq!(world.service(ports).steps, 100);
}

//! What holds for any cluster, any order of events, any fault.
//!
//! [`FakeTables`] checks after every single step that a program could read the tables: each run
//! here is a check of every prefix of its plans.

use proptest::prelude::*;

use super::*;

/// One change of a small cluster, so that Services, addresses and endpoints meet often.
#[derive(Clone, Debug)]
enum Action {
    Delete(u8),
    Service(Box<Service>),
    Slice(EndpointSlice),
    SliceDelete(u8),
}

impl Action {
    fn event(self) -> Event {
        match self {
            Self::Delete(n) => Event::ServiceDeleted(ObjectName::new("default", &format!("s{n}"))),
            Self::Service(service) => Event::ServiceApplied(*service),
            Self::Slice(slice) => Event::SliceApplied(slice),
            Self::SliceDelete(n) => {
                Event::SliceDeleted(ObjectName::new("default", &format!("e{n}")))
            }
        }
    }
}

fn family() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::V4), Just(Family::V6)]
}

fn policy() -> impl Strategy<Value = TrafficPolicy> {
    prop_oneof![Just(TrafficPolicy::Cluster), Just(TrafficPolicy::Local)]
}

/// Some ranges, one of each family that this node is in.
fn any_ranges() -> impl Strategy<Value = Vec<ipnet::IpNet>> {
    let ranges = ["10.1.0.0/16", "10.2.0.0/16", "fd00:1::/32", "fd00:2::/32"];
    let ranges = ranges.map(|range| range.parse().expect("a range")).to_vec();
    prop_oneof![Just(Vec::new()), prop::sample::subsequence(ranges, 0..=4)]
}

prop_compose! {
    fn any_service()(
        n in 0..4_u8, vip in 1..4_u8, dual: bool, family in family(), external in 0..3_u8,
        node_port in prop::option::of(30000..30002_u16), policies in (policy(), policy()),
        created in 0..3_i64, two_ports: bool, affinity_timeout in prop::option::of(10..12_u32),
        ranges in any_ranges(),
    ) -> Service {
        let mut service = service(family, &format!("s{n}"), vip);
        if dual {
            let other = if family == Family::V4 { Family::V6 } else { Family::V4 };
            service.cluster_ips.push(ip(other, CLUSTER, vip));
        }
        if external > 0 {
            service.external_ips = vec![ip(family, OUTSIDE, external), ip(family, CLUSTER, external)];
        }
        service.load_balancer_ips = service.cluster_ips.iter()
            .map(|own| ip(Family::of(*own), OUTSIDE, vip + 10)).collect();
        service.source_ranges = ranges;
        service.ports[0].node_port = node_port.map(|port| port.try_into().unwrap());
        if two_ports {
            service.ports.push(port("metrics", 9100));
        }
        let (internal_policy, external_policy) = policies;
        Service { created, internal_policy, external_policy, affinity_timeout, ..service }
    }
}

prop_compose! {
    fn any_endpoint(family: Family)(n in 1..6_u8, here: bool, conditions in 0..4_u8) -> Endpoint {
        let endpoint = endpoint(family, n, if here { "here" } else { "there" });
        match conditions {
            0 => leaving(endpoint),
            1 => unready(endpoint),
            _ => endpoint,
        }
    }
}

fn any_slice() -> impl Strategy<Value = EndpointSlice> {
    (0..5_u8, 0..4_u8, family()).prop_flat_map(|(n, owner, family)| {
        prop::collection::vec(any_endpoint(family), 0..5).prop_map(move |endpoints| {
            let (name, owner) = (format!("e{n}"), format!("s{owner}"));
            let mut slice = slice(family, &name, &owner, endpoints);
            slice.ports.push(slice_port("metrics", 9100));
            slice
        })
    })
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        1 => (0..4_u8).prop_map(Action::Delete),
        1 => (0..5_u8).prop_map(Action::SliceDelete),
        4 => any_service().prop_map(Box::new).prop_map(Action::Service),
        4 => any_slice().prop_map(Action::Slice),
    ]
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    prop::collection::vec(action(), 1..25)
}

/// Ends at the same model by telling each object once: what a fresh agent would do.
fn fresh(model: &Model) -> World<FakeTables> {
    let mut world = World::new(FakeTables::default()).listed();
    world.model = model.clone();
    let names: Vec<ObjectName> = model.services().map(|service| service.name.clone()).collect();
    let delta = world.desired.update(&world.model, &names);
    world.reconciler.apply(delta);
    world
}

/// Retries until nothing is pending.
fn settle<T: Tables>(world: &mut World<T>) {
    for _ in 0..10_000 {
        if !world.reconciler.is_pending() {
            return;
        }
        world.reconciler.retry();
    }
    panic!("never done");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_events_end_where_a_fresh_start_ends_and_leak_nothing(actions in actions()) {
        let mut world = World::new(FakeTables::default()).listed();
        for action in actions {
            world.apply(action.event());
        }
        let mut fresh = fresh(&world.model);
        prop_assert_eq!(world.reconciler.tables().meaning(), fresh.reconciler.tables().meaning());
        prop_assert_eq!(world.reconciler.used_chunks(), fresh.reconciler.used_chunks());
        let names: Vec<ObjectName> = (0..4).map(|n| ObjectName::new("default", &format!("s{n}"))).collect();
        for name in names {
            world.apply(Event::ServiceDeleted(name));
        }
        prop_assert_eq!(Snapshot { retired: BTreeMap::new(), ..world.snapshot() }, Snapshot::default());
        prop_assert_eq!(world.reconciler.used_chunks(), 0);
    }

    #[test]
    fn the_order_of_services_does_not_matter(
        services in prop::collection::vec(any_service(), 1..6),
        slices in prop::collection::vec(any_slice(), 0..6),
    ) {
        // One object a name: the last one said is the one that counts.
        let services: BTreeMap<_, _> = services.into_iter().map(|s| (s.name.clone(), s)).collect();
        let slices: BTreeMap<_, _> = slices.into_iter().map(|s| (s.name.clone(), s)).collect();
        let mut events: Vec<Event> = services.into_values().map(Event::ServiceApplied)
            .chain(slices.into_values().map(Event::SliceApplied)).collect();
        let mut forward = World::new(FakeTables::default()).listed();
        let mut backward = World::new(FakeTables::default()).listed();
        for event in &events {
            forward.apply(event.clone());
        }
        events.reverse();
        for event in events {
            backward.apply(event);
        }
        prop_assert_eq!(forward.reconciler.tables().meaning(), backward.reconciler.tables().meaning());
    }

    #[test]
    fn any_plan_with_faults_and_retries_converges(
        actions in actions(), seed: u64, one_in in 2..12_u64,
    ) {
        let mut world = World::new(Faulty::new(FakeTables::default(), seed, one_in)).listed();
        for action in actions {
            world.apply(action.event());
        }
        settle(&mut world);
        let mut fresh = fresh(&world.model);
        prop_assert_eq!(world.reconciler.tables().inner().meaning(), fresh.reconciler.tables().meaning());
        prop_assert_eq!(world.reconciler.used_chunks(), fresh.reconciler.used_chunks());
    }

    #[test]
    fn a_restart_with_an_unchanged_cluster_writes_nothing(actions in actions()) {
        let mut world = World::new(FakeTables::default()).listed();
        for action in actions {
            world.apply(action.event());
        }
        let before = world.snapshot();
        let (mut world, outcome) = world.restart();
        prop_assert_eq!(outcome.steps, 0);
        prop_assert_eq!(world.snapshot(), before);
        prop_assert_eq!(world.reconciler.resync().steps, 0);
    }

    #[test]
    fn adopting_any_older_snapshot_converges(
        first in actions(), second in actions(), seed: u64,
    ) {
        // The first agent is killed at any step; the second sees another cluster.
        let mut world = World::new(Faulty::new(FakeTables::default(), seed, 7)).listed();
        for action in first {
            world.apply(action.event());
        }
        for action in second {
            world.model.apply(action.event());
        }
        let (mut world, _) = world.restart();
        settle(&mut world);
        let mut fresh = fresh(&world.model);
        prop_assert_eq!(world.reconciler.tables().inner().meaning(), fresh.reconciler.tables().meaning());
        prop_assert_eq!(world.reconciler.used_chunks(), fresh.reconciler.used_chunks());
    }

    #[test]
    fn without_room_the_tables_stay_consistent_and_room_mends_everything(
        actions in actions(), backends in 2..8_u32, frontends in 0..6_usize,
    ) {
        let small = Capacity { backends, frontends };
        let mut world = World::new(FakeTables::new(small, Checks::Everything)).listed();
        for action in actions {
            world.apply(action.event());
        }
        world.reconciler.tables().set_capacity(Capacity { backends: 100, frontends: 100 });
        let (mut world, outcome) = world.restart();
        prop_assert!(outcome.problems.is_empty());
        let mut fresh = fresh(&world.model);
        prop_assert_eq!(world.reconciler.tables().meaning(), fresh.reconciler.tables().meaning());
    }
}

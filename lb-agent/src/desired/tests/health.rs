//! Health check ports (S3), and what is counted of Local policies (S20).

use std::collections::BTreeMap;

use super::*;
use crate::model::{Event, ServiceType};

/// A load balancer's Service of both families, with health check port 31000.
fn balanced() -> Service {
    let mut service = exposed(Family::V4, CLUSTER_POLICY, TrafficPolicy::Local);
    service.cluster_ips.push(ip(Family::V6, CLUSTER, 1));
    service.service_type = ServiceType::LoadBalancer;
    service.health_check_node_port = 31000.try_into().ok();
    service
}

fn counts(service: &Service, slices: &[EndpointSlice]) -> Option<BTreeMap<Family, usize>> {
    let check = tables_of(service, slices, &facts()).health_check?;
    assert_eq!(check.port.get(), 31000);
    Some(check.local_endpoints)
}

#[test]
fn s3_only_a_load_balancers_service_with_the_local_policy_has_a_health_check() {
    assert!(counts(&balanced(), &[]).is_some());
    let node_port = Service { service_type: ServiceType::NodePort, ..balanced() };
    assert_eq!(counts(&node_port, &[]), None);
    let cluster = Service { external_policy: CLUSTER_POLICY, ..balanced() };
    assert_eq!(counts(&cluster, &[]), None);
    let without = Service { health_check_node_port: None, ..balanced() };
    assert_eq!(counts(&without, &[]), None);
}

#[test]
fn s3_distinct_addresses_of_ready_local_endpoints_count_in_each_family() {
    let v4 = |n, node| endpoint(Family::V4, n, node);
    let endpoints = vec![
        v4(1, "here"),
        v4(2, "here"),
        v4(3, "there"),
        unready(v4(4, "here")),
        leaving(v4(5, "here")),
        Endpoint { node: None, ..v4(6, "here") },
    ];
    let mut again = slice(Family::V4, "web-2", "web", vec![v4(1, "here"), v4(7, "here")]);
    again.ports = vec![slice_port("admin", 9090), slice_port("http", 8080)];
    let mut portless = slice(Family::V4, "web-4", "web", vec![v4(8, "here")]);
    portless.ports.clear();
    let slices = [
        slice(Family::V4, "web-1", "web", endpoints),
        again,
        slice(Family::V6, "web-3", "web", vec![endpoint(Family::V6, 1, "here")]),
        portless,
    ];
    let counts = counts(&balanced(), &slices).unwrap();
    assert_eq!(counts, BTreeMap::from([(Family::V4, 3), (Family::V6, 1)]));
}

#[test]
fn s3_a_prober_of_a_family_that_the_service_lacks_hears_of_the_other() {
    let check = |counts: &[(Family, usize)]| HealthCheck {
        port: 31000.try_into().unwrap(),
        local_endpoints: counts.iter().copied().collect(),
    };
    let both = check(&[(Family::V4, 0), (Family::V6, 2)]);
    assert_eq!([both.count(Family::V4), both.count(Family::V6)], [0, 2]);
    for family in FAMILIES {
        let single = check(&[(family, 3)]);
        assert_eq!([single.count(Family::V4), single.count(Family::V6)], [3, 3]);
    }
    assert_eq!(check(&[]).count(Family::V4), 0);
}

#[test]
fn s3_a_delta_names_health_checks_that_changed() {
    let (mut model, mut desired) = (Model::default(), Desired::new(facts()));
    let mut update = |event: Event| {
        model.apply(event);
        desired.update(&model, [&ObjectName::new("default", "web")]).health_checks
    };
    let name = ObjectName::new("default", "web");
    let portless = Service { ports: Vec::new(), ..balanced() };
    assert!(update(Event::ServiceApplied(portless))[&name].is_some());
    assert_eq!(update(Event::ServiceDeleted(name.clone()))[&name], None);
    let opened = update(Event::ServiceApplied(balanced()));
    assert_eq!(opened[&name].as_ref().unwrap().count(Family::V4), 0);
    let here = slice(Family::V4, "web-1", "web", vec![endpoint(Family::V4, 1, "here")]);
    let counted = update(Event::SliceApplied(here));
    assert_eq!(counted[&name].as_ref().unwrap().count(Family::V4), 1);
    let elsewhere = vec![endpoint(Family::V4, 1, "here"), endpoint(Family::V4, 2, "there")];
    let elsewhere = slice(Family::V4, "web-1", "web", elsewhere);
    assert!(update(Event::SliceApplied(elsewhere)).is_empty(), "the same answer");
    assert_eq!(update(Event::ServiceDeleted(name.clone())), BTreeMap::from([(name, None)]));
}

#[test]
fn s20_ports_that_drop_for_want_of_a_local_endpoint_are_counted_by_policy() {
    for family in FAMILIES {
        let (mut model, mut desired) = (Model::default(), Desired::new(facts()));
        let name = ObjectName::new("default", "web");
        let mut after = |event: Event| {
            model.apply(event);
            desired.update(&model, [&name]);
            let NoLocalEndpoints { internal, external } = desired.no_local_endpoints(family);
            let other = FAMILIES.into_iter().find(|other| *other != family).unwrap();
            assert_eq!(desired.no_local_endpoints(other), NoLocalEndpoints::default());
            (internal, external)
        };
        let endpoints = |node| slice(family, "web-1", "web", vec![endpoint(family, 1, node)]);
        let (local, cluster) = (TrafficPolicy::Local, TrafficPolicy::Cluster);
        let service =
            |internal, external| Event::ServiceApplied(exposed(family, internal, external));
        assert_eq!(after(service(local, local)), (0, 0), "refused, not dropped");
        assert_eq!(after(Event::SliceApplied(endpoints("there"))), (1, 1));
        assert_eq!(after(service(local, cluster)), (1, 0));
        assert_eq!(after(service(cluster, local)), (0, 1));
        assert_eq!(after(Event::SliceApplied(endpoints("here"))), (0, 0));
        after(Event::SliceApplied(endpoints("there")));
        assert_eq!(after(Event::ServiceDeleted(name.clone())), (0, 0));
    }
}

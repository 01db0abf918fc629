//! Which endpoints clients choose from: S1, S2, S11, S17, S19.

use lb_common::abi::{BackendFlags, FrontendFlags};

use super::*;
use crate::model::TrafficPolicy::Local;

#[test]
fn s1_1_each_kind_of_outside_address_alone_makes_a_service_external() {
    for family in FAMILIES {
        let plain = Service { internal_policy: Local, ..service(family, "web", 1) };
        let mut node_port = plain.clone();
        node_port.ports[0].node_port = Some(30080.try_into().unwrap());
        let outside = vec![ip(family, OUTSIDE, 5)];
        let balancer = Service { load_balancer_ips: outside.clone(), ..plain.clone() };
        let external_ip = Service { external_ips: outside, ..plain.clone() };
        for (service, has_cluster_list) in
            [(plain, false), (node_port, true), (balancer, true), (external_ip, true)]
        {
            let case = case(family, &service, vec![endpoint(family, 1, "there")]);
            assert_eq!(!case.cluster().is_empty(), has_cluster_list, "{service:?}");
        }
    }
}

#[test]
fn s1_2_external_policy_local_keeps_a_cluster_list() {
    for family in FAMILIES {
        let service = exposed(family, Local, Local);
        assert_eq!(case(family, &service, vec![endpoint(family, 1, "there")]).cluster(), [1]);
    }
}

#[test]
fn s1_3_only_a_local_policy_makes_a_local_list() {
    for family in FAMILIES {
        let endpoints = vec![endpoint(family, 1, "here")];
        let local = |service: &Service| case(family, service, endpoints.clone()).local();
        assert_eq!(local(&exposed(family, CLUSTER_POLICY, CLUSTER_POLICY)), [0; 0]);
        assert_eq!(local(&exposed(family, CLUSTER_POLICY, Local)), [1]);
        assert_eq!(local(&exposed(family, Local, CLUSTER_POLICY)), [1]);
        let inside = Service { external_policy: Local, ..service(family, "web", 1) };
        assert_eq!(local(&inside), [0; 0], "external policy without an external address");
    }
}

#[test]
fn s1_4_the_cluster_list_falls_back_to_serving_and_terminating_endpoints_without_topology() {
    for family in FAMILIES {
        let service = service(family, "web", 1);
        let hinted = Endpoint { zone_hints: vec!["b".into()], ..endpoint(family, 3, "there") };
        let all = vec![
            endpoint(family, 1, "there"),
            leaving(endpoint(family, 2, "here")),
            leaving(hinted),
            unready(endpoint(family, 4, "here")),
        ];
        assert_eq!(case(family, &service, all.clone()).cluster(), [1]);
        assert_eq!(case(family, &service, all[1..].to_vec()).cluster(), [2, 3]);
    }
}

#[test]
fn s1_5_the_local_list_falls_back_on_this_node_alone_and_knows_no_topology() {
    for family in FAMILIES {
        let service = exposed(family, CLUSTER_POLICY, Local);
        let far = Endpoint { zone_hints: vec!["b".into()], ..endpoint(family, 1, "here") };
        let near = Endpoint { zone_hints: vec!["a".into()], ..endpoint(family, 2, "there") };
        let ready = case(family, &service, vec![far, near]);
        assert_eq!((ready.cluster(), ready.local()), (vec![2], vec![1]));
        let near = leaving(endpoint(family, 1, "here"));
        let distant = leaving(endpoint(family, 2, "there"));
        assert_eq!(case(family, &service, vec![near, distant.clone()]).local(), [1]);
        assert_eq!(case(family, &service, vec![distant]).local(), [0; 0]);
    }
}

#[test]
fn s1_6_the_lists_fall_back_independently() {
    for family in FAMILIES {
        let service = exposed(family, CLUSTER_POLICY, Local);
        let endpoints = vec![leaving(endpoint(family, 1, "here")), endpoint(family, 2, "there")];
        let case = case(family, &service, endpoints);
        assert_eq!((case.cluster(), case.local()), (vec![2], vec![1]));
    }
}

#[test]
fn s1_7_a_leaving_endpoint_elsewhere_makes_refuse_into_drop() {
    for family in FAMILIES {
        let service = Service { internal_policy: Local, ..service(family, "web", 1) };
        let flags = |endpoints| case(family, &service, endpoints).frontend(CLUSTER, 1, 80).flags;
        let drops = FrontendFlags::DROP_INTERNAL.with(FrontendFlags::DROP_EXTERNAL);
        assert_eq!(flags(vec![leaving(endpoint(family, 1, "there"))]), drops);
        assert_eq!(flags(vec![unready(endpoint(family, 1, "there"))]), FrontendFlags::NONE);
    }
}

#[test]
fn s1_8_a_terminating_endpoint_that_does_not_serve_is_no_backend() {
    for family in FAMILIES {
        let gone = unready(leaving(endpoint(family, 1, "here")));
        let case = case(family, &service(family, "web", 1), vec![gone]);
        assert_eq!((case.cluster(), case.backends()), (vec![], vec![]));
    }
}

#[test]
fn s1_9_a_slice_port_belongs_to_the_port_of_its_name_and_protocol() {
    for family in FAMILIES {
        let mut udp = slice(family, "a", "web", vec![endpoint(family, 1, "here")]);
        udp.ports[0].protocol = Protocol::Udp;
        let mut other = slice(family, "b", "web", vec![endpoint(family, 2, "here")]);
        other.ports[0].name = "metrics".into();
        let right = slice(family, "c", "web", vec![endpoint(family, 3, "here")]);
        let case = case_of_slices(family, &service(family, "web", 1), &[udp, other, right]);
        assert_eq!(case.backends(), [3]);
    }
}

#[test]
fn s1_9_of_two_entries_for_one_address_the_one_on_this_node_wins() {
    for family in FAMILIES {
        let here = leaving(endpoint(family, 1, "here"));
        let there = endpoint(family, 1, "there");
        for endpoints in [vec![here.clone(), there.clone()], vec![there, here]] {
            let case = case(family, &exposed(family, CLUSTER_POLICY, Local), endpoints);
            assert_eq!((case.backends(), case.local()), (vec![1], vec![1]));
            let backend = case.tables.backends.values().next().unwrap();
            assert!(backend.flags.has(BackendFlags::LOCAL));
        }
    }
}

#[test]
fn s1_9_of_two_equal_entries_for_one_address_the_first_counts() {
    for family in FAMILIES {
        let first = endpoint(family, 1, "here");
        let mut second = first.clone();
        second.pod = Some(ObjectName::new("default", "again"));
        let case = case(family, &exposed(family, CLUSTER_POLICY, Local), vec![first, second]);
        let backend = case.tables.backends.values().next().unwrap();
        assert_eq!(backend.pod, Some(ObjectName::new("default", "pod-1")));
    }
}

/// Endpoints 1 to 3: on `here`, on `there` in this zone, on `far` in another zone.
fn hinted(family: Family) -> Vec<Endpoint> {
    [(1, "here", "a"), (2, "there", "a"), (3, "far", "b")]
        .map(|(n, node, zone)| Endpoint {
            node_hints: vec![node.into()],
            zone_hints: vec![zone.into()],
            ..endpoint(family, n, node)
        })
        .into()
}

#[test]
fn s2_hints_choose_the_same_node_before_the_same_zone() {
    for family in FAMILIES {
        let cluster = |endpoints| case(family, &service(family, "web", 1), endpoints).cluster();
        let all = hinted(family);
        assert_eq!(cluster(all.clone()), [1]);
        assert_eq!(cluster(all[1..].to_vec()), [2], "no endpoint names this node");
        assert_eq!(cluster(all[2..].to_vec()), [3], "nor this zone");
    }
}

#[test]
fn s2_one_ready_endpoint_without_a_hint_switches_the_filter_off() {
    for family in FAMILIES {
        let cluster = |endpoints| case(family, &service(family, "web", 1), endpoints).cluster();
        let mut all = hinted(family);
        all[2].node_hints.clear();
        assert_eq!(cluster(all.clone()), [1, 2], "zones still count");
        all[2].zone_hints.clear();
        assert_eq!(cluster(all.clone()), [1, 2, 3]);
        all[2] = leaving(all[2].clone());
        assert_eq!(cluster(all), [1], "only ready endpoints are asked");
    }
}

#[test]
fn s2_without_a_zone_of_its_own_a_node_ignores_zones() {
    let mut endpoints = hinted(Family::V4);
    for endpoint in &mut endpoints {
        endpoint.node_hints.clear();
    }
    let facts = NodeFacts { zone: None, ..facts() };
    let slices = [slice(Family::V4, "web-1", "web", endpoints)];
    let tables = tables_of(&service(Family::V4, "web", 1), &slices, &facts);
    let port = tables.ports.first_key_value().unwrap().1;
    assert_eq!(port.families[&Family::V4].cluster.len(), 3);
}

#[test]
fn s17_a_ready_endpoint_that_does_not_serve_is_used() {
    for family in FAMILIES {
        let published =
            Endpoint { serving: false, terminating: true, ..endpoint(family, 1, "here") };
        let case = case(family, &service(family, "web", 1), vec![published]);
        assert_eq!((case.cluster(), case.backends()), (vec![1], vec![1]));
    }
}

#[test]
fn s11_a_serving_endpoint_outside_the_lists_stays_a_backend() {
    for family in FAMILIES {
        let endpoints = vec![endpoint(family, 1, "here"), leaving(endpoint(family, 2, "here"))];
        let case = case(family, &service(family, "web", 1), endpoints);
        assert_eq!((case.cluster(), case.backends()), (vec![1], vec![1, 2]));
    }
}

#[test]
fn s19_each_slice_gives_its_own_port_and_duplicates_merge() {
    for family in FAMILIES {
        let both = || vec![endpoint(family, 1, "here")];
        let mut second = slice(family, "web-2", "web", both());
        second.ports[0] = slice_port("http", 9090);
        let slices =
            [slice(family, "web-1", "web", both()), second, slice(family, "web-3", "web", both())];
        let case = case_of_slices(family, &service(family, "web", 1), &slices);
        let ports: Vec<u16> = case.tables.cluster.iter().map(SocketAddr::port).collect();
        assert_eq!(ports, [8080, 9090]);
    }
}

//! Which addresses a Service has, and what clients meet there: S5 to S8, S22.

use lb_common::abi::{BackendFlags, FrontendFlags, FrontendKind};

use super::*;
use crate::model::TrafficPolicy::Local;

/// What a client meets.
#[derive(Debug, PartialEq)]
enum Meets {
    Drop,
    Endpoint,
    Reject,
}

fn meets(case: &Case, list: ListKind, flags: FrontendFlags, drop: FrontendFlags) -> Meets {
    match (case.tables.list(list).is_empty(), flags.has(drop)) {
        (false, false) => Meets::Endpoint,
        (true, false) => Meets::Reject,
        (true, true) => Meets::Drop,
        (false, true) => panic!("an endpoint, and drop"),
    }
}

/// What clients on this node and clients outside meet at each kind of address.
fn row(
    family: Family,
    internal: TrafficPolicy,
    external: TrafficPolicy,
    node: Option<&str>,
) -> Vec<(Meets, Meets)> {
    let endpoints = node.map(|node| endpoint(family, 1, node)).into_iter().collect();
    let case = case(family, &exposed(family, internal, external), endpoints);
    [(CLUSTER, 1, 80), (OUTSIDE, 5, 80), (OUTSIDE, 6, 80), (NODES, 1, 30080)]
        .map(|(net, n, port)| {
            let Frontend { flags, internal, external, .. } = case.frontend(net, n, port);
            (
                meets(&case, internal, flags, FrontendFlags::DROP_INTERNAL),
                meets(&case, external, flags, FrontendFlags::DROP_EXTERNAL),
            )
        })
        .into()
}

#[test]
fn s5_the_whole_table_of_no_usable_endpoint() {
    let same = |meets: fn() -> Meets| (meets(), meets());
    let (drop, endpoint, reject) = (|| Meets::Drop, || Meets::Endpoint, || Meets::Reject);
    for family in FAMILIES {
        for internal in [CLUSTER_POLICY, Local] {
            for external in [CLUSTER_POLICY, Local] {
                // No endpoint anywhere: refused, whatever the policies.
                let nowhere = row(family, internal, external, None);
                assert!(nowhere.iter().all(|meets| *meets == same(reject)), "{nowhere:?}");
                let here = row(family, internal, external, Some("here"));
                assert!(here.iter().all(|meets| *meets == same(endpoint)), "{here:?}");
                // One on another node.
                let there = row(family, internal, external, Some("there"));
                let cluster_ip = if internal == Local { same(drop) } else { same(endpoint) };
                let outside = if external == Local { drop() } else { endpoint() };
                assert_eq!(there[0], cluster_ip);
                for other in &there[1..] {
                    assert_eq!(
                        other,
                        &(endpoint(), if outside == Meets::Drop { drop() } else { endpoint() })
                    );
                }
            }
        }
    }
}

#[test]
fn s6_3_and_s6_4_clients_on_this_node_skip_the_external_policy() {
    for family in FAMILIES {
        let endpoints = vec![endpoint(family, 1, "here"), endpoint(family, 2, "there")];
        let case = case(family, &exposed(family, CLUSTER_POLICY, Local), endpoints);
        for (net, n, port) in [(OUTSIDE, 5, 80), (OUTSIDE, 6, 80), (NODES, 1, 30080)] {
            let frontend = case.frontend(net, n, port);
            assert_eq!(frontend.internal, ListKind::Cluster);
            assert_eq!(frontend.external, ListKind::Local, "S6.2");
        }
        assert_eq!((case.cluster(), case.local()), (vec![1, 2], vec![1]));
    }
}

#[test]
fn s7_the_internal_policy_is_for_cluster_ips_alone() {
    for family in FAMILIES {
        let case = case(family, &exposed(family, Local, CLUSTER_POLICY), Vec::new());
        let lists = |f: Frontend| (f.internal, f.external);
        assert_eq!(lists(case.frontend(CLUSTER, 1, 80)), (ListKind::Local, ListKind::Local));
        for (net, n, port) in [(OUTSIDE, 5, 80), (OUTSIDE, 6, 80), (NODES, 2, 30080)] {
            let other = case.frontend(net, n, port);
            assert_eq!(lists(other), (ListKind::Cluster, ListKind::Cluster));
        }
    }
}

#[test]
fn s8_a_node_port_answers_on_the_nodes_addresses_and_to_the_host_on_loopback() {
    for (family, loopback, link_local) in
        [(Family::V4, "127.0.0.1", "169.254.7.7"), (Family::V6, "::1", "fe80::7")]
    {
        let (loopback, link_local): (IpAddr, IpAddr) =
            (loopback.parse().unwrap(), link_local.parse().unwrap());
        let mut service = service(family, "web", 1);
        service.ports[0].node_port = Some(30080.try_into().unwrap());
        let mut facts = facts();
        facts.node_port_addresses.extend([link_local, loopback]);
        let tables = tables_of(&service, &[], &facts);
        let tables = &tables.ports.first_key_value().unwrap().1.families[&family];
        let flags: BTreeMap<_, _> = tables
            .frontends
            .iter()
            .filter(|(_, frontend)| frontend.kind == FrontendKind::NODE_PORT)
            .map(|(address, frontend)| (*address, frontend.flags.0))
            .collect();
        let wanted = [
            (tcp(ip(family, NODES, 1), 30080), 0),
            (tcp(ip(family, NODES, 2), 30080), 0),
            (tcp(loopback, 30080), FrontendFlags::HOST_ONLY.0),
            (tcp(unspecified(family), 30080), FrontendFlags::HOST_ONLY.0),
        ];
        assert_eq!(flags, wanted.into());
    }
}

fn unspecified(family: Family) -> IpAddr {
    match family {
        Family::V4 => std::net::Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}

#[test]
fn s8_a_guard_keeps_a_node_port_that_answers_from_others_and_only_that() {
    for family in FAMILIES {
        let case = case(family, &exposed(family, CLUSTER_POLICY, CLUSTER_POLICY), Vec::new());
        let guard = case.tables.frontends[&tcp(unspecified(family), 30080)];
        let nobody = FrontendFlags::HOST_ONLY.with(FrontendFlags::BIND_ONLY);
        assert_eq!((guard.kind, guard.flags), (FrontendKind::NODE_PORT, nobody));
        let others = case.tables.frontends.keys().filter(|at| at.ip.is_unspecified());
        assert_eq!(others.count(), 1, "ports of other frontends are free");

        let mut facts = facts();
        facts.node_port_addresses.retain(|ip| Family::of(*ip) != family);
        let tables = tables_of(&exposed(family, CLUSTER_POLICY, CLUSTER_POLICY), &[], &facts);
        let port = tables.ports.first_key_value().unwrap().1;
        assert!(port.frontends().all(|(_, frontend)| frontend.kind != FrontendKind::NODE_PORT));
    }
}

#[test]
fn a_service_of_one_family_has_no_frontends_and_backends_of_the_other() {
    let mut service = exposed(Family::V4, CLUSTER_POLICY, CLUSTER_POLICY);
    service.external_ips.push(ip(Family::V6, OUTSIDE, 6));
    let slices =
        FAMILIES.map(|family| slice(family, "web-1", "web", vec![endpoint(family, 1, "here")]));
    let tables = tables_of(&service, &slices, &facts());
    let port = tables.ports.first_key_value().unwrap().1;
    assert_eq!(port.families.keys().collect::<Vec<_>>(), [&Family::V4]);
    assert!(port.backends().all(|(address, _)| address.is_ipv4()));
}

#[test]
fn s22_a_cluster_ip_that_a_local_device_holds_is_left_alone() {
    let service = exposed(Family::V4, CLUSTER_POLICY, CLUSTER_POLICY);
    let mut facts = facts();
    facts.local_addresses.insert(ip(Family::V4, CLUSTER, 1));
    let tables = tables_of(&service, &[], &facts);
    let port = tables.ports.first_key_value().unwrap().1;
    assert!(port.frontends().all(|(_, frontend)| frontend.kind != FrontendKind::CLUSTER_IP));
    assert_eq!(port.frontends().count(), 5);
    // Not even as another address of the same Service.
    let external_ips = service.cluster_ips.clone();
    let tables = tables_of(&Service { external_ips, ..service }, &[], &facts);
    assert_eq!(tables.ports.first_key_value().unwrap().1.frontends().count(), 4);
}

/// The flags of affinity of the backends, by pod.
fn affine(case: &Case) -> Vec<u16> {
    let affine = BackendFlags::AFFINE_CLUSTER.with(BackendFlags::AFFINE_LOCAL);
    case.tables.backends.values().map(|backend| backend.flags.0 & affine.0).collect()
}

#[test]
fn s10_affinity_holds_to_the_backends_of_each_list_alone() {
    let (cluster, local) = (BackendFlags::AFFINE_CLUSTER.0, BackendFlags::AFFINE_LOCAL.0);
    for family in FAMILIES {
        let endpoints = [
            endpoint(family, 1, "here"),
            endpoint(family, 2, "there"),
            leaving(endpoint(family, 3, "here")),
            leaving(endpoint(family, 4, "there")),
        ];
        let flags = |external, timeout, endpoints: &[Endpoint]| {
            let mut service = exposed(family, CLUSTER_POLICY, external);
            service.affinity_timeout = timeout;
            affine(&case(family, &service, endpoints.to_vec()))
        };
        assert_eq!(flags(Local, None, &endpoints), [0, 0, 0, 0]);
        assert_eq!(flags(CLUSTER_POLICY, Some(10), &endpoints), [cluster, cluster, 0, 0]);
        assert_eq!(flags(Local, Some(10), &endpoints), [cluster | local, cluster, 0, 0]);
        // Where nothing is ready here, the Local list falls back; and so does the other one.
        assert_eq!(flags(Local, Some(10), &endpoints[1..]), [cluster, local, 0]);
        assert_eq!(flags(Local, Some(10), &endpoints[2..]), [cluster | local, cluster]);
    }
}

/// Another Service may have taken the frontends that led to one of them.
#[test]
fn a_list_that_no_frontend_leads_to_is_not_used() {
    for family in FAMILIES {
        let endpoints = vec![endpoint(family, 1, "here"), endpoint(family, 2, "there")];
        let case = case(family, &exposed(family, Local, CLUSTER_POLICY), endpoints);
        for (is_cluster_ip, list) in [(true, case.local()), (false, case.cluster())] {
            let mut tables = case.tables.clone();
            tables.frontends.retain(|_, f| (f.kind == FrontendKind::CLUSTER_IP) == is_cluster_ip);
            let used: Vec<_> = tables.used_lists().map(|list| Case::numbers(list)).collect();
            assert_eq!(used, [list]);
        }
    }
}

/// Whose clients outside are carried to other nodes: as the Service says, else the node; never under policy
/// Local, which knows no other node.
#[test]
fn clients_outside_are_carried_where_service_or_node_says_so() {
    use crate::model::Forwarding::{Dsr, Hybrid, Snat};
    let carries = |node, said, protocol, policy| {
        let mut service = exposed(Family::V4, CLUSTER_POLICY, policy);
        service.forwarding = said;
        service.ports[0].protocol = protocol;
        let facts = NodeFacts { forwarding: node, ..facts() };
        let tables = super::super::service(&service, [], &facts);
        let port = tables.ports.values().next().unwrap();
        let flags = port.frontends().map(|(address, frontend)| (*address, frontend.flags));
        let outside = flags.filter(|(address, _)| {
            address.port == 30080 || address.ip == ip(Family::V4, OUTSIDE, 5)
        });
        let carried: BTreeSet<bool> =
            outside.map(|(_, flags)| flags.has(FrontendFlags::DSR)).collect();
        assert_eq!(carried.len(), 1);
        carried.first() == Some(&true)
    };
    let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
    assert!(!carries(Snat, None, tcp, CLUSTER_POLICY));
    assert!(carries(Dsr, None, udp, CLUSTER_POLICY));
    assert!(carries(Hybrid, None, tcp, CLUSTER_POLICY));
    assert!(!carries(Hybrid, None, udp, CLUSTER_POLICY));
    assert!(carries(Snat, Some(Dsr), udp, CLUSTER_POLICY));
    assert!(!carries(Dsr, Some(Snat), tcp, CLUSTER_POLICY));
    assert!(!carries(Dsr, None, tcp, Local));
}

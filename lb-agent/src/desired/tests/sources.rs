//! Rules that look at who asks: S9, who is local (S6), and whom backends see.

use lb_common::abi::{FrontendFlags, FrontendKind};

use super::*;
use crate::model::TrafficPolicy::Local;

/// Kinds of the addresses that have a flag.
fn flagged(tables: &FamilyTables, flag: FrontendFlags) -> Vec<u16> {
    let frontends = tables.frontends.values().filter(|frontend| frontend.flags.has(flag));
    let mut kinds: Vec<u16> = frontends.map(|frontend| frontend.kind.0).collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}

fn with_ranges(family: Family, ranges: &[&str]) -> FamilyTables {
    let mut service = exposed(family, CLUSTER_POLICY, CLUSTER_POLICY);
    service.source_ranges = ranges.iter().map(|text| text.parse().unwrap()).collect();
    let facts = NodeFacts { primary_addresses: [ip(family, NODES, 1)].into(), ..facts() };
    let tables = tables_of(&service, &[], &facts);
    assert_eq!(tables.problems, []);
    tables.ports.first_key_value().unwrap().1.families[&family].clone()
}

fn texts(tables: &FamilyTables) -> Vec<String> {
    tables.source_ranges.iter().map(ToString::to_string).collect()
}

#[test]
fn s9_source_ranges_are_checked_at_load_balancer_addresses_alone() {
    for (family, range) in [(Family::V4, "198.51.100.0/24"), (Family::V6, "2001:db8::/32")] {
        let tables = with_ranges(family, &["198.51.100.0/24", "2001:db8::/32"]);
        let checked = flagged(&tables, FrontendFlags::CHECK_SOURCE);
        assert_eq!(checked, [FrontendKind::LOAD_BALANCER.0]);
        assert_eq!(texts(&tables), [range]);
    }
}

#[test]
fn s9_ranges_of_the_other_family_leave_a_family_open() {
    let tables = with_ranges(Family::V4, &["2001:db8::/32"]);
    assert_eq!(flagged(&tables, FrontendFlags::CHECK_SOURCE), [0_u16; 0]);
    assert_eq!(texts(&tables), [""; 0]);
}

#[test]
fn s9_where_the_node_may_ask_its_load_balancer_address_may() {
    assert_eq!(texts(&with_ranges(Family::V4, &["10.1.0.0/16"])), ["10.1.0.0/16", "10.9.0.5/32"]);
    let v6 = with_ranges(Family::V6, &["fd00:1::/32"]);
    assert_eq!(texts(&v6), ["fd00:1::/32", "fd00:9::5/128"]);
}

#[test]
fn s6_sources_tell_who_is_local_where_a_policy_asks() {
    for family in FAMILIES {
        let mut facts = facts();
        let tables = |service: &Service, facts: &NodeFacts| {
            let tables = tables_of(service, &[], facts);
            tables.ports.first_key_value().unwrap().1.families[&family].clone()
        };
        let local = exposed(family, Local, Local);
        let flag = FrontendFlags::LOCAL_BY_SOURCE;
        assert_eq!(flagged(&tables(&local, &facts), flag), [0_u16; 0]);
        facts.local_sources.insert("10.248.0.0/16".parse().unwrap());
        let outside =
            [FrontendKind::EXTERNAL_IP.0, FrontendKind::LOAD_BALANCER.0, FrontendKind::NODE_PORT.0];
        assert_eq!(flagged(&tables(&local, &facts), flag), outside);
        let cluster = exposed(family, Local, CLUSTER_POLICY);
        assert_eq!(flagged(&tables(&cluster, &facts), flag), [0_u16; 0]);
    }
}

#[test]
fn masquerade_all_leaves_clients_of_policy_local_their_addresses() {
    let facts = NodeFacts { masquerade_all: true, ..facts() };
    let all = [
        FrontendKind::CLUSTER_IP.0,
        FrontendKind::EXTERNAL_IP.0,
        FrontendKind::LOAD_BALANCER.0,
        FrontendKind::NODE_PORT.0,
    ];
    for family in FAMILIES {
        for (external, wanted) in [(CLUSTER_POLICY, &all[..]), (Local, &all[..1])] {
            let tables = tables_of(&exposed(family, Local, external), &[], &facts);
            let tables = &tables.ports.first_key_value().unwrap().1.families[&family];
            assert_eq!(flagged(tables, FrontendFlags::MASQUERADE), wanted);
        }
    }
}

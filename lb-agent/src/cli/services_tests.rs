//! A node with the Service of every course, and what the command makes of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnet::IpNet;

use super::*;
use crate::{dataplane::BackendEntry, model::Protocol, names::BackendNames};

const ALL: Region = Region { first_chunk: 1, length: 7 };
const LOCAL: Region = Region { first_chunk: 2, length: 7 };
const V6: Region = Region { first_chunk: 3, length: 7 };

fn frontend(address: &str, protocol: Protocol) -> FrontendAddress {
    let address: SocketAddr = address.parse().unwrap();
    FrontendAddress { ip: address.ip(), port: address.port(), protocol }
}

fn entry(kind: FrontendKind, internal: Region, external: Region) -> FrontendEntry {
    FrontendEntry {
        service: ServiceId(1),
        kind,
        flags: FrontendFlags::NONE,
        affinity_timeout: 0,
        internal,
        external,
    }
}

fn snapshot() -> Snapshot {
    let mut snapshot = Snapshot::default();
    let backends = ["10.248.1.20:80", "10.248.1.21:80", "10.248.2.50:80", "10.248.2.51:80"];
    for (index, address) in (1..).zip(backends) {
        let local = address.starts_with("10.248.1.");
        let flags = if local { BackendFlags::LOCAL } else { BackendFlags::NONE };
        let address = address.parse().unwrap();
        let entry = BackendEntry { address, flags, generation: 1, service: ServiceId(1) };
        snapshot.backends.insert(BackendId { family: Family::V4, index }, entry);
    }
    let v6 = BackendEntry {
        address: "[fd00:10:248::2]:80".parse().unwrap(),
        flags: BackendFlags::NONE,
        generation: 1,
        service: ServiceId(1),
    };
    snapshot.backends.insert(BackendId { family: Family::V6, index: 1 }, v6);
    let mut region = |region: Region, slots: &[u32]| {
        snapshot.regions.insert(region.first_chunk, (region, Arc::from(slots)));
    };
    region(ALL, &[4, 1, 2, 3, 1, 2, 3]);
    region(LOCAL, &[1, 2, 1, 2, 1, 2, 1]);
    region(V6, &[1, 1, 1, 1, 1, 1, 1]);
    snapshot.frontends = frontends();
    snapshot.source_ranges = source_ranges();
    snapshot
}

fn frontends() -> BTreeMap<FrontendAddress, FrontendEntry> {
    let none = Region::EMPTY;
    let refused =
        FrontendEntry { service: ServiceId(2), ..entry(FrontendKind::CLUSTER_IP, none, none) };
    let dropped = FrontendEntry {
        flags: FrontendFlags::DROP_EXTERNAL.with(FrontendFlags::CHECK_SOURCE),
        ..entry(FrontendKind::LOAD_BALANCER, ALL, none)
    };
    let cluster = entry(FrontendKind::CLUSTER_IP, ALL, ALL);
    let cluster_v6 =
        FrontendEntry { affinity_timeout: 10_800, ..entry(FrontendKind::CLUSTER_IP, V6, V6) };
    BTreeMap::from([
        (frontend("10.96.100.100:80", Protocol::Tcp), cluster),
        (frontend("[fd00:10:96::64]:80", Protocol::Tcp), cluster_v6),
        (frontend("192.0.2.2:30080", Protocol::Tcp), entry(FrontendKind::NODE_PORT, ALL, LOCAL)),
        (frontend("0.0.0.0:30080", Protocol::Tcp), entry(FrontendKind::NODE_PORT, ALL, LOCAL)),
        (frontend("203.0.113.1:80", Protocol::Tcp), dropped),
        (frontend("10.96.0.10:53", Protocol::Udp), refused),
    ])
}

fn source_ranges() -> BTreeSet<(ServiceId, IpNet)> {
    let ranges = [(1, "198.51.100.0/24"), (1, "fd00::/8"), (2, "10.0.0.0/8")];
    ranges.map(|(id, text)| (ServiceId(id), text.parse().unwrap())).into()
}

fn names() -> NameTable {
    let pod = |index, pod: &str, node: &str| {
        (index, BackendNames { pod: format!("default/{pod}"), node: node.into() })
    };
    let web = ServiceNames {
        namespace: "default".into(),
        name: "web-svc".into(),
        port: "http".into(),
        v4: BTreeMap::from([pod(1, "web-1", "a"), pod(2, "web-2", "a"), pod(3, "web-3", "b")]),
        v6: BTreeMap::from([pod(1, "web-3", "b")]),
    };
    NameTable::from([(ServiceId(1), web)])
}

#[test]
fn the_short_table_counts_and_abbreviates() {
    let expected = "\
SERVICE               TYPE          FRONTEND                 BACKENDS
default/web-svc:http  ClusterIP     10.96.100.100:80/TCP     4: 10.248.1.20:80, 10.248.1.21:80, 10.248.2.50:80 +1
default/web-svc:http  ClusterIP     [fd00:10:96::64]:80/TCP  1: [fd00:10:248::2]:80
default/web-svc:http  LoadBalancer  203.0.113.1:80/TCP       4: 10.248.1.20:80, 10.248.1.21:80, 10.248.2.50:80 +1
                                                             from outside: none: dropped
                                                             only from: 198.51.100.0/24
default/web-svc:http  NodePort      192.0.2.2:30080/TCP      4: 10.248.1.20:80, 10.248.1.21:80, 10.248.2.50:80 +1
                                                             from outside: 2: 10.248.1.20:80, 10.248.1.21:80
service 2             ClusterIP     10.96.0.10:53/UDP        none: refused
";
    assert_eq!(trimmed(&text(&rows(&snapshot(), &names()), Format::Table)), expected);
}

#[test]
fn the_wide_table_names_pods_and_nodes() {
    let mut rows = rows(&snapshot(), &names());
    rows.truncate(2);
    let expected = "\
SERVICE               TYPE       FRONTEND                 AFFINITY  BACKENDS
default/web-svc:http  ClusterIP  10.96.100.100:80/TCP     none      10.248.1.20:80 default/web-1 on a (this node)
                                                                    10.248.1.21:80 default/web-2 on a (this node)
                                                                    10.248.2.50:80 default/web-3 on b
                                                                    10.248.2.51:80 ? on ?
default/web-svc:http  ClusterIP  [fd00:10:96::64]:80/TCP  10800 s   [fd00:10:248::2]:80 default/web-3 on b
";
    assert_eq!(trimmed(&text(&rows, Format::Wide)), expected);
}

#[test]
fn programs_get_everything() {
    let rows = rows(&snapshot(), &names());
    let value = serde_json::to_value(&rows).unwrap();
    let load_balancer = &value[2];
    assert_eq!(load_balancer["service"], "default/web-svc:http");
    assert_eq!(load_balancer["kind"], "LoadBalancer");
    assert_eq!(load_balancer["frontend"]["ip"], "203.0.113.1");
    assert_eq!(load_balancer["frontend"]["port"], 80);
    assert_eq!(load_balancer["protocol"], "TCP");
    assert_eq!(load_balancer["affinity_timeout_seconds"], 0);
    assert_eq!(value[1]["affinity_timeout_seconds"], 10_800);
    assert_eq!(load_balancer["external"]["answer"], "drop");
    assert_eq!(load_balancer["internal"]["answer"], "backends");
    let backend = serde_json::json!({
        "address": "10.248.2.50", "port": 80, "pod": "default/web-3", "node": "b", "local": false
    });
    assert_eq!(load_balancer["internal"]["backends"][2], backend);
    assert_eq!(load_balancer["sources"], serde_json::json!(["198.51.100.0/24"]));
    assert_eq!(value[4]["internal"]["answer"], "reject");
    assert_eq!(value[4]["sources"], serde_json::json!([]));
}

#[test]
fn filters_are_parts_of_names() {
    let rows = rows(&snapshot(), &names());
    let left = |filters: &[&str]| {
        let filters: Vec<_> = filters.iter().map(|&filter| filter.to_owned()).collect();
        rows.iter().filter(|row| matches(row, &filters)).count()
    };
    assert_eq!(
        (left(&[]), left(&["web"]), left(&["web", "service 2"]), left(&["x"])),
        (5, 4, 5, 0)
    );
}

fn trimmed(text: &str) -> String {
    text.lines().flat_map(|line| [line.trim_end(), "\n"]).collect()
}

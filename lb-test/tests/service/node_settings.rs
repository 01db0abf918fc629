//! Settings of the node's kernel that a Service proxy owns (S16), and ports that nobody is given by
//! chance (S8), all in the namespace of a node.

use std::collections::BTreeSet;

use lb_test::{Family, Host, SocketLb};

use crate::Cluster;
use crate::ask::probe;

const RESERVED: &str = "net/ipv4/ip_local_reserved_ports";
const CLOSE_WAIT: &str = "net/netfilter/nf_conntrack_tcp_timeout_close_wait";
const ESTABLISHED: &str = "net/netfilter/nf_conntrack_tcp_timeout_established";

fn get(host: &Host, name: &str) -> String {
    host.run("cat", &[&format!("/proc/sys/{name}")]).unwrap().trim().to_owned()
}

fn set(host: &Host, name: &str, value: &str) {
    host.run("sh", &["-c", &format!("echo {value} > /proc/sys/{name}")]).unwrap();
}

/// The ports that connections and binds to any port get.
fn given_by_chance(cluster: &Cluster) -> BTreeSet<u16> {
    let node = cluster.node("node1");
    let mut ports = BTreeSet::new();
    for family in Family::BOTH {
        let to = cluster.pod("web-1").socket(family, 8080).to_string();
        let lines = probe(node, &["tcp-get", &to, "--count", "10"]);
        let locals = lines.iter().filter_map(|line| line["local"].as_str());
        ports.extend(locals.map(|local| local.parse::<std::net::SocketAddr>().unwrap().port()));
        let any = std::net::SocketAddr::new(family.unspecified(), 0).to_string();
        let lines = probe(node, &["bind", &any, &any, &any]);
        ports.extend(
            lines.iter().map(|line| u16::try_from(line["port"].as_u64().unwrap()).unwrap()),
        );
    }
    ports
}

#[test]
fn s8_s16_settings_of_the_node_are_made_and_taken_back() {
    lb_test::require_topology!();
    let mut cluster = Cluster::start(SocketLb::Off, &[]);
    cluster.agents[0].term().unwrap();
    cluster.agents[0].command(&["cleanup"]).unwrap();
    let node = Host::clone(cluster.node("node1"));
    set(&node, "net/ipv4/ip_local_port_range", "'30000 30299'");
    set(&node, RESERVED, "8080,30090-30109");
    set(&node, CLOSE_WAIT, "60");
    set(&node, ESTABLISHED, "432000");

    // Each namespace sees the room for all of them, and cannot change it.
    let room = ["--conntrack-max-per-core=1", "--conntrack-min=131073"];
    let ranges = ["--service-node-port-range=30000-30099", "--snat-port-range=61000-61009"];
    cluster = cluster.with_agents(&["node1"], &[room, ranges].concat());
    assert_eq!(get(&node, RESERVED), "8080,30000-30109,61000-61009");
    assert_eq!(get(&node, CLOSE_WAIT), "3600", "kube_proxy.go: should set TCP CLOSE_WAIT timeout");
    assert_eq!(get(&node, ESTABLISHED), "86400");
    let given = given_by_chance(&cluster);
    assert!(
        given.len() > 5 && given.iter().all(|port| (30110..=30299).contains(port)),
        "{given:?}"
    );
    let log = cluster.agents[0].log();
    let warnings: Vec<_> = log.lines().filter(|line| line.contains("131073")).collect();
    let [warning] = warnings[..] else { panic!("{log}") };
    assert!(
        warning.contains("not set: net.netfilter.nf_conntrack_max = 131073: Permission denied")
    );
    assert!(warning.contains("--conntrack-max-per-core=0"), "{warning}");

    set(&node, "net/ipv4/ip_local_port_range", "'32768 60999'");
    // Another start with other settings: what was there before is still known.
    let left = ["--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0"];
    cluster =
        cluster.with_agents(&["node1"], &[&left[..], &["--conntrack-udp-timeout=31s"]].concat());
    assert_eq!(get(&node, RESERVED), "8080,30000-32767,61000-65535");
    assert_eq!((&*get(&node, ESTABLISHED), &*get(&node, CLOSE_WAIT)), ("432000", "3600"));
    assert_eq!(get(&node, "net/netfilter/nf_conntrack_udp_timeout"), "31");

    set(&node, CLOSE_WAIT, "77");
    cluster.agents[0].term().unwrap();
    let said = cluster.agents[0].command(&["cleanup"]).unwrap();
    assert!(said.contains("removed setting net.netfilter.nf_conntrack_udp_timeout = 31"), "{said}");
    assert_eq!(get(&node, RESERVED), "8080,30090-30109");
    assert_eq!(get(&node, CLOSE_WAIT), "77", "set by somebody else since");
}

//! Who is chosen, who is refused and who is dropped: conditions (S1), the table of S5, and both
//! traffic policies (S6, S7).

use std::net::SocketAddr;

use lb_test::PATIENT;
use lb_test::manifests::{Condition, Service, cluster_ips, external_ips, list, pod};
use lb_test::{Family, Host, SocketLb};

use crate::ask::{assert_answering, assert_refused, assert_silent, client_seen, echoing};
use crate::{Cluster, cluster_sockets, on_both_paths};

on_both_paths! {
    conditions => conditions_choose_the_backends_by_the_socket_path, conditions_choose_the_backends_by_the_packet_path;
    nothing_anywhere => without_endpoints_all_are_refused_by_the_socket_path, without_endpoints_all_are_refused_by_the_packet_path, without_endpoints_all_are_refused_with_xdp;
    local_elsewhere => local_policies_drop_or_skip_by_the_socket_path, local_policies_drop_or_skip_by_the_packet_path;
}

/// A Service on TCP and UDP port 80, open on every node and at `number`'s addresses.
fn open(name: &str, number: u8, node_port: u16) -> Service {
    let service = Service::new(name, number).tcp(80, 8080).node_port(node_port);
    let service = service.udp(80, 5353).node_port(node_port);
    service.external_ips(external_ips(number)).ingress(external_ips(100 + number), "VIP")
}

/// The frontends of `number` that clients outside may use, at node1.
fn external(cluster: &Cluster, number: u8, node_port: u16) -> Vec<SocketAddr> {
    let of = |family| {
        [
            cluster.node("node1").socket(family, node_port),
            external_ips(number).socket(family, 80),
            external_ips(100 + number).socket(family, 80),
        ]
    };
    Family::BOTH.into_iter().flat_map(of).collect()
}

/// Does a process of the node itself reach its own NodePort only by the socket path?
fn needs_socket_path(cluster: &Cluster, from: &Host, to: SocketAddr) -> bool {
    from.name() == "node1" && cluster.nodes()[0].ip(Family::V4) == to.ip()
        || from.name() == "node1" && cluster.nodes()[0].ip(Family::V6) == to.ip()
}

fn conditions(path: SocketLb) {
    let services = [
        Service::new("ready", 1).select("ready").tcp(80, 8080).object(),
        Service::new("fallback", 2).select("fallback").tcp(80, 8080).object(),
        open("local", 3, 30003).select("local").external_local().object(),
        Service::new("failing", 4).select("failing").tcp(80, 8080).udp(80, 5353).object(),
    ];
    let cluster = Cluster::start_with(path, lb_test::NodeSpec::new("node1"), |topology| {
        let [one, two, three] = ["web-1", "web-2", "web-3"].map(|name| topology.pod(name));
        let pods = [
            pod("a", one, &["ready"], Condition::Ready),
            pod("b", two, &["ready", "failing"], Condition::NotReady),
            pod("c", three, &["ready", "fallback", "local"], Condition::Leaving),
            pod("d", two, &["fallback", "failing"], Condition::Failing),
            pod("e", one, &["fallback"], Condition::NotReady),
            pod("f", two, &["local"], Condition::Ready),
        ];
        services.iter().cloned().chain(pods).collect()
    });
    cluster.route_services();
    for from in cluster.inside() {
        for family in Family::BOTH {
            let at = |number| cluster_ips(number).socket(family, 80);
            assert_answering(from, at(1), &["web-1"]);
            assert_answering(from, at(2), &["web-3"]);
            assert_answering(from, at(3), &["web-2"]);
            assert_refused(from, at(4));
        }
    }
    for to in external(&cluster, 3, 30003) {
        assert_answering(cluster.outside(), to, &["web-3"]);
    }
}

/// The first column of S5's table: refused at once, whatever the address and the policy.
fn nothing_anywhere(path: SocketLb) {
    let services = [
        open("cluster", 1, 30001).select("none").object(),
        open("local", 2, 30002).select("none").external_local().internal_local().object(),
    ];
    let cluster = Cluster::start(path, &services);
    cluster.route_services();
    let before = cluster.counted("no_local_endpoint");
    for (number, node_port) in [(1, 30001), (2, 30002)] {
        let external = external(&cluster, number, node_port);
        for to in external.iter().copied().chain(cluster_sockets(number, 80)) {
            for from in cluster.inside() {
                assert_refused(from, to);
            }
            assert_refused(cluster.outside(), to);
        }
    }
    // By devices that leave no checksum to the other end, as they came.
    let node = cluster.node("node1");
    let pods = ["shell", "side", "kata"].map(|name| cluster.pod(name));
    let devices = pods.iter().map(|pod| pod.device()).chain(["eth0".to_owned()]);
    for device in devices {
        node.complete_checksums(&device).unwrap();
    }
    for to in cluster_sockets(1, 80) {
        for pod in pods {
            assert_refused(pod, to);
        }
        assert_refused(cluster.outside(), to);
    }
    assert_eq!(cluster.counted("no_local_endpoint"), before);
    assert!(cluster.counted("no_endpoint") > 0, "{:#}", cluster.agents[0].status().unwrap());
}

/// The other columns: the only endpoint is on node2, and who asks is at node1.
fn local_elsewhere(path: SocketLb) {
    let services = [
        open("internal", 1, 30001).select("web-2").internal_local().object(),
        open("external", 2, 30002).select("web-2").external_local().object(),
    ];
    let cluster = Cluster::without_agents(path, &services).with_agents(&["node1", "node2"], &[]);
    cluster.route_services();
    for from in cluster.inside() {
        for to in cluster_sockets(1, 80) {
            assert_dropped(&cluster, from, to);
        }
        // S7: a node port is no business of internalTrafficPolicy. S6.3, S6.4: nor, inside the
        // cluster, of externalTrafficPolicy.
        let both = external(&cluster, 1, 30001).into_iter().chain(external(&cluster, 2, 30002));
        for to in both.chain(cluster_sockets(2, 80)) {
            if path == SocketLb::All || !needs_socket_path(&cluster, from, to) {
                assert_answering(from, to, &["web-2"]);
                assert_eq!(echoing(from, to, &[]), "web-2");
            }
        }
    }
    for to in external(&cluster, 1, 30001) {
        assert_answering(cluster.outside(), to, &["web-2"]);
    }
    for to in external(&cluster, 2, 30002) {
        assert_dropped(&cluster, cluster.outside(), to);
    }
    keeps_addresses(&cluster);
}

/// S6.2, S6.3: who asks under policy Local is seen by the backend.
fn keeps_addresses(cluster: &Cluster) {
    let (client, shell) = (cluster.outside(), cluster.pod("shell"));
    for family in Family::BOTH {
        let node2 = cluster.node("node2").socket(family, 30002);
        assert_eq!(client_seen(client, node2).0, client.ip(family));
        assert_eq!(client_seen(shell, external_ips(2).socket(family, 80)).0, shell.ip(family));
        let node1 = cluster.node("node1").socket(family, 30002);
        assert_eq!(client_seen(shell, node1).0, shell.ip(family));
    }
}

#[track_caller]
fn assert_dropped(cluster: &Cluster, from: &Host, to: SocketAddr) {
    let before = cluster.counted("no_local_endpoint");
    assert_silent(from, to);
    assert!(cluster.counted("no_local_endpoint") >= before + 2, "{} to {to}", from.name());
}

/// Endpoints that come and go change the answer of one and the same Service.
#[test]
fn the_answer_follows_the_endpoints() {
    lb_test::require_topology!();
    let service = open("web", 1, 30001).select("web").external_local();
    let cluster = Cluster::start(SocketLb::All, &[service.object()]);
    let (client, to) = (cluster.outside(), cluster.node("node1").socket(Family::V4, 30001));
    assert_answering(client, to, &["web-1", "web-3"]);
    let becomes = |names: &[&str], wanted: &str| {
        let objects: Vec<_> = names
            .iter()
            .map(|name| pod(name, cluster.pod(name), &["web"], Condition::Ready))
            .collect();
        cluster.apply("pods.yaml", &list(&objects)).unwrap();
        lb_test::eventually(PATIENT, wanted, || {
            let lines = crate::ask::probe(client, &["tcp-get", &to.to_string(), "--timeout", "50"]);
            anyhow::ensure!(lines[0].to_string().contains(wanted), "{lines:?}");
            Ok(())
        });
    };
    becomes(&["web-2"], "timed out");
    becomes(&[], "refused");
    becomes(&["web-3"], "\"web-3\"");
}

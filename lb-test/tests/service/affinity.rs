//! S10: a client stays with its backend, by whichever address of the Service it asks.
//!
//! Chance would hide much: each client is given web-1 while there is no other pod, and kept there
//! by affinity alone when there are three.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::ensure;
use lb_test::PATIENT;
use lb_test::manifests::{Condition, Service, cluster_ips, external_ips, list, pod};
use lb_test::programs::{json_lines, start_probe};
use lb_test::{Family, Host, Process, SocketLb, eventually};
use serde_json::{Value, json};

use crate::ask::{answering_one, assert_answering, echoing};
use crate::{BACKENDS, Cluster, WEB, on_both_paths};

on_both_paths! {
    affinity => s10_clients_stay_with_their_backend_by_the_socket_path, s10_clients_stay_with_their_backend_by_the_packet_path, s10_clients_stay_with_their_backend_with_xdp;
}

/// Milliseconds: longer than the timeout of [`expiring`] by what a clock's tick may hide.
const PAUSE: &str = "1050";

/// The pod that answers TCP, and the one that answers UDP, to each client at each address.
type Chosen = BTreeMap<(String, SocketAddr), [String; 2]>;

/// The Services that keep a client, but for the one that forgets within a second; `is_on`
/// switches that.
fn services(is_on: bool) -> Vec<Value> {
    let service = |name: &str, number: u8, node_port: u16| {
        let service = Service::new(name, number).select(WEB).tcp(80, 8080).node_port(node_port);
        let service = service.udp(80, 5353).node_port(node_port);
        let service = service.ingress(external_ips(number), "VIP");
        service.spec("sessionAffinity", json!(if is_on { "ClientIP" } else { "None" }))
    };
    let local = service("local", 2, 30002).external_local();
    let expiring = service("expiring", 3, 30003);
    let timeout = json!({"clientIP": {"timeoutSeconds": 1}});
    let expiring = expiring.spec("sessionAffinity", json!("ClientIP"));
    let expiring = expiring.spec("sessionAffinityConfig", timeout);
    [service("web", 1, 30001), local, expiring].map(Service::object).into()
}

fn affinity(path: SocketLb) {
    let mut cluster = Cluster::start(path, &services(true));
    cluster.route_services();
    put(&cluster, &[("web-1", Condition::Ready)]);
    all_at_web_1(&ask_all(&cluster, 0));
    put(&cluster, &BACKENDS.map(|name| (name, Condition::Ready)));
    let expiring = expiring(&cluster);
    all_at_web_1(&ask_all(&cluster, 1));
    restart(&mut cluster);
    all_at_web_1(&ask_all(&cluster, 0));
    switch_off_and_on(&cluster);
    all_at_web_1(&ask_all(&cluster, 1));
    assert_expired(expiring);
    leaving(&cluster);
}

/// Asks by one of the two addresses of each Service that a client has, over connections and
/// sockets of its own.
fn ask_all(cluster: &Cluster, index: usize) -> Chosen {
    let mut chosen = Chosen::new();
    for family in Family::BOTH {
        let node_port = |port| cluster.node("node1").socket(family, port);
        let vip = |number| cluster_ips(number).socket(family, 80);
        let mut ask = |from: &Host, to: SocketAddr| {
            let pods = [answering_one(from, to), echoing(from, to, &[])];
            chosen.insert((from.name().to_owned(), to), pods);
        };
        for from in cluster.inside() {
            // By packets a process of a node does not reach the node's own port.
            let has_port = from.name() != "node1" || cluster.has_socket_path(from);
            ask(from, if has_port { [vip(1), node_port(30001)][index] } else { vip(1) });
        }
        let balanced = |number| external_ips(number).socket(family, 80);
        ask(cluster.outside(), [node_port(30001), balanced(1)][index]);
        ask(cluster.outside(), [node_port(30002), balanced(2)][index]);
        let node = cluster.node("node1");
        if cluster.has_socket_path(node) {
            ask(node, SocketAddr::new(family.loopback(), 30001));
        }
    }
    chosen
}

#[track_caller]
fn all_at_web_1(chosen: &Chosen) {
    assert!(chosen.values().flatten().all(|pod| pod == "web-1"), "{chosen:?}");
}

/// Makes these the pods of all Services, and waits until the tables know it.
fn put(cluster: &Cluster, pods: &[(&str, Condition)]) {
    let object = |(name, condition): &(&str, _)| pod(name, cluster.pod(name), &[WEB], *condition);
    let objects: Vec<_> = pods.iter().map(object).collect();
    cluster.apply("pods.yaml", &list(&objects)).unwrap();
    let ready = pods.iter().filter(|(_, condition)| *condition == Condition::Ready).count();
    wait_rows(cluster, |row| row["internal"]["backends"].as_array().map(Vec::len) == Some(ready));
}

fn wait_rows(cluster: &Cluster, is_so: impl Fn(&Value) -> bool) {
    eventually(PATIENT, "the tables follow", || {
        let rows = cluster.agents[0].services()?;
        let rows = rows.as_array().map(Vec::as_slice).unwrap_or_default();
        ensure!(!rows.is_empty() && rows.iter().all(&is_so), "{rows:?}");
        Ok(())
    });
}

fn restart(cluster: &mut Cluster) {
    let agent = &mut cluster.agents[0];
    agent.kill9().unwrap();
    agent.restart().unwrap();
    agent.wait_synced(lb_test::agent::START).unwrap();
}

/// What is remembered counts again if affinity is asked for again within the timeout.
fn switch_off_and_on(cluster: &Cluster) {
    for is_on in [false, true] {
        cluster.apply("objects.yaml", &list(&services(is_on))).unwrap();
        let timeout = if is_on { 10_800 } else { 0 };
        wait_rows(cluster, |row| {
            let is_expiring = row["service"].as_str().is_some_and(|name| name.contains("expiring"));
            is_expiring || row["affinity_timeout_seconds"] == timeout
        });
        if !is_on {
            for family in Family::BOTH {
                let vip = cluster_ips(1).socket(family, 80);
                for from in [cluster.pod("shell"), cluster.pod("kata"), cluster.outside()] {
                    assert_answering(from, vip, &BACKENDS);
                }
            }
        }
    }
}

/// Clients that begin a connection each time that the timeout has just passed.
fn expiring(cluster: &Cluster) -> Vec<(String, Process)> {
    let mut probes = Vec::new();
    for family in Family::BOTH {
        let to = cluster_ips(3).socket(family, 80).to_string();
        let arguments = ["tcp-get", &to, "--count", "6", "--interval", PAUSE];
        for from in cluster.inside().into_iter().chain([cluster.outside()]) {
            let probe = start_probe(from, &format!("expiring-{family:?}"), &arguments).unwrap();
            probes.push((from.name().to_owned(), probe));
        }
    }
    probes
}

/// Each has met another pod: that it chose one of three ten times alike is 1 in 59,049 runs.
fn assert_expired(probes: Vec<(String, Process)>) {
    let mut met: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (from, mut probe) in probes {
        probe.wait(PATIENT).unwrap();
        for line in json_lines(&probe.log()).unwrap() {
            assert_ne!(line["event"], "failure", "{from}: {line}");
            met.entry(from.clone()).or_default().extend(line["body"].as_str().map(str::to_owned));
        }
    }
    for (from, mut pods) in met {
        assert_eq!(pods.len(), 12, "{from}: {pods:?}");
        pods.sort_unstable();
        pods.dedup();
        assert!(pods.len() > 1, "{from} met {pods:?} alone");
    }
}

/// A pod that is terminating serves the connections that it has, and gets no others; when it is
/// back, its clients have others.
fn leaving(cluster: &Cluster) {
    let kept = kept_connections(cluster);
    let [one, two, three] = BACKENDS;
    let ready = |name| (name, Condition::Ready);
    put(cluster, &[(one, Condition::Leaving), ready(two), ready(three)]);
    let others = ask_all(cluster, 0);
    assert!(others.values().flatten().all(|pod| pod != "web-1"), "{others:?}");
    put(cluster, &[one, two, three].map(ready));
    assert_eq!(ask_all(cluster, 0), others);
    for connection in kept {
        let failures = connection.log().lines().filter(|line| line.contains("failure")).count();
        assert_eq!(failures, 0, "{}", connection.log());
    }
}

/// Connections that ask again and again; they are with web-1.
fn kept_connections(cluster: &Cluster) -> Vec<Process> {
    let mut kept = Vec::new();
    for family in Family::BOTH {
        let to = cluster_ips(1).socket(family, 80).to_string();
        let arguments = ["tcp-keepalive", &to, "--seconds", "600", "--interval", "20"];
        for from in [cluster.pod("shell"), cluster.pod("kata"), cluster.outside()] {
            let mut probe = start_probe(from, &format!("kept-{family:?}"), &arguments).unwrap();
            probe.wait_line("ready", PATIENT).unwrap();
            kept.push(probe);
        }
    }
    kept
}

//! All pods of a Service are replaced, one after the other, under constant requests.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

use anyhow::ensure;
use lb_agent::dataplane::Snapshot;
use lb_common::abi::BackendFlags;
use lb_test::{
    Family, Process, SocketLb, eventually, programs, programs::json_lines, require_topology,
};
use nix::sys::signal::Signal;
use serde_json::Value;

mod cluster;
use cluster::{Cluster, PATIENT, WEBS, pod, tables};

/// What each asker does the whole time, besides its address.
const LOADS: [(&str, u16, &[&str]); 3] = [
    ("tcp-get", 80, &["--parallel", "2", "--interval", "5", "--timeout", "5000"]),
    ("tcp-keepalive", 80, &["--parallel", "2", "--interval", "5", "--reconnect"]),
    ("udp", 53, &["--interval", "2", "--timeout", "2000"]),
];
/// Longer than a test takes: it ends its loads itself.
const SECONDS: &str = "600";

/// Requests of one kind from one place.
struct Load {
    name: String,
    kind: &'static str,
    process: Process,
}

impl Load {
    fn start_all(cluster: &Cluster) -> Vec<Self> {
        let mut loads = Vec::new();
        for (from, host) in cluster.askers() {
            for (family, (kind, port, options)) in
                Family::BOTH.into_iter().flat_map(|family| LOADS.map(|load| (family, load)))
            {
                let address = cluster.address(from, family, port);
                let mut arguments = vec![kind, &address, "--seconds", SECONDS];
                arguments.extend(options);
                let name = format!("{kind}-{family:?}");
                let process = programs::start_probe(host, &name, &arguments).unwrap();
                loads.push(Self { name: format!("{from} {name}"), kind, process });
            }
        }
        for load in &mut loads {
            let sign = if load.kind == "tcp-keepalive" { "\"ready\"" } else { "\"answer\"" };
            load.process.wait_line(sign, PATIENT).unwrap();
        }
        loads
    }

    /// What it has met so far, answers and failures.
    fn lines(&self) -> Vec<Value> {
        let log = self.process.log();
        let whole = log.rfind('\n').map_or("", |end| &log[..end]);
        json_lines(whole).unwrap()
    }

    /// Ends it, and judges what it has met while `removals` pods were taken away.
    fn judge(mut self, removals: usize) {
        eventually(PATIENT, "many answers", || {
            let count = self.process.log().lines().count();
            ensure!(self.kind != "udp" || count > 200, "{}: {count} datagrams", self.name);
            Ok(())
        });
        self.process.signal(Signal::SIGKILL).unwrap();
        let _ = self.process.wait(PATIENT);
        let lines = self.lines();
        let is_failure = |line: &Value| line["event"] == "failure";
        let failures: Vec<_> = lines.iter().filter(|line| is_failure(line)).collect();
        let name = &self.name;
        if self.kind != "udp" {
            assert!(failures.is_empty(), "{name}: {failures:?}");
            return;
        }
        assert!(failures.len() <= removals, "{name}: {failures:?}");
        let in_a_row = lines.windows(2).find(|pair| pair.iter().all(is_failure));
        assert_eq!(in_a_row, None, "{name}: the datagram after a lost one is lost, too");
    }
}

/// May flows go to the pod, as this node's tables have it?
fn serves(tables: &Snapshot, cluster: &Cluster, name: &str) -> bool {
    let ips = Family::BOTH.map(|family| cluster.topology.pod(name).ip(family));
    let mut backends = tables.backends.values();
    backends
        .any(|entry| ips.contains(&entry.address.ip()) && entry.flags.has(BackendFlags::SERVING))
}

/// Waits until the pod is, or is not, among the backends on both nodes.
#[track_caller]
fn wait_serving(cluster: &Cluster, name: &str, wanted: bool) {
    eventually(PATIENT, &format!("{name} serves = {wanted}"), || {
        for node in ["node1", "node2"].map(|node| cluster.topology.node(node)) {
            ensure!(serves(&tables(node), cluster, name) == wanted, "{}", node.name());
        }
        Ok(())
    });
}

/// Replaces `old` by `new` as a Deployment does: the new one first, then the old one ends.
fn replace(cluster: &mut Cluster, old: &'static str, new: &'static str) {
    let stays: Vec<_> = WEBS.iter().map(|(name, _)| *name).filter(|name| *name != old).collect();
    cluster.endpoints(&[&stays[..], &[old]].concat());
    wait_serving(cluster, new, true);
    let topology = &cluster.topology;
    let leaving = pod(topology, old, "True", r#", deletionTimestamp: "2026-01-01T00:00:00Z""#);
    let others: String = stays.iter().map(|name| pod(topology, name, "True", "")).collect();
    topology.apply("pods.yaml", &(others + &leaving)).unwrap();
    cluster.endpoints(&stays);
    wait_serving(cluster, old, false);
    cluster.replace_programs(old);
}

/// S11, S12: new connections are all answered, kept ones go on until their pod ends, and of a
/// stream of datagrams at most the one is lost that was under way when its pod ended.
fn roll(socket_lb: SocketLb) {
    let mut cluster = Cluster::start(&["web-1", "web-2"], socket_lb);
    let loads = Load::start_all(&cluster);
    let names = WEBS.map(|(name, _)| name);
    for round in 0..names.len() {
        let next = (round + 2) % names.len();
        replace(&mut cluster, names[round], names[next]);
    }
    for load in loads {
        load.judge(names.len());
    }
}

#[test]
fn a_rolling_replacement_loses_nothing_by_the_socket_path() {
    require_topology!();
    roll(SocketLb::All);
}

#[test]
fn a_rolling_replacement_loses_nothing_by_the_packet_path() {
    require_topology!();
    roll(SocketLb::Off);
}

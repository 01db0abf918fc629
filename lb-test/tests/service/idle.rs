//! Silent flows are forgotten, idle connections are not; a table that fills is told of (S16).

use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use aya::maps::{HashMap, Map, MapData};
use lb_common::abi::{Abi as _, BePort, CtEntry, CtKey, Ipv4, L4Proto, maps};
use lb_test::manifests::Service;
use lb_test::{Family, Process, SocketLb, clock, eventually, programs};

use crate::ask::probe;
use crate::{Cluster, WEB};

const SOON: Duration = Duration::from_secs(15);
const ROOM: u32 = 4096;

impl Cluster {
    /// Has a backend removed that nobody uses, and so all flows looked at.
    fn walk(&self) {
        self.put_pods(&["web-1", "web-2"]);
        self.wait_for_pods(2);
        self.put_pods(&["web-1"]);
        self.wait_for_pods(1);
    }

    /// Waits until node1's tables hold so many backends of each family.
    fn wait_for_pods(&self, count: u64) {
        eventually(SOON, "backends in the tables", || {
            let found = self.entries(maps::BACKENDS_V6);
            ensure!(found == 2 * count, "{found}");
            Ok(())
        });
    }

    /// Entries that node1 remembers of a family.
    fn remembered(&self, family: Family) -> u64 {
        self.entries(if family == Family::V4 { maps::CONNTRACK_V4 } else { maps::CONNTRACK_V6 })
    }

    /// Entries of a map of node1.
    fn entries(&self, name: &str) -> u64 {
        let status = self.agents[0].status().unwrap();
        let maps = status["maps"].as_array().unwrap();
        let map = maps.iter().find(|map| map["name"] == name).unwrap();
        map["entries"].as_u64().unwrap()
    }

    fn problems(&self) -> String {
        self.agents[0].status().unwrap()["problems"].to_string()
    }

    fn conntrack(&self) -> HashMap<MapData, [u8; 16], [u8; 36]> {
        let pin: PathBuf = self.node("node1").bpffs().join("lb/maps").join(maps::CONNTRACK_V4);
        HashMap::try_from(Map::LruHashMap(MapData::from_pin(pin).unwrap())).unwrap()
    }
}

/// A connection that says nothing after its first answer.
fn idle(cluster: &Cluster, family: Family) -> Process {
    let to = cluster.node("node1").socket(family, 30081).to_string();
    let arguments = ["tcp-keepalive", &to, "--each", "--seconds", "60", "--interval", "60000"];
    let from = cluster.outside();
    let mut process = programs::start_probe(from, &format!("idle-{to}"), &arguments).unwrap();
    process.wait_line("ready", SOON).unwrap();
    process
}

/// Keys of as many flows, just opened.
fn flood(count: u16) -> impl Iterator<Item = [u8; 16]> {
    (0..count).map(|port| {
        let key = CtKey::<Ipv4> {
            protocol: L4Proto::TCP,
            src_port: BePort::new(port),
            ..CtKey::zeroed()
        };
        key.as_bytes().try_into().unwrap()
    })
}

#[test]
fn s16_idle_connections_outlive_silent_datagrams_and_a_restart() {
    lb_test::require_topology!();
    let service = Service::new("web", 1).select(WEB).udp(80, 5353).node_port(30080);
    let service = service.tcp(81, 8080).node_port(30081);
    let mut cluster = Cluster::start(SocketLb::Off, &[service.object()]);
    cluster.agents[0].term().unwrap();
    cluster.agents[0].command(&["cleanup"]).unwrap();
    let times = ["--conntrack-udp-timeout=1s", "--conntrack-udp-timeout-stream=1s"];
    let room = format!("--conntrack-max={ROOM}");
    cluster = cluster.with_agents(&["node1"], &[times[0], times[1], &room]);
    cluster.put_pods(&["web-1"]);
    let mut connections = Vec::new();
    for family in Family::BOTH {
        let to = cluster.node("node1").socket(family, 30080).to_string();
        eventually(SOON, "an answer", || {
            let lines = probe(cluster.outside(), &["udp", &to, "--timeout", "500"]);
            ensure!(lines[0]["payload"].is_string(), "{lines:?}");
            Ok(())
        });
        connections.push(idle(&cluster, family));
        assert!(cluster.remembered(family) >= 2, "two for each flow");
    }
    eventually(SOON, "connections alone", || {
        cluster.walk();
        let flows = Family::BOTH.map(|family| cluster.remembered(family));
        ensure!(flows == [2, 2], "{flows:?}");
        Ok(())
    });
    let status = cluster.agents[0].status().unwrap();
    assert!(status["agent"]["stale"]["expiredEntries"].as_u64().unwrap() >= 4, "{status}");
    cluster.agents[0].kill9().unwrap();
    cluster.agents[0].restart().unwrap();
    eventually(SOON, "all in step", || cluster.agents[0].status());
    cluster.walk();
    fills(&cluster);
    assert_eq!(Family::BOTH.map(|family| cluster.remembered(family)), [2, 2]);
    let cluster = cluster.with_agents(&["node1"], &["--conntrack-max=8192"]);
    let problems = cluster.problems();
    assert!(problems.contains("asks for 8192 entries, but it was made with 4096"), "{problems}");
    let cluster = cluster.with_agents(&["node1"], &[]);
    assert_eq!(cluster.problems(), "[]", "without a number, what there is will do");
}

/// A table that fills is a problem until it has room again.
fn fills(cluster: &Cluster) {
    let mut conntrack = cluster.conntrack();
    let entry = CtEntry::<Ipv4> { last_seen: clock::ticks(), ..CtEntry::zeroed() };
    let entry: [u8; 36] = entry.as_bytes().try_into().unwrap();
    for key in flood(3300) {
        conntrack.insert(key, entry, 0).unwrap();
    }
    eventually(SOON, "a problem", || {
        cluster.walk();
        let problems = cluster.problems();
        ensure!(problems.contains("of 4096 entries, more than 75 % full"), "{problems}");
        ensure!(problems.contains("raise --conntrack-max"), "{problems}");
        Ok(())
    });
    for key in flood(3300) {
        conntrack.remove(&key).unwrap();
    }
    eventually(SOON, "no problem", || {
        cluster.walk();
        ensure!(cluster.problems() == "[]", "{}", cluster.problems());
        Ok(())
    });
}

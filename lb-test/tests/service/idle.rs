//! Silent flows are forgotten, idle connections are not; a table that fills is told of (S16).

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    time::Duration,
};

use anyhow::ensure;
use aya::maps::{HashMap, Map, MapData};
use lb_common::{
    abi::{Abi as _, BePort, CtEntry, CtKey, Ipv4, L4Proto, maps},
    conntrack::{CtState, ticks},
};
use lb_test::{Family, Host, NodeSpec, SocketLb, clock, eventually, manifests::Service};

use crate::{Cluster, WEB, ask::probe};

/// Far more than is needed on a machine with other work.
const PATIENCE: Duration = Duration::from_mins(1);
const ROOM: &str = "--conntrack-max=4096";
/// Three quarters of the room, and some.
const FLOOD: u16 = 3300;
/// Flows that are silent for too long.
const SILENT: u16 = 10;

impl Cluster {
    /// Entries that node1 remembers, of each family.
    fn remembered(&self) -> [u64; 2] {
        let status = self.agents[0].status().unwrap();
        let maps = status["maps"].as_array().unwrap();
        [maps::CONNTRACK_V4, maps::CONNTRACK_V6].map(|name| {
            let map = maps.iter().find(|map| map["name"] == name).unwrap();
            map["entries"].as_u64().unwrap()
        })
    }

    fn problems(&self) -> String {
        self.agents[0].status().unwrap()["problems"].to_string()
    }

    /// The table itself, by bytes.
    fn conntrack(&self) -> HashMap<MapData, [u8; 16], [u8; 36]> {
        let pin: PathBuf = self.node("node1").bpffs().join("lb/maps").join(maps::CONNTRACK_V4);
        HashMap::try_from(Map::LruHashMap(MapData::from_pin(pin).unwrap())).unwrap()
    }
}

/// A connection that has had an answer.
fn connect(from: &Host, to: SocketAddr) -> TcpStream {
    let mut connection = from.enter(|| TcpStream::connect(to).unwrap()).unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    answer(&mut connection);
    connection
}

/// Asks by a connection, and reads the answer.
fn answer(connection: &mut TcpStream) {
    connection.write_all(b"HEAD / HTTP/1.1\r\nHost: web\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        connection.read_exact(&mut byte).unwrap();
        answer.extend(byte);
    }
    assert!(answer.starts_with(b"HTTP/1.1 200 OK"), "{answer:?}");
}

/// A key of a connection that nobody has.
fn key(port: u16) -> [u8; 16] {
    let port = BePort::new(port);
    let key = CtKey::<Ipv4> { protocol: L4Proto::TCP, src_port: port, ..CtKey::zeroed() };
    key.as_bytes().try_into().unwrap()
}

/// An entry of an open connection, seen at a time.
fn entry(last_seen: u32) -> [u8; 36] {
    let CtState(state) = CtState::ESTABLISHED.with(CtState::ANSWERED);
    let entry = CtEntry::<Ipv4> { state, last_seen, ..CtEntry::zeroed() };
    entry.as_bytes().try_into().unwrap()
}

#[test]
fn s16_idle_connections_outlive_silent_datagrams_and_a_restart() {
    lb_test::require_topology!();
    let service = Service::new("web", 1).select(WEB).udp(80, 5353).node_port(30080);
    let service = service.tcp(81, 8080).node_port(30081);
    let times = ["--conntrack-udp-timeout=1s", "--conntrack-udp-timeout-stream=1s"];
    let node1 = NodeSpec::new("node1");
    let cluster = Cluster::without_agents_with(SocketLb::Off, node1, |_| vec![service.object()]);
    let mut cluster = cluster.with_agents(&["node1"], &[&times[..], &[ROOM]].concat());
    let mut connections = Family::BOTH.map(|family| {
        let to = |port| cluster.node("node1").socket(family, port);
        eventually(PATIENCE, "an answer", || {
            let lines = probe(cluster.outside(), &["udp", &to(30080).to_string()]);
            ensure!(lines[0]["payload"].is_string(), "{lines:?}");
            Ok(())
        });
        connect(cluster.outside(), to(30081))
    });
    cluster.agents[0].kill9().unwrap();
    let (mut table, now) = (cluster.conntrack(), clock::ticks());
    for port in 0..FLOOD {
        table.insert(key(port), entry(now), 0).unwrap();
    }
    for port in FLOOD..FLOOD + SILENT {
        table.insert(key(port), entry(now.wrapping_sub(ticks(2 * 86_400))), 0).unwrap();
    }
    let cluster = cluster.with_agents(&["node1"], &times);
    expires(&cluster);
    for port in 0..FLOOD {
        table.remove(&key(port)).unwrap();
    }
    eventually(PATIENCE, "no problem, and no other flows", || {
        ensure!(cluster.problems() == "[]", "{}", cluster.problems());
        ensure!(cluster.remembered() == [2, 2], "{:?}", cluster.remembered());
        Ok(())
    });
    connections.iter_mut().for_each(answer);
}

/// Silent flows go, those that fill the table are a problem, and are kept.
fn expires(cluster: &Cluster) {
    eventually(PATIENCE, "a problem, and no silent flows", || {
        let problems = cluster.problems();
        // Without a number of its own, the agent takes the table as it is.
        ensure!(problems.contains("of 4096 entries, more than 75 % full"), "{problems}");
        ensure!(problems.contains("raise --conntrack-max"), "{problems}");
        ensure!(!problems.contains("asks for"), "{problems}");
        let flows = cluster.remembered();
        ensure!(flows == [u64::from(FLOOD) + 2, 2], "{flows:?}");
        let status = cluster.agents[0].status()?;
        let expired = status["agent"]["stale"]["expiredEntries"].as_u64().unwrap();
        ensure!(expired >= u64::from(SILENT), "{status}");
        Ok(())
    });
}

//! A flood from made-up addresses beside clients that are at work: none of them notices more than the
//! CPU that it takes, and nothing is forgotten of theirs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use aya::maps::{HashMap, Map, MapData};
use lb_common::{abi::maps, conntrack::CtState};
use lb_test::PATIENT;
use lb_test::manifests::Service;
use lb_test::{Family, Process, SocketLb, hold_once, programs, require_topology};
use serde_json::Value;

use crate::generator::{Generator, Kind};
use crate::{Cluster, WITH_XDP, with_xdp};

/// Connections of a client that asks again and again.
const KEPT: u64 = 50;

/// A backend by the node port of its Service, whose transfers go to the next hundred's.
#[derive(Clone, Copy, Debug)]
struct Target {
    name: &'static str,
    port: u16,
    is_remote: bool,
}

const TARGETS: [Target; 2] = [
    Target { name: "web-1", port: 30001, is_remote: false },
    Target { name: "web-2", port: 30002, is_remote: true },
];

fn cluster() -> Cluster {
    let services = (1..).zip(TARGETS).map(|(number, target)| {
        let service = Service::new(target.name, number).select(target.name);
        let service = service.tcp(80, 8080).node_port(target.port);
        let service = service.tcp(5201, 5201).node_port(target.port + 100);
        service.udp(80, 5353).node_port(target.port).object()
    });
    Cluster::start(SocketLb::Off, &services.collect::<Vec<_>>())
}

/// Where each flow leads, of both families: bytes of the entries up to the ports; and has no end
/// ended it?
type Flows = BTreeMap<Vec<u8>, (Vec<u8>, bool)>;

fn flows(cluster: &Cluster) -> Flows {
    let pins = cluster.node("node1").bpffs().join("lb/maps");
    let mut flows = read::<16, 36>(&pins.join(maps::CONNTRACK_V4), 12);
    flows.extend(read::<40, 60>(&pins.join(maps::CONNTRACK_V6), 36));
    flows
}

fn read<const K: usize, const V: usize>(map: &Path, length: usize) -> Flows {
    let map = Map::LruHashMap(MapData::from_pin(map).unwrap());
    let map: HashMap<_, [u8; K], [u8; V]> = HashMap::try_from(map).unwrap();
    let entry = |entry: Result<([u8; K], [u8; V]), _>| {
        let (key, value) = entry.unwrap();
        // The action is in between.
        let is_open = !CtState(value[length + 1]).is_closing();
        (key.to_vec(), (value[..length].to_vec(), is_open))
    };
    map.iter().map(entry).collect()
}

/// A transfer and connections that ask all the time.
struct Work {
    transfer: Process,
    asks: Process,
}

impl Work {
    fn begin(cluster: &Cluster, target: Target, (family, seconds): (Family, u64)) -> Self {
        let (client, node) = (cluster.outside(), cluster.node("node1"));
        let seconds = seconds.to_string();
        let to = node.socket(family, target.port).to_string();
        let (kept, pause) = (KEPT.to_string(), "20");
        let asks = ["tcp-keepalive", &to, "--parallel", &kept, "--seconds", &seconds];
        let more = ["--interval", pause, "--timeout", "3000"];
        let name = format!("asks-{}-{family:?}", target.name);
        let mut asks = programs::start_probe(client, &name, &[&asks[..], &more].concat()).unwrap();
        asks.wait_line("ready", PATIENT).unwrap();
        let (ip, port) = (node.ip(family).to_string(), (target.port + 100).to_string());
        let name = format!("transfer-{}-{family:?}", target.name);
        let transfer = ["-c", &ip, "-p", &port, "-t", &seconds, "--json"];
        let transfer = client.start(&name, "iperf3", &transfer).unwrap();
        let begun = sent(cluster);
        lb_test::eventually(PATIENT, "a transfer", || {
            anyhow::ensure!(sent(cluster) > begun + (1 << 20));
            Ok(())
        });
        Self { transfer, asks }
    }

    /// Nobody noticed.
    fn end(mut self, what: &str) {
        assert!(self.transfer.wait(PATIENT).unwrap().success(), "{what}: {}", self.transfer.log());
        let report: Value = serde_json::from_str(&self.transfer.log()).unwrap();
        assert_eq!(report["error"], Value::Null, "{what}");
        let stalled = |interval: &Value| interval["sum"]["bytes"] == 0;
        let intervals = report["intervals"].as_array().unwrap();
        assert!(!intervals.iter().any(stalled), "{what}: {intervals:?}");
        self.asks.wait(PATIENT).unwrap();
        let lines = programs::json_lines(&self.asks.log()).unwrap();
        let summary = lines.last().unwrap();
        assert_eq!(summary["failures"], 0, "{what}: {}", self.asks.log());
        assert!(summary["answers"].as_u64().unwrap() > 2 * KEPT, "{what}: {summary}");
    }
}

/// Bytes that the client has sent: no flood passes there.
fn sent(cluster: &Cluster) -> u64 {
    let arguments = ["-s", "-j", "link", "show", "dev", "eth0"];
    let links: Value =
        serde_json::from_str(&cluster.outside().run("ip", &arguments).unwrap()).unwrap();
    links[0]["stats64"]["tx"]["bytes"].as_u64().unwrap()
}

/// What happened in a while.
#[derive(Clone, Copy, Debug, Default)]
struct Measured {
    frames: u64,
    bytes: u64,
    time: Duration,
}

impl Measured {
    /// Mbit/s of the client, and thousands of frames per second.
    fn rates(self) -> (u64, u64) {
        let microseconds = u64::try_from(self.time.as_micros()).unwrap();
        (self.bytes * 8 / microseconds, self.frames * 1000 / microseconds)
    }
}

/// Floods an address while `work` goes on.
fn beside<T>(
    cluster: &Cluster,
    generator: &mut Generator,
    (kind, to): (Kind, SocketAddr),
    work: impl FnOnce() -> T,
) -> (Measured, T) {
    let end = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (before, begun) = (sent(cluster), Instant::now());
        let frames = scope.spawn(move || generator.flood(kind, to, end));
        let result = work();
        let (bytes, time) = (sent(cluster) - before, begun.elapsed());
        end.store(true, Ordering::Relaxed);
        let frames = frames.join().unwrap();
        (Measured { frames, bytes, time }, result)
    })
}

/// New connections for a second: how many came about at once, without a segment sent again, and how
/// many did not.
fn connect(cluster: &Cluster, target: Target, family: Family) -> (u64, u64) {
    let to = cluster.node("node1").socket(family, target.port).to_string();
    let asks = ["tcp-get", &to, "--parallel", "5", "--seconds", "1", "--interval", "10"];
    let asks = [&asks[..], &["--timeout", "900"]].concat();
    let lines = programs::probe(cluster.outside(), &asks).unwrap();
    let summary = lines.last().unwrap();
    (summary["answers"].as_u64().unwrap(), summary["failures"].as_u64().unwrap())
}

/// Floods a target in a way, by its Service or past it, while the client works and connects; the
/// client's Mbit/s, thousands of frames a second, and new connections.
fn floods(
    cluster: &Cluster,
    generator: &mut Generator,
    (target, family): (Target, Family),
    (kind, by_service): (Kind, bool),
) -> (u64, u64, u64) {
    let port = if matches!(kind, Kind::Datagram) { 5353 } else { 8080 };
    let to = if by_service {
        cluster.node("node1").socket(family, target.port)
    } else {
        cluster.pod(target.name).socket(family, port)
    };
    let ask = || connect(cluster, target, family);
    let (measured, (new, failures)) = beside(cluster, generator, (kind, to), ask);
    let (mbits, frames) = measured.rates();
    println!(
        "{family:?} {kind:?} to {to}: {mbits} Mbit/s beside {frames} k frames/s; {new} new, \
         {failures} failed"
    );
    assert!(measured.frames > 1000, "{measured:?}");
    // A flood may take all ports that SNAT has, and fills the queue of a veth with XDP, which is short,
    // wherever it goes; else nearly all come about.
    let may_fail = target.is_remote || WITH_XDP.get();
    assert!(may_fail || failures * 20 <= new, "{to} {kind:?}: {failures} of {new}");
    (mbits, frames, new)
}

/// Flows that no port was left for, and those that were not remembered.
fn counted(cluster: &Cluster) -> [u64; 2] {
    ["snat_ports_exhausted", "not_remembered"].map(|reason| cluster.counted(reason))
}

/// Entries of flows that are not proven, as operators see them.
fn half_open(cluster: &Cluster, family: Family) -> u64 {
    let status = cluster.agents[0].status().unwrap();
    let name = if family == Family::V4 { maps::HALF_OPEN_V4 } else { maps::HALF_OPEN_V6 };
    let maps = status["maps"].as_array().unwrap();
    let map = maps.iter().find(|map| map["name"] == name).unwrap();
    map["entries"].as_u64().unwrap()
}

/// Floods a target in each way while a client works with it, and in turn with `past` the pod itself:
/// the node then routes the same flood. One CPU sends in both, and takes each frame as far as the
/// backend; what else the machine does meanwhile takes some from either.
fn withstands(cluster: &Cluster, (target, family): (Target, Family), kinds: &[Kind], past: bool) {
    let what = format!("{} {family:?}", target.name);
    let _server = programs::iperf3_server(cluster.pod(target.name)).unwrap();
    let mut generator = Generator::new(cluster);
    let phases = kinds.len() as u64 * if past { 2 } else { 1 };
    let mut work = Work::begin(cluster, target, (family, 1 + 3 * phases));
    let known = flows(cluster);
    let mut before = counted(cluster).into_iter();
    let (mut new, mut mbits, mut rates) = (0, [0; 2], [0; 2]);
    for (kind, by_service) in kinds.iter().flat_map(|kind| [(*kind, false), (*kind, true)]) {
        if by_service || past {
            let flooded = floods(cluster, &mut generator, (target, family), (kind, by_service));
            mbits[usize::from(by_service)] += flooded.0;
            rates[usize::from(by_service)] = rates[usize::from(by_service)].max(flooded.1);
            new += flooded.2;
        }
    }
    let after = flows(cluster);
    assert!(work.asks.ended().unwrap().is_none(), "{what}: the floods took too long");
    for (flow, (ends, _)) in known.iter().filter(|(_, (_, is_open))| *is_open) {
        assert_eq!(after.get(flow).map(|(ends, _)| ends), Some(ends), "{what}: {flow:?}");
    }
    let more = after.len().saturating_sub(known.len()) as u64;
    assert!(more <= 2 * new + 20, "{what}: {more} more entries after {new} connections");
    let [exhausted, unremembered] = counted(cluster).map(|after| after > before.next().unwrap());
    assert_eq!(exhausted, target.is_remote, "{what}");
    // A CPU that others want too sends no more than is remembered.
    let may_remember_all = rates[1] < 40;
    assert!(may_remember_all || unremembered != target.is_remote, "{what}: {rates:?}");
    assert!(half_open(cluster, family) > 1000, "{what}");
    println!("{what}: {mbits:?} Mbit/s past it and by it in all; {more} more entries");
    assert!(!past || 2 * mbits[1] > mbits[0], "{what}: {mbits:?}");
    work.end(&what);
    if past {
        gives_ports_back(cluster, target, family);
    }
}

/// What a flood took it gives back.
fn gives_ports_back(cluster: &Cluster, target: Target, family: Family) {
    lb_test::eventually(PATIENT, "new connections", || {
        let (new, failures) = connect(cluster, target, family);
        anyhow::ensure!(new > 100 && failures == 0, "{new} new, {failures} failed");
        Ok(())
    });
}

/// All targets, families and ways.
fn all_is_withstood(_path: SocketLb) {
    let cluster = cluster();
    if WITH_XDP.get() {
        queue_by_cpu(&cluster);
    }
    for family in Family::BOTH {
        for target in TARGETS {
            withstands(&cluster, (target, family), &Kind::ALL, true);
        }
    }
}

/// Gives the way into node1 a queue for each CPU, as a card has: by the one queue of a veth, which is
/// short with XDP, a flood takes the way of everybody, wherever it goes.
fn queue_by_cpu(cluster: &Cluster) {
    let count = std::thread::available_parallelism().unwrap().to_string();
    cluster.node("node1").run("ethtool", &["-L", "eth0", "rx", &count]).unwrap();
    cluster.fabric().run("ethtool", &["-L", "node1", "tx", &count]).unwrap();
    let script = format!(
        "mount -t sysfs sysfs /sys && cd /sys/class/net/node1/queues && \
         for queue in $(seq 0 $(({count} - 1))); do \
         printf %x $((1 << queue)) > tx-$queue/xps_cpus || exit 1; done"
    );
    cluster.fabric().run("unshare", &["--mount", "sh", "-c", &script]).unwrap();
}

#[test]
fn work_goes_on_beside_a_flood_of_syns() {
    require_topology!();
    for each in TARGETS.into_iter().zip(Family::BOTH) {
        hold_once(|| withstands(&cluster(), each, &[Kind::Syn], false));
    }
}

#[test]
#[ignore = "slow: two minutes of floods"]
fn work_goes_on_beside_any_flood() {
    require_topology!();
    all_is_withstood(SocketLb::Off);
}

#[test]
#[ignore = "slow: two minutes of floods"]
fn work_goes_on_beside_any_flood_with_xdp() {
    require_topology!();
    with_xdp(all_is_withstood);
}

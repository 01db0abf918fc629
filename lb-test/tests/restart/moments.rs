//! The agent is killed at moments that nobody chose: while it loads programs, takes over tables, writes a
//! plan, or walks over flows.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::SocketAddr,
    time::{Duration, Instant, SystemTime},
};

use lb_agent::{
    dataplane::{BackendEntry, BackendId, FrontendAddress, FrontendEntry, ServiceId, Snapshot},
    model::Family,
};
use lb_common::abi::Region;
use lb_test::{SocketLb, agent, require_topology};

use super::{Load, cluster};
use cluster::{Cluster, PATIENT, tables};

/// Services besides the one that is asked, so that a plan has many writes.
const OTHERS: usize = 60;
/// A start is killed within this time.
const START: u64 = 1500;
/// After its first write, a plan is killed within this time: before its last one, as a rule.
const WRITES: u64 = 40;
/// Requests go on for so long after the last kill.
const REST: Duration = Duration::from_secs(3);

/// Where clients of a frontend are sent, by addresses in place of ids.
type Meaning = (FrontendEntry, [Vec<SocketAddr>; 2]);

#[test]
fn s16_killed_at_any_moment_the_agent_breaks_nothing_and_makes_up_for_all() {
    require_topology!();
    kill_at_any_moment(SocketLb::Off, 8);
}

#[test]
#[ignore = "slow: 2 minutes"]
fn s16_killed_for_a_minute_the_agent_breaks_nothing_and_makes_up_for_all() {
    require_topology!();
    for socket_lb in SocketLb::ALL_AND_OFF {
        kill_at_any_moment(socket_lb, 60);
    }
}

/// Kills node1's agent again and again while requests and changes go on.
fn kill_at_any_moment(socket_lb: SocketLb, seconds: u64) {
    let mut cluster = Cluster::start(&["web-1", "web-2"], socket_lb);
    let load = Load::start(&cluster);
    let begun = Instant::now();
    let mut random = Random::new();
    let mut kills = 0;
    while begun.elapsed() + REST < Duration::from_secs(seconds) {
        change(&cluster, kills);
        if kills.is_multiple_of(3) {
            random.sleep(START);
        } else {
            cluster.agents[0].wait_synced(agent::START).unwrap();
            let before = tables(cluster.topology.node("node1"));
            change(&cluster, kills + 1);
            wait_first_write(&cluster, &before);
            random.sleep(WRITES);
        }
        cluster.agents[0].kill9().unwrap();
        kills += 1;
        cluster.agents[0].restart().unwrap();
    }
    cluster.agents[0].wait_synced(agent::START).unwrap();
    eprintln!("{kills} kills");
    load.wait_answers(20);
    load.end();
    assert_as_of_a_fresh_start(&mut cluster);
}

fn wait_first_write(cluster: &Cluster, before: &Snapshot) {
    let begun = Instant::now();
    while tables(cluster.topology.node("node1")) == *before {
        assert!(begun.elapsed() < PATIENT, "nothing is written");
    }
}

/// Another state of all Services for each number.
fn change(cluster: &Cluster, number: usize) {
    let webs = [&["web-1", "web-2"][..], &["web-1", "web-3"], &["web-3"], &["web-2"]];
    cluster.endpoints(webs[number % webs.len()]);
    let mut text = String::new();
    for service in (0..OTHERS).filter(|service| !(service + number).is_multiple_of(5)) {
        let (last, address) = (number % 7 + 1, service + 1);
        let _ = write!(
            text,
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s{service}}}\n\
             spec: {{clusterIP: 10.97.0.{address}, ports: [{{port: 80}}]}}\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: s{service}, labels: {{kubernetes.io/service-name: s{service}}}}}\n\
             addressType: IPv4\nports: [{{port: 80}}]\nendpoints:\n\
             - {{addresses: [10.100.{service}.{last}]}}\n- {{addresses: [10.100.{service}.100]}}\n---\n"
        );
    }
    cluster.topology.apply("others.yaml", &text).unwrap();
}

/// What the last agent made of what all before it left is what one makes that finds nothing.
#[track_caller]
fn assert_as_of_a_fresh_start(cluster: &mut Cluster) {
    let left = tables(cluster.topology.node("node1"));
    let agent = &mut cluster.agents[0];
    agent.term().unwrap();
    agent.command(&["cleanup"]).unwrap();
    agent.restart().unwrap();
    agent.wait_synced(agent::START).unwrap();
    let fresh = tables(cluster.topology.node("node1"));
    assert_eq!(meaning(&left), meaning(&fresh));
    assert_eq!(backends(&left), backends(&fresh));
}

/// All frontends, without numbers that depend on what was there before.
fn meaning(tables: &Snapshot) -> BTreeMap<FrontendAddress, Meaning> {
    let slots = |region: Region, of: &FrontendAddress| -> Vec<SocketAddr> {
        let Some((_, slots)) = tables.regions.get(&region.first_chunk) else { return Vec::new() };
        let used = slots.iter().take(region.length as usize);
        used.map(|index| address(tables, of, *index)).collect()
    };
    let plain = |(key, entry): (&FrontendAddress, &FrontendEntry)| {
        let lists = [entry.internal, entry.external].map(|region| slots(region, key));
        let [internal, external] = [Region::EMPTY; 2];
        let entry = FrontendEntry { service: ServiceId(0), internal, external, ..*entry };
        (*key, (entry, lists))
    };
    tables.frontends.iter().map(plain).collect()
}

/// The backend of a slot; a slot that names none is a fault.
#[track_caller]
fn address(tables: &Snapshot, of: &FrontendAddress, index: u32) -> SocketAddr {
    let id = BackendId { family: Family::of(of.ip), index };
    let found = tables.backends.get(&id);
    found.unwrap_or_else(|| panic!("{of:?} leads to {id:?}, where nothing is")).address
}

/// All backends, likewise.
fn backends(tables: &Snapshot) -> Vec<(SocketAddr, u16)> {
    let plain = |entry: &BackendEntry| (entry.address, entry.flags.0);
    let mut all: Vec<_> = tables.backends.values().map(plain).collect();
    all.sort_unstable();
    all
}

/// Moments that differ from run to run.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        Self(u64::from(now.subsec_nanos()) | 1)
    }

    /// Waits for some time below so many milliseconds.
    fn sleep(&mut self, milliseconds: u64) {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        std::thread::sleep(Duration::from_millis((self.0 >> 33) % milliseconds));
    }
}

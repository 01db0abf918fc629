//! Another proxy translates by netfilter before the agent comes and after it has gone: connections
//! of both stay with whom they began with.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

use anyhow::ensure;
use lb_test::{Agent, Family, Host, Process, SocketLb, eventually, programs, require_topology};

mod cluster;
use cluster::{Cluster, PATIENT};

/// The endpoint that the other proxy chooses; the agent's is `web-1`.
const OTHER: &str = "web-3";
const OURS: &str = "web-1";

/// Who asks through node1's packet path.
const ASKERS: [&str; 2] = ["client", "pod"];

/// Has netfilter on node1 send all that asks for the Service to [`OTHER`].
fn translate_by_netfilter(cluster: &Cluster) {
    let node = cluster.topology.node("node1");
    let mut rules = "add table inet proxy; add chain inet proxy in { type nat hook prerouting \
                     priority dstnat; }"
        .to_owned();
    for (family, ip) in Family::BOTH.into_iter().zip(["ip", "ip6"]) {
        let to = cluster.topology.pod(OTHER).socket(family, 8080);
        for from in ASKERS {
            let address: std::net::SocketAddr = cluster.address(from, family, 80).parse().unwrap();
            let (vip, port) = (address.ip(), address.port());
            let rule = format!("{ip} daddr {vip} tcp dport {port} dnat {ip} to {to}");
            rules = format!("{rules}; add rule inet proxy in {rule}");
        }
    }
    node.run("nft", &[&rules]).unwrap();
}

fn host<'a>(cluster: &'a Cluster, from: &str) -> &'a Host {
    cluster.askers().into_iter().find(|(name, _)| *name == from).unwrap().1
}

/// One connection from each asker in each family, kept and used all the time.
struct Kept(Vec<(&'static str, Process)>);

impl Kept {
    fn start(cluster: &Cluster, name: &str) -> Self {
        let mut probes = Vec::new();
        for from in ASKERS {
            for family in Family::BOTH {
                let address = cluster.address(from, family, 80);
                let name = format!("{name}-{family:?}");
                let arguments =
                    ["tcp-keepalive", &address, "--each", "--interval", "50", "--seconds", "600"];
                let host = host(cluster, from);
                let mut probe = programs::start_probe(host, &name, &arguments).unwrap();
                probe.wait_line("\"ready\"", PATIENT).unwrap();
                probes.push((from, probe));
            }
        }
        Self(probes)
    }

    /// Waits for more answers, all of them from `backend`.
    #[track_caller]
    fn goes_on(&self, backend: &str) {
        for (from, probe) in &self.0 {
            let count = |word: &str| probe.log().matches(word).count();
            let wanted = count("\"answer\"") + 5;
            eventually(PATIENT, &format!("more answers to the {from}"), || {
                ensure!(count("\"answer\"") >= wanted, "{}", probe.log());
                Ok(())
            });
            let others = probe
                .log()
                .lines()
                .filter(|line| line.contains("\"answer\""))
                .any(|line| !line.contains(backend));
            assert!(!others && count("\"failure\"") == 0, "{from}: {}", probe.log());
        }
    }

    /// Waits until those of `from` break, and takes them out.
    #[track_caller]
    fn breaks(&mut self, from: &str) {
        let broken = self.0.extract_if(.., |(name, _)| *name == from);
        for (_, mut probe) in broken {
            probe.wait_line("\"failure\"", PATIENT).unwrap();
        }
    }
}

/// Waits until new connections reach `backend`.
#[track_caller]
fn wait_begin_at(cluster: &Cluster, backend: &str) {
    for (from, family) in ASKERS.into_iter().flat_map(|from| Family::BOTH.map(|f| (from, f))) {
        eventually(PATIENT, &format!("{from} reaches {backend}"), || {
            let body = cluster.ask(from, family)?;
            ensure!(body == backend, "{body}");
            Ok(())
        });
    }
}

fn comes_and_goes(path: SocketLb) {
    let cluster = Cluster::without_agents(&[OURS]);
    translate_by_netfilter(&cluster);
    let theirs = Kept::start(&cluster, "theirs");
    let options = cluster.options(path).argument("--migrate");
    let mut agent = Agent::start_synced(cluster.topology.node("node1"), options).unwrap();
    theirs.goes_on(OTHER);
    assert!(agent.status().unwrap()["counters"]["migrating"].as_u64() > Some(0));
    wait_begin_at(&cluster, OURS);
    let mut ours = Kept::start(&cluster, "ours");
    agent.term().unwrap();
    let mut drain = agent.start_command("drain", &["cleanup", "--drain=10m"]).unwrap();
    drain.wait_line("connections go on", PATIENT).unwrap();
    wait_begin_at(&cluster, OTHER);
    theirs.goes_on(OTHER);
    ours.goes_on(OURS);
    // Somebody thinks better of it.
    drain.stop().unwrap();
    agent.restart().unwrap();
    agent.wait_synced(lb_test::agent::START).unwrap();
    wait_begin_at(&cluster, OURS);
    ours.goes_on(OURS);
    agent.term().unwrap();
    let told = agent.command(&["cleanup", "--drain=1s"]).unwrap();
    assert!(told.contains("connections are cut"), "{told}");
    ours.breaks("client");
    if path == SocketLb::Off {
        ours.breaks("pod");
    }
    // Sockets that were translated when they connected need nobody.
    ours.goes_on(OURS);
    theirs.goes_on(OTHER);
    wait_begin_at(&cluster, OTHER);
}

#[test]
fn connections_stay_with_whom_they_began_with_on_the_socket_path() {
    require_topology!();
    comes_and_goes(SocketLb::All);
}

#[test]
fn connections_stay_with_whom_they_began_with_on_the_packet_path() {
    require_topology!();
    comes_and_goes(SocketLb::Off);
}

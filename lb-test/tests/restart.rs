//! The agent ends, in each way it can, and comes back: traffic goes on, state is adopted.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

use std::time::{Duration, Instant};

use anyhow::ensure;
use lb_test::agent::START;
use lb_test::{
    Agent, Family, Process, SocketLb, eventually, programs, programs::json_lines, require_topology,
};
use serde_json::Value;

mod cluster;
#[path = "restart/moments.rs"]
mod moments;
use cluster::{Cluster, PATIENT, metric, tables};

/// Requests from everywhere, over new and over kept connections, in both families.
struct Load(Vec<(String, Process)>);

impl Load {
    fn start(cluster: &Cluster) -> Self {
        let mut probes = Vec::new();
        for (from, host) in cluster.askers() {
            for family in Family::BOTH {
                let address = cluster.address(from, family, 80);
                for kind in ["tcp-get", "tcp-keepalive"] {
                    let name = format!("{kind}-{family:?}");
                    let arguments =
                        [kind, &address, "--parallel", "2", "--interval", "10", "--seconds", "600"];
                    let probe = programs::start_probe(host, &name, &arguments).unwrap();
                    probes.push((format!("{from} {name}"), probe));
                }
            }
        }
        let mut load = Self(probes);
        for (_, probe) in load.0.iter_mut().filter(|(name, _)| name.contains("keepalive")) {
            probe.wait_line("\"ready\"", PATIENT).unwrap();
        }
        load
    }

    /// Waits until each probe over new connections has had so many more answers.
    fn wait_answers(&self, more: usize) {
        let count = |probe: &Process| probe.log().matches("\"answer\"").count();
        let probes: Vec<_> = self.0.iter().filter(|(name, _)| name.contains("tcp-get")).collect();
        let wanted: Vec<_> = probes.iter().map(|(_, probe)| count(probe) + more).collect();
        for ((name, probe), wanted) in probes.into_iter().zip(wanted) {
            eventually(PATIENT, &format!("{more} more answers to {name}"), || {
                ensure!(count(probe) >= wanted, "{}", probe.log());
                Ok(())
            });
        }
    }

    /// Ends it; nothing may have failed.
    fn end(self) {
        for (name, mut probe) in self.0 {
            probe.kill9().unwrap();
            let log = probe.log();
            // The last line may be half written.
            let lines = json_lines(log.rfind('\n').map_or("", |end| &log[..end])).unwrap();
            let failures: Vec<_> = lines.iter().filter(|line| line["event"] == "failure").collect();
            assert!(failures.is_empty(), "{name}: {failures:?}");
        }
    }
}

/// Kills the agents under load and starts them again, for so long and once at least, and replaces a backend
/// after that.
fn kill_under_load(socket_lb: SocketLb, time: Duration) {
    kill_cluster_under_load(Cluster::start(&["web-1", "web-2"], socket_lb), time);
}

fn kill_cluster_under_load(mut cluster: Cluster, time: Duration) {
    let (load, begun) = (Load::start(&cluster), Instant::now());
    loop {
        for agent in &mut cluster.agents {
            agent.kill9().unwrap();
        }
        load.wait_answers(60);
        for agent in &mut cluster.agents {
            agent.restart().unwrap();
        }
        for agent in &mut cluster.agents {
            agent.wait_synced(START).unwrap();
        }
        load.wait_answers(20);
        if begun.elapsed() >= time {
            break;
        }
    }
    cluster.endpoints(&["web-1", "web-3"]);
    for from in ["pod", "node", "client"] {
        cluster.wait_answers(from, &["web-1", "web-3"], PATIENT);
    }
    load.wait_answers(20);
    load.end();
}

#[test]
fn kill_9_breaks_nothing_on_the_socket_path() {
    require_topology!();
    kill_under_load(SocketLb::All, Duration::ZERO);
}

#[test]
fn kill_9_breaks_nothing_on_the_packet_path() {
    require_topology!();
    kill_under_load(SocketLb::Off, Duration::ZERO);
}

#[test]
fn kill_9_breaks_nothing_with_xdp() {
    require_topology!();
    let cluster = Cluster::start_with_xdp(&["web-1", "web-2"]);
    kill_cluster_under_load(cluster, Duration::ZERO);
}

#[test]
#[ignore = "slow: 30 s"]
fn kill_9_breaks_nothing_on_the_socket_path_for_30_seconds() {
    require_topology!();
    kill_under_load(SocketLb::All, Duration::from_secs(30));
}

#[test]
#[ignore = "slow: 30 s"]
fn kill_9_breaks_nothing_on_the_packet_path_for_30_seconds() {
    require_topology!();
    kill_under_load(SocketLb::Off, Duration::from_secs(30));
}

#[test]
fn sigterm_leaves_the_data_path_and_the_next_start_writes_nothing() {
    require_topology!();
    let mut cluster = Cluster::start(&["web-1", "web-2"], SocketLb::All);
    let node = cluster.topology.node("node1");
    let before = tables(node);
    assert!(!before.backends.is_empty() && before.frontends.len() > 4, "{before:?}");
    // Often: the source and the node's addresses are heard of in any order.
    for _ in 0..5 {
        let agent = &mut cluster.agents[0];
        assert!(agent.term().unwrap().success(), "{}", agent.log());
        for from in ["pod", "client"] {
            let topology = &cluster.topology;
            let host =
                if from == "pod" { &**topology.pod("shell") } else { topology.client("client") };
            let address = if from == "pod" {
                "10.96.100.100:80".into()
            } else {
                node.socket(Family::V4, 30080).to_string()
            };
            cluster::get(host, &address).unwrap();
        }
        let agent = &mut cluster.agents[0];
        assert_eq!(agent.status().err().map(|_| ()), Some(()), "exit code 1 with the agent dead");
        agent.restart().unwrap();
        agent.wait_synced(START).unwrap();
        assert_eq!(tables(node), before);
        assert!(metric(agent, "lb_sync_changes_total") < 0.5, "{}", agent.log());
    }
}

#[test]
fn programs_are_exchanged_without_a_lost_datagram() {
    require_topology!();
    let mut cluster = Cluster::start(&["web-1", "web-2"], SocketLb::All);
    let mut streams = Vec::new();
    for (from, host) in cluster.askers() {
        let address = cluster.address(from, Family::V4, 53);
        let arguments = ["udp", &address, "--interval", "1", "--seconds", "600"];
        streams.push((from, programs::start_probe(host, "udp-stream", &arguments).unwrap()));
    }
    for (_, stream) in &mut streams {
        stream.wait_line("\"answer\"", PATIENT).unwrap();
    }
    for round in 0..5 {
        let agent = &mut cluster.agents[0];
        if round % 2 == 0 { agent.kill9() } else { agent.term() }.unwrap();
        agent.restart().unwrap();
        agent.wait_synced(START).unwrap();
    }
    for (from, mut stream) in streams {
        let count = || stream.log().lines().count();
        eventually(PATIENT, "many datagrams", || {
            ensure!(count() > 500, "{from}: {}", count());
            Ok(())
        });
        stream.kill9().unwrap();
        let log = stream.log();
        // The last line may be half written.
        let lines = json_lines(log.rfind('\n').map_or("", |end| &log[..end])).unwrap();
        let lost: Vec<&Value> = lines.iter().filter(|line| line["event"] == "failure").collect();
        assert!(lost.is_empty(), "{from}: {lost:?}");
    }
}

#[test]
fn the_socket_path_goes_off_and_on_with_a_restart() {
    require_topology!();
    let cluster = Cluster::without_agents(&["web-1", "web-2"]);
    let node = cluster.topology.node("node1");
    for socket_lb in [SocketLb::All, SocketLb::Off, SocketLb::All] {
        let agent = Agent::start_synced(node, cluster.options(socket_lb)).unwrap();
        let pins = node.bpffs().join("lb/links/lb_connect4");
        assert_eq!(pins.exists(), socket_lb == SocketLb::All, "{socket_lb:?}");
        for (from, _) in cluster.askers() {
            for family in Family::BOTH {
                let body = cluster.ask(from, family);
                body.unwrap_or_else(|error| panic!("{socket_lb:?} {from} {family:?}: {error:#}"));
            }
        }
        drop(agent);
    }
}

#[test]
#[ignore = "slow: a minute"]
fn a_device_that_somebody_detached_is_attached_again() {
    require_topology!();
    let cluster = Cluster::start(&["web-1"], SocketLb::Off);
    let node = cluster.topology.node("node1");
    let uplink = node.enter(|| nix::net::if_::if_nametoindex("eth0").unwrap()).unwrap();
    for end in ["ingress", "egress"] {
        let pin = node.bpffs().join(format!("lb/links/{uplink}-{end}"));
        std::fs::remove_file(pin).unwrap();
    }
    wait_silent(&cluster, "client");
    eventually(Duration::from_secs(90), "the client is answered again", || {
        cluster.ask("client", Family::V4).map(drop)
    });
}

#[test]
fn what_changed_while_the_agent_was_down_is_made_up_for() {
    require_topology!();
    let mut cluster = Cluster::start(&["web-1", "web-2"], SocketLb::All);
    let other = cluster::WEB
        .replace("{name: web}", "{name: other}")
        .replace(", nodePort: 30080", "")
        .replace("10.96.100.100", "10.96.100.101")
        .replace("6464", "6465");
    cluster.agents[0].kill9().unwrap();
    cluster.topology.delete("service.yaml").unwrap();
    cluster.topology.apply("other.yaml", &other).unwrap();
    cluster.endpoints(&["web-3"]);
    assert_eq!(cluster.ask("pod", Family::V4).unwrap().len(), 5, "the dead agent's word holds");
    cluster.agents[0].restart().unwrap();
    cluster.agents[0].wait_synced(START).unwrap();
    let shell = cluster.topology.pod("shell");
    assert_eq!(cluster::answers(shell, "10.96.100.101:80").unwrap(), ["web-3"]);
    assert!(cluster.ask("pod", Family::V4).is_err(), "a Service that is gone still answers");
    let left = tables(cluster.topology.node("node1"));
    assert!(left.frontends.keys().all(|address| address.port != 30080), "{left:?}");
}

#[test]
fn two_agents_on_one_bpffs_and_a_cleanup_meanwhile_are_refused() {
    require_topology!();
    let mut cluster = Cluster::start(&["web-1"], SocketLb::All);
    let node = cluster.topology.node("node1");
    let mut second = Agent::start(node, cluster.options(SocketLb::All)).unwrap();
    let status = second.process().wait(PATIENT).unwrap();
    let holder = format!("pid {}", cluster.agents[0].process().pid());
    assert_eq!(status.code(), Some(1));
    assert!(second.log().contains("another agent holds"), "{}", second.log());
    assert!(second.log().contains(&holder), "{}", second.log());
    let refused = cluster.agents[0].command(&["cleanup"]).unwrap_err().to_string();
    assert!(refused.contains(&holder) && refused.contains("stop it"), "{refused}");
    cluster.ask("pod", Family::V4).unwrap();
}

/// Waits until nothing is translated: the kernel detaches a link whose pin is gone a moment later.
#[track_caller]
fn wait_silent(cluster: &Cluster, from: &str) {
    eventually(PATIENT, &format!("silence for the {from}"), || {
        let host = cluster.askers().into_iter().find(|(name, _)| *name == from).unwrap().1;
        let address = cluster.address(from, Family::V4, 80);
        let lines = programs::probe(host, &["tcp-get", &address, "--timeout", "500"])?;
        ensure!(lines[0]["event"] == "failure", "it is still translated");
        Ok(())
    });
}

#[test]
fn cleanup_removes_everything() {
    require_topology!();
    for clsact in [false, true] {
        let cluster = Cluster::without_agents(&["web-1"]);
        let node = cluster.topology.node("node1");
        let mut options = cluster.options(SocketLb::All);
        if clsact {
            options = options.argument("--tc-attach=clsact");
        }
        let mut agent = Agent::start_synced(node, options).unwrap();
        cluster.ask("client", Family::V4).unwrap();
        let folder = lb_agent::instance::Instance::of(&node.bpffs().join("lb"));
        assert!(folder.folder().exists());
        agent.term().unwrap();
        agent.command(&["cleanup"]).unwrap();
        assert!(!folder.folder().exists());
        assert!(!node.bpffs().join("lb").exists());
        // An empty clsact qdisc stays: somebody else may have come to use it.
        for direction in ["ingress", "egress"] {
            let filters = node.run("tc", &["filter", "show", "dev", "eth0", direction]).unwrap();
            assert_eq!(filters.trim(), "", "{direction}");
        }
        for (from, _) in cluster.askers() {
            wait_silent(&cluster, from);
        }
        let nothing = agent.command(&["cleanup"]).unwrap();
        assert_eq!(nothing.trim(), "nothing to remove");
    }
}

#[test]
fn agents_on_one_kernel_do_not_see_each_other() {
    require_topology!();
    let mut cluster = Cluster::start(&["web-1", "web-2"], SocketLb::All);
    let node2 = cluster.topology.node("node2");
    let before = tables(node2);
    cluster.agents[0].term().unwrap();
    cluster.agents[0].command(&["cleanup"]).unwrap();
    assert_eq!(tables(node2), before);
    assert!(cluster.agents[1].status().unwrap()["synced"].as_bool().unwrap());
    let client = cluster.topology.client("client");
    cluster::get(client, &node2.socket(Family::V4, 30080).to_string()).unwrap();
    cluster::get(node2, "10.96.100.100:80").unwrap();
    wait_silent(&cluster, "node");
}

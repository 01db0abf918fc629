//! What real networks do, each test with nodes and cables of its own kind: next hops that change,
//! several uplinks, routes by rules, devices without Ethernet headers, overlays.
//!
//! Not for: what Services answer (`service`).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../service/ask.rs"]
#[allow(dead_code, reason = "this program asks a part of the questions")]
mod ask;
mod hops;
mod layer3;
mod mesh;
mod stream;
mod tun;
mod uplinks;
#[path = "../service/wire.rs"]
#[allow(dead_code, reason = "this program sends frames, and hears none")]
mod wire;

use anyhow::ensure;
use lb_test::PATIENT;
use lb_test::manifests::{Condition, Service, list, pod};
use lb_test::{Agent, AgentOptions, Process, SocketLb, Topology, eventually, programs};

/// The group of all pods that serve.
const WEB: &str = "web";
/// The node port of every Service here, TCP and UDP.
const NODE_PORT: u16 = 30080;

/// Pods that serve, and agents.
struct Running {
    agents: Vec<Agent>,
    _servers: Vec<Process>,
}

impl Running {
    /// Waits until all agents know a Service.
    #[track_caller]
    fn wait_for_service(&self, name: &str) {
        for agent in &self.agents {
            eventually(PATIENT, &format!("Service {name}"), || {
                let services = agent.services()?.to_string();
                ensure!(services.contains(&format!("default/{name}:")), "{services}");
                Ok(())
            });
        }
    }
}

/// Starts HTTP at 8080 and UDP echo at 5353 in these pods, makes them the backends of one Service with
/// TCP and UDP port 80, and starts agents on these nodes without the socket path.
fn start(topology: &Topology, pods: &[&str], nodes: &[&str]) -> Running {
    start_with(topology, pods, nodes, &[])
}

/// The same, with more arguments for the agents.
fn start_with(topology: &Topology, pods: &[&str], nodes: &[&str], arguments: &[&str]) -> Running {
    let servers = pods.iter().flat_map(|name| {
        let host = topology.pod(name);
        [programs::nginx(host, &[8080]).unwrap(), programs::udp_echo(host, 5353).unwrap()]
    });
    let servers = servers.collect();
    let service = Service::new("web", 1).select(WEB).tcp(80, 8080).node_port(NODE_PORT);
    let mut objects = vec![service.udp(80, 5353).node_port(NODE_PORT).object()];
    for name in pods {
        objects.push(pod(name, topology.pod(name), &[WEB, name], Condition::Ready));
    }
    topology.apply("objects.yaml", &list(&objects)).unwrap();
    let agents = start_agents(topology, nodes, arguments);
    Running { agents, _servers: servers }
}

/// Starts agents on these nodes without the socket path.
fn start_agents(topology: &Topology, nodes: &[&str], arguments: &[&str]) -> Vec<Agent> {
    let agents = nodes.iter().map(|node| {
        let mut options = AgentOptions::manifests(topology.manifests()).socket_lb(SocketLb::Off);
        for argument in arguments {
            options = options.argument(argument);
        }
        Agent::start(topology.node(node), options).unwrap()
    });
    let mut agents: Vec<_> = agents.collect();
    for agent in &mut agents {
        agent.wait_synced(lb_test::agent::START).unwrap();
    }
    agents
}

/// Runs `ip` with each line's words on a host.
#[track_caller]
fn ip(host: &lb_test::Host, lines: &[&str]) {
    let lines: Vec<_> = lines.iter().map(|line| (*line).to_owned()).collect();
    host.netns().ip_batch(&lines).unwrap();
}

/// Sets a sysctl, a path below /proc/sys, on a host.
#[track_caller]
fn sysctl(host: &lb_test::Host, path: &str, value: &str) {
    host.enter(|| std::fs::write(format!("/proc/sys/{path}"), value)).unwrap().unwrap();
}

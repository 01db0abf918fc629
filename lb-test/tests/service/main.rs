//! Services as their users meet them: from pods, nodes and outside, over IPv4 and IPv6, by the
//! socket path and by the packet path.
//!
//! Every [`Cluster`] has the same two nodes, pods and clients, so that a test says only which
//! Services there are and what should come of asking them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod affinity;
mod ask;
mod beside;
mod bind;
mod bulk;
mod dsr;
mod filter;
mod flood;
mod fragments;
mod frames;
mod generator;
mod health;
mod icmp;
mod idle;
mod node_local;
mod node_settings;
mod policy;
mod ranges;
mod reach;
mod resolver;
mod sctp;
mod segments;
mod source;
mod stale;
mod udp;
mod wire;

use std::{cell::Cell, ops::Deref};

use lb_test::agent::START;
use lb_test::manifests::{Condition, Service, list, pod};
use lb_test::{
    Agent, AgentOptions, Family, Host, NodeSpec, PodSpec, Process, SocketLb, Topology, programs,
};
use serde_json::Value;

/// The pods that serve, each its name: HTTP at 8080, UDP echo at 5353.
const BACKENDS: [&str; 3] = ["web-1", "web-2", "web-3"];
/// What the serving pods' objects are called and grouped by, besides their own names.
const WEB: &str = "web";

/// A Service for each of them by UDP, of the same number as its node port has.
fn echo_services() -> Vec<Value> {
    let service = |(number, name): (u8, &str)| {
        let service = Service::new(name, number).select(name).udp(80, 5353);
        service.node_port(30000 + u16::from(number)).object()
    };
    (1..).zip(BACKENDS).map(service).collect()
}

/// Two nodes, the first with an agent, three serving pods, pods that ask, and a client outside.
///
/// | | node1 | node2 |
/// |---|---|---|
/// | serve | web-1 (routed), web-3 (bridged) | web-2 (routed) |
/// | ask | shell (routed), side (bridged), kata (routed, unseen by socket programs) | |
struct Cluster {
    agents: Vec<Agent>,
    _watch: Watch,
    _servers: Vec<Process>,
    topology: Topology,
    path: SocketLb,
}

impl Cluster {
    /// Starts everything, with these Services and one Pod for each backend, in the group
    /// [`WEB`] and in a group of its own name.
    fn start(path: SocketLb, services: &[Value]) -> Self {
        Self::start_with(path, NodeSpec::new("node1"), |_| services.to_vec())
    }

    /// Starts everything, with a node1 of this kind and with objects that follow from the pods.
    fn start_with(
        path: SocketLb,
        node1: NodeSpec,
        objects: impl FnOnce(&Topology) -> Vec<Value>,
    ) -> Self {
        Self::without_agents_with(path, node1, objects).with_agents(&["node1"], &[])
    }

    /// Starts all but agents, with these Services.
    fn without_agents(path: SocketLb, services: &[Value]) -> Self {
        Self::without_agents_with(path, NodeSpec::new("node1"), |_| services.to_vec())
    }

    /// Starts all but agents, as [`Cluster::start_with`] does.
    fn without_agents_with(
        path: SocketLb,
        node1: NodeSpec,
        objects: impl FnOnce(&Topology) -> Vec<Value>,
    ) -> Self {
        let topology = topology(node1);
        if WITH_XDP.get() {
            topology.ready_for_xdp().unwrap();
        }
        let watch = Watch(Host::clone(topology.node("node1")));
        let servers = BACKENDS.iter().flat_map(|name| {
            let host = topology.pod(name);
            [programs::nginx(host, &[8080]).unwrap(), programs::udp_echo(host, 5353).unwrap()]
        });
        let servers = servers.collect();
        topology.apply("objects.yaml", &list(&objects(&topology))).unwrap();
        let cluster = Self { agents: Vec::new(), _watch: watch, _servers: servers, topology, path };
        cluster.put_pods(&BACKENDS);
        cluster
    }

    /// Starts agents on these nodes, with more arguments, in place of those that run.
    fn with_agents(mut self, nodes: &[&str], arguments: &[&str]) -> Self {
        self.agents.clear();
        let mut options = AgentOptions::manifests(self.topology.manifests()).socket_lb(self.path);
        let xdp = WITH_XDP.get().then_some(&"--xdp=native");
        for argument in arguments.iter().chain(xdp) {
            options = options.argument(argument);
        }
        let start = |name: &&str| Agent::start(self.topology.node(name), options.clone()).unwrap();
        self.agents = nodes.iter().map(start).collect();
        for agent in &mut self.agents {
            agent.wait_synced(START).unwrap();
        }
        self
    }

    /// Makes these the backends of the group [`WEB`], and no others.
    fn put_pods(&self, names: &[&str]) {
        let object = |name: &&str| pod(name, self.pod(name), &[WEB, name], Condition::Ready);
        let objects: Vec<_> = names.iter().map(object).collect();
        self.apply("pods.yaml", &list(&objects)).unwrap();
    }

    /// Those whose questions come from inside the cluster, all at node1.
    fn inside(&self) -> [&Host; 4] {
        [self.pod("shell"), self.pod("side"), self.pod("kata"), self.node("node1")]
    }

    fn outside(&self) -> &Host {
        self.client("client")
    }

    /// Leads packets to cluster IPs and external IPs from outside to node1.
    fn route_services(&self) {
        for network in ["10.96.0.0/16", "192.0.2.0/24", "fd00:10:96::/112", "2001:db8::/64"] {
            self.route_vip(network, "node1").unwrap();
        }
    }

    /// How many packets node1's programs counted under a reason.
    fn counted(&self, reason: &str) -> u64 {
        let status = self.agents[0].status().unwrap();
        status["counters"][reason].as_u64().unwrap()
    }

    /// Entries that node1 remembers for IPv4 and IPv6.
    fn flows(&self) -> [u64; 2] {
        let status = self.agents[0].status().unwrap();
        let maps = status["maps"].as_array().unwrap();
        ["CONNTRACK_V4", "CONNTRACK_V6"].map(|name| {
            let map = maps.iter().find(|map| map["name"] == name).unwrap();
            map["entries"].as_u64().unwrap()
        })
    }

    /// Does a socket program choose for what this host asks?
    fn has_socket_path(&self, host: &Host) -> bool {
        self.path == SocketLb::All && !["kata", "client"].contains(&host.name())
    }
}

impl Deref for Cluster {
    type Target = Topology;

    fn deref(&self) -> &Topology {
        &self.topology
    }
}

fn topology(node1: NodeSpec) -> Topology {
    Topology::builder()
        .node(node1)
        .node(NodeSpec::new("node2"))
        .pod(PodSpec::routed("web-1", "node1"))
        .pod(PodSpec::routed("web-2", "node2"))
        .pod(PodSpec::bridged("web-3", "node1"))
        .pod(PodSpec::routed("shell", "node1"))
        .pod(PodSpec::bridged("side", "node1"))
        .pod(PodSpec::routed("kata", "node1").sandboxed())
        .client("client")
        .build()
        .unwrap()
}

thread_local! {
    /// Have clusters of this thread XDP ahead of their packet path?
    static WITH_XDP: Cell<bool> = const { Cell::new(false) };
    /// How many frames XDP has sent for them.
    static SENT_BY_XDP: Cell<u64> = const { Cell::new(0) };
}

/// Runs a case of the packet path with XDP ahead of it, of which the case knows nothing.
fn with_xdp(case: impl FnOnce(SocketLb)) {
    WITH_XDP.set(true);
    case(SocketLb::Off);
    assert!(SENT_BY_XDP.get() > 0, "nothing went by XDP");
}

/// Notes at its end what XDP has sent at a node.
struct Watch(Host);

impl Drop for Watch {
    fn drop(&mut self) {
        if WITH_XDP.get() && !std::thread::panicking() {
            SENT_BY_XDP.set(SENT_BY_XDP.get() + self.0.sent_by_xdp("eth0").unwrap());
        }
    }
}

/// Makes a test of `$case` for each path, and one for the packet path with XDP ahead of it where its
/// name is given.
macro_rules! on_both_paths {
    ($($case:ident => $socket:ident, $packet:ident $(, $xdp:ident)?;)+) => {
        $(
            $(
                #[test]
                fn $xdp() {
                    lb_test::require_topology!();
                    crate::with_xdp($case);
                }
            )?

            #[test]
            fn $socket() {
                lb_test::require_topology!();
                $case(lb_test::SocketLb::All);
            }

            #[test]
            fn $packet() {
                lb_test::require_topology!();
                $case(lb_test::SocketLb::Off);
            }
        )+
    };
}
use on_both_paths;

/// An IPv4 address and port as an IPv6 socket has it.
fn mapped(v4: std::net::SocketAddr) -> Option<std::net::SocketAddr> {
    match v4.ip() {
        std::net::IpAddr::V4(ip) => Some((ip.to_ipv6_mapped(), v4.port()).into()),
        std::net::IpAddr::V6(_) => None,
    }
}

/// Every family with the cluster IP of Service `number` in it, at `port`.
fn cluster_sockets(number: u8, port: u16) -> [std::net::SocketAddr; 2] {
    Family::BOTH.map(|family| lb_test::manifests::cluster_ips(number).socket(family, port))
}

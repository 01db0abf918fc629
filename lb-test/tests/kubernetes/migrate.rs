//! A node moves from kube-proxy to the agent and back, as docs/operations.md has it, under load.

use std::time::Duration;

use anyhow::ensure;
use lb_test::kubernetes::{ControlPlane, KubeProxy, run_inside};
use lb_test::programs::{curl, json_lines, nginx, start_probe, udp_echo};
use lb_test::{
    Agent, AgentOptions, Family, Host, Node, NodeSpec, PodSpec, Process, SocketLb, Topology,
    eventually, require_kubernetes,
};

use crate::manifests::{pod_on, web_service};

const PORTS: &str = "
  - {name: http, port: 80, targetPort: 8080, nodePort: 30080}
  - {name: echo, port: 53, targetPort: 5353, nodePort: 30053, protocol: UDP}";
const WEBS: [(&str, &str); 2] = [("web-1", "node-1"), ("web-2", "node-2")];
const PATIENCE: Duration = Duration::from_mins(1);
/// Between two requests of a connection, and how long one may take, in milliseconds.
const PACE: [&str; 4] = ["--interval", "200", "--timeout", "3000"];
/// So many answers of each connection take longer than one may: a silent one has failed by then.
const LONG: usize = 20;

/// What else on the node translates by netfilter.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cni {
    /// A CNI that masquerades what pods send to the world, as most do.
    Masquerades,
    /// Nobody.
    None,
}

/// A control plane, `node-1` that moves, a web server on it and one beside it.
struct Cluster {
    plane: ControlPlane,
    _servers: Vec<Process>,
    topology: Topology,
}

impl Cluster {
    fn start() -> Self {
        let mut builder = Topology::builder().client("client");
        for node in ["node-1", "node-2"] {
            builder = builder.node(NodeSpec::new(node));
        }
        for (name, node) in WEBS {
            builder = builder.pod(PodSpec::routed(name, node));
        }
        let topology = builder.pod(PodSpec::routed("shell", "node-1")).build().unwrap();
        let servers = WEBS.iter().flat_map(|(name, _)| {
            let pod = topology.pod(name);
            [nginx(pod, &[8080]).unwrap(), udp_echo(pod, 5353).unwrap()]
        });
        let servers = servers.collect();
        let plane = ControlPlane::start(topology.fabric()).unwrap();
        let cluster = Self { plane, _servers: servers, topology };
        cluster.populate();
        cluster
    }

    fn populate(&self) {
        let ips = |host: &Host| Family::BOTH.map(|family| host.ip(family).to_string());
        let work = async || {
            let objects = self.plane.objects("default").await.unwrap();
            let [v4, v6] = ips(self.node());
            let node = format!(
                "apiVersion: v1\nkind: Node\nmetadata: {{name: node-1}}\nstatus: {{addresses: [\
                 {{type: InternalIP, address: {v4}}}, {{type: InternalIP, address: '{v6}'}}]}}\n"
            );
            objects.apply(&node).await.unwrap();
            objects.apply(&web_service(PORTS)).await.unwrap();
            for (name, node) in WEBS {
                let ips = ips(self.topology.pod(name));
                let pod = pod_on(node, name, "web", &ips.each_ref().map(String::as_str), true);
                objects.apply(&pod).await.unwrap();
            }
        };
        run_inside(self.plane.host(), work).unwrap();
    }

    fn node(&self) -> &Node {
        self.topology.node("node-1")
    }

    /// A client outside by the node port, and a pod by the cluster IP, in both families.
    fn asks(&self, is_tcp: bool) -> [(&Host, String); 4] {
        let (port, node_port) = if is_tcp { (80, 30080) } else { (53, 30053) };
        let (client, shell) = (self.topology.client("client"), &**self.topology.pod("shell"));
        let [v4, v6] = Family::BOTH.map(|family| self.node().socket(family, node_port).to_string());
        let cluster = (format!("10.96.100.100:{port}"), format!("[fd00:10:96::6464]:{port}"));
        [(client, v4), (client, v6), (shell, cluster.0), (shell, cluster.1)]
    }

    fn start_kube_proxy(&self) -> KubeProxy {
        let proxy = KubeProxy::start(self.node(), &self.plane.kubeconfig()).unwrap();
        for (from, address) in self.asks(true) {
            eventually(PATIENCE, &format!("an answer at {address}"), || {
                curl(from, &format!("http://{address}/"), &["-m", "1"])
            });
        }
        proxy
    }
}

/// Requests that go on: by so many connections to each address, or each by a new one.
struct Load {
    probes: Vec<Process>,
    connections: usize,
}

impl Load {
    /// Opens so many connections to each address, and keeps them.
    fn kept(cluster: &Cluster, name: &str, connections: usize) -> Self {
        let parallel = connections.to_string();
        let arguments = ["tcp-keepalive", "--each", "--parallel", &parallel];
        let mut load = Self::start(cluster, name, &arguments, connections);
        for probe in &mut load.probes {
            probe.wait_line("\"ready\"", PATIENCE).unwrap();
        }
        load
    }

    /// A connection for each request.
    fn fresh(cluster: &Cluster) -> Self {
        Self::start(cluster, "fresh", &["tcp-get"], 1)
    }

    /// Datagrams from one socket for each address.
    fn datagrams(cluster: &Cluster) -> Self {
        Self::start(cluster, "datagrams", &["udp"], 1)
    }

    fn start(cluster: &Cluster, name: &str, arguments: &[&str], connections: usize) -> Self {
        let asks = cluster.asks(arguments[0] != "udp").into_iter().enumerate();
        let probes = asks.map(|(number, (from, address))| {
            let more = [&address, "--seconds", "600"];
            let all = [arguments, &more, &PACE].concat();
            start_probe(from, &format!("{name}-{number}"), &all).unwrap()
        });
        Self { probes: probes.collect(), connections }
    }

    /// The client's and the pod's.
    fn split(mut self) -> [Self; 2] {
        let pods = Self { probes: self.probes.split_off(2), connections: self.connections };
        [self, pods]
    }

    /// Ends it; nothing may have failed.
    #[track_caller]
    fn end(self) {
        for probe in &self.probes {
            assert_eq!(failures(probe), "", "{}", probe.log_path().display());
        }
    }
}

/// Waits until all connections have had so many more answers, one with the other.
#[track_caller]
fn go_on(loads: &[&Load], more: usize) {
    let count = |probe: &Process| probe.log().matches("\"answer\"").count();
    let probes =
        loads.iter().flat_map(|load| load.probes.iter().map(|one| (one, load.connections)));
    let wanted = probes.map(|(probe, connections)| (probe, count(probe) + more * connections));
    for (probe, wanted) in wanted.collect::<Vec<_>>() {
        eventually(PATIENCE, &format!("{wanted} answers"), || {
            ensure!(count(probe) >= wanted, "{}", failures(probe));
            Ok(())
        });
    }
}

/// The lines of a probe that tell of failures.
fn failures(probe: &Process) -> String {
    let log = probe.log();
    // The last line may be half written.
    let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let lines = json_lines(whole).unwrap().into_iter();
    let failures = lines.filter(|line| line["event"] == "failure").map(|line| line.to_string());
    failures.collect::<Vec<_>>().join("\n")
}

fn nothing_breaks(path: SocketLb, cni: Cni) {
    let cluster = Cluster::start();
    let node = cluster.node();
    if cni == Cni::Masquerades {
        let rules = "add table inet cni; add chain inet cni out { type nat hook postrouting \
                     priority 100; }; add rule inet cni out ip daddr 198.51.100.0/24 masquerade";
        node.run("nft", &[rules]).unwrap();
    }
    let proxy = cluster.start_kube_proxy();
    let first = Load::kept(&cluster, "first", 50);
    let (fresh, datagrams) = (Load::fresh(&cluster), Load::datagrams(&cluster));
    go_on(&[&fresh, &datagrams], 1);
    proxy.stop().unwrap();
    let options = AgentOptions::kubeconfig(cluster.plane.kubeconfig()).socket_lb(path);
    let agent = Agent::start_synced(node, options.argument("--migrate")).unwrap();
    if cni == Cni::Masquerades {
        KubeProxy::cleanup(node).unwrap();
        let tables = node.run("nft", &["list", "tables"]).unwrap();
        assert!(!tables.contains("kube-proxy"), "{tables}");
    }
    let second = Load::kept(&cluster, "second", 10);
    go_on(&[&first, &second, &fresh, &datagrams], LONG);
    let left = agent.status().unwrap()["counters"]["migrating"].as_u64();
    assert!(left > Some(1000), "{left:?} packets were left to the stack");
    and_back(&cluster, (agent, path), [first, second, fresh, datagrams]);
}

/// The first connections are kube-proxy's, the second ours.
fn and_back(cluster: &Cluster, (mut agent, path): (Agent, SocketLb), loads: [Load; 4]) {
    let [first, second, fresh, datagrams] = loads;
    agent.term().unwrap();
    let proxy = cluster.start_kube_proxy();
    let mut drain = agent.start_command("drain", &["cleanup", "--drain=10m"]).unwrap();
    drain.wait_line("connections go on", PATIENCE).unwrap();
    let third = Load::kept(cluster, "third", 10);
    go_on(&[&first, &second, &third, &fresh, &datagrams], LONG);
    assert_eq!(drain.ended().unwrap(), None, "connections of ours go on: {}", drain.log());
    let [outside, pods] = second.split();
    let mut left = vec![first, third, fresh, datagrams];
    outside.end();
    match path {
        // Their sockets have the endpoint's address, and need nobody.
        SocketLb::All => left.push(pods),
        _ => pods.end(),
    }
    assert!(drain.wait(PATIENCE).unwrap().success(), "{}", drain.log());
    assert!(drain.log().contains("no connection is left"), "{}", drain.log());
    assert!(!cluster.node().bpffs().join("lb").exists());
    go_on(&left.iter().collect::<Vec<_>>(), LONG);
    left.into_iter().for_each(Load::end);
    drop(proxy);
}

#[test]
#[ignore = "slow: half a minute of requests"]
fn nothing_breaks_from_kube_proxy_and_back_by_the_socket_path() {
    require_kubernetes!();
    nothing_breaks(SocketLb::All, Cni::None);
}

#[test]
#[ignore = "slow: half a minute of requests"]
fn nothing_breaks_from_kube_proxy_and_back_by_the_packet_path() {
    require_kubernetes!();
    nothing_breaks(SocketLb::Off, Cni::Masquerades);
}

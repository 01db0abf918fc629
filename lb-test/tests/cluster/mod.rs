//! The cluster that lifecycle tests share: two nodes, web pods that serve HTTP and UDP, a pod and
//! a client to ask from, an agent a node; and its manifests as text.

#![allow(dead_code, reason = "each test program uses a part")]

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Result, ensure};
use lb_agent::dataplane::{Reader, Snapshot};
use lb_test::{
    Agent, AgentOptions, Family, Host, Node, NodeSpec, PodSpec, Process, SocketLb, Topology,
    eventually, programs,
};
use nix::sys::signal::Signal;

pub(crate) use lb_test::PATIENT;

/// The Service of the web pods: TCP 80 and UDP 53, both as node port 30080.
pub(crate) const WEB: &str = r#"apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ipFamilyPolicy: RequireDualStack
  clusterIPs: [10.96.100.100, "fd00:10:96::6464"]
  ports:
  - {name: http, port: 80, targetPort: 8080, nodePort: 30080}
  - {name: echo, port: 53, targetPort: 5353, nodePort: 30080, protocol: UDP}
"#;

/// `web-1` and `web-3` on node1, `web-2` on node2.
pub(crate) const WEBS: [(&str, &str); 3] =
    [("web-1", "node1"), ("web-2", "node2"), ("web-3", "node1")];

/// The running cluster.
pub(crate) struct Cluster {
    pub(crate) agents: Vec<Agent>,
    servers: BTreeMap<&'static str, [Process; 2]>,
    pub(crate) topology: Topology,
}

impl Cluster {
    /// Starts it with the pods of `names` as endpoints, and an agent on node1 and node2.
    pub(crate) fn start(names: &[&str], socket_lb: SocketLb) -> Self {
        let cluster = Self::without_agents(names);
        let agents = ["node1", "node2"].map(|node| {
            let node = cluster.topology.node(node);
            Agent::start_synced(node, cluster.options(socket_lb)).unwrap()
        });
        Self { agents: agents.into(), ..cluster }
    }

    /// The same with all by the packet path, and XDP ahead of it.
    pub(crate) fn start_with_xdp(names: &[&str]) -> Self {
        let cluster = Self::without_agents(names);
        cluster.topology.ready_for_xdp().unwrap();
        let agents = ["node1", "node2"].map(|node| {
            let options = cluster.options(SocketLb::Off).argument("--xdp=native");
            Agent::start_synced(cluster.topology.node(node), options).unwrap()
        });
        Self { agents: agents.into(), ..cluster }
    }

    /// Starts it without agents.
    pub(crate) fn without_agents(names: &[&str]) -> Self {
        let mut builder = Topology::builder()
            .node(NodeSpec::new("node1"))
            .node(NodeSpec::new("node2"))
            .pod(PodSpec::routed("shell", "node1"))
            .client("client");
        for (name, node) in WEBS {
            builder = builder.pod(PodSpec::routed(name, node));
        }
        let topology = builder.build().unwrap();
        let servers = WEBS.iter().map(|(name, _)| (*name, serve(&topology, name))).collect();
        let cluster = Self { agents: Vec::new(), servers, topology };
        cluster.topology.apply("service.yaml", WEB).unwrap();
        cluster.endpoints(names);
        cluster
    }

    /// What its agents are started with.
    pub(crate) fn options(&self, socket_lb: SocketLb) -> AgentOptions {
        AgentOptions::manifests(self.topology.manifests()).socket_lb(socket_lb)
    }

    /// Makes the pods of `names`, and no others, the Service's endpoints.
    pub(crate) fn endpoints(&self, names: &[&str]) {
        let pods: String = names.iter().map(|name| pod(&self.topology, name, "True", "")).collect();
        self.topology.apply("pods.yaml", &pods).unwrap();
    }

    /// Ends the programs of a pod as the kubelet does, which lets what is being answered finish, and
    /// starts them again: another pod that has got the same address.
    pub(crate) fn replace_programs(&mut self, name: &'static str) {
        let [mut web, mut echo] = self.servers.remove(name).unwrap();
        web.signal(Signal::SIGQUIT).unwrap();
        web.wait(PATIENT).unwrap();
        echo.kill9().unwrap();
        self.servers.insert(name, serve(&self.topology, name));
    }

    /// Where the Service is asked from: a pod, a node, and a client outside.
    pub(crate) fn askers(&self) -> [(&'static str, &Host); 3] {
        let topology = &self.topology;
        [
            ("pod", &**topology.pod("shell")),
            ("node", &**topology.node("node1")),
            ("client", topology.client("client")),
        ]
    }

    /// The address to ask from there: the ClusterIP within the cluster, else node1's node port.
    pub(crate) fn address(&self, from: &str, family: Family, port: u16) -> String {
        match (from, family) {
            ("client", _) => self.topology.node("node1").socket(family, 30080).to_string(),
            (_, Family::V4) => format!("10.96.100.100:{port}"),
            (_, Family::V6) => format!("[fd00:10:96::6464]:{port}"),
        }
    }

    /// Asks once and returns who answered.
    pub(crate) fn ask(&self, from: &str, family: Family) -> Result<String> {
        let [pod, node, client] = self.askers();
        let (_, host) = [pod, node, client].into_iter().find(|(name, _)| *name == from).unwrap();
        get(host, &self.address(from, family, 80))
    }

    /// Waits until exactly the pods of `names` answer.
    #[track_caller]
    pub(crate) fn wait_answers(&self, from: &str, names: &[&str], timeout: Duration) {
        eventually(timeout, &format!("answers to the {from} from {names:?} alone"), || {
            let host = self.askers().into_iter().find(|(name, _)| *name == from).unwrap().1;
            ensure!(answers(host, &self.address(from, Family::V4, 80))? == names);
            Ok(())
        });
    }
}

/// Starts a web pod's programs: HTTP, and UDP echo.
fn serve(topology: &Topology, name: &str) -> [Process; 2] {
    let pod = topology.pod(name);
    [programs::nginx(pod, &[8080]).unwrap(), programs::udp_echo(pod, 5353).unwrap()]
}

/// One pod of the Service's, with its `Ready` condition and more metadata, as `, deletionTimestamp: …`.
pub(crate) fn pod(topology: &Topology, name: &str, ready: &str, metadata: &str) -> String {
    let pod = topology.pod(name);
    let (v4, v6, node) = (pod.ip(Family::V4), pod.ip(Family::V6), pod.node());
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: web}}{metadata}}}\n\
         spec: {{nodeName: {node}}}\nstatus:\n  phase: Running\n  conditions: [{{type: Ready, \
         status: \"{ready}\"}}]\n  podIPs: [{{ip: {v4}}}, {{ip: \"{v6}\"}}]\n---\n"
    )
}

/// Gets `/` over one new connection and returns the body.
pub(crate) fn get(from: &Host, address: &str) -> Result<String> {
    let body = programs::curl(from, &format!("http://{address}/"), &["-m", "5"])?;
    Ok(body.trim().to_owned())
}

/// Who answers twenty requests, in order of their names.
pub(crate) fn answers(from: &Host, address: &str) -> Result<Vec<String>> {
    let lines = programs::probe(from, &["tcp-get", address, "--count", "20", "--timeout", "2000"])?;
    let summary = lines.iter().find(|line| line["event"] == "summary").unwrap();
    ensure!(summary["failures"] == 0, "{summary}");
    let bodies = summary["bodies"].as_object().unwrap();
    Ok(bodies.keys().cloned().collect())
}

/// What the pinned tables of a node hold.
pub(crate) fn tables(node: &Node) -> Snapshot {
    Reader::open(&node.bpffs().join("lb")).expect("pinned maps").snapshot().unwrap()
}

/// The value of one of the agent's metrics.
pub(crate) fn metric(agent: &Agent, name: &str) -> f64 {
    let page = agent.page([127, 0, 0, 1].into(), 10249, "/metrics").unwrap();
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in\n{page}")).parse().unwrap()
}

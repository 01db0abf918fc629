//! The demo's cluster: two nodes with an agent each, three nginx pods, a pod to ask from, and a
//! client outside.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lb_test::agent::START;
use lb_test::{
    Agent, AgentOptions, NodeSpec, Pod, PodSpec, Process, SocketLb, Topology, programs,
    try_eventually,
};
use serde_json::Value;

use crate::interrupt;
use crate::manifests::{PODS, PORT};

/// How long a change of the manifests may take to reach every node's maps.
const CHANGE: Duration = Duration::from_secs(30);
/// How long a pod's last connections may take to end.
const DRAIN: Duration = Duration::from_secs(30);

/// The cluster; what it started goes when it is dropped, unless it is kept.
pub(crate) struct Cluster {
    // In the order in which they have to end.
    agents: Vec<Agent>,
    servers: Vec<(&'static str, Process)>,
    topology: Option<Topology>,
    socket_lb: SocketLb,
}

impl Cluster {
    /// Makes nodes, pods and the client, and starts nginx in its three pods.
    pub(crate) fn create(socket_lb: SocketLb) -> Result<Self> {
        let mut builder = Topology::builder()
            .node(NodeSpec::new("node1"))
            .node(NodeSpec::new("node2"))
            .pod(PodSpec::routed("shell", "node1"))
            .client("client");
        for (name, node, last, _) in PODS {
            builder = builder.pod(PodSpec::routed(name, node).at(last));
        }
        let topology = Some(builder.build()?);
        let (agents, servers) = (Vec::new(), Vec::new());
        let mut cluster = Self { agents, servers, topology, socket_lb };
        for (name, ..) in PODS {
            interrupt::check()?;
            cluster.start_server(name)?;
        }
        Ok(cluster)
    }

    pub(crate) fn topology(&self) -> &Topology {
        self.topology.as_ref().expect("invariant: only `keep` takes it, and the cluster with it")
    }

    pub(crate) fn socket_lb(&self) -> SocketLb {
        self.socket_lb
    }

    /// The agents, by number of their nodes.
    pub(crate) fn agents(&mut self) -> &mut [Agent] {
        &mut self.agents
    }

    /// Starts an agent on each node and waits until they are in step.
    pub(crate) fn start_agents(&mut self) -> Result<()> {
        let options =
            AgentOptions::manifests(self.topology().manifests()).socket_lb(self.socket_lb);
        let start = |node| Agent::start(node, options.clone());
        self.agents = self.topology().nodes().iter().map(start).collect::<Result<_>>()?;
        self.agents.iter_mut().try_for_each(|agent| agent.wait_synced(START))
    }

    /// Starts nginx in a pod.
    pub(crate) fn start_server(&mut self, name: &'static str) -> Result<()> {
        let server = programs::nginx(self.topology().pod(name), &[PORT])?;
        self.servers.push((name, server));
        Ok(())
    }

    /// Ends nginx in a pod that gets no new connections, when its last one has ended.
    pub(crate) fn stop_server(&mut self, name: &str) -> Result<()> {
        wait_drained(self.topology().pod(name))?;
        let position = self.servers.iter().position(|(server, _)| *server == name);
        let position = position.with_context(|| format!("no nginx runs in {name}"))?;
        self.servers.remove(position).1.stop().map(drop)
    }

    /// Waits until every node's maps have `count` backends at each frontend of a kind, and a
    /// frontend in each family.
    pub(crate) fn wait_backends(&self, kind: &str, count: usize) -> Result<()> {
        for agent in &self.agents {
            try_eventually(CHANGE, &format!("{count} backends of each {kind}"), || {
                if interrupt::received() {
                    return Ok(());
                }
                let services = agent.services()?;
                let found = backends(&services, kind);
                let right = found.len() >= 2 && found.iter().all(|found| *found == count);
                ensure!(right, "backends by frontend: {found:?}");
                Ok(())
            })?;
        }
        interrupt::check()
    }

    /// Leaves everything running and returns the run's name.
    pub(crate) fn keep(mut self) -> Result<String> {
        std::mem::take(&mut self.agents).into_iter().for_each(Agent::keep);
        for (_, server) in std::mem::take(&mut self.servers) {
            server.keep();
        }
        self.topology.take().context("the cluster has no topology")?.keep()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for agent in &mut self.agents {
            // What can't be undone here goes with the node's bpffs and namespace.
            let _ = agent.kill9();
            let _ = agent.command(&["cleanup"]);
        }
    }
}

/// The number of backends that each frontend of a kind chooses from.
fn backends(services: &Value, kind: &str) -> Vec<usize> {
    let rows = services.as_array().into_iter().flatten();
    let rows = rows.filter(|row| row["kind"] == kind);
    rows.map(|row| row["internal"]["backends"].as_array().map_or(0, Vec::len)).collect()
}

fn wait_drained(pod: &Pod) -> Result<()> {
    try_eventually(DRAIN, "end of the last connections", || {
        let open = pod.run("ss", &["-Htn", "state", "established", "state", "syn-recv"])?;
        ensure!(open.is_empty(), "{} has {open}", pod.name());
        Ok(())
    })
}

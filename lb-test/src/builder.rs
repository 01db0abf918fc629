//! What a topology should look like: nodes, pods and clients by name, before anything is made.

use anyhow::{Context, Result, ensure};

use crate::topology::Topology;

/// The longest pod name: `veth-` and it must fit a device's 15 characters.
const POD_NAME_MAX: usize = 10;
/// The longest name of a node or client: the fabric's port carries it.
const PORT_NAME_MAX: usize = 15;
/// The last part of the first pod's address on each node, where none is chosen.
const FIRST_POD: u8 = 10;

/// One node to be made.
#[derive(Clone, Debug)]
pub struct NodeSpec {
    pub(crate) name: String,
    pub(crate) rp_filter: &'static str,
}

impl NodeSpec {
    /// A node with reverse path filtering off, as Debian has it.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), rp_filter: "0" }
    }

    /// Turns strict reverse path filtering on.
    #[must_use]
    pub fn strict_rp_filter(mut self) -> Self {
        self.rp_filter = "1";
        self
    }
}

/// How a pod is connected to its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wiring {
    /// By a port of the node's bridge `cbr0`, as most CNIs do.
    Bridged,
    /// By a veth pair and a host route, as Calico does.
    Routed,
}

/// Where a pod's sockets are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sockets {
    /// In the node's cgroup: socket programs of the node see them.
    Node,
    /// In a kernel that the node can't look into, as with Kata or gVisor: outside its cgroup.
    Sandbox,
}

/// One pod to be made.
#[derive(Clone, Debug)]
pub struct PodSpec {
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) wiring: Wiring,
    pub(crate) sockets: Sockets,
    pub(crate) host: Option<u8>,
}

impl PodSpec {
    /// A pod behind a veth pair and a host route.
    #[must_use]
    pub fn routed(name: &str, node: &str) -> Self {
        let (name, node) = (name.to_owned(), node.to_owned());
        Self { name, node, wiring: Wiring::Routed, sockets: Sockets::Node, host: None }
    }

    /// A pod behind the node's bridge.
    #[must_use]
    pub fn bridged(name: &str, node: &str) -> Self {
        Self { wiring: Wiring::Bridged, ..Self::routed(name, node) }
    }

    /// Chooses the last part of the address: 21 gives 10.248.N.21 and `fd00:248:N::21` on node N.
    #[must_use]
    pub fn at(mut self, host: u8) -> Self {
        self.host = Some(host);
        self
    }

    /// Puts the pod's processes outside the node's cgroup, where its socket programs see nothing.
    #[must_use]
    pub fn sandboxed(mut self) -> Self {
        self.sockets = Sockets::Sandbox;
        self
    }
}

/// Collects what [`Topology::builder`] should make.
#[derive(Clone, Debug, Default)]
pub struct TopologyBuilder {
    pub(crate) nodes: Vec<NodeSpec>,
    pub(crate) pods: Vec<PodSpec>,
    pub(crate) clients: Vec<String>,
}

impl TopologyBuilder {
    /// Adds a node; the first is number 1.
    #[must_use]
    pub fn node(mut self, node: NodeSpec) -> Self {
        self.nodes.push(node);
        self
    }

    /// Adds a pod.
    #[must_use]
    pub fn pod(mut self, pod: PodSpec) -> Self {
        self.pods.push(pod);
        self
    }

    /// Adds a client outside the cluster.
    #[must_use]
    pub fn client(mut self, name: &str) -> Self {
        self.clients.push(name.to_owned());
        self
    }

    /// Makes it all.
    ///
    /// # Errors
    /// When a name is too long, taken or unknown, or the machine refuses; nothing is left behind.
    pub fn build(mut self) -> Result<Topology> {
        self.check_names()?;
        self.choose_addresses()?;
        Topology::create(&self)
    }

    /// The number of the node called `name`, from 1.
    pub(crate) fn node_number(&self, name: &str) -> Result<u8> {
        let index = self.nodes.iter().position(|node| node.name == name);
        let index = index.with_context(|| format!("no node is called {name}"))?;
        Ok(u8::try_from(index + 1)?)
    }

    fn check_names(&self) -> Result<()> {
        let ports = self.nodes.iter().map(|node| &node.name).chain(&self.clients);
        let ports = ports.map(|name| (name, PORT_NAME_MAX));
        let pods = self.pods.iter().map(|pod| (&pod.name, POD_NAME_MAX));
        let mut seen = vec!["fabric"];
        for (name, longest) in ports.chain(pods) {
            ensure!(name.len() <= longest, "name {name} has more than {longest} characters");
            ensure!(!seen.contains(&name.as_str()), "name {name} is taken");
            seen.push(name);
        }
        Ok(())
    }

    /// Gives each pod without a chosen address the lowest one free on its node.
    fn choose_addresses(&mut self) -> Result<()> {
        for index in 0..self.pods.len() {
            let pod = &self.pods[index];
            self.node_number(&pod.node)?;
            let others = self.pods.iter().enumerate().filter(|(other, _)| *other != index);
            let taken: Vec<u8> = others
                .filter(|(_, other)| other.node == pod.node)
                .filter_map(|(_, other)| other.host)
                .collect();
            let host = pod.host.or_else(|| (FIRST_POD..255).find(|host| !taken.contains(host)));
            let host = host.with_context(|| format!("no address is left on {}", pod.node))?;
            ensure!(!taken.contains(&host), "two pods on {} have address .{host}", pod.node);
            self.pods[index].host = Some(host);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods(pods: &[PodSpec]) -> TopologyBuilder {
        let nodes = vec![NodeSpec::new("node1"), NodeSpec::new("node2")];
        TopologyBuilder { nodes, pods: pods.to_vec(), clients: vec![] }
    }

    #[test]
    fn chosen_addresses_stay_and_the_others_avoid_them() {
        let mut builder = pods(&[
            PodSpec::routed("a", "node1"),
            PodSpec::routed("b", "node1").at(10),
            PodSpec::routed("c", "node2"),
        ]);
        builder.choose_addresses().unwrap();
        let hosts: Vec<_> = builder.pods.iter().map(|pod| pod.host.unwrap()).collect();
        assert_eq!(hosts, [11, 10, 10]);
    }

    #[test]
    fn impossible_topologies_are_refused_with_the_name() {
        let refused = |builder: TopologyBuilder| builder.build().unwrap_err().to_string();
        let pod = |name| PodSpec::routed(name, "node1");
        assert_eq!(refused(pods(&[pod("web"), pod("web")])), "name web is taken");
        assert!(refused(pods(&[pod("web-nginx-1234")])).contains("more than 10 characters"));
        assert_eq!(refused(pods(&[PodSpec::routed("a", "node9")])), "no node is called node9");
        let twice = pods(&[pod("a").at(7), pod("b").at(7)]);
        assert_eq!(refused(twice), "two pods on node1 have address .7");
    }
}

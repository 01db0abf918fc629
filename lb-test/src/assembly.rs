//! Makes a topology's hosts and connects them. Namespaces are made and configured in parallel,
//! because each takes the kernel and `ip` milliseconds.

use std::fs;
use std::panic::resume_unwind;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

use crate::address::{DualStack, FABRIC, OUTSIDE};
use crate::builder::{PodSpec, Sockets, TopologyBuilder};
use crate::host::Host;
use crate::netns::Netns;
use crate::topology::{Node, Pod, Topology};
use crate::wiring;

type Sysctls = Vec<(&'static str, &'static str)>;

/// Makes the nodes' cgroups, folders and bpffs mounts.
pub(crate) fn nodes(run: &str, spec: &TopologyBuilder) -> Result<Vec<Node>> {
    let each = spec.nodes.iter().map(|node| {
        let number = spec.node_number(&node.name)?;
        let host = Host::create(run, &node.name, &node.name, DualStack::of_node(number))?;
        let bpffs = host.directory().join("bpf");
        fs::create_dir(&bpffs)?;
        mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mount bpffs at {}", bpffs.display()))?;
        Ok(Node { host, number, bpffs })
    });
    each.collect()
}

/// Makes the pods' cgroups, below their nodes' unless sandboxed, and folders.
pub(crate) fn pods(run: &str, spec: &TopologyBuilder) -> Result<Vec<Pod>> {
    spec.pods.iter().map(|pod| make_pod(run, spec, pod)).collect()
}

fn make_pod(run: &str, spec: &TopologyBuilder, pod: &PodSpec) -> Result<Pod> {
    let PodSpec { name, node, .. } = pod;
    let cgroup = match pod.sockets {
        Sockets::Node => format!("{node}/{name}"),
        Sockets::Sandbox => name.clone(),
    };
    let last = pod.host.with_context(|| format!("no address for {name}"))?;
    let addresses = DualStack::of_pod(spec.node_number(node)?, last);
    let host = Host::create(run, name, &cgroup, addresses)?;
    Ok(Pod { host, node: node.clone(), wiring: pod.wiring })
}

/// Makes the clients' cgroups and folders.
pub(crate) fn clients(run: &str, spec: &TopologyBuilder) -> Result<Vec<Host>> {
    let each = spec.clients.iter().zip(1..);
    each.map(|(name, number)| Host::create(run, name, name, DualStack::of_client(number))).collect()
}

/// Makes all namespaces with their sysctls.
pub(crate) fn create_namespaces(topology: &Topology, spec: &TopologyBuilder) -> Result<()> {
    let mut work: Vec<(&Host, Sysctls)> = vec![(topology.fabric(), wiring::router_sysctls("0"))];
    for (node, spec) in topology.nodes().iter().zip(&spec.nodes) {
        work.push((node, wiring::router_sysctls(spec.rp_filter)));
    }
    let pods = topology.pods().iter().map(|pod| &pod.host);
    let endpoints = pods.chain(topology.clients());
    work.extend(endpoints.map(|host| (host, wiring::endpoint_sysctls())));
    in_parallel(work, |(host, sysctls)| Netns::create(host.netns().name(), &sysctls).map(drop))
}

/// Plugs in all cables, then sets addresses and routes at every end.
pub(crate) fn connect(topology: &Topology) -> Result<()> {
    topology.fabric().netns().ip_batch(&cables(topology))?;
    let mut work: Vec<(&Host, Vec<String>)> = Vec::new();
    work.push((
        topology.fabric(),
        topology.nodes().iter().flat_map(wiring::routes_to_pods).collect(),
    ));
    for node in topology.nodes() {
        let pods: Vec<_> = topology.pods().iter().filter(|pod| pod.node() == node.name()).collect();
        work.push((node, node_end(topology, node, &pods)));
        let ends = pods.iter().map(|pod| (&pod.host, wiring::pod_end(pod, node, &pods)));
        work.extend(ends);
    }
    for client in topology.clients() {
        work.push((client, wiring::endpoint(client.addresses(), OUTSIDE)));
    }
    in_parallel(work, |(host, lines)| host.netns().ip_batch(&lines))
}

fn cables(topology: &Topology) -> Vec<String> {
    let mut lines = wiring::bridges();
    for node in topology.nodes() {
        lines.extend(wiring::uplink("br0", node.name(), node.netns().name()));
    }
    for client in topology.clients() {
        lines.extend(wiring::uplink("outside0", client.name(), client.netns().name()));
    }
    lines
        .extend(topology.pods().iter().map(|pod| wiring::pod_link(pod, topology.node(pod.node()))));
    lines
}

fn node_end(topology: &Topology, node: &Node, pods: &[&Pod]) -> Vec<String> {
    let mut lines = wiring::endpoint(node.addresses(), FABRIC);
    let others = topology.nodes().iter().filter(|other| other.number() != node.number());
    lines.extend(others.flat_map(wiring::routes_to_pods));
    lines.extend(wiring::node_ports(node, pods));
    lines
}

/// Does each piece of work on a thread of its own and returns the first error.
fn in_parallel<T: Send>(work: Vec<T>, each: impl Fn(T) -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let each = &each;
        let threads: Vec<_> =
            work.into_iter().map(|piece| scope.spawn(move || each(piece))).collect();
        let results =
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|p| resume_unwind(p)));
        // Collected first: the scope must see the end of every thread.
        results.collect::<Vec<_>>().into_iter().collect()
    })
}

//! The topology itself: makes what a builder describes, finds its hosts, removes it when dropped.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};

use crate::address::FABRIC;
use crate::assembly;
use crate::builder::{TopologyBuilder, Wiring};
use crate::host::Host;
use crate::run::{KEEP, Run};
use crate::world::{self, Capture};

/// One node: a host that forwards for its pods, with a bpffs of its own.
#[derive(Debug)]
pub struct Node {
    pub(crate) host: Host,
    pub(crate) number: u8,
    pub(crate) bpffs: PathBuf,
}

impl Node {
    /// Its number, from 1, which its addresses carry.
    #[must_use]
    pub fn number(&self) -> u8 {
        self.number
    }

    /// The mount point of its bpffs.
    #[must_use]
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }
}

impl Deref for Node {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

/// One pod of a node.
#[derive(Debug)]
pub struct Pod {
    pub(crate) host: Host,
    pub(crate) node: String,
    pub(crate) wiring: Wiring,
}

impl Pod {
    /// The name of its node.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    /// How it is connected to its node.
    #[must_use]
    pub fn wiring(&self) -> Wiring {
        self.wiring
    }

    /// The node's end of its cable.
    #[must_use]
    pub fn device(&self) -> String {
        format!("veth-{}", self.host.name())
    }
}

impl Deref for Pod {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

/// A small cluster in namespaces. Dropped while its test panics, it prints what a reader needs to
/// understand the failure; dropped at all, it removes everything it made.
#[derive(Debug)]
pub struct Topology {
    fabric: Host,
    nodes: Vec<Node>,
    pods: Vec<Pod>,
    clients: Vec<Host>,
    captures: Mutex<Vec<Capture>>,
    // Last, so that it goes when nothing else is left.
    run: Run,
}

impl Topology {
    /// Begins the description of a topology.
    #[must_use]
    pub fn builder() -> TopologyBuilder {
        TopologyBuilder::default()
    }

    pub(crate) fn create(spec: &TopologyBuilder) -> Result<Self> {
        let run = Run::begin()?;
        let topology = Self {
            fabric: Host::create(run.name(), "fabric", "fabric", FABRIC)?,
            nodes: assembly::nodes(run.name(), spec)?,
            pods: assembly::pods(run.name(), spec)?,
            clients: assembly::clients(run.name(), spec)?,
            captures: Mutex::default(),
            run,
        };
        fs::create_dir(topology.manifests())?;
        assembly::create_namespaces(&topology, spec)?;
        assembly::connect(&topology)?;
        Ok(topology)
    }

    /// The fabric router, between nodes and clients.
    #[must_use]
    pub fn fabric(&self) -> &Host {
        &self.fabric
    }

    /// Makes the nodes' uplinks fit for XDP: whole checksums come in by them, as from a real wire, and
    /// frames that XDP sends are taken in at the far end, which a veth does for XDP or GRO alone.
    ///
    /// # Errors
    /// When a device is not there.
    pub fn ready_for_xdp(&self) -> Result<()> {
        for node in &self.nodes {
            self.fabric.complete_checksums(node.name())?;
            self.fabric.run("ethtool", &["-K", node.name(), "gro", "on"])?;
        }
        Ok(())
    }

    /// The node called `name`.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    #[track_caller]
    pub fn node(&self, name: &str) -> &Node {
        let node = self.nodes.iter().find(|node| node.name() == name);
        node.unwrap_or_else(|| panic!("no node is called {name}"))
    }

    /// The pod called `name`.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    #[track_caller]
    pub fn pod(&self, name: &str) -> &Pod {
        let pod = self.pods.iter().find(|pod| pod.name() == name);
        pod.unwrap_or_else(|| panic!("no pod is called {name}"))
    }

    /// The client called `name`.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    #[track_caller]
    pub fn client(&self, name: &str) -> &Host {
        let client = self.clients.iter().find(|client| client.name() == name);
        client.unwrap_or_else(|| panic!("no client is called {name}"))
    }

    /// All nodes, by number.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// All pods.
    #[must_use]
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// All clients outside.
    #[must_use]
    pub fn clients(&self) -> &[Host] {
        &self.clients
    }

    /// All hosts: fabric, nodes, pods and clients.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        let nodes = self.nodes.iter().map(|node| &node.host);
        let pods = self.pods.iter().map(|pod| &pod.host);
        std::iter::once(&self.fabric).chain(nodes).chain(pods).chain(&self.clients)
    }

    /// The run's name, which is part of every namespace's.
    #[must_use]
    pub fn run_name(&self) -> &str {
        self.run.name()
    }

    /// The folder of manifests that all nodes' agents may share.
    #[must_use]
    pub fn manifests(&self) -> PathBuf {
        self.run.directory().join("manifests")
    }

    /// Puts a manifest into the folder, whole: no reader sees half of it.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn apply(&self, file: &str, text: &str) -> Result<()> {
        let draft = self.run.directory().join(file);
        fs::write(&draft, text)?;
        fs::rename(&draft, self.manifests().join(file)).with_context(|| format!("apply {file}"))
    }

    /// Takes a manifest out of the folder.
    ///
    /// # Errors
    /// When it is not there.
    pub fn delete(&self, file: &str) -> Result<()> {
        fs::remove_file(self.manifests().join(file)).with_context(|| format!("delete {file}"))
    }

    /// Routes a range of virtual addresses, of either family, from the fabric to one node.
    ///
    /// # Errors
    /// When `network` is no prefix.
    pub fn route_vip(&self, network: &str, node: &str) -> Result<()> {
        let addresses = self.node(node).addresses();
        let via =
            if network.contains(':') { addresses.v6.to_string() } else { addresses.v4.to_string() };
        self.fabric.run("ip", &["route", "replace", network, "via", &via]).map(drop)
    }

    /// Captures packets at a device; they are printed if the test fails.
    ///
    /// # Errors
    /// When tcpdump does not begin within half a minute.
    pub fn capture(&self, host: &Host, device: &str) -> Result<PathBuf> {
        let capture = Capture::start(host, device)?;
        let file = capture.file().to_owned();
        self.captures.lock().unwrap_or_else(PoisonError::into_inner).push(capture);
        Ok(file)
    }

    /// Describes every node, the ends of all logs and the captured packets; ends the captures.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut captures = self.captures.lock().unwrap_or_else(PoisonError::into_inner);
        world::describe(self, std::mem::take(&mut *captures))
    }

    /// Leaves everything in place and returns the run's name for [`crate::run::remove`].
    ///
    /// # Errors
    /// When the mark can't be written; then everything is removed.
    pub fn keep(self) -> Result<String> {
        fs::write(self.run.directory().join(KEEP), "")?;
        let name = self.run.name().to_owned();
        std::mem::forget(self);
        Ok(name)
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.describe());
        }
    }
}

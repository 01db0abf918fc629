//! A node whose programs are measured: the programs as its agent has pinned them, on its own maps, and
//! the flows that they know.

use std::fmt;
use std::io::ErrorKind;
use std::net::{IpAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::programs::{ProgramFd, SchedClassifier};
use lb_test::{Family, Node, Topology};

use crate::frame::{ACK, Flow, Payload, SYN, SYN_ACK};
use crate::harness::{Input, Layer, Output, once, timed_once};

/// The client's port; it lies outside the range of SNAT.
pub(crate) const CLIENT_PORT: u16 = 40_000;

/// How long a neighbour may take to answer, and how often it is asked.
const PATIENCE: Duration = Duration::from_secs(1);
const ATTEMPTS: u32 = 10;

/// Where a program is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Hook {
    /// TC, leaving.
    Egress,
    /// TC, coming in.
    Ingress,
    /// XDP.
    Xdp,
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Egress => "TC out",
            Self::Ingress => "TC in",
            Self::Xdp => "XDP",
        })
    }
}

impl Hook {
    /// What kind of program it takes.
    pub(crate) const fn layer(self) -> Layer {
        match self {
            Self::Egress | Self::Ingress => Layer::Tc,
            Self::Xdp => Layer::Xdp,
        }
    }

    /// The verdict on a packet that goes on: to the next program, or to the stack.
    pub(crate) const fn passes(self) -> i32 {
        match self {
            Self::Egress | Self::Ingress => -1,
            Self::Xdp => 2,
        }
    }

    /// The verdict on a packet that is sent on: a redirect.
    pub(crate) const fn sends(self) -> i32 {
        match self {
            Self::Egress | Self::Ingress => 7,
            Self::Xdp => 4,
        }
    }
}

/// The programs of a node, and where its packets come from and go to.
pub(crate) struct Lab<'a> {
    topology: &'a Topology,
    ingress: SchedClassifier,
    egress: SchedClassifier,
    /// Of another type than it says: running it through the harness needs none.
    xdp: SchedClassifier,
    /// Interface index of the node's device towards all others.
    pub(crate) uplink: u32,
    /// Interface index of the device of its pod.
    pub(crate) veth: u32,
}

impl<'a> Lab<'a> {
    /// Takes the programs of a node; in the node's namespace.
    pub(crate) fn open(topology: &'a Topology, node: &Node) -> Result<Self> {
        let programs = node.bpffs().join("lb/programs");
        let device = |name: &str| {
            nix::net::if_::if_nametoindex(name).with_context(|| format!("device {name}"))
        };
        let lab = Self {
            topology,
            ingress: SchedClassifier::from_pin(programs.join("lb_tc_ingress"))?,
            egress: SchedClassifier::from_pin(programs.join("lb_tc_egress"))?,
            xdp: SchedClassifier::from_pin(programs.join("lb_xdp"))?,
            uplink: device("eth0")?,
            veth: device(&topology.pod("web1").device())?,
        };
        lab.meet_neighbours()?;
        keep_neighbours(node)?;
        Ok(lab)
    }

    /// The program at a hook.
    pub(crate) fn program(&self, hook: Hook) -> Result<(Layer, &ProgramFd)> {
        Ok((hook.layer(), self.at(hook).fd()?))
    }

    /// Runs the program at a hook once; its nanoseconds and what it makes of the frame.
    pub(crate) fn timed(&self, hook: Hook, input: &Input) -> Result<(f64, Output)> {
        timed_once(hook.layer(), self.at(hook), input)
    }

    const fn at(&self, hook: Hook) -> &SchedClassifier {
        match hook {
            Hook::Egress => &self.egress,
            Hook::Ingress => &self.ingress,
            Hook::Xdp => &self.xdp,
        }
    }

    /// Has the kernel learn the link-layer addresses of all that packets will be sent to: a refusal
    /// comes back as well as an answer.
    fn meet_neighbours(&self) -> Result<()> {
        for family in Family::BOTH {
            for ip in [self.client(family), self.pod("web1", family), self.pod("web2", family)] {
                let answers = || match TcpStream::connect_timeout(&(ip, 1).into(), PATIENCE) {
                    Err(error) => error.kind() == ErrorKind::ConnectionRefused,
                    Ok(_) => true,
                };
                ensure!((0..ATTEMPTS).any(|_| answers()), "{ip} does not answer");
            }
        }
        Ok(())
    }

    /// The address of the client outside.
    pub(crate) fn client(&self, family: Family) -> IpAddr {
        self.topology.client("client").ip(family)
    }

    /// The address of a pod.
    pub(crate) fn pod(&self, name: &str, family: Family) -> IpAddr {
        self.topology.pod(name).ip(family)
    }

    /// A connection from the client outside to a node port of this node.
    pub(crate) fn connection(&self, family: Family, node_port: u16) -> Flow {
        let node = self.topology.node("node1").ip(family);
        Flow { src: (self.client(family), CLIENT_PORT), dst: (node, node_port) }
    }

    /// Opens a connection up to the client's second packet, and tells what becomes of its packets.
    pub(crate) fn open_flow(&self, flow: Flow) -> Result<Flow> {
        let inside = self.begin(flow)?;
        self.answer(inside)?;
        self.go_on(flow)?;
        Ok(inside)
    }

    /// Sends a connection's first packet, and tells what becomes of its packets.
    pub(crate) fn begin(&self, flow: Flow) -> Result<Flow> {
        let output = self.send(flow, SYN)?;
        let becomes = Flow::of(&output.frame);
        ensure!(becomes.dst != flow.dst, "{flow:?} is not translated: verdict {}", output.verdict);
        Ok(becomes)
    }

    /// Has the backend of a connection answer the first packet.
    pub(crate) fn answer(&self, inside: Flow) -> Result<()> {
        let frame = inside.reversed().frame(SYN_ACK);
        let clients = Family::BOTH.map(|family| self.client(family));
        if clients.contains(&inside.src.0) {
            let input = Input { came_by: self.veth, ..self.input(frame) };
            return once(&self.egress, &input).map(drop);
        }
        once(&self.ingress, &self.input(frame)).map(drop)
    }

    /// Sends the client's second packet.
    pub(crate) fn go_on(&self, flow: Flow) -> Result<()> {
        let becomes = Flow::of(&self.send(flow, ACK)?.frame);
        ensure!(becomes.dst != flow.dst, "{flow:?} is no longer translated");
        Ok(())
    }

    fn send(&self, flow: Flow, payload: Payload) -> Result<Output> {
        once(&self.ingress, &self.input(flow.frame(payload)))
    }

    /// One flow's frame that is at the uplink, and came in by no other device.
    pub(crate) fn input(&self, frame: [u8; crate::frame::LENGTH]) -> Input {
        Input { frame, flows: 1, device: self.uplink, came_by: 0 }
    }
}

/// Makes the neighbours at a node's uplink stay: the kernel throws them out after five seconds where all
/// namespaces of the machine together have many.
fn keep_neighbours(node: &Node) -> Result<()> {
    let neighbours = node.run("ip", &["neighbour", "show", "dev", "eth0"])?;
    for line in neighbours.lines() {
        if let [address, "lladdr", mac, ..] = line.split_whitespace().collect::<Vec<_>>()[..] {
            let neighbour = ["neighbour", "replace", address, "lladdr", mac, "dev", "eth0"];
            node.run("ip", &[&neighbour[..], &["nud", "permanent"]].concat())?;
        }
    }
    Ok(())
}

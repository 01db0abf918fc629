//! Packets of no Service that a node really routes: in by its uplink, out by a pod's veth, taken in at the
//! pod, all on one CPU. Two nodes in turn, one of them with an agent.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use aya::programs::xdp::XdpLinkId;
use lb_test::{Agent, AgentOptions, Family, Room, Topology};

use crate::cases::family_name;
use crate::frame::{Flow, LENGTH, Payload};
use crate::harness::{Harness, Input};
use crate::lab::CLIENT_PORT;
use crate::live::fastest;
use crate::packets::stay_on_one_cpu;
use crate::report::{Report, Unit, median};

/// Times that each node is measured.
const ROUNDS: usize = 31;
/// Frames in one call: few enough that the kernel does not leave them to a thread of its own.
pub(crate) const FRAMES: u32 = 64 * 50;
/// A port of no Service and no backend.
pub(crate) const PORT: u16 = 9;
/// How long the largest cluster may take.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);
/// A rate of 0.97.
const GOAL: f64 = 1.031;
/// The node that gets an agent and the one that gets none, with a pod of each.
const PATHS: [(&str, &str); 2] = [("node1", "shell1"), ("node2", "shell2")];

/// Adds the time of a packet by TC programs at every device of its path, over that by none.
pub(crate) fn measure(topology: &Topology, report: &mut Report) -> Result<()> {
    let mut harness = Harness::load()?;
    let links = take_in(topology, &mut harness)?;
    let mut add = |harness: &mut Harness, what: &str, goal: Option<f64>| -> Result<()> {
        for (family, ratio) in ratios(topology, harness)? {
            let name = format!("routed, not ours {}, {what}", family_name(family));
            match goal {
                Some(goal) => report.add_sharp(&name, (ratio, Unit::Times), goal),
                None => report.add(&name, None, (ratio, Unit::Times), None),
            }
        }
        Ok(())
    };
    add(&mut harness, "a node without an agent over another", None)?;
    let node = topology.node("node1");
    let mut noops = Vec::new();
    for device in ["eth0".to_owned(), topology.pod("shell1").device()] {
        noops.push(node.enter(|| harness.attach_noops(&device))??);
    }
    add(&mut harness, "programs that do nothing over none", None)?;
    for links in noops {
        harness.detach_noops(links)?;
    }
    let options =
        AgentOptions::manifests(topology.manifests()).room(Room::Usual).argument("--xdp=off");
    let mut agent = Agent::start(node, options)?;
    agent.wait_synced(PATIENCE)?;
    add(&mut harness, "over a node without an agent", Some(GOAL))?;
    agent.term()?;
    agent.command(&["cleanup"])?;
    links.into_iter().try_for_each(|link| harness.detach("xdp_drop", link))
}

/// Attaches the program that takes packets in to the pods' devices.
fn take_in(topology: &Topology, harness: &mut Harness) -> Result<Vec<XdpLinkId>> {
    let mut links = Vec::new();
    for (_, pod) in PATHS {
        links.push(topology.pod(pod).enter(|| harness.attach("xdp_drop", "eth0"))??);
    }
    Ok(links)
}

/// The time by the first node over that by the second.
fn ratios(topology: &Topology, harness: &mut Harness) -> Result<Vec<(Family, f64)>> {
    let mut all = Vec::new();
    for family in Family::BOTH {
        let mut ratios = Vec::new();
        let inputs = inputs(topology, family)?;
        for round in 0..ROUNDS {
            let mut times = [0.0; 2];
            // Neither is always the first one.
            for place in [round % 2, 1 - round % 2] {
                let node = topology.node(PATHS[place].0);
                times[place] = node.enter(|| time(harness, &inputs[place]))??;
            }
            ratios.push(times[0] / times[1]);
        }
        all.push((family, median(&ratios)));
    }
    Ok(all)
}

/// A client's datagram to the pod of each node, at the node's uplink.
fn inputs(topology: &Topology, family: Family) -> Result<Vec<Input>> {
    let client: IpAddr = topology.client("client").ip(family);
    let each = PATHS.iter().map(|(node, pod)| {
        let flow = Flow { src: (client, CLIENT_PORT), dst: (topology.pod(pod).ip(family), PORT) };
        meet(topology, (node, pod), family)?;
        arriving(topology, node, flow.frame(Payload::Udp))
    });
    each.collect()
}

/// A frame that comes in by the uplink of a node, to its link-layer address.
pub(crate) fn arriving(topology: &Topology, node: &str, mut frame: [u8; LENGTH]) -> Result<Input> {
    let node = topology.node(node);
    frame[..6].copy_from_slice(&mac(&node.run("ip", &["-j", "link", "show", "eth0"])?)?);
    let device = node.enter(|| nix::net::if_::if_nametoindex("eth0"))??;
    Ok(Input { frame, flows: 1, device, came_by: 0 })
}

/// Makes the node know its pod's link-layer address, and keep it: the pod answers nobody while it drops.
pub(crate) fn meet(topology: &Topology, (node, pod): (&str, &str), family: Family) -> Result<()> {
    let (ip, device) = (topology.pod(pod).ip(family).to_string(), topology.pod(pod).device());
    let address = mac(&topology.pod(pod).run("ip", &["-j", "link", "show", "eth0"])?)?;
    let address = address.map(|byte| format!("{byte:02x}")).join(":");
    let neighbour = ["neigh", "replace", &ip, "lladdr", &address, "dev", &device];
    let node = topology.node(node);
    node.run("ip", &[&neighbour[..], &["nud", "permanent"]].concat()).map(drop)
}

/// The link-layer address that `ip -j link` shows.
fn mac(shown: &str) -> Result<[u8; 6]> {
    let links: serde_json::Value = serde_json::from_str(shown)?;
    let text = links[0]["address"].as_str().context("no address")?;
    let bytes: Result<Vec<u8>, _> = text.split(':').map(|it| u8::from_str_radix(it, 16)).collect();
    bytes?.try_into().map_err(|bytes| anyhow::anyhow!("{bytes:?}"))
}

/// Nanoseconds a packet.
pub(crate) fn time(harness: &mut Harness, input: &Input) -> Result<f64> {
    stay_on_one_cpu()?;
    fastest(FRAMES, || harness.routed((input, FRAMES)))
}

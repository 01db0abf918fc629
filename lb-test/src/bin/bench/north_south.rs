//! Packets of clients outside that a node translates, next to packets that a node without an agent routes:
//! live frames that come in by an uplink, until they are taken in where they are sent to, all on one CPU.

use anyhow::{Context, Result, ensure};
use aya::programs::{ProgramFd, xdp::XdpLinkId};
use lb_test::{Agent, AgentOptions, Family, Room, Topology};

use crate::cases::family_name;
use crate::cluster::{self, LOCAL, REMOTE};
use crate::frame::{ACK, Flow};
use crate::harness::{Harness, Input};
use crate::lab::{CLIENT_PORT, Hook, Lab};
use crate::live::{FAR_END, fastest};
use crate::report::{Report, Unit, median};
use crate::routed::{FRAMES, PATIENCE, PORT, arriving, meet};
use crate::{packets::stay_on_one_cpu, routed};

/// Times that each way is measured.
const ROUNDS: usize = 15;
/// Services that there are at least.
const SERVICES: u32 = 10;
/// The node with the agent, and the one that only routes.
const NODES: [&str; 2] = ["node1", "node2"];
/// The pod that the latter routes to.
const ROUTED_TO: &str = "shell2";
/// Rates of 2.5 and 0.9.
const GOALS: [f64; 2] = [0.4, 1.111];

/// One way to handle a packet.
struct Way<'a> {
    name: &'static str,
    node: &'a str,
    /// The program that a frame meets in the driver; without one it goes on to the stack and to TC.
    xdp: Option<&'a ProgramFd>,
    input: Input,
    goal: Option<f64>,
}

/// Adds the time of translated packets over that of routed ones.
pub(crate) fn measure(topology: &Topology, report: &mut Report) -> Result<()> {
    cluster::write(topology, SERVICES)?;
    // As many Services as the parts before have left there.
    let options = AgentOptions::manifests(topology.manifests()).room(Room::Usual);
    let options = options.argument("--xdp=native");
    let mut agent = Agent::start(topology.node(NODES[0]), options)?;
    agent.wait_synced(PATIENCE)?;
    let mut harness = Harness::load()?;
    topology.node(NODES[0]).enter(|| translated(topology, &mut harness, report))??;
    agent.term()?;
    agent.command(&["cleanup"]).map(drop)
}

fn translated(topology: &Topology, harness: &mut Harness, report: &mut Report) -> Result<()> {
    stay_on_one_cpu()?;
    let lab = Lab::open(topology, topology.node(NODES[0]))?;
    let xdp = lab.program(Hook::Xdp)?.1.try_clone()?;
    let mut families = Vec::new();
    for family in Family::BOTH {
        families.push((family, ways(topology, (&lab, &xdp), family)?));
    }
    let links = take_in(topology, harness)?;
    for (family, ways) in &families {
        for (way, ratio) in ways[1..].iter().zip(ratios(topology, harness, ways)?) {
            let name = format!("north-south {}, {}, over routing", family_name(*family), way.name);
            let goal = way.goal.context("a goal for all but routing")?;
            report.add_sharp(&name, (ratio, Unit::Times), goal);
        }
    }
    links.into_iter().try_for_each(|link| harness.detach("xdp_drop", link))
}

/// Routing, and what is compared with it.
fn ways<'a>(
    topology: &Topology,
    (lab, xdp): (&Lab<'_>, &'a ProgramFd),
    family: Family,
) -> Result<Vec<Way<'a>>> {
    let client = (lab.client(family), CLIENT_PORT);
    let routed = Flow { src: client, dst: (topology.pod(ROUTED_TO).ip(family), PORT) };
    let [local, remote] = [LOCAL, REMOTE].map(|node_port| lab.connection(family, node_port));
    let here = lab.open_flow(local)?;
    ensure!(here.dst.0 == lab.pod("web1", family), "{here:?}");
    lab.open_flow(remote)?;
    meet(topology, (NODES[1], ROUTED_TO), family)?;
    meet(topology, (NODES[0], "web1"), family)?;
    let way = |name, node, xdp, flow: Flow, goal| -> Result<Way<'a>> {
        let input = arriving(topology, node, flow.frame(ACK))?;
        Ok(Way { name, node, xdp, input, goal })
    };
    let [fast, slow] = GOALS.map(Some);
    Ok(vec![
        way("routed", NODES[1], None, routed, None)?,
        way("SNAT to another node by XDP", NODES[0], Some(xdp), remote, fast)?,
        way("SNAT to another node by TC", NODES[0], None, remote, slow)?,
        way("backend here by TC", NODES[0], None, local, slow)?,
    ])
}

/// Attaches the program that takes packets in to where each way leads.
fn take_in(topology: &Topology, harness: &mut Harness) -> Result<Vec<XdpLinkId>> {
    let mut links = Vec::new();
    for pod in [ROUTED_TO, "web1"] {
        links.push(topology.pod(pod).enter(|| harness.attach("xdp_drop", "eth0"))??);
    }
    links.push(topology.fabric().enter(|| harness.attach("xdp_drop", FAR_END))??);
    Ok(links)
}

/// The time by each way but the first one over that by the first.
fn ratios(topology: &Topology, harness: &mut Harness, ways: &[Way<'_>]) -> Result<Vec<f64>> {
    let mut ratios = vec![Vec::new(); ways.len() - 1];
    for round in 0..ROUNDS {
        let mut times = vec![0.0; ways.len()];
        // None is always the first one.
        for place in (0..ways.len()).map(|number| (number + round) % ways.len()) {
            let way = &ways[place];
            let node = topology.node(way.node);
            times[place] = node.enter(|| time(harness, way))??;
        }
        for (ratios, time) in ratios.iter_mut().zip(&times[1..]) {
            ratios.push(time / times[0]);
        }
    }
    Ok(ratios.iter().map(|ratios| median(ratios)).collect())
}

/// Nanoseconds a packet.
fn time(harness: &mut Harness, way: &Way<'_>) -> Result<f64> {
    match way.xdp {
        Some(program) => fastest(FRAMES, || harness.live(program, (&way.input, FRAMES))),
        None => routed::time(harness, &way.input),
    }
    .with_context(|| way.name)
}

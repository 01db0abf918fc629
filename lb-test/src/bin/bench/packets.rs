//! Nanoseconds per packet of the programs as the agent has pinned them, on its own maps.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use lb_test::{Family, Node, Topology};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::carried;
use crate::cases::{self, Case};
use crate::cluster::{self, TCP_PORT};
use crate::crowd;
use crate::frame::{ACK, Flow};
use crate::harness::{Harness, Input, Layer};
use crate::lab::{CLIENT_PORT, Lab};
use crate::live;
use crate::report::{Report, Unit, median};

/// Times that every figure is taken, in turn with the reference.
pub(crate) const ROUNDS: usize = 9;
/// Packets ahead of each figure of a flood: more than the flows that a CPU remembers in a tick.
const AHEAD: u32 = 20_000;
/// Programs of the harness, and the devices that they are attached to while it is in use.
const HELD: [(&str, &str); 2] = [("xdp_noop", "bench0"), ("xdp_harness", "bench1")];

/// Adds the figures of the packet path whose names hold `only`.
pub(crate) fn measure(
    topology: &Topology,
    (size, only): (u32, &str),
    report: &mut Report,
) -> Result<()> {
    let node = topology.node("node1");
    let mut harness = Harness::load()?;
    let fabric = topology.fabric();
    fabric.run("ip", &["link", "add", HELD[0].1, "type", "veth", "peer", "name", HELD[1].1])?;
    for (program, device) in HELD {
        fabric.enter(|| harness.attach(program, device))??;
    }
    node.enter(|| measure_inside(topology, node, &mut harness, (size, only, report)))??;
    fabric.run("ip", &["link", "delete", HELD[0].1]).map(drop)
}

fn measure_inside(
    topology: &Topology,
    node: &Node,
    harness: &mut Harness,
    (size, only, report): (u32, &str, &mut Report),
) -> Result<()> {
    stay_on_one_cpu()?;
    let lab = Lab::open(topology, node)?;
    let (mut known, mut floods) = (Vec::new(), Vec::new());
    for family in Family::BOTH {
        known.extend(cases::known(&lab, family)?);
        floods.extend(cases::floods(&lab, family));
    }
    let reference = reference_input(harness)?;
    known.retain(|case| case.name.contains(only));
    floods.retain(|case| case.name.contains(only));
    let basis = rounds(&lab, harness, &reference, &mut known)?;
    // Ahead of the crowd, which uses up what a CPU remembers in a tick.
    carried::measure(&lab, harness, (size, only, report))?;
    let mut crowds = Vec::new();
    for family in Family::BOTH {
        crowds.push(crowd::open(&lab, family)?);
    }
    crowds.retain(|case| case.name.contains(only));
    rounds(&lab, harness, &reference, &mut crowds)?;
    if only.is_empty() {
        live::measure(topology, (&lab, &known), harness, (size, report))?;
    }
    // Floods overwrite the entries of known flows.
    rounds(&lab, harness, &reference, &mut floods)?;
    report.add("reference NAT (R)", size, (median(&basis.references), Unit::Nanoseconds), None);
    for (name, times, goal) in [("XDP no-op", basis.xdp, 0.42), ("TC no-op", basis.tc, 0.55)] {
        report.add(name, size, (median(&times), Unit::References), goal);
    }
    for case in known.iter().chain(&crowds).chain(&floods) {
        report.add(&case.name, size, (median(&case.times), Unit::References), case.goal);
    }
    let cases: Vec<&Case> = known.iter().chain(&crowds).chain(&floods).collect();
    compare_families(&cases, size, report);
    Ok(())
}

/// What all figures of a group are compared with.
#[derive(Default)]
struct Basis {
    /// Nanoseconds of the reference.
    references: Vec<f64>,
    /// The no-op at XDP, in references.
    xdp: Vec<f64>,
    /// The no-op at TC, in references.
    tc: Vec<f64>,
}

fn rounds(
    lab: &Lab<'_>,
    harness: &mut Harness,
    reference: &Input,
    cases: &mut [Case],
) -> Result<Basis> {
    let mut basis = Basis::default();
    for _ in 0..ROUNDS {
        let own = harness.own("reference_nat")?;
        let (unit, output) = harness.measure((Layer::Xdp, &own), reference)?;
        ensure!(output.frame != reference.frame, "the reference NAT translated nothing");
        let [xdp, tc] = harness.noops(reference)?;
        basis.references.push(unit);
        basis.xdp.push(xdp / unit);
        basis.tc.push(tc / unit);
        for case in &mut *cases {
            let program = lab.program(case.hook)?;
            if case.becomes.is_none() {
                harness.exercise(program, (&case.input, AHEAD))?;
            }
            let (time, output) = harness.measure(program, &case.input)?;
            case.check(&output)?;
            case.times.push(time / unit);
        }
    }
    Ok(basis)
}

/// The reference's flow, taught to it.
fn reference_input(harness: &mut Harness) -> Result<Input> {
    let flow = |src: IpAddr, dst: (IpAddr, u16)| Flow { src: (src, CLIENT_PORT), dst };
    let (client, vip) = (cluster::endpoint(0, 0).into(), cluster::VIP.into());
    let from = flow(client, (vip, 80)).frame(ACK);
    let to = flow(vip, (client, TCP_PORT)).frame(ACK);
    harness.teach(&from, &to)?;
    Ok(Input { frame: from, flows: 1, device: 0, came_by: 0 })
}

/// Each figure of IPv6 over the same one of IPv4.
fn compare_families(cases: &[&Case], size: u32, report: &mut Report) {
    let [v4, v6] = Family::BOTH.map(cases::family_name);
    for case in cases.iter().filter(|case| case.name.contains(v6)) {
        let twin = cases.iter().find(|twin| twin.name == case.name.replace(v6, v4));
        if let Some(twin) = twin {
            let ratio = median(&case.times) / median(&twin.times);
            let name = format!("{} over IPv4", case.name);
            report.add(&name, size, (ratio, Unit::Times), 1.25);
        }
    }
}

/// Keeps the calling thread where it is, so that caches stay warm.
pub(crate) fn stay_on_one_cpu() -> Result<()> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let last = (0..CpuSet::count()).rev().find(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    let mut one = CpuSet::new();
    one.set(last.context("no CPU is allowed")?)?;
    Ok(sched_setaffinity(this, &one)?)
}

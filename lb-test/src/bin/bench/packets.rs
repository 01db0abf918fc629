//! Nanoseconds per packet of the programs as the agent has pinned them, on its own maps.

use std::net::{IpAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::programs::SchedClassifier;
use lb_test::{Family, Node, Topology};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::cluster::{self, LOCAL, REMOTE, TCP_PORT};
use crate::frame::{ACK, Flow, LENGTH, SYN, is_sound};
use crate::harness::{Harness, Input, Output, once};
use crate::report::{Report, Unit, median};

/// Times that every figure is taken, in turn with the reference.
const ROUNDS: usize = 9;
/// Flows of a flood, far more than conntrack holds.
const FLOOD: u32 = 1 << 24;
/// The client's port; it lies outside the range of SNAT.
const CLIENT_PORT: u16 = 40_000;
/// "The next program decides", as a verdict of TC.
const NEXT: i32 = -1;
/// "Send it by another device", as a verdict of TC.
const REDIRECT: i32 = 7;

/// Where a program is.
#[derive(Clone, Copy)]
enum Hook {
    Egress,
    Ingress,
}

/// One figure to be taken.
struct Case {
    name: String,
    hook: Hook,
    input: Input,
    /// The flow and verdict that a pass must end with; a flood has no single one.
    becomes: Option<(Flow, i32)>,
    goal: f64,
    times: Vec<f64>,
}

/// The programs of a node, and where its packets come from and go to.
struct Lab<'a> {
    topology: &'a Topology,
    ingress: SchedClassifier,
    egress: SchedClassifier,
    uplink: u32,
    pod: u32,
}

/// Adds all figures of the packet path.
pub(crate) fn measure(topology: &Topology, size: u32, report: &mut Report) -> Result<()> {
    let node = topology.node("node1");
    node.enter(|| measure_inside(topology, node, size, report))?
}

fn measure_inside(topology: &Topology, node: &Node, size: u32, report: &mut Report) -> Result<()> {
    stay_on_one_cpu()?;
    let lab = Lab::open(topology, node)?;
    lab.meet_neighbours();
    let mut harness = Harness::load()?;
    let (mut known, mut floods) = (Vec::new(), Vec::new());
    for family in Family::BOTH {
        known.extend(lab.known(family)?);
        floods.extend(lab.floods(family));
    }
    let reference = reference_input(&mut harness)?;
    let basis = rounds(&lab, &mut harness, &reference, &mut known)?;
    // Floods overwrite the entries of known flows.
    rounds(&lab, &mut harness, &reference, &mut floods)?;
    report.add("reference NAT (R)", size, (median(&basis.references), Unit::Nanoseconds), None);
    for (name, times, goal) in [("XDP no-op", basis.xdp, 0.42), ("TC no-op", basis.tc, 0.55)] {
        report.add(name, size, (median(&times), Unit::References), goal);
    }
    for case in known.iter().chain(&floods) {
        report.add(&case.name, size, (median(&case.times), Unit::References), case.goal);
    }
    compare_families(&known, size, report);
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
        let (unit, output) = harness.reference(reference)?;
        ensure!(output.frame != reference.frame, "the reference NAT translated nothing");
        let [xdp, tc] = harness.noops(reference)?;
        basis.references.push(unit);
        basis.xdp.push(xdp / unit);
        basis.tc.push(tc / unit);
        for case in &mut *cases {
            let (time, output) = harness.measure(lab.program(case.hook).fd()?, &case.input)?;
            case.check(&output)?;
            case.times.push(time / unit);
        }
    }
    Ok(basis)
}

impl Case {
    /// A measurement of packets that take another way would mean nothing.
    fn check(&self, output: &Output) -> Result<()> {
        let Some((flow, verdict)) = self.becomes else { return Ok(()) };
        let (found, name) = (Flow::of(&output.frame), &self.name);
        ensure!(
            found == flow && output.verdict == verdict && is_sound(&output.frame),
            "{name}: {found:?} with verdict {} instead of {flow:?} with {verdict}",
            output.verdict
        );
        Ok(())
    }
}

impl<'a> Lab<'a> {
    fn open(topology: &'a Topology, node: &Node) -> Result<Self> {
        let programs = node.bpffs().join("lb/programs");
        let device = |name: &str| {
            nix::net::if_::if_nametoindex(name).with_context(|| format!("device {name}"))
        };
        Ok(Self {
            topology,
            ingress: SchedClassifier::from_pin(programs.join("lb_tc_ingress"))?,
            egress: SchedClassifier::from_pin(programs.join("lb_tc_egress"))?,
            uplink: device("eth0")?,
            pod: device(&topology.pod("web1").device())?,
        })
    }

    fn program(&self, hook: Hook) -> &SchedClassifier {
        match hook {
            Hook::Egress => &self.egress,
            Hook::Ingress => &self.ingress,
        }
    }

    /// Has the kernel learn the link-layer addresses of all that packets will be sent to: a refusal
    /// comes back as well as an answer.
    fn meet_neighbours(&self) {
        for family in Family::BOTH {
            let client = self.topology.client("client").ip(family);
            for ip in [client, self.pod_ip("web1", family), self.pod_ip("web2", family)] {
                let _ = TcpStream::connect_timeout(&(ip, 1).into(), Duration::from_secs(1));
            }
        }
    }

    /// A connection from the client outside to a node port of this node.
    fn connection(&self, family: Family, node_port: u16) -> Flow {
        let client = self.topology.client("client").ip(family);
        let node = self.topology.node("node1").ip(family);
        Flow { src: (client, CLIENT_PORT), dst: (node, node_port) }
    }

    /// Packets of flows that are known, or of none.
    fn known(&self, family: Family) -> Result<Vec<Case>> {
        let local = self.connection(family, LOCAL);
        let inside = self.open_flow(local)?;
        let remote = self.connection(family, REMOTE);
        let outside = self.open_flow(remote)?;
        ensure!(inside.src == local.src && outside.src != remote.src, "{inside:?} {outside:?}");
        let (web, shell) = (self.pod_ip("web1", family), self.pod_ip("shell1", family));
        let foreign = Flow { src: (web, TCP_PORT), dst: (shell, CLIENT_PORT) };
        let v = family_name(family);
        let known = |name: &str, flow: Flow, ends: (Flow, i32)| {
            let input = self.input(flow.frame(ACK), self.uplink, 0);
            case(format!("TC, known flow {v}: {name}"), Hook::Ingress, input, (Some(ends), 1.2))
        };
        let mut cases = vec![
            known("to a backend here", local, (inside, NEXT)),
            known("to a remote backend, SNAT", remote, (outside, REDIRECT)),
            known("reply of a remote backend", outside.reversed(), (remote.reversed(), REDIRECT)),
        ];
        let reply = self.input(inside.reversed().frame(ACK), self.uplink, self.pod);
        let ends = (local.reversed(), NEXT);
        let name = format!("TC, known flow {v}: reply of a backend here");
        cases.push(case(name, Hook::Egress, reply, (Some(ends), 1.2)));
        for (name, hook) in [("in", Hook::Ingress), ("out", Hook::Egress)] {
            let input = self.input(foreign.frame(ACK), self.pod, self.uplink);
            let name = format!("TC, not ours {v}, {name}");
            cases.push(case(name, hook, input, (Some((foreign, NEXT)), 0.55)));
        }
        Ok(cases)
    }

    /// Packets of which each begins a flow.
    fn floods(&self, family: Family) -> Vec<Case> {
        let v = family_name(family);
        let flood = |name: &str, node_port: u16, flags: u8, goal: f64| {
            let frame = self.connection(family, node_port).frame(flags);
            let input = Input { flows: FLOOD, ..self.input(frame, self.uplink, 0) };
            case(format!("TC, {name} {v}"), Hook::Ingress, input, (None, goal))
        };
        vec![
            flood("first packets, backend here", LOCAL, SYN, 2.0),
            flood("first packets, SNAT", REMOTE, SYN, 14.0),
            flood("ACK flood", LOCAL, ACK, 2.0),
        ]
    }

    /// Makes a flow known and tells what becomes of its packets.
    fn open_flow(&self, flow: Flow) -> Result<Flow> {
        let output = once(&self.ingress, &self.input(flow.frame(SYN), self.uplink, 0))?;
        let becomes = Flow::of(&output.frame);
        ensure!(becomes.dst != flow.dst, "{flow:?} is not translated");
        Ok(becomes)
    }

    #[allow(clippy::unused_self, reason = "reads as a question to the lab")]
    fn input(&self, frame: [u8; LENGTH], device: u32, came_by: u32) -> Input {
        Input { frame, flows: 1, device, came_by }
    }

    fn pod_ip(&self, name: &str, family: Family) -> IpAddr {
        self.topology.pod(name).ip(family)
    }
}

fn case(name: String, hook: Hook, input: Input, ends: (Option<(Flow, i32)>, f64)) -> Case {
    let (becomes, goal) = ends;
    Case { name, hook, input, becomes, goal, times: Vec::new() }
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
fn compare_families(cases: &[Case], size: u32, report: &mut Report) {
    let [v4, v6] = Family::BOTH.map(family_name);
    for case in cases.iter().filter(|case| case.name.contains(v6)) {
        let twin = cases.iter().find(|twin| twin.name == case.name.replace(v6, v4));
        if let Some(twin) = twin {
            let ratio = median(&case.times) / median(&twin.times);
            let name = format!("{} over IPv4", case.name);
            report.add(&name, size, (ratio, Unit::Times), 1.25);
        }
    }
}

fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

/// Keeps the calling thread where it is, so that caches stay warm.
fn stay_on_one_cpu() -> Result<()> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let last = (0..CpuSet::count()).rev().find(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    let mut one = CpuSet::new();
    one.set(last.context("no CPU is allowed")?)?;
    Ok(sched_setaffinity(this, &one)?)
}

//! The packets whose figures are taken.

use anyhow::{Result, ensure};
use lb_test::Family;

use crate::cluster::{CROWD, LOCAL, REMOTE, TCP_PORT, UDP_DISTANCE};
use crate::frame::{ACK, Flow, Payload, SYN, is_sound};
use crate::harness::{Input, Output};
use crate::lab::{CLIENT_PORT, Hook, Lab};

/// Flows of a flood, far more than conntrack holds.
const FLOOD: u32 = 1 << 24;

/// One figure to be taken.
pub(crate) struct Case {
    /// What it is called in the report.
    pub(crate) name: String,
    /// Where its program is.
    pub(crate) hook: Hook,
    /// What the program is run on.
    pub(crate) input: Input,
    /// The flow and verdict that a pass must end with; a flood has no single one.
    pub(crate) becomes: Option<(Flow, i32)>,
    /// The most references that it should take.
    pub(crate) goal: f64,
    /// In references.
    pub(crate) times: Vec<f64>,
}

impl Case {
    /// A figure that has not been taken yet.
    pub(crate) fn new(
        name: String,
        hook: Hook,
        input: Input,
        (becomes, goal): (Option<(Flow, i32)>, f64),
    ) -> Self {
        Self { name, hook, input, becomes, goal, times: Vec::new() }
    }

    /// A measurement of packets that take another way would mean nothing.
    pub(crate) fn check(&self, output: &Output) -> Result<()> {
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

/// Packets of flows that are known, or of none.
pub(crate) fn known(lab: &Lab<'_>, family: Family) -> Result<Vec<Case>> {
    let local = lab.connection(family, LOCAL);
    let inside = lab.open_flow(local)?;
    let remote = lab.connection(family, REMOTE);
    let outside = lab.open_flow(remote)?;
    ensure!(inside.src == local.src && outside.src != remote.src, "{inside:?} {outside:?}");
    let reply = outside.reversed();
    let [xdp, tc] = [Hook::Xdp, Hook::Ingress];
    let case = |hook: Hook, name: &str, flow: Flow, ends: (Flow, i32), goal: f64| {
        let name = format!("{hook}, {name} {}", family_name(family));
        Case::new(name, hook, lab.input(flow.frame(ACK)), (Some(ends), goal))
    };
    let mut cases = vec![
        case(xdp, "known flow, SNAT", remote, (outside, xdp.sends()), 0.8),
        case(xdp, "known flow, reply from afar", reply, (remote.reversed(), xdp.sends()), 0.8),
        case(xdp, "known flow, backend here (TC's)", local, (local, xdp.passes()), 0.75),
        case(tc, "known flow, backend here", local, (inside, tc.passes()), 1.2),
        case(tc, "known flow, SNAT", remote, (outside, tc.sends()), 1.2),
        case(tc, "known flow, reply from afar", reply, (remote.reversed(), tc.sends()), 1.2),
    ];
    let out = Hook::Egress;
    let ends = (local.reversed(), out.passes());
    let mut answer = case(out, "known flow, reply from here", inside.reversed(), ends, 1.2);
    answer.input.came_by = lab.veth;
    cases.push(answer);
    // Neither end is a backend's, or the source is: that may be a reply of a Service's flow.
    let shell = (lab.pod("shell1", family), CLIENT_PORT);
    let nobody = Flow { src: (lab.client(family), CLIENT_PORT), dst: shell };
    let backend = Flow { src: (lab.pod("web2", family), TCP_PORT), dst: shell };
    for (name, flow) in [("not ours", nobody), ("not ours, from a backend", backend)] {
        cases.extend([xdp, tc].map(|hook| case(hook, name, flow, (flow, hook.passes()), 0.55)));
        let mut leaving = case(out, name, flow, (flow, out.passes()), 0.55);
        (leaving.input.device, leaving.input.came_by) = (lab.veth, lab.uplink);
        cases.push(leaving);
    }
    Ok(cases)
}

/// Packets of which each begins a flow, or belongs to none.
pub(crate) fn floods(lab: &Lab<'_>, family: Family) -> Vec<Case> {
    let flood = |name: &str, hook: Hook, (node_port, payload): (u16, Payload), goal: f64| {
        let frame = lab.connection(family, node_port).frame(payload);
        let input = Input { flows: FLOOD, ..lab.input(frame) };
        let name = format!("{hook}, {name} {}", family_name(family));
        Case::new(name, hook, input, (None, goal))
    };
    let both = [Hook::Xdp, Hook::Ingress].into_iter();
    both.flat_map(|hook| {
        [
            flood("SYN flood, backend here", hook, (LOCAL, SYN), 2.0),
            flood("DNS queries, backend here", hook, (LOCAL + UDP_DISTANCE, Payload::Udp), 2.0),
            flood("SYN flood, SNAT", hook, (CROWD, SYN), 14.0),
            flood("ACK flood, backend here", hook, (LOCAL, ACK), 2.0),
        ]
    })
    .collect()
}

/// The name of a family in a figure's.
pub(crate) fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

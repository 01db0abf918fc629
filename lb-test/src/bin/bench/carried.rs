//! Packets that are carried to their backend's node (direct server return).
//!
//! A packet cannot be put into a carrier twice, and the kernel takes it out of none: so each pass is a call of
//! its own, as is each of the flow that it is compared with.

use anyhow::{Result, ensure};
use lb_test::Family;

use crate::cases::family_name;
use crate::cluster::{CARRIED, REMOTE};
use crate::frame::{ACK, Flow, SYN};
use crate::harness::{Harness, Input};
use crate::lab::{Hook, Lab};
use crate::report::{Report, Unit, median};

/// Passes of each, in turn.
const PASSES: usize = 4000;

/// Adds what a known flow by direct server return costs, and one by SNAT, measured alike.
pub(crate) fn measure(
    lab: &Lab<'_>,
    harness: &Harness,
    (size, only, report): (u32, &str, &mut Report),
) -> Result<()> {
    let of = |hook| Family::BOTH.map(|family| (hook, family));
    for (hook, family) in [Hook::Xdp, Hook::Ingress].into_iter().flat_map(of) {
        let name =
            |way| format!("{hook}, known flow, {way} {}, a pass at a time", family_name(family));
        let names = ["DSR", "SNAT"].map(name);
        if names[0].contains(only) {
            for (name, time) in names.iter().zip(times(lab, harness, (hook, family))?) {
                report.add(name, size, (time, Unit::Nanoseconds), None);
            }
        }
    }
    Ok(())
}

/// Nanoseconds of a pass by direct server return and by SNAT, less those of the no-op.
fn times(lab: &Lab<'_>, harness: &Harness, (hook, family): (Hook, Family)) -> Result<[f64; 2]> {
    let flow = lab.connection(family, REMOTE);
    lab.open_flow(flow)?;
    let translated = lab.input(flow.frame(ACK));
    let flow = lab.connection(family, CARRIED);
    let carried = lab.input(flow.frame(ACK));
    for frame in [SYN, ACK, ACK] {
        expect_carried(lab, hook, (&lab.input(flow.frame(frame)), flow))?;
    }
    let mut times = [const { Vec::new() }; 3];
    for _ in 0..PASSES {
        let [none, snat, dsr] = &mut times;
        none.push(harness.noop_once(hook.layer(), &translated)?);
        snat.push(lab.timed(hook, &translated)?.0);
        dsr.push(lab.timed(hook, &carried)?.0);
    }
    let [none, snat, dsr] = times.map(|times| median(&times));
    ensure!(snat > none, "{snat} ns by SNAT, {none} ns for nothing");
    Ok([dsr - none, snat - none])
}

/// A packet of another kind would mean nothing: the carrier goes to the backend, from this node.
fn expect_carried(lab: &Lab<'_>, hook: Hook, (input, flow): (&Input, Flow)) -> Result<()> {
    let (_, output) = lab.timed(hook, input)?;
    let (became, verdict) = (Flow::of(&output.frame), output.verdict);
    let is_carrier = became.dst.1 == lb_common::carrier::PORT && became.src.0 == flow.dst.0;
    ensure!(is_carrier && verdict == hook.sends(), "{flow:?} became {became:?}: {verdict}");
    Ok(())
}

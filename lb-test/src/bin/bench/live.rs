//! Frames that XDP really sends, by a veth pair, to XDP at its far end: all on one CPU.

use anyhow::{Context, Result, ensure};
use lb_test::Topology;

use crate::cases::Case;
use crate::frame::ACK;
use crate::harness::Harness;
use crate::lab::{Hook, Lab};
use crate::packets::ROUNDS;
use crate::report::{Report, Unit, median};

/// Frames in one call: few enough that the kernel does not leave them to a thread of its own.
const FRAMES: u32 = 64 * 100;
/// Calls of which the fastest counts.
const CALLS: usize = 8;
/// The far end of the node's uplink.
pub(crate) const FAR_END: &str = "node1";

/// Adds what a frame costs that is translated and sent, over one whose link-layer addresses are
/// swapped.
pub(crate) fn measure(
    topology: &Topology,
    (lab, known): (&Lab<'_>, &[Case]),
    harness: &mut Harness,
    (size, report): (u32, &mut Report),
) -> Result<()> {
    let sends = |case: &&Case| case.becomes.is_some_and(|(_, to)| to == Hook::Xdp.sends());
    let case = known.iter().find(sends).context("no flow that XDP sends on")?;
    let (becomes, _) = case.becomes.context("the same")?;
    harness.teach(&case.input.frame, &becomes.frame(ACK))?;
    let own = lab.program(Hook::Xdp)?.1.try_clone()?;
    let (swap, reference) = (harness.own("swap_macs")?, harness.own("reference_nat")?);
    let link = topology.fabric().enter(|| harness.attach("xdp_drop", FAR_END))??;
    let mut ratios = [const { Vec::new() }; 2];
    for _ in 0..ROUNDS {
        let mut time = |program| fastest(FRAMES, || harness.live(program, (&case.input, FRAMES)));
        let least = time(&swap)?;
        ratios[0].push(time(&own)? / least);
        ratios[1].push(time(&reference)? / least);
    }
    harness.detach("xdp_drop", link)?;
    let names = ["live frames, translated", "live frames, reference NAT"];
    for ((name, ratios), goal) in names.iter().zip(ratios).zip([Some(1.14), None]) {
        let name = format!("{name}, over swapped link-layer addresses");
        report.add(&name, size, (median(&ratios), Unit::Times), goal);
    }
    Ok(())
}

/// Nanoseconds a frame, by calls that tell theirs and how many of so many frames were taken in.
pub(crate) fn fastest(frames: u32, mut call: impl FnMut() -> Result<(f64, u64)>) -> Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..CALLS {
        let (time, taken_in) = call()?;
        ensure!(taken_in > u64::from(frames) / 100 * 99, "{taken_in} of {frames} frames arrived");
        best = best.min(time);
    }
    Ok(best)
}

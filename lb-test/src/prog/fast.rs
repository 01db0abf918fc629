//! The XDP program ahead of TC's: what it finishes must be what TC would have made of it, and what
//! it passes on must be as it came.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};

use super::LARGEST;
use crate::{address::FABRIC, topology::Node};

/// Link-layer addresses of the uplink and of what is behind it.
const UPLINK: &str = "02:00:00:00:00:07";
const BEYOND: &str = "02:00:00:00:00:08";
/// Both, as a frame that the program sends has them: destination, then source.
const CROSSING: [u8; 12] = [2, 0, 0, 0, 0, 8, 2, 0, 0, 0, 0, 7];
/// Offsets in `struct xdp_md` of `include/uapi/linux/bpf.h`.
const DATA_END: usize = 4;
const INGRESS_IFINDEX: usize = 12;
const CONTEXT: usize = 24;
/// Verdicts of the same header.
const DROP: u32 = 1;
const PASS: u32 = 2;
const TX: u32 = 3;

/// What the program does with a frame.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Finish {
    /// It is gone.
    Dropped,
    /// TC is to judge it.
    Passed,
    /// It is sent back by its device; its link-layer addresses are those that it came with.
    Sent(Vec<u8>),
}

/// The program at the uplink of a node.
pub(super) struct Fast {
    /// Of another type than it says: the loader cannot open one of XDP, and running needs none.
    program: SchedClassifier,
    uplink: u32,
}

impl Fast {
    /// Takes the program that is pinned, and makes the uplink's neighbours known.
    pub(super) fn new(node: &Node, bpffs: &Path, uplink: u32) -> Result<Self> {
        node.run("ip", &["link", "set", "eth0", "address", UPLINK])?;
        for address in [FABRIC.v4.to_string(), FABRIC.v6.to_string()] {
            let neighbour = ["neigh", "replace", &address, "lladdr", BEYOND, "dev", "eth0"];
            node.run("ip", &[&neighbour[..], &["nud", "permanent"]].concat())?;
        }
        let pin = bpffs.join("programs/lb_xdp");
        Ok(Self { program: SchedClassifier::from_pin(pin)?, uplink })
    }

    /// Runs the program on a frame that comes in by the uplink.
    pub(super) fn run(&self, node: &Node, bytes: &[u8]) -> Result<Finish> {
        let mut context = [0; CONTEXT];
        let length = u32::try_from(bytes.len())?;
        context[DATA_END..][..4].copy_from_slice(&length.to_ne_bytes());
        context[INGRESS_IFINDEX..][..4].copy_from_slice(&self.uplink.to_ne_bytes());
        let mut output = vec![0; LARGEST];
        let result = node.enter(|| {
            self.program.test_run(TestRunOptions {
                data_in: Some(bytes),
                data_out: Some(&mut output),
                ctx_in: Some(&context),
                ..TestRunOptions::new()
            })
        })?;
        let result = result.context("run lb_xdp")?;
        output.truncate(result.data_size_out as usize);
        match result.return_value {
            DROP => Ok(Finish::Dropped),
            PASS => {
                ensure!(output == bytes, "a frame that is passed on has been changed");
                Ok(Finish::Passed)
            }
            TX => sent(bytes, output).map(Finish::Sent),
            other => bail!("verdict {other} of lb_xdp"),
        }
    }
}

/// A frame on its way has the addresses of its crossing, or of the way back; TC's gets them later.
fn sent(before: &[u8], mut after: Vec<u8>) -> Result<Vec<u8>> {
    let way_back = [&before[6..12], &before[..6]].concat();
    if after[..12] != way_back {
        ensure!(after[..12] == CROSSING, "link-layer addresses {:02x?}", &after[..12]);
        after[..12].copy_from_slice(&before[..12]);
    }
    Ok(after)
}

/// TC has such addresses by a next hop that it has cached.
pub(super) fn without_crossing(before: &[u8], mut after: Vec<u8>) -> Vec<u8> {
    if after.starts_with(&CROSSING) {
        after[..12].copy_from_slice(&before[..12]);
    }
    after
}

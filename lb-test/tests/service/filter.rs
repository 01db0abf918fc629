//! The filter that the agent makes anew while it runs, beside connections that need the old bits.

use std::num::NonZeroUsize;
use std::time::Duration;

use anyhow::ensure;
use lb_common::abi::{Control, maps};
use lb_test::PATIENT;
use lb_test::{SocketLb, eventually};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::Cluster;
use crate::stale::{answers_of, connections, failures, lines};

/// Longer than from one filter to the next.
const NEXT: Duration = Duration::from_secs(130);

/// Which filter counts, and whether the other one is being made.
fn filter(cluster: &Cluster) -> u32 {
    let pin = cluster.node("node1").bpffs().join("lb/maps").join(maps::CONTROL);
    let map = aya::maps::MapData::from_pin(pin).unwrap();
    let length = NonZeroUsize::new(4096).unwrap();
    // SAFETY: a new mapping of less than the map's element, read while it is there.
    unsafe {
        let (protection, flags) = (ProtFlags::PROT_READ, MapFlags::MAP_SHARED);
        let place = mmap(None, length, protection, flags, map.fd(), 0).unwrap();
        let at = std::mem::offset_of!(Control, filter);
        let filter = place.as_ptr().cast::<u32>().add(at / 4).read_volatile();
        munmap(place, length.get()).unwrap();
        filter
    }
}

/// S12: their backend has left the tables, and with it what the tables have of its bits.
#[test]
#[ignore = "slow: over a minute"]
fn connections_live_on_when_a_running_agent_makes_its_filter_anew() {
    lb_test::require_topology!();
    let (cluster, open) = connections(SocketLb::Off, &[]);
    let counted = filter(&cluster) & 1;
    eventually(NEXT, "another filter", || {
        let filter = filter(&cluster);
        ensure!(filter & 1 != counted && filter & Control::MAKES_FILTER == 0, "{filter}");
        Ok(())
    });
    let before: Vec<_> = open.iter().map(|process| answers_of(process, "web-1")).collect();
    for (process, before) in open.iter().zip(before) {
        eventually(PATIENT, "more answers of web-1", || {
            let answers = answers_of(process, "web-1");
            ensure!(answers >= before + 20, "{before}, {:?}", lines(process).last());
            Ok(())
        });
        assert!(failures(&lines(process)).is_empty(), "{}", process.log());
    }
}

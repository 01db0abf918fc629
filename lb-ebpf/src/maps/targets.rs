//! Backends of this node by their addresses.

use aya_ebpf::{bindings::BPF_F_NO_PREALLOC, btf_maps::HashMap, macros::btf_map};
use lb_common::abi::{Ipv4, Ipv6, Target};

use super::Maps;

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;
/// A size that the agent replaces at load.
const SIZE: usize = 1 << 18;

#[btf_map]
static TARGETS_V4: HashMap<Target<Ipv4>, u32, SIZE, NO_PREALLOC> = HashMap::new();
#[btf_map]
static TARGETS_V6: HashMap<Target<Ipv6>, u32, SIZE, NO_PREALLOC> = HashMap::new();

/// The map of one family.
pub trait TargetMaps: Maps {
    /// The id of a backend on this node.
    fn target(target: &Target<Self>) -> Option<u32>;
}

macro_rules! target_maps {
    ($family:ty, $targets:ident) => {
        impl TargetMaps for $family {
            #[inline(always)]
            fn target(target: &Target<Self>) -> Option<u32> {
                // SAFETY: copied out at once; without preallocation an entry is freed only after
                // a grace period.
                unsafe { $targets.get(target) }.copied()
            }
        }
    };
}

target_maps!(Ipv4, TARGETS_V4);
target_maps!(Ipv6, TARGETS_V6);

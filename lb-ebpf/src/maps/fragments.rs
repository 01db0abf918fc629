//! What became of the first fragments of packets.

use aya_ebpf::{bindings::BPF_ANY, btf_maps::LruHashMap, macros::btf_map};
use lb_common::abi::{Fragment, FragmentKey, Ipv4, Ipv6};

use super::Maps;

/// Packets whose fragments are on their way at a time.
const SIZE: usize = 1 << 14;

#[btf_map]
static FRAGMENTS_V4: LruHashMap<FragmentKey<Ipv4>, Fragment<Ipv4>, SIZE> = LruHashMap::new();
#[btf_map]
static FRAGMENTS_V6: LruHashMap<FragmentKey<Ipv6>, Fragment<Ipv6>, SIZE> = LruHashMap::new();
/// The map of one family.
pub trait FragmentMaps: Maps {
    /// What became of a packet's first fragment.
    fn fragment(key: &FragmentKey<Self>) -> Option<Fragment<Self>>;
    /// Remembers it.
    fn keep_fragment(key: &FragmentKey<Self>, fragment: &Fragment<Self>);
}

macro_rules! fragment_maps {
    ($family:ty, $fragments:ident) => {
        impl FragmentMaps for $family {
            #[inline(always)]
            fn fragment(key: &FragmentKey<Self>) -> Option<Fragment<Self>> {
                // SAFETY: elements of an LRU map stay allocated for as long as the map; one that
                // is reused meanwhile holds another valid entry.
                unsafe { $fragments.get(key) }.copied()
            }

            #[inline(always)]
            fn keep_fragment(key: &FragmentKey<Self>, fragment: &Fragment<Self>) {
                // A full LRU map makes room; without the entry the packet is lost, and no more.
                let _ = $fragments.insert(key, fragment, u64::from(BPF_ANY));
            }
        }
    };
}

fragment_maps!(Ipv4, FRAGMENTS_V4);
fragment_maps!(Ipv6, FRAGMENTS_V6);

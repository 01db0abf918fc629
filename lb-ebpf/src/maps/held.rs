//! Later fragments that wait for the first one of their packet.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    btf_maps::{LruHashMap, PerCpuArray},
    macros::btf_map,
};
use lb_common::abi::{Ipv4, Ipv6};
use lb_ebpf::path::hold::{LARGEST, Slot};

/// Fragments that wait at a time, of each family. A flood of them throws out nothing but each other.
const SIZE: usize = 1 << 11;

/// A fragment that waits.
#[repr(C)]
pub struct Held {
    /// When it came, in units of 2^30 ns.
    pub since: u32,
    /// In a packet's first slot, how many have been given away.
    pub given: u32,
    /// Bytes from its IP header on, less one.
    pub last: u32,
    /// These.
    pub bytes: [u8; LARGEST],
}

impl Held {
    /// How many bytes there are, which the kernel is to know that there is room for: 1 to [`LARGEST`].
    ///
    /// Read anew, and compared as it stands: the compiler may else compare what the number was made from.
    #[inline(always)]
    pub fn length(&self) -> Option<u32> {
        // SAFETY: a reference can be read.
        let last = unsafe { (&raw const self.last).read_volatile() };
        if last < LARGEST as u32 { Some(last + 1) } else { None }
    }
}

#[btf_map]
static HELD_V4: LruHashMap<Slot<Ipv4>, Held, SIZE> = LruHashMap::new();
#[btf_map]
static HELD_V6: LruHashMap<Slot<Ipv6>, Held, SIZE> = LruHashMap::new();
#[btf_map]
static HELD_ROOM: PerCpuArray<Held, 1> = PerCpuArray::new();

/// The map of one family.
pub trait HeldMaps: Sized + 'static {
    /// What waits in a slot.
    fn held(slot: &Slot<Self>) -> Option<&'static Held>;
    /// Gives one more slot away, where the first one is taken.
    fn give(first: &Slot<Self>) -> u32;
    /// Puts a fragment into an empty slot.
    fn put_held(slot: &Slot<Self>, held: &Held) -> bool;
    /// Empties a slot. That takes a lock, whatever is in it.
    fn remove_held(slot: &Slot<Self>) -> bool;
}

macro_rules! held_maps {
    ($family:ty, $held:ident) => {
        impl HeldMaps for $family {
            #[inline(always)]
            fn held(slot: &Slot<Self>) -> Option<&'static Held> {
                // SAFETY: elements of an LRU map stay allocated for as long as the map; who reads
                // one that is reused meanwhile finds its slot empty afterwards.
                unsafe { $held.get(slot) }
            }

            #[inline(always)]
            fn give(first: &Slot<Self>) -> u32 {
                let Some(held) = $held.get_ptr_mut(first) else { return 0 };
                // SAFETY: as for `held`; two CPUs that do this at once get the same number.
                unsafe {
                    let given = (*held).given;
                    (*held).given = given.saturating_add(1);
                    given
                }
            }

            #[inline(always)]
            fn put_held(slot: &Slot<Self>, held: &Held) -> bool {
                $held.insert(slot, held, u64::from(BPF_NOEXIST)).is_ok()
            }

            #[inline(always)]
            fn remove_held(slot: &Slot<Self>) -> bool {
                $held.remove(slot).is_ok()
            }
        }
    };
}

held_maps!(Ipv4, HELD_V4);
held_maps!(Ipv6, HELD_V6);

/// Room for one fragment on its way into a map, for this CPU and this program run.
#[inline(always)]
pub fn room() -> Option<&'static mut Held> {
    // SAFETY: a per-CPU array stays allocated; TC programs are not preempted by each other.
    unsafe { HELD_ROOM.get_ptr_mut(0)?.as_mut() }
}

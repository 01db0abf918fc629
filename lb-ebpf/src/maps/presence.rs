//! Which flows may have an entry in conntrack or among those that are not proven.

use core::ptr::NonNull;

use aya_ebpf::{btf_maps::Array, macros::btf_map};
use lb_common::{
    abi::{Address, Control, CtKey, Presence},
    cache::Stamp,
    presence,
};

use super::MMAPABLE;

#[btf_map]
static PRESENCE: Array<Presence, { presence::TABLES }, MMAPABLE> = Array::new();

/// May a flow have an entry?
#[inline(always)]
pub fn may_be_there<A: Address>(control: &'static Control, flow: &CtKey<A>) -> bool {
    let Some((mark, round)) = at(control, flow) else { return true };
    // SAFETY: an element of an array stays allocated; one load of a byte.
    presence::may_be_there(unsafe { mark.as_ptr().read() }, round)
}

/// Marks the place of a flow whose entry is used, or is written next.
#[inline(always)]
pub fn mark<A: Address>(control: &'static Control, flow: &CtKey<A>) {
    if let Some((mark, round)) = at(control, flow) {
        // SAFETY: as above; one store of a byte.
        unsafe { mark.as_ptr().write(presence::mark(round)) };
    }
}

/// A flow's place, and the round.
#[inline(always)]
fn at<A: Address>(control: &'static Control, flow: &CtKey<A>) -> Option<(NonNull<u8>, u32)> {
    let stamp = Stamp { factors: &control.factors, epoch: 0, jiffies: 0 };
    let place = presence::place(stamp.key(flow).hash);
    let presence = NonNull::new(PRESENCE.get_ptr_mut(presence::table(flow.dst_port))?)?;
    // SAFETY: as above, and `place` is within it.
    unsafe {
        let round = (&raw const (*presence.as_ptr()).round).read_volatile();
        let mark = (&raw mut (*presence.as_ptr()).marks).cast::<u8>().add(place);
        Some((NonNull::new_unchecked(mark), round))
    }
}

//! Which flows may have an entry in conntrack or among those that are not proven.

use core::ptr::NonNull;

use aya_ebpf::{btf_maps::Array, macros::btf_map};
use lb_common::{
    abi::{Address, Control, CtKey, Presence},
    cache, presence,
};

use super::MMAPABLE;

#[btf_map]
static PRESENCE: Array<Presence, { presence::TABLES }, MMAPABLE> = Array::new();

/// May a flow have an entry?
#[inline(always)]
pub fn may_be_there<A: Address>(control: &'static Control, flow: &CtKey<A>) -> bool {
    lb_may_be_there(cache::hash(&control.factors, flow), presence::table(flow.dst_port)) != 0
}

/// Marks the place of a flow whose entry is used, or is written next.
#[inline(always)]
pub fn mark<A: Address>(control: &'static Control, flow: &CtKey<A>) {
    lb_mark(cache::hash(&control.factors, flow), presence::table(flow.dst_port));
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_may_be_there(hash: u64, table: u32) -> u32 {
    let Some((mark, round)) = at(hash, table) else { return 1 };
    // SAFETY: an element of an array stays allocated; one load of a byte.
    presence::may_be_there(unsafe { mark.as_ptr().read() }, round).into()
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_mark(hash: u64, table: u32) -> u32 {
    if let Some((mark, round)) = at(hash, table) {
        // SAFETY: as above; one store of a byte.
        unsafe { mark.as_ptr().write(presence::mark(round)) };
    }
    0
}

/// The place for a hash, and the round.
#[inline(always)]
fn at(hash: u64, table: u32) -> Option<(NonNull<u8>, u32)> {
    let presence = NonNull::new(PRESENCE.get_ptr_mut(table)?)?;
    // SAFETY: as above, and `place` is within it.
    unsafe {
        let round = (&raw const (*presence.as_ptr()).round).read_volatile();
        let mark = (&raw mut (*presence.as_ptr()).marks).cast::<u8>().add(presence::place(hash));
        Some((NonNull::new_unchecked(mark), round))
    }
}

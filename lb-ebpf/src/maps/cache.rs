//! The filter and the flow cache: arrays, read and written in place.

use aya_ebpf::{btf_maps::Array, helpers::bpf_jiffies64, macros::btf_map};
use lb_common::{
    abi::{Address, CachedFlow, Control, CtKey, Ipv4, Ipv6},
    cache::{self, Stamp},
    filter,
};

use super::{MMAPABLE, Maps, now};
use crate::globals::FLOWS_SHIFT;

#[btf_map]
static CONTROL: Array<Control, 1, MMAPABLE> = Array::new();

/// What the agent tells all programs.
#[inline(always)]
pub fn control() -> Option<&'static Control> {
    CONTROL.get(0)
}

/// May a packet's destination be a frontend?
#[inline(always)]
pub fn may_be_to_frontend<A: Address>(control: &Control, flow: &CtKey<A>) -> bool {
    has(control, filter::frontend(&flow.dst, flow.dst_port, flow.protocol))
}

/// May a packet's source be a backend?
#[inline(always)]
pub fn may_be_from_backend<A: Address>(control: &Control, flow: &CtKey<A>) -> bool {
    has(control, filter::backend(&flow.src, flow.src_port, flow.protocol))
}

/// Is a bit of the filter that counts set?
#[inline(always)]
fn has(control: &Control, bit: u32) -> bool {
    let words = if control.filter & 1 == 0 { &control.filters[0] } else { &control.filters[1] };
    let (word, bit) = filter::place(bit);
    words[word] & bit != 0
}

/// What cached elements depend on.
#[inline(always)]
fn stamp(control: &'static Control) -> Stamp<'static> {
    // SAFETY: a helper without arguments.
    let jiffies = unsafe { bpf_jiffies64() };
    Stamp { factors: &control.factors, epoch: control.epoch, jiffies }
}

/// What hints depend on.
#[inline(always)]
fn stamp_of_hints(control: &'static Control) -> Stamp<'static> {
    Stamp::of_hints(&control.factors, now())
}

/// Copies what is cached of a flow; false if that is nothing, or no longer true.
#[inline(always)]
pub fn recall<A: Address + Maps>(
    control: &'static Control,
    flow: &CtKey<A>,
    decision: &mut CachedFlow<A>,
) -> bool {
    read(&stamp(control), flow, decision)
}

/// Caches a decision for the packets of its flow that follow.
#[inline(always)]
pub fn cache<A: Address + Maps>(control: &'static Control, decision: &mut CachedFlow<A>) {
    write(&stamp(control), decision);
}

/// Copies what is hinted of a flow; false if that is nothing.
#[inline(always)]
pub fn hint<A: Address + Maps>(
    control: &'static Control,
    flow: &CtKey<A>,
    decision: &mut CachedFlow<A>,
) -> bool {
    read(&stamp_of_hints(control), flow, decision)
}

/// Keeps a decision as a hint.
#[inline(always)]
pub fn keep_hint<A: Address + Maps>(control: &'static Control, decision: &mut CachedFlow<A>) {
    write(&stamp_of_hints(control), decision);
}

/// Has what is cached of a flow brought near.
#[inline(always)]
pub fn fetch<A: Address + Maps>(control: &'static Control, flow: &CtKey<A>) {
    if let Some(element) = element::<A>(cache::hash(&control.factors, flow)) {
        // SAFETY: as for `read`; one load.
        unsafe { (&raw const (*element).check).read_volatile() };
    }
}

/// Ends what is cached of a flow.
#[inline(always)]
pub fn uncache<A: Address + Maps>(control: &'static Control, flow: &CtKey<A>) {
    let hash = cache::hash(&control.factors, flow);
    if A::HEADER == Ipv4::HEADER {
        lb_uncache4(hash)
    } else {
        lb_uncache6(hash)
    };
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_uncache4(hash: u64) -> u32 {
    end::<Ipv4>(hash)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_uncache6(hash: u64) -> u32 {
    end::<Ipv6>(hash)
}

#[inline(always)]
fn end<A: Maps>(hash: u64) -> u32 {
    if let Some(element) = element::<A>(hash) {
        // SAFETY: as for `read`; one store.
        unsafe { (*element).check = 0 };
    }
    0
}

/// Where a flow stands.
#[inline(always)]
fn element<A: Maps>(hash: u64) -> Option<*mut CachedFlow<A>> {
    A::cached(cache::place(hash, FLOWS_SHIFT.load()))
}

#[inline(always)]
fn read<A: Address + Maps>(
    stamp: &Stamp<'_>,
    flow: &CtKey<A>,
    decision: &mut CachedFlow<A>,
) -> bool {
    let key = stamp.key(flow);
    let Some(element) = element::<A>(key.hash) else { return false };
    // SAFETY: elements of an array stay allocated; another CPU may write meanwhile, which the
    // element's sum tells.
    unsafe { copy(element, decision) };
    stamp.vouches(decision, &key)
}

#[inline(always)]
fn write<A: Address + Maps>(stamp: &Stamp<'_>, decision: &mut CachedFlow<A>) {
    let key = stamp.key(&decision.flow);
    decision.check = stamp.sum(decision, &key);
    if let Some(element) = element::<A>(key.hash) {
        // SAFETY: as for `read`.
        unsafe { copy(decision, element) };
    }
}

/// Copies a decision, word by word: as one value it would pass through the stack.
///
/// # Safety
///
/// Both must be allocated, and lie at a multiple of eight bytes, as values of maps do.
#[inline(always)]
unsafe fn copy<A>(from: *const CachedFlow<A>, to: *mut CachedFlow<A>) {
    let (from, to) = (from.cast::<u64>(), to.cast::<u64>());
    for word in 0..size_of::<CachedFlow<A>>() / size_of::<u64>() {
        // SAFETY: the caller promises it.
        unsafe { to.add(word).write(from.add(word).read_volatile()) };
    }
}

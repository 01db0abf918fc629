//! The ends of all living flows, for a filter that is being made.
//!
//! In a map of their own: the agent sets bits of the filters at the same time, and a program has no
//! instruction that a compiler offers to set one bit of a word.

use aya_ebpf::{btf_maps::Array, macros::btf_map};
use lb_common::{
    abi::{Address, Control, CtEntry, CtKey},
    filter,
};

use super::MMAPABLE;

#[btf_map]
static LIVING: Array<filter::Words, 1, MMAPABLE> = Array::new();

/// Notes a living flow's frontend and backend, if a filter is being made; there is one walk at a time.
#[inline(always)]
pub fn note_ends<A: Address>(control: &Control, flow: &CtKey<A>, entry: &CtEntry<A>) {
    if control.filter & Control::MAKES_FILTER == 0 {
        return;
    }
    let (frontend, backend) = if entry.action.is_forward() {
        ((flow.dst, flow.dst_port), (entry.dst, entry.dst_port))
    } else {
        ((entry.src, entry.src_port), (flow.src, flow.src_port))
    };
    note(filter::frontend(&frontend.0, frontend.1, flow.protocol));
    note(filter::backend(&backend.0, backend.1, flow.protocol));
}

#[inline(always)]
fn note(bit: u32) {
    let Some(words) = LIVING.get_ptr_mut(0) else { return };
    let (word, bit) = filter::place(bit);
    // SAFETY: an element of an array stays allocated, and `place` is within it.
    unsafe {
        let word = words.cast::<u64>().add(word);
        word.write(word.read() | bit);
    }
}

//! When this CPU made its last answers.

use aya_ebpf::{btf_maps::PerCpuArray, macros::btf_map};
use lb_common::limit;

use super::nanoseconds;

#[btf_map]
static ANSWERS: PerCpuArray<u64, 1> = PerCpuArray::new();

/// May one more answer be made now, by this CPU?
#[inline(always)]
pub fn may_answer() -> bool {
    let Some(next) = ANSWERS.get_ptr_mut(0) else { return false };
    // SAFETY: a per-CPU value, and a TC program is not preempted by another one.
    let next = unsafe { &mut *next };
    let Some(kept) = limit::admit(*next, nanoseconds()) else { return false };
    *next = kept;
    true
}

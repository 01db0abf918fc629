//! What is known of devices: a hash, and in front of it what each CPU has just asked.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{HashMap, PerCpuArray},
    macros::btf_map,
};
use lb_common::abi::Device;

use super::cache;

/// Devices that a CPU keeps in mind: a power of two.
const KEPT: usize = 8;

#[btf_map]
static DEVICES: HashMap<u32, Device, 4096, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
#[btf_map]
static KEPT_DEVICES: PerCpuArray<Kept, KEPT> = PerCpuArray::new();

/// A device as this CPU has read it.
#[repr(C)]
struct Kept {
    /// Interface index; zero for none.
    index: u32,
    /// The epoch in which it was read, which the agent ends when it writes one.
    epoch: u32,
    device: Device,
}

/// What is known of a device.
#[inline(always)]
pub fn device(index: u32) -> Option<&'static Device> {
    let epoch = cache::control()?.epoch;
    let kept = KEPT_DEVICES.get_ptr_mut(index % KEPT as u32)?;
    // SAFETY: a per-CPU value, and a TC program is not preempted by another one.
    let kept = unsafe { &mut *kept };
    if kept.index != index || kept.epoch != epoch {
        // SAFETY: copied out at once; without preallocation an entry is freed only after a grace period.
        kept.device = *unsafe { DEVICES.get(index) }?;
        (kept.index, kept.epoch) = (index, epoch);
    }
    Some(&kept.device)
}

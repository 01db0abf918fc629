//! What is known of devices: a hash, and in front of it what each CPU has just asked.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{HashMap, PerCpuArray},
    macros::btf_map,
};
use lb_common::abi::{Device, DeviceFlags, DeviceRole};

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
    /// The epoch in which it was read. The agent ends it when it has written another device and every
    /// program has ended that may have read the old one: so loads need no order among themselves.
    epoch: u32,
    device: Device,
}

/// What is known of a device.
#[inline(always)]
pub fn device(index: u32) -> Option<&'static Device> {
    let epoch = cache::control()?.epoch;
    let kept = KEPT_DEVICES.get_ptr_mut(index % KEPT as u32)?;
    // SAFETY: a per-CPU value; programs of TC and XDP run one after the other on a CPU.
    let kept = unsafe { &mut *kept };
    if kept.index != index || kept.epoch != epoch {
        // SAFETY: copied out at once; without preallocation an entry is replaced as a whole, and freed
        // only after a grace period.
        kept.device = *unsafe { DEVICES.get(index) }?;
        (kept.index, kept.epoch) = (index, epoch);
    }
    Some(&kept.device)
}

/// Role of a device; none of it, if nothing is known.
#[inline(always)]
pub fn role(index: u32) -> DeviceRole {
    DeviceRole(lb_device(index) >> 8)
}

/// Flags of a device; none of it, if nothing is known.
#[inline(always)]
pub fn flags(index: u32) -> DeviceFlags {
    DeviceFlags(lb_device(index) as u8)
}

/// Role and flags: a function of its own, as that which counts.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_device(index: u32) -> u32 {
    device(index).map_or(0, |device| device.role.0 << 8 | u32::from(device.flags.0))
}

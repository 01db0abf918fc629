//! What the benchmark measures against: a no-op, and a reference NAT whose time is the unit R.
//!
//! A program that rewrites its packet can't be run twice on the same one. So a harness writes the
//! whole frame anew before each pass and calls the program that is measured; its own time is known
//! from calling the no-op, and subtracted.
#![no_std]
#![no_main]
#![allow(missing_docs, unreachable_pub, reason = "the macros make entry points of their own")]

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, xdp_action},
    btf_maps::{Array, LruHashMap, PerCpuArray, ProgramArray},
    macros::{btf_map, classifier, xdp},
    programs::{TcContext, XdpContext},
};

/// Length of a frame, in words of 8 bytes.
const WORDS: usize = 12;
/// Ethernet and IPv4 without options.
const L4_V4: usize = 14 + 20;
/// Ethernet and IPv6.
const L4_V6: usize = 14 + 40;

/// The frame that each pass begins with.
#[btf_map]
static FRAME: Array<[u64; WORDS], 1> = Array::new();
/// How many flows are sent in turn, less one (all bits set, or none); and not zero for IPv6.
#[btf_map]
static VARY: Array<[u32; 2], 1> = Array::new();
/// Passes so far.
#[btf_map]
static PASSES: PerCpuArray<u32, 1> = PerCpuArray::new();
/// The program that a harness calls.
#[btf_map]
static TC_TARGET: ProgramArray<1> = ProgramArray::new();
/// The program that a harness calls.
#[btf_map]
static XDP_TARGET: ProgramArray<1> = ProgramArray::new();
/// The reference NAT's flows: source, destination, ports → what to write there.
#[btf_map]
static NAT: LruHashMap<[u32; 3], [u32; 3], 262_144> = LruHashMap::new();
/// Packets that the reference NAT has translated.
#[btf_map]
static NAT_PACKETS: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Packets that were sent and taken in.
#[btf_map]
static TAKEN_IN: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Does nothing.
#[classifier]
pub fn tc_noop(_: TcContext) -> i32 {
    -1
}

/// Does nothing.
#[xdp(frags)]
pub fn xdp_noop(_: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Restores the packet and calls the program of `TC_TARGET`.
#[classifier]
pub fn tc_harness(ctx: TcContext) -> i32 {
    // SAFETY: the context is valid for as long as the program runs, and this field writable.
    unsafe { (*ctx.skb.skb).tc_index = 0 };
    if restore(ctx.data(), ctx.data_end()).is_some() {
        // SAFETY: the called program is of the same type.
        unsafe { TC_TARGET.tail_call(&ctx, 0) };
    }
    TC_ACT_SHOT as i32
}

/// Restores the packet and calls the program of `XDP_TARGET`.
#[xdp(frags)]
pub fn xdp_harness(ctx: XdpContext) -> u32 {
    if restore(ctx.data(), ctx.data_end()).is_some() {
        // SAFETY: the called program is of the same type.
        unsafe { XDP_TARGET.tail_call(&ctx, 0) };
    }
    xdp_action::XDP_ABORTED
}

/// Looks a TCP/IPv4 packet up, rewrites both ends, checksums and MACs, counts it, and sends it back.
#[xdp(frags)]
pub fn reference_nat(ctx: XdpContext) -> u32 {
    nat(ctx.data(), ctx.data_end()).unwrap_or(xdp_action::XDP_PASS)
}

/// Sends the packet back with its link-layer addresses swapped, and does nothing else.
#[xdp(frags)]
pub fn swap_macs(ctx: XdpContext) -> u32 {
    let Some(macs) = at::<[[u8; 6]; 2]>(ctx.data(), ctx.data_end(), 0) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: the bounds are checked, and every bit pattern is a value.
    unsafe { *macs = [(*macs)[1], (*macs)[0]] };
    xdp_action::XDP_TX
}

/// Takes a packet in and frees it: what frames are sent to.
#[xdp(frags)]
pub fn xdp_drop(_: XdpContext) -> u32 {
    if let Some(frames) = TAKEN_IN.get_ptr_mut(0) {
        // SAFETY: a per-CPU value of a map that stays allocated.
        unsafe { *frames += 1 };
    }
    xdp_action::XDP_DROP
}

/// A place in the packet, if the packet reaches that far.
#[inline(always)]
fn at<T>(data: usize, end: usize, offset: usize) -> Option<*mut T> {
    let start = data + offset;
    (start + size_of::<T>() <= end).then_some(start as *mut T)
}

#[inline(always)]
fn restore(data: usize, end: usize) -> Option<()> {
    let place = at::<[u64; WORDS]>(data, end, 0)?;
    let [flows, is_v6] = *VARY.get(0)?;
    // SAFETY: the bounds are checked; BPF's own stores may be unaligned.
    unsafe { *place = *FRAME.get(0)? };
    if flows != 0 {
        // SAFETY: a per-CPU value of a map that stays allocated.
        let pass = unsafe { &mut *PASSES.get_ptr_mut(0)? };
        *pass = pass.wrapping_add(1);
        let flow = *pass & flows;
        // The client's port, and the last byte but one of its address.
        let (port, byte) = if is_v6 == 0 { (L4_V4, L4_V4 - 6) } else { (L4_V6, L4_V6 - 18) };
        // SAFETY: both lie within the frame, whose bounds are checked.
        unsafe {
            *at::<u16>(data, end, port)? = (flow as u16).to_be();
            *at::<u8>(data, end, byte)? = (flow >> 16) as u8;
        }
    }
    Some(())
}

#[inline(always)]
fn nat(data: usize, end: usize) -> Option<u32> {
    let ethertype = at::<u16>(data, end, 12)?;
    let version = at::<u8>(data, end, 14)?;
    let protocol = at::<u8>(data, end, 23)?;
    let ip_check = at::<u16>(data, end, 24)?;
    let ends = at::<[u32; 3]>(data, end, 26)?;
    let tcp_check = at::<u16>(data, end, L4_V4 + 16)?;
    let macs = at::<[[u8; 6]; 2]>(data, end, 0)?;
    // SAFETY: all bounds are checked above, and every bit pattern is a value; the entry of an LRU
    // map stays allocated.
    unsafe {
        if *ethertype != 0x0800_u16.to_be() || *version != 0x45 || *protocol != 6 {
            return None;
        }
        let old = *ends;
        let new = *NAT.get(&old)?;
        let addresses = change(old[0], new[0]) + change(old[1], new[1]);
        *ip_check = mend(*ip_check, addresses);
        *tcp_check = mend(*tcp_check, addresses + change(old[2], new[2]));
        *ends = new;
        *macs = [(*macs)[1], (*macs)[0]];
        *NAT_PACKETS.get_ptr_mut(0)? += 1;
    }
    Some(xdp_action::XDP_TX)
}

/// What replacing a word adds to a ones' complement sum (RFC 1624).
#[inline(always)]
fn change(old: u32, new: u32) -> u32 {
    let (old, new) = (!old, new);
    (old & 0xffff) + (old >> 16) + (new & 0xffff) + (new >> 16)
}

#[inline(always)]
fn mend(checksum: u16, change: u32) -> u16 {
    let sum = u32::from(!checksum) + change;
    let sum = (sum & 0xffff) + (sum >> 16);
    !(((sum & 0xffff) + (sum >> 16)) as u16)
}

/// Some helpers ask for a licence compatible with the GPL.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual BSD/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

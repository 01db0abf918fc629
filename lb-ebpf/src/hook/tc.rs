//! TC: a socket buffer as a [`Packet`], the maps as [`Tables`], verdicts as return codes.

use aya_ebpf::{
    EbpfContext,
    bindings::{
        BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM, TC_ACT_SHOT,
    },
    helpers::{bpf_redirect, bpf_skb_change_tail, bpf_skb_store_bytes},
    programs::TcContext,
};
use lb_common::{
    abi::{
        Abi, Address, Affinity, AffinityKey, Backend, Counter, CounterKind, CtKey, DeviceRole,
        Frontend, FrontendKey, Ipv4, Ipv6, L4Proto, Region, Source,
    },
    checksum::Difference,
};
use lb_ebpf::{
    packet::{L4Checksum, Packet},
    parse::{self, Header, Headers, Next, NoFlow},
    path::{
        PathResult, Verdict, egress as out, ingress as into,
        redirect::{self, Redirect},
    },
    tables::{Backends, CtRef, Ref, Route, Tables},
};

use super::route::Routing;
use crate::{
    globals::{CT_UDP_STREAM, MARK, RESET_TCP, SNAT_COUNT, SNAT_FIRST},
    maps::{self, BpfBackends, Maps},
};

/// Neither accepts nor drops: the next program, ours or a CNI's, decides (`TCX_NEXT`).
const NEXT: i32 = -1;
/// Headers that a path may touch: Ethernet, IPv6, TCP.
const HEADERS: u32 = 14 + 40 + 20;

/// The program at ingress.
#[inline(always)]
pub fn ingress(ctx: TcContext) -> i32 {
    let mut skb = Skb(ctx);
    if skb.is_marked() {
        return NEXT;
    }
    skb.pull();
    match parse::ethertype(&skb) {
        Ipv4::ETHERTYPE => ingress_of::<Ipv4>(&mut skb),
        Ipv6::ETHERTYPE => ingress_of::<Ipv6>(&mut skb),
        _ => NEXT,
    }
}

/// The program at egress.
#[inline(always)]
pub fn egress(ctx: TcContext) -> i32 {
    let mut skb = Skb(ctx);
    if skb.is_marked() {
        // The packet may come by again in another role, when a pod forwards it.
        skb.set_mark(0);
        return NEXT;
    }
    skb.pull();
    match parse::ethertype(&skb) {
        Ipv4::ETHERTYPE => egress_of::<Ipv4>(&mut skb),
        Ipv6::ETHERTYPE => egress_of::<Ipv6>(&mut skb),
        _ => NEXT,
    }
}

/// A function of its own, so that the two families do not share a stack.
#[inline(never)]
fn ingress_of<A: Header + Maps + Routing>(skb: &mut Skb) -> i32 {
    A::parse(skb, Direction::Ingress).unwrap_or_else(pass)
}

/// A function of its own, so that the two families do not share a stack.
#[inline(never)]
fn egress_of<A: Redirect + Maps + Routing>(skb: &mut Skb) -> i32 {
    match A::parse(skb, Direction::Egress) {
        Ok(code) => code,
        Err(NoFlow::Other) => leave::<A>(skb),
        Err(reason) => pass(reason),
    }
}

#[inline(always)]
fn leave<A: Redirect + Maps + Routing>(skb: &mut Skb) -> i32 {
    match redirect::leave(skb, &BpfTables::<A>::new(skb)) {
        Ok(()) => NEXT,
        Err(counter) => end(counter),
    }
}

/// Which hook a program is at.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Direction {
    Egress,
    Ingress,
}

impl<A: Address + Maps + Routing> Next<A, Skb> for Direction {
    type Output = i32;

    #[inline(always)]
    fn run(self, skb: &mut Skb, headers: &Headers<A>) -> i32 {
        // They would take a sixth of the stack.
        let Some(kept) = A::headers() else { return NEXT };
        *kept = *headers;
        let (headers, tables) = (&*kept, BpfTables::new(skb));
        let verdict = match self {
            Self::Egress => {
                let origin = skb.origin();
                out::egress(skb, headers, &tables, origin)
            }
            Self::Ingress => into::ingress(skb, headers, &tables),
        };
        act(skb, verdict, self)
    }
}

/// Leaves a packet alone that is not one of a flow, and counts it if it could have been.
#[inline(always)]
fn pass(reason: NoFlow) -> i32 {
    match reason {
        NoFlow::Fragment => end(Counter::Fragment),
        NoFlow::Other => NEXT,
        NoFlow::Truncated => end(Counter::Truncated),
    }
}

/// Performs a verdict.
#[inline(always)]
fn act<A: Address + Routing>(skb: &mut Skb, verdict: PathResult<A>, direction: Direction) -> i32 {
    match verdict {
        Ok(Verdict::Answer(counter)) => {
            maps::count(counter);
            skb.send_back(direction)
        }
        Ok(Verdict::Continue) => {
            if direction == Direction::Ingress {
                skb.set_mark(MARK.load());
            }
            NEXT
        }
        Ok(Verdict::Deliver(device)) => skb.deliver(device),
        Ok(Verdict::Pass) => NEXT,
        Ok(Verdict::Redirect(route)) => {
            skb.set_mark(MARK.load());
            A::redirect(&route)
        }
        Err(counter) => end(counter),
    }
}

/// Counts a packet under a reason, and does with it what the reason says.
#[inline(always)]
fn end(counter: Counter) -> i32 {
    maps::count(counter);
    match counter.kind() {
        CounterKind::Pass => NEXT,
        CounterKind::Drop | CounterKind::Reject => TC_ACT_SHOT as i32,
    }
}

/// A socket buffer.
struct Skb(TcContext);

impl Skb {
    #[inline(always)]
    fn device(&self) -> u32 {
        // SAFETY: the context is valid for as long as the program runs.
        unsafe { (*self.0.skb.skb).ifindex }
    }

    /// Has this node translated the packet before?
    ///
    /// `tc_index` survives the way through a bridge, and nothing else uses it at these hooks.
    #[inline(always)]
    fn is_marked(&self) -> bool {
        // SAFETY: the context is valid for as long as the program runs.
        unsafe { (*self.0.skb.skb).tc_index == MARK.load() }
    }

    #[inline(always)]
    fn set_mark(&mut self, mark: u32) {
        // SAFETY: the context is valid for as long as the program runs, and this field writable.
        unsafe { (*self.0.skb.skb).tc_index = mark }
    }

    #[inline(always)]
    fn origin(&self) -> out::Origin {
        // SAFETY: the context is valid for as long as the program runs.
        match unsafe { (*self.0.skb.skb).ingress_ifindex } {
            0 => out::Origin::Host,
            _ => out::Origin::Forwarded,
        }
    }

    /// Makes the headers readable in place, where a driver left them in fragments.
    #[inline(always)]
    fn pull(&self) {
        let linear = self.0.data_end() - self.0.data();
        let wanted = HEADERS.min(self.0.len());
        if linear < wanted as usize {
            // What cannot be pulled is found truncated.
            let _ = self.0.pull_data(wanted);
        }
    }

    #[inline(always)]
    fn at<T>(&self, offset: usize) -> Option<*mut T> {
        let start = self.0.data() + offset;
        (start + size_of::<T>() <= self.0.data_end()).then_some(start as *mut T)
    }

    /// Returns an answer to where its question came from.
    #[inline(always)]
    fn send_back(&mut self, direction: Direction) -> i32 {
        self.set_mark(MARK.load());
        let flags = if direction == Direction::Egress { u64::from(BPF_F_INGRESS) } else { 0 };
        // SAFETY: a helper that takes numbers.
        unsafe { bpf_redirect(self.device(), flags) as i32 }
    }

    /// Hands the packet to the stack as if it had come in by another device.
    #[inline(always)]
    fn deliver(&mut self, device: u32) -> i32 {
        let Some(target) = maps::device(device) else {
            return end(Counter::NoRoute);
        };
        if self.write(0, &target.mac).is_err() {
            return end(Counter::RewriteFailed);
        }
        self.set_mark(MARK.load());
        // SAFETY: a helper that takes numbers.
        unsafe { bpf_redirect(device, u64::from(BPF_F_INGRESS)) as i32 }
    }

    #[inline(always)]
    fn store(&mut self, offset: usize, bytes: &[u8], flags: u32) -> Result<(), Counter> {
        // SAFETY: the context is valid, and the length is that of the bytes.
        let answer = unsafe {
            bpf_skb_store_bytes(
                self.0.as_ptr().cast(),
                offset as u32,
                bytes.as_ptr().cast(),
                bytes.len() as u32,
                u64::from(flags),
            )
        };
        if answer == 0 { Ok(()) } else { Err(Counter::RewriteFailed) }
    }

    #[inline(always)]
    fn change_l4(&self, offset: usize, change: Difference, flags: u32) -> Result<(), Counter> {
        self.0
            .l4_csum_replace(offset, 0, u64::from(change.get()), u64::from(flags))
            .map_err(|_| Counter::RewriteFailed)
    }
}

impl Packet for Skb {
    #[inline(always)]
    fn read<T: Abi>(&self, offset: usize) -> Option<T> {
        // SAFETY: `at` has checked the bounds, and every bit pattern is a value. The pointer may
        // be unaligned, which BPF's own loads allow on the machines that we support; reading byte
        // by byte would cost several instructions a field.
        self.at::<T>(offset).map(|place| unsafe { *place })
    }

    #[inline(always)]
    fn write<T: Abi>(&mut self, offset: usize, value: &T) -> Result<(), Counter> {
        let place = self.at::<T>(offset).ok_or(Counter::RewriteFailed)?;
        // SAFETY: as for `read`.
        unsafe { *place = *value };
        Ok(())
    }

    #[inline(always)]
    fn write_addresses<A: Address>(
        &mut self,
        offset: usize,
        source_and_destination: [A; 2],
    ) -> Result<(), Counter> {
        // IPv4 has a header checksum that takes the change back out of what the device summed.
        if A::HEADER == Ipv4::HEADER {
            return self.write(offset, &source_and_destination);
        }
        self.store(offset, source_and_destination.as_bytes(), BPF_F_RECOMPUTE_CSUM)
    }

    #[inline(always)]
    fn repair_l4_checksum(&mut self, checksum: L4Checksum) -> Result<(), Counter> {
        let udp = if checksum.protocol == L4Proto::UDP { BPF_F_MARK_MANGLED_0 } else { 0 };
        self.change_l4(checksum.offset, checksum.addresses, udp | BPF_F_PSEUDO_HDR)?;
        self.change_l4(checksum.offset, checksum.ports, udp)
    }

    #[inline(always)]
    fn resize(&mut self, length: usize) -> Result<(), Counter> {
        // SAFETY: the context is valid for as long as the program runs.
        match unsafe { bpf_skb_change_tail(self.0.skb.skb, length as u32, 0) } {
            0 => Ok(()),
            _ => Err(Counter::RewriteFailed),
        }
    }
}

/// The maps, and the context that some questions need.
struct BpfTables<A> {
    ctx: TcContext,
    backends: BpfBackends<A>,
}

impl<A> BpfTables<A> {
    #[inline(always)]
    fn new(skb: &Skb) -> Self {
        Self { ctx: TcContext::new(skb.0.skb.skb), backends: BpfBackends::new() }
    }
}

impl<A: Address + Maps> Backends<A> for BpfTables<A> {
    #[inline(always)]
    fn backend(&self, id: u32) -> Option<Backend<A>> {
        self.backends.backend(id)
    }

    #[inline(always)]
    fn affinity(&self, client: &AffinityKey) -> Option<Ref<Affinity>> {
        self.backends.affinity(client)
    }

    #[inline(always)]
    fn keep(&self, client: &AffinityKey, affinity: &Affinity) {
        self.backends.keep(client, affinity);
    }

    #[inline(always)]
    fn nanoseconds(&self) -> u64 {
        self.backends.nanoseconds()
    }
}

impl<A: Address + Maps + Routing> Tables<A> for BpfTables<A> {
    #[inline(always)]
    fn conntrack(&self, flow: &CtKey<A>) -> Option<CtRef<A>> {
        A::conntrack(flow)
    }

    #[inline(always)]
    fn track(&self, flow: &CtKey<A>, entry: CtRef<A>) {
        A::track(flow, entry);
    }

    #[inline(always)]
    fn claim(&self, flow: &CtKey<A>, entry: CtRef<A>) -> bool {
        A::claim(flow, entry)
    }

    #[inline(always)]
    fn forget(&self, flow: &CtKey<A>) {
        A::forget(flow);
    }

    #[inline(always)]
    fn scratch(&self) -> Option<CtRef<A>> {
        A::scratch()
    }

    #[inline(always)]
    fn frontend(&self, key: &FrontendKey<A>) -> Option<Frontend> {
        A::frontend(key)
    }

    #[inline(always)]
    fn slot(&self, region: Region, slot: u32) -> Option<u32> {
        maps::slot(region, slot)
    }

    #[inline(always)]
    fn has_source(&self, source: &Source<A>) -> bool {
        A::has_source(source)
    }

    #[inline(always)]
    fn device(&self) -> u32 {
        // SAFETY: the context is valid for as long as the program runs.
        unsafe { (*self.ctx.skb.skb).ifindex }
    }

    #[inline(always)]
    fn is_uplink(&self) -> bool {
        maps::device(self.device()).is_some_and(|device| device.role == DeviceRole::UPLINK)
    }

    #[inline(always)]
    fn source_at(&self, device: u32) -> Option<A> {
        A::source(&maps::device(device)?)
    }

    #[inline(always)]
    fn route(&self, src: A, dst: A) -> Option<Route<A>> {
        A::route(&self.ctx, src, dst)
    }

    #[inline(always)]
    fn now(&self) -> u32 {
        maps::now()
    }

    #[inline(always)]
    fn udp_timeout(&self) -> u32 {
        CT_UDP_STREAM.load()
    }

    #[inline(always)]
    fn resets_removed(&self) -> bool {
        RESET_TCP.load() != 0
    }

    #[inline(always)]
    fn snat_range(&self) -> (u32, u32) {
        (SNAT_FIRST.load(), SNAT_COUNT.load())
    }
}

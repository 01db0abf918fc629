//! The maps as [`Tables`], for the packet that a program looks at.

use aya_ebpf::EbpfContext;
use lb_common::{
    abi::{
        Address, Affinity, AffinityKey, Backend, BePort, CachedFlow, Control, Counter, CtKey,
        DeviceRole, Fragment, FragmentKey, Frontend, FrontendKey, NextHop, Region, Source, Target,
    },
    carrier::Kind,
};
use lb_ebpf::{
    path::{answer::Answers, carrier::Targets, fragment::Fragments},
    tables::{Backends, CtRef, Ref, Tables},
};

use super::route::{self, Routing};
use crate::{
    globals::{
        CARRIER_IPIP, CARRIER_PORT, CT_UDP_STREAM, MIGRATE, RESET_TCP, SNAT_COUNT, SNAT_FIRST,
    },
    maps::{
        self, BpfBackends, Maps, cache, fragments::FragmentMaps, presence, targets::TargetMaps,
    },
};

/// A program's context, as far as some questions need it.
pub trait Context: EbpfContext {
    /// Does another program of ours take the same steps after this one, with what this one passes on?
    const IS_AHEAD: bool;

    /// Interface index of the device that the packet comes in by or leaves by.
    fn device(&self) -> u32;
}

/// The maps, and the context that some questions need.
pub(super) struct BpfTables<A, C> {
    ctx: C,
    control: &'static Control,
    backends: BpfBackends<A>,
}

impl<A, C> BpfTables<A, C> {
    /// `None` cannot happen: `CONTROL` has its one element.
    #[inline(always)]
    pub(super) fn new(ctx: C) -> Option<Self> {
        Some(Self { ctx, control: cache::control()?, backends: BpfBackends::new() })
    }
}

impl<A: Address + Maps, C> Backends<A> for BpfTables<A, C> {
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

impl<A: Address + Maps + Routing, C: Context> Tables<A> for BpfTables<A, C> {
    #[inline(always)]
    fn may_be_to_frontend(&self, flow: &CtKey<A>) -> bool {
        cache::may_be_to_frontend(self.control, flow)
    }

    #[inline(always)]
    fn may_be_from_backend(&self, flow: &CtKey<A>) -> bool {
        cache::may_be_from_backend(self.control, flow)
    }

    #[inline(always)]
    fn recall(&self, flow: &CtKey<A>, decision: &mut CachedFlow<A>) -> bool {
        cache::recall(self.control, flow, decision)
    }

    #[inline(always)]
    fn cache(&self, decision: &mut CachedFlow<A>) {
        cache::cache(self.control, decision);
    }

    #[inline(always)]
    fn uncache(&self, flow: &CtKey<A>) {
        cache::uncache(self.control, flow);
    }

    #[inline(always)]
    fn fetch(&self, flow: &CtKey<A>) {
        cache::fetch(self.control, flow);
    }

    #[inline(always)]
    fn hint(&self, flow: &CtKey<A>, decision: &mut CachedFlow<A>) -> bool {
        cache::hint(self.control, flow, decision)
    }

    #[inline(always)]
    fn keep_hint(&self, decision: &mut CachedFlow<A>) {
        cache::keep_hint(self.control, decision);
    }

    #[inline(always)]
    fn may_remember(&self) -> bool {
        maps::may_remember()
    }

    #[inline(always)]
    fn is_ahead(&self) -> bool {
        C::IS_AHEAD
    }

    #[inline(always)]
    fn count_unremembered(&self) {
        maps::count(Counter::NotRemembered);
    }

    #[inline(always)]
    fn conntrack(&self, flow: &CtKey<A>) -> Option<CtRef<A>> {
        if !presence::may_be_there(self.control, flow) {
            return None;
        }
        A::conntrack(flow)
    }

    #[inline(always)]
    fn track(&self, flow: &CtKey<A>, entry: CtRef<A>) {
        presence::mark(self.control, flow);
        A::track(flow, entry);
        cache::uncache(self.control, flow);
    }

    #[inline(always)]
    fn claim(&self, flow: &CtKey<A>, entry: CtRef<A>) -> bool {
        presence::mark(self.control, flow);
        let is_claimed = A::claim(flow, entry);
        cache::uncache(self.control, flow);
        is_claimed
    }

    #[inline(always)]
    fn note_use(&self, flow: &CtKey<A>) {
        presence::mark(self.control, flow);
    }

    #[inline(always)]
    fn forget(&self, flow: &CtKey<A>) {
        A::forget(flow);
        cache::uncache(self.control, flow);
    }

    #[inline(always)]
    fn forget_half_open(&self, flow: &CtKey<A>) {
        A::forget_half_open(flow);
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
        self.ctx.device()
    }

    #[inline(always)]
    fn is_uplink(&self) -> bool {
        maps::device::role(self.device()) == DeviceRole::UPLINK
    }

    #[inline(always)]
    fn source_at(&self, device: u32) -> Option<A> {
        A::source(maps::device(device)?)
    }

    #[inline(always)]
    fn route(&self, src: A, dst: A) -> Option<NextHop> {
        route::route(&self.ctx, src, dst)
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
    fn migrates(&self) -> bool {
        MIGRATE.load() != 0
    }

    #[inline(always)]
    fn resets_removed(&self) -> bool {
        RESET_TCP.load() != 0
    }

    #[inline(always)]
    fn carrier_kind(&self) -> Kind {
        if CARRIER_IPIP.load() == 0 { Kind::Gue } else { Kind::Ipip }
    }

    #[inline(always)]
    fn carrier_port(&self) -> BePort {
        BePort::new(CARRIER_PORT.load() as u16)
    }

    #[inline(always)]
    fn snat_range(&self) -> (u32, u32) {
        (SNAT_FIRST.load(), SNAT_COUNT.load())
    }
}

impl<A: Address + FragmentMaps + Routing, C: Context> Fragments<A> for BpfTables<A, C> {
    #[inline(always)]
    fn fragment(&self, key: &FragmentKey<A>) -> Option<Fragment<A>> {
        A::fragment(key)
    }

    #[inline(always)]
    fn keep_fragment(&self, key: &FragmentKey<A>, fragment: &Fragment<A>) {
        A::keep_fragment(key, fragment);
    }

    #[inline(always)]
    fn has_frontends(&self, address: A) -> bool {
        A::frontend(&FrontendKey::ping(address)).is_some()
    }
}

impl<A: Address + FragmentMaps + Routing, C: Context> Answers<A> for BpfTables<A, C> {
    #[inline(always)]
    fn may_answer(&self) -> bool {
        maps::answers::may_answer()
    }
}

impl<A: Address + TargetMaps + Routing, C: Context> Targets<A> for BpfTables<A, C> {
    #[inline(always)]
    fn target(&self, target: &Target<A>) -> Option<u32> {
        A::target(target)
    }
}

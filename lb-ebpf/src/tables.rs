//! What a path may ask of the maps.

use core::ptr::NonNull;

use lb_common::{
    abi::{
        Abi, Address, Affinity, AffinityKey, Backend, BePort, CachedFlow, CtAction, CtEntry, CtKey,
        Frontend, FrontendKey, NextHop, Region, Source,
    },
    carrier::Kind,
    conntrack::CtState,
};

/// Backends of one family, and whom they were given to: what the socket path asks for as well.
pub trait Backends<A: Address> {
    /// The backend with an id, if it is live.
    fn backend(&self, id: u32) -> Option<Backend<A>>;

    /// The backend that a client was given last.
    fn affinity(&self, client: &AffinityKey) -> Option<Ref<Affinity>>;

    /// Writes the backend that a client was given, over an older one if there is any.
    fn keep(&self, client: &AffinityKey, affinity: &Affinity);

    /// The time in ns of `CLOCK_MONOTONIC`, as exact as the kernel's ticks.
    fn nanoseconds(&self) -> u64;
}

/// The maps, for one family.
pub trait Tables<A: Address>: Backends<A> {
    /// May a packet's destination be a frontend? "No" is certain, by the filter.
    fn may_be_to_frontend(&self, flow: &CtKey<A>) -> bool;

    /// May its source be a backend? Likewise.
    fn may_be_from_backend(&self, flow: &CtKey<A>) -> bool;

    /// Copies what is cached of a flow; false if that is nothing, or no longer true.
    #[must_use]
    fn recall(&self, flow: &CtKey<A>, decision: &mut CachedFlow<A>) -> bool;

    /// Caches a decision for the packets of its flow that follow; sets its `check`.
    fn cache(&self, decision: &mut CachedFlow<A>);

    /// Ends what is cached of a flow.
    fn uncache(&self, flow: &CtKey<A>);

    /// Has what is cached of a flow brought near, which is written soon: memory answers while other work is done.
    /// Tables that are near have nothing to do.
    #[inline(always)]
    fn fetch(&self, _flow: &CtKey<A>) {}

    /// Copies what is hinted of a flow that nothing else remembers; false if that is nothing.
    #[must_use]
    fn hint(&self, flow: &CtKey<A>, decision: &mut CachedFlow<A>) -> bool;

    /// Keeps a decision as a hint, whose hop is [`Hinted`](lb_common::abi::Hinted); sets its `check`.
    fn keep_hint(&self, decision: &mut CachedFlow<A>);

    /// May one more flow be remembered that is not proven? Counts it.
    #[must_use]
    fn may_remember(&self) -> bool;

    /// Does another program take the same steps with what this one passes on?
    fn is_ahead(&self) -> bool;

    /// Counts a flow that is not remembered.
    fn count_unremembered(&self);

    /// The entry of a flow, proven or not.
    fn conntrack(&self, flow: &CtKey<A>) -> Option<CtRef<A>>;

    /// Writes the entry of a flow, over an older one if there is any, among the flows that its state
    /// says. This and the next two end what is cached of the flow.
    fn track(&self, flow: &CtKey<A>, entry: CtRef<A>);

    /// Writes the entry of a flow that has none among those that its state says; false if it got one
    /// meanwhile.
    #[must_use]
    fn claim(&self, flow: &CtKey<A>, entry: CtRef<A>) -> bool;

    /// Notes that the entry of a flow is used: one that is there for long must be noted again and again, or
    /// [`conntrack`](Self::conntrack) may miss it.
    fn note_use(&self, flow: &CtKey<A>);

    /// Removes the entry of a flow, proven or not.
    fn forget(&self, flow: &CtKey<A>);

    /// Removes the entry of a flow that was proven from those that are not.
    fn forget_half_open(&self, flow: &CtKey<A>);

    /// Room for one entry that is not in a map yet: it would take an eighth of the stack.
    fn scratch(&self) -> Option<CtRef<A>>;

    /// The frontend at an address.
    fn frontend(&self, key: &FrontendKey<A>) -> Option<Frontend>;

    /// The backend id in a slot of a region.
    fn slot(&self, region: Region, slot: u32) -> Option<u32>;

    /// Does any range hold this source?
    fn has_source(&self, source: &Source<A>) -> bool;

    /// Interface index of the device that the packet comes in by or leaves by.
    fn device(&self) -> u32;

    /// Does that device bring clients from outside this node?
    fn is_uplink(&self) -> bool;

    /// Source address for packets that leave under SNAT by the device with this index.
    fn source_at(&self, device: u32) -> Option<A>;

    /// Where the routing table sends a packet from `src` to `dst`.
    fn route(&self, src: A, dst: A) -> Option<NextHop>;

    /// The time in units of 2^30 ns.
    fn now(&self) -> u32;

    /// Ticks for which a silent UDP flow keeps its backend.
    fn udp_timeout(&self) -> u32;

    /// Are connections that began before us left to the stack?
    fn migrates(&self) -> bool;

    /// Are TCP connections to a backend that was removed reset?
    fn resets_removed(&self) -> bool;

    /// Which carriers are sent; those of both kinds are taken.
    fn carrier_kind(&self) -> Kind;

    /// The port that carriers of GUE go to; zero if there are none.
    fn carrier_port(&self) -> BePort;

    /// First port and number of ports of the SNAT range.
    fn snat_range(&self) -> (u32, u32);
}

/// An entry in its map: read in place, and written by field.
///
/// Another CPU may write to the entry at the same time; each field is written by one store.
#[derive(Clone, Copy)]
pub struct Ref<T>(NonNull<T>);

/// A conntrack entry in its map.
pub type CtRef<A> = Ref<CtEntry<A>>;

impl<T: Abi> Ref<T> {
    /// Wraps a pointer to an entry.
    ///
    /// # Safety
    ///
    /// The entry must stay allocated for as long as the value is used; map values do so within a
    /// program.
    #[inline(always)]
    pub const unsafe fn new(entry: NonNull<T>) -> Self {
        Self(entry)
    }

    /// What the entry holds.
    #[inline(always)]
    pub fn get(&self) -> T {
        // SAFETY: the constructor promises that the entry is allocated, and every bit pattern is
        // a value.
        unsafe { self.0.as_ptr().read() }
    }

    /// Replaces what the entry holds. Only for one that is not in a map.
    #[inline(always)]
    pub fn set(&self, entry: T) {
        // SAFETY: the constructor promises that the entry is allocated.
        unsafe { self.0.as_ptr().write(entry) }
    }

    /// The entry, for the kernel to copy.
    #[inline(always)]
    pub const fn as_ptr(&self) -> *const T {
        self.0.as_ptr()
    }
}

impl<A: Address> CtRef<A> {
    /// What to do with the flow's packets.
    #[inline(always)]
    pub fn action(&self) -> CtAction {
        // SAFETY: the constructor promises that the entry is allocated.
        unsafe { (*self.0.as_ptr()).action }
    }

    /// Replaces what the entry holds by the other direction of `entry`, whose packets are those of
    /// `flow`. Only for one that is not in a map; by field, since a copy would take stack.
    #[inline(always)]
    pub fn set_opposite(&self, entry: Self, flow: &CtKey<A>, (action, device): (CtAction, u32)) {
        let (to, from) = (self.0.as_ptr(), entry.0.as_ptr());
        // SAFETY: the constructors promise that both entries are allocated.
        unsafe {
            (*to).src = flow.dst;
            (*to).dst = flow.src;
            (*to).src_port = flow.dst_port;
            (*to).dst_port = flow.src_port;
            (*to).action = action;
            (*to).state = (*from).state;
            (*to).pad = 0;
            (*to).service = (*from).service;
            (*to).backend = (*from).backend;
            (*to).generation = (*from).generation;
            (*to).last_seen = (*from).last_seen;
            (*to).device = device;
        }
    }

    /// Do the packets that the entry makes, reversed, belong to this flow?
    #[inline(always)]
    pub fn leads_to(&self, flow: &CtKey<A>) -> bool {
        let entry = self.0.as_ptr();
        // SAFETY: the constructor promises that the entry is allocated.
        unsafe {
            (*entry).src == flow.dst
                && (*entry).dst == flow.src
                && (*entry).src_port == flow.dst_port
                && (*entry).dst_port == flow.src_port
        }
    }

    /// State and time of the last packet.
    #[inline(always)]
    pub fn seen(&self) -> (CtState, u32) {
        let entry = self.0.as_ptr();
        // SAFETY: the constructor promises that the entry is allocated.
        unsafe { (CtState((*entry).state), (*entry).last_seen) }
    }

    /// Makes it one of a flow that is proven. Only for one that is not in a map.
    #[inline(always)]
    pub fn set_proven(&self) {
        let entry = self.0.as_ptr();
        // SAFETY: the constructor promises that the entry is allocated.
        unsafe { (*entry).state = CtState((*entry).state).proven().0 };
    }

    /// Writes state and time of the last packet.
    #[inline(always)]
    pub fn touch(&self, CtState(state): CtState, now: u32) {
        let entry = self.0.as_ptr();
        // SAFETY: the constructor promises that the entry is allocated; one store a field.
        unsafe {
            if (*entry).last_seen != now {
                (*entry).last_seen = now;
            }
            if (*entry).state != state {
                (*entry).state = state;
            }
        }
    }
}

impl Ref<Affinity> {
    /// Writes the time of the client's last connection, in ns.
    #[inline(always)]
    pub fn renew(&self, now: u64) {
        // SAFETY: the constructor promises that the entry is allocated; one store.
        unsafe { (*self.0.as_ptr()).last_used = now };
    }
}

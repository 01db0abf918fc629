//! Later fragments that overtake the first one of their packet, which alone tells where they go: they wait.
//!
//! ```text
//! later ─► known? ─ no ─► keep it ─► known now? ─ no ─► wait
//!             └─ yes ─► go on ◄─ take it back ─┴─ yes
//! first ─► note it ─► does one wait? ─ yes ─► send in again: it, then all that wait
//! ```
//!
//! Either writes before it looks, so that of two CPUs one sees what the other has written. What is sent in
//! again comes by as it did before, in this order; the first one then finds nobody who waits.

use lb_common::abi::{Address, Counter, FragmentKey};

use super::{
    Direction, Origin, PathResult, Verdict,
    fragment::{self, Fragments},
};
use crate::{packet::Packet, parse::Headers};

/// Fragments of one packet that can wait: all but the first one of 64 KiB at an MTU of 1,450 bytes.
pub const SLOTS: u32 = 48;
/// Most bytes of one that waits, from its IP header on.
pub const LARGEST: usize = 1536;
/// How long one waits, in units of 2^30 ns: at least so many, and up to one more. Soon an identification is
/// used again (RFC 4963).
const PATIENCE: u32 = 1;

/// Where one fragment of a packet waits.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(C)]
pub struct Slot<A> {
    /// Which packet.
    pub packet: FragmentKey<A>,
    /// Which one of those that wait.
    pub number: u32,
}

/// Room for those that wait, and the way in.
pub trait Waiting<A: Address, P: Packet>: Fragments<A> {
    /// When the fragment in a slot came, in units of 2^30 ns; `None` if there is none.
    fn waits_since(&self, slot: &Slot<A>) -> Option<u32>;

    /// How many slots of a packet have been given away; none if the first one is empty.
    fn given(&self, first: &Slot<A>) -> u32;

    /// Gives the next one away: its number. Two CPUs may be given the same.
    fn give(&self, first: &Slot<A>) -> u32;

    /// Copies a fragment into a slot that is empty; false if there is no room for it.
    #[must_use]
    fn let_wait(&self, packet: &P, slot: &Slot<A>) -> bool;

    /// Has what was written of this packet seen by whoever writes what is read of it after this.
    fn fence(&self, slot: &Slot<A>);

    /// Makes a packet the fragment in a slot, as far as it was kept; false if the kernel refuses.
    #[must_use]
    fn fill(&self, packet: &mut P, slot: &Slot<A>) -> bool;

    /// Empties a slot; false if another CPU has done that.
    fn empty(&self, slot: &Slot<A>) -> bool;

    /// Has a copy of the packet come in by its device once more; false if the kernel refuses.
    #[must_use]
    fn send_in(&self, packet: &mut P) -> bool;
}

/// What becomes of a fragment whose packet was not known.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
pub enum Held {
    /// It waits: here it ends.
    Kept,
    /// Its packet is known by now.
    Known,
    /// It cannot wait.
    NoRoom,
    /// Another one has just taken its slot: there are more.
    Taken,
}

/// Has a fragment of a packet that is not known wait.
#[inline(always)]
pub fn hold<A: Address, P: Packet>(
    packet: &P,
    headers: &Headers<A>,
    tables: &impl Waiting<A, P>,
) -> Held {
    let Some(mut slot) = first_slot(packet, headers) else { return Held::NoRoom };
    if tables.waits_since(&slot).is_some_and(|since| is_awaited(tables, since)) {
        slot.number = tables.give(&slot);
        if slot.number >= SLOTS {
            return Held::NoRoom;
        }
    }
    if let Some(since) = tables.waits_since(&slot) {
        if is_awaited(tables, since) {
            return Held::Taken;
        }
        tables.empty(&slot);
    }
    if !tables.let_wait(packet, &slot) {
        return if tables.waits_since(&slot).is_some() { Held::Taken } else { Held::NoRoom };
    }
    tables.fence(&slot);
    let is_known = tables.fragment(&slot.packet).is_some_and(|it| it.is_fresh(tables.now()));
    if is_known && tables.empty(&slot) { Held::Known } else { Held::Kept }
}

/// What becomes of a fragment that cannot wait: the stack may yet know it, if the address is the node's.
///
/// # Errors
///
/// At an address of Services: nobody else knows it.
#[inline(always)]
pub fn refuse<A: Address>(headers: &Headers<A>, tables: &impl Fragments<A>) -> PathResult {
    if tables.has_frontends(headers.flow.dst) {
        return Err(Counter::FragmentOutOfOrder);
    }
    Ok(Verdict::Pass)
}

/// Do fragments wait for this first one, which has been noted?
#[inline(always)]
pub fn is_waited_for<A: Address, P: Packet>(
    packet: &P,
    headers: &Headers<A>,
    tables: &impl Waiting<A, P>,
    origin: Origin,
) -> bool {
    if origin != Origin::Incoming {
        return false;
    }
    let Some(first) = first_slot(packet, headers) else { return false };
    tables.fence(&first);
    tables.given(&first) > 0
}

/// Sends a first fragment in again; how many slots may hold some that wait for it, none if the kernel refuses.
#[inline(always)]
pub fn again<A: Address, P: Packet>(
    packet: &mut P,
    headers: &Headers<A>,
    tables: &impl Waiting<A, P>,
) -> u32 {
    let given = first_slot(packet, headers).map_or(0, |first| tables.given(&first));
    if tables.send_in(packet) { given } else { 0 }
}

/// Sends the fragment of a slot in again, in the place of `packet`; false if there is none, or if it waited
/// for too long.
#[inline(always)]
pub fn wake<A: Address, P: Packet>(
    packet: &mut P,
    headers: &Headers<A>,
    tables: &impl Waiting<A, P>,
    number: u32,
) -> bool {
    let Some(slot) = first_slot(packet, headers).map(|first| Slot { number, ..first }) else {
        return false;
    };
    let Some(since) = tables.waits_since(&slot) else { return false };
    // Emptied when it was copied: by then nothing else can have come into its place.
    let is_copied = tables.fill(packet, &slot);
    let is_whole = tables.empty(&slot) && is_copied;
    is_whole && is_awaited(tables, since) && tables.send_in(packet)
}

#[inline(always)]
fn is_awaited<A: Address, P: Packet>(tables: &impl Waiting<A, P>, since: u32) -> bool {
    tables.now().wrapping_sub(since) <= PATIENCE
}

#[inline(always)]
fn first_slot<A: Address>(packet: &impl Packet, headers: &Headers<A>) -> Option<Slot<A>> {
    let id = headers.identification(packet, 0)?;
    Some(Slot { packet: fragment::key(headers, id, Direction::Ingress), number: 0 })
}

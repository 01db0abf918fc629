//! TC: the entry of each hook, and which step follows which.

mod carrier;
mod flow;
mod hold;
mod other;
mod verdict;

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT},
    programs::TcContext,
};
use lb_common::abi::{Address as _, Counter, Ipv4, Ipv6};
use lb_ebpf::{
    packet::Bytes as _,
    parse,
    path::{Origin, SNAT_TRIES, hold::SLOTS},
};

use super::skb::Skb;
use carrier::{accept, carry, ipip, unpack};
use flow::{act, begin, claim, hinted, known, look, read};
use hold::{again, hold, wake};
use other::{icmp, later, narrow, note, ping, tell};
use verdict::{end, last};

/// Neither accepts nor drops: the next program, ours or a CNI's, decides (`TCX_NEXT`).
pub(super) const NEXT: i32 = -1;
const SHOT: i32 = TC_ACT_SHOT as i32;
/// The origin of what was in a carrier.
const CARRIED: u32 = Origin::Carried as u32;
/// Headers that a path may touch: Ethernet, IPv6, TCP.
const HEADERS: u32 = 14 + 40 + 20;
/// Slots that a fragment asks for while other CPUs are faster.
const HOLD_TRIES: u32 = 4;

/// What a step answers with if another one is to follow; a verdict of TC otherwise.
mod step {
    /// Ask the frontends.
    pub(super) const BEGIN: i32 = -2;
    /// It may be a carrier of GUE.
    pub(super) const CARRIER: i32 = -3;
    /// Put it into its carrier, as was just decided.
    pub(super) const CARRY: i32 = -4;
    /// The same as a cached decision says.
    pub(super) const CARRY_ON: i32 = -5;
    /// Find a free source port.
    pub(super) const CLAIM: i32 = -6;
    /// There is a decision made for this packet: act.
    pub(super) const DECIDED: i32 = -7;
    /// Ask the hints.
    pub(super) const HINTED: i32 = -8;
    /// A later fragment that is to wait for the first one.
    pub(super) const HOLD: i32 = -9;
    /// It may be a carrier of IPIP.
    pub(super) const IPIP: i32 = -10;
    /// Ask conntrack.
    pub(super) const KNOWN: i32 = -11;
    /// The same, and note what becomes of this first fragment.
    pub(super) const KNOWN_AND_NOTE: i32 = -12;
    /// A later fragment, which has no ports.
    pub(super) const LATER: i32 = -13;
    /// It tells of a link that is too narrow for a carrier.
    pub(super) const NARROW: i32 = -14;
    /// No packet of a flow; perhaps of ICMP.
    pub(super) const OTHER: i32 = -15;
    /// No plain packet: read its headers one by one.
    pub(super) const READ: i32 = -16;
    /// It does not fit the next device.
    pub(super) const TOO_BIG: i32 = -17;
    /// Its time to live has ended.
    pub(super) const TTL_EXPIRED: i32 = -18;
    /// It was in a carrier: as [`READ`].
    pub(super) const UNPACKED: i32 = -19;
    /// Fragments wait for this first one: send all in again.
    pub(super) const WAKE: i32 = -20;
    /// Refuse: less the number of a counter.
    pub(super) const REFUSE: i32 = -32;
}

/// The program at ingress.
#[inline(always)]
pub fn ingress(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(ctx);
    if skb.is_marked() || skb.is_tagged() {
        return NEXT;
    }
    run(&mut skb, Origin::Incoming)
}

/// The program at egress.
#[inline(always)]
pub fn egress(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(ctx);
    if skb.is_marked() {
        // The packet may come by again in another role, when a pod forwards it.
        skb.set_mark(0);
        return NEXT;
    }
    // The device that gave it a tag on its way out has seen it without.
    if skb.has_tag() {
        return NEXT;
    }
    let origin = skb.origin();
    run(&mut skb, origin)
}

#[inline(always)]
fn run(skb: &mut Skb, origin: Origin) -> i32 {
    skb.pull(HEADERS);
    match parse::ethertype(skb) {
        Ipv4::ETHERTYPE => steps::<Ipv4>(skb, origin as u32),
        Ipv6::ETHERTYPE => steps::<Ipv6>(skb, origin as u32),
        _ => NEXT,
    }
}

/// One step after the other, each in a stack of its own.
#[inline(always)]
fn steps<A: Steps>(skb: &Skb, mut origin: u32) -> i32 {
    let ctx = skb.as_ptr();
    let mut code = A::look(ctx, origin);
    if code >= NEXT {
        return code;
    }
    if code == step::READ {
        code = A::read(ctx, origin);
    }
    if code == step::CARRIER {
        code = A::unpack(ctx);
    } else if code == step::IPIP {
        code = A::ipip(ctx);
    }
    if code == step::UNPACKED {
        origin = CARRIED;
    }
    if code == step::READ || code == step::UNPACKED {
        code = A::read(ctx, origin);
    }
    match code {
        step::LATER => finish::<A>(ctx, later_or_hold::<A>(ctx, origin)),
        step::OTHER => of_icmp::<A>(ctx, origin),
        _ => of_flow::<A>(ctx, origin, code),
    }
}

/// The steps for a packet of a flow, from the one on that `code` says.
#[inline(always)]
fn of_flow<A: Steps>(ctx: *mut __sk_buff, origin: u32, mut code: i32) -> i32 {
    let is_noted = code == step::KNOWN_AND_NOTE;
    if code == step::KNOWN || is_noted {
        code = A::known(ctx, origin);
    }
    if code == step::HINTED {
        code = A::hinted(ctx, origin);
    }
    if code == step::BEGIN {
        code = if origin == CARRIED { A::accept(ctx) } else { A::begin(ctx, origin) };
    }
    for number in 0..SNAT_TRIES {
        if code != step::CLAIM {
            break;
        }
        code = A::claim(ctx, number);
    }
    if code == step::CLAIM {
        code = end(Counter::SnatPortsExhausted);
    }
    if is_noted && wake_all::<A>(ctx, A::note(ctx, origin, code)) {
        return SHOT;
    }
    if code == step::DECIDED || code <= step::REFUSE {
        code = A::act(ctx, origin, code);
    }
    if code == step::CARRY || code == step::CARRY_ON {
        code = A::carry(ctx, code);
    }
    if is_noted && matches!(code, SHOT | step::TOO_BIG | step::TTL_EXPIRED) {
        // It was noted as what was to become of it.
        A::note(ctx, origin, code);
    }
    match code {
        step::TOO_BIG | step::TTL_EXPIRED => A::tell(ctx, origin, code),
        verdict => verdict,
    }
}

/// Sends a first fragment and those that wait for it in again; false if none waits.
#[inline(always)]
fn wake_all<A: Steps>(ctx: *mut __sk_buff, code: i32) -> bool {
    if code != step::WAKE {
        return false;
    }
    let given = A::again(ctx);
    for number in 0..SLOTS {
        if A::wake(ctx, number, given) != step::WAKE {
            break;
        }
    }
    given > 0
}

/// The steps for a later fragment.
#[inline(always)]
fn later_or_hold<A: Steps>(ctx: *mut __sk_buff, origin: u32) -> i32 {
    let mut code = A::later(ctx, origin);
    for number in 1..=HOLD_TRIES {
        if code != step::HOLD {
            break;
        }
        code = A::hold(ctx, u32::from(number == HOLD_TRIES));
    }
    if code == step::LATER {
        code = A::later(ctx, origin);
    }
    if code == step::HOLD { end(Counter::FragmentOutOfOrder) } else { code }
}

#[inline(always)]
fn other<A: Steps>(ctx: *mut __sk_buff, origin: u32) -> i32 {
    if origin == CARRIED {
        return A::icmp(ctx, origin);
    }
    match A::ping(ctx, origin) {
        step::OTHER => A::icmp(ctx, origin),
        verdict => verdict,
    }
}

/// A message of ICMP; one about a carrier of this node becomes one about what was in it.
#[inline(always)]
fn of_icmp<A: Steps>(ctx: *mut __sk_buff, origin: u32) -> i32 {
    let code = other::<A>(ctx, origin);
    if code != step::NARROW {
        return finish::<A>(ctx, code);
    }
    match A::narrow(ctx) {
        step::NARROW => A::tell(ctx, origin, step::NARROW),
        code => last(code),
    }
}

/// What is left to do with a packet that follows those of a flow.
#[inline(always)]
fn finish<A: Steps>(ctx: *mut __sk_buff, code: i32) -> i32 {
    last(if code == step::CARRY { A::carry(ctx, code) } else { code })
}

steps! {
    Skb of TcContext by __sk_buff:
    /// Reads headers, filter and cache; acts on what is cached.
    look(origin: u32) = lb_tc_look4, lb_tc_look6;
    /// Reads headers one by one.
    read(origin: u32) = lb_tc_read4, lb_tc_read6;
    /// Asks conntrack.
    known(origin: u32) = lb_tc_known4, lb_tc_known6;
    /// Asks the hints.
    hinted(origin: u32) = lb_tc_hinted4, lb_tc_hinted6;
    /// Asks the frontends.
    begin(origin: u32) = lb_tc_begin4, lb_tc_begin6;
    /// Begins the flow of a packet that was carried here.
    accept() = lb_tc_accept4, lb_tc_accept6;
    /// Tries one source port.
    claim(number: u32) = lb_tc_claim4, lb_tc_claim6;
    /// Translates, sends, refuses, as was just decided.
    act(origin: u32, code: i32) = lb_tc_act4, lb_tc_act6;
    /// Puts a packet into its carrier and sends it.
    carry(code: i32) = lb_tc_carry4, lb_tc_carry6;
    /// Goes on with a packet that is not one of a flow, if it is one of ICMP.
    icmp(origin: u32) = lb_tc_icmp4, lb_tc_icmp6;
    /// Finds the client's packet in an error about its carrier.
    narrow() = lb_tc_narrow4, lb_tc_narrow6;
    /// Does with a later fragment what was done with the first one.
    later(origin: u32) = lb_tc_later4, lb_tc_later6;
    /// Notes what becomes of a first fragment, as `code` says.
    note(origin: u32, code: i32) = lb_tc_note4, lb_tc_note6;
    /// Has a later fragment wait.
    hold(is_last_try: u32) = lb_tc_hold4, lb_tc_hold6;
    /// Sends a first fragment in again.
    again() = lb_tc_again4, lb_tc_again6;
    /// Sends the fragment in the slot of this number in again, in place of the packet; so many were given away.
    wake(number: u32, given: i32) = lb_tc_wake4, lb_tc_wake6;
    /// Answers a ping to an address of Services, and knows errors about carriers.
    ping(origin: u32) = lb_tc_ping4, lb_tc_ping6;
    /// Takes a packet out of its carrier of IPIP, if it is one.
    ipip() = lb_tc_ipip4, lb_tc_ipip6;
    /// Takes a packet out of its carrier of GUE, if it is one.
    unpack() = lb_tc_unpack4, lb_tc_unpack6;
    /// Tells the sender of a packet why it ends here.
    tell(origin: u32, code: i32) = lb_tc_tell4, lb_tc_tell6;
}

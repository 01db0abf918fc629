//! TC: the entry of each hook, and which step follows which.

mod carrier;
mod flow;
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
    path::{Origin, SNAT_TRIES},
};

use super::skb::Skb;
use carrier::{accept, carry, ipip, unpack};
use flow::{act, begin, claim, hinted, known, look, read};
use other::{icmp, later, note, ping, tell};
use verdict::{end, last};

/// Neither accepts nor drops: the next program, ours or a CNI's, decides (`TCX_NEXT`).
pub(super) const NEXT: i32 = -1;
const SHOT: i32 = TC_ACT_SHOT as i32;
/// The origin of what was in a carrier.
const CARRIED: u32 = Origin::Carried as u32;
/// Headers that a path may touch: Ethernet, IPv6, TCP.
const HEADERS: u32 = 14 + 40 + 20;

/// What a step answers with if another one is to follow; a verdict of TC otherwise.
mod step {
    /// Ask the frontends.
    pub(super) const BEGIN: i32 = -2;
    /// Put it into its carrier, as was just decided.
    pub(super) const CARRY: i32 = -3;
    /// The same as a cached decision says.
    pub(super) const CARRY_ON: i32 = -4;
    /// It may be a carrier of GUE.
    pub(super) const CARRIER: i32 = -5;
    /// Find a free source port.
    pub(super) const CLAIM: i32 = -6;
    /// There is a decision made for this packet: act.
    pub(super) const DECIDED: i32 = -7;
    /// Ask the hints.
    pub(super) const HINTED: i32 = -8;
    /// It may be a carrier of IPIP.
    pub(super) const IPIP: i32 = -9;
    /// Ask conntrack.
    pub(super) const KNOWN: i32 = -10;
    /// The same, and note what becomes of this first fragment.
    pub(super) const KNOWN_AND_NOTE: i32 = -11;
    /// A later fragment, which has no ports.
    pub(super) const LATER: i32 = -12;
    /// No packet of a flow; perhaps of ICMP.
    pub(super) const OTHER: i32 = -13;
    /// No plain packet: read its headers one by one.
    pub(super) const READ: i32 = -14;
    /// It does not fit the next device.
    pub(super) const TOO_BIG: i32 = -15;
    /// Its time to live has ended.
    pub(super) const TTL_EXPIRED: i32 = -16;
    /// It was in a carrier: as [`READ`].
    pub(super) const UNPACKED: i32 = -17;
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
    if skb.is_tagged() {
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
        step::LATER => finish::<A>(ctx, A::later(ctx, origin)),
        step::OTHER => finish::<A>(ctx, other::<A>(ctx, origin)),
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
    let is_refused = code <= step::REFUSE;
    if code == step::DECIDED || is_refused {
        code = A::act(ctx, origin, code);
    }
    if code == step::CARRY || code == step::CARRY_ON {
        code = A::carry(ctx, code);
    }
    if is_noted {
        A::note(ctx, origin, if is_refused { SHOT } else { code });
    }
    match code {
        step::TOO_BIG | step::TTL_EXPIRED => A::tell(ctx, origin, code),
        verdict => verdict,
    }
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
    /// Does with a later fragment what was done with the first one.
    later(origin: u32) = lb_tc_later4, lb_tc_later6;
    /// Notes what became of a first fragment, which the program ends with `code` for.
    note(origin: u32, code: i32) = lb_tc_note4, lb_tc_note6;
    /// Answers a ping to an address of Services.
    ping(origin: u32) = lb_tc_ping4, lb_tc_ping6;
    /// Takes a packet out of its carrier of IPIP, if it is one.
    ipip() = lb_tc_ipip4, lb_tc_ipip6;
    /// Takes a packet out of its carrier of GUE, if it is one.
    unpack() = lb_tc_unpack4, lb_tc_unpack6;
    /// Tells the sender of a packet why it ends here.
    tell(origin: u32, code: i32) = lb_tc_tell4, lb_tc_tell6;
}

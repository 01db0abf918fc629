//! TC: the entry of each hook, its steps, and verdicts as return codes.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS, TC_ACT_SHOT},
    helpers::bpf_redirect,
    programs::TcContext,
};
use lb_common::abi::{
    Abi as _, Address, CachedFlow, Counter, CounterKind, CtAction, FragmentAction, Ipv4, Ipv6,
    NextHop,
};
use lb_ebpf::{
    packet::Packet,
    parse::{self, Header, Headers, Next, NoFlow},
    path::{
        self, Direction, Found, Origin, PathResult, SNAT_TRIES, Verdict, answer, carrier, fragment,
        icmp::{self, Icmp},
        refuse,
    },
};

use super::{
    carrier::unpack,
    route::{self, Routing},
    skb::Skb,
    tables::BpfTables,
};
use crate::{
    globals::MARK,
    maps::{self, Maps, fragments::FragmentMaps},
};

/// Neither accepts nor drops: the next program, ours or a CNI's, decides (`TCX_NEXT`).
pub(super) const NEXT: i32 = -1;
/// The origin of what was in a carrier.
const CARRIED: u32 = Origin::Carried as u32;
pub(super) const SHOT: i32 = TC_ACT_SHOT as i32;
const TC_ACT_REDIRECT: i32 = 7;
/// What a step answers with if another one is to follow; a verdict of TC otherwise.
pub(super) mod step {
    /// Ask the frontends.
    pub const BEGIN: i32 = -2;
    /// Find a free source port.
    pub const CLAIM: i32 = -10;
    /// Ask conntrack.
    pub const ASK: i32 = -3;
    /// There is a decision made for this packet: act.
    pub const DECIDED: i32 = -4;
    /// No packet of a flow; perhaps of ICMP.
    pub const OTHER: i32 = -5;
    /// A later fragment, which has no ports.
    pub const LATER: i32 = -6;
    /// The same as [`ASK`], and note what becomes of this first fragment.
    pub const ASK_AND_NOTE: i32 = -7;
    /// It does not fit the next device.
    pub const TOO_BIG: i32 = -8;
    /// Its time to live has ended.
    pub const TTL_EXPIRED: i32 = -9;
    /// It may be a carrier.
    pub const CARRIER: i32 = -12;
    /// The same as [`DECIDED`], and note what becomes of this first fragment.
    pub const DECIDED_AND_NOTE: i32 = -11;
    /// Refuse: less the number of a counter.
    pub const REFUSE: i32 = -16;
}
/// Headers that a path may touch: Ethernet, IPv6, TCP.
pub(super) const HEADERS: u32 = 14 + 40 + 20;
/// The same of ICMP, as far as the quoted ports: an IPv6 redirect with a link-layer address is the
/// longest, longer than an error with two IPv4 headers that are full of options.
const QUOTED_HEADERS: u32 = 14 + 40 + 40 + 16 + 40 + 8 + 4;

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
fn steps<A: Steps>(skb: &Skb, origin: u32) -> i32 {
    let ctx = skb.as_ptr();
    let looked = A::look(ctx, origin);
    let (mut code, mut origin) = (looked, origin);
    if code == step::CARRIER && origin == Origin::Incoming as u32 {
        (code, origin) = (A::unpack(ctx, origin), CARRIED);
    } else if code == step::ASK || code == step::ASK_AND_NOTE {
        code = A::ask(ctx, origin);
    }
    if code == step::BEGIN {
        code = A::begin(ctx, origin);
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
    let is_noted = looked == step::ASK_AND_NOTE || code == step::DECIDED_AND_NOTE;
    if code == step::DECIDED || code == step::DECIDED_AND_NOTE || is_refused {
        code = A::act(ctx, origin, code);
    }
    if is_noted {
        A::note(ctx, origin, if is_refused { SHOT } else { code });
    }
    match code {
        step::LATER => A::later(ctx, origin),
        step::OTHER => other::<A>(ctx, origin),
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

/// The steps for one family.
trait Steps {
    /// Reads headers, filter and cache; acts on what is cached.
    fn look(ctx: *mut __sk_buff, origin: u32) -> i32;
    /// Asks conntrack.
    fn ask(ctx: *mut __sk_buff, origin: u32) -> i32;
    /// Asks the frontends.
    fn begin(ctx: *mut __sk_buff, origin: u32) -> i32;
    /// Tries one source port.
    fn claim(ctx: *mut __sk_buff, number: u32) -> i32;
    /// Translates, sends, refuses, as was just decided.
    fn act(ctx: *mut __sk_buff, origin: u32, code: i32) -> i32;
    /// Goes on with a packet that is not one of a flow, if it is one of ICMP.
    fn icmp(ctx: *mut __sk_buff, origin: u32) -> i32;
    /// Does with a later fragment what was done with the first one.
    fn later(ctx: *mut __sk_buff, origin: u32) -> i32;
    /// Notes what became of a first fragment, which the program ends with `code` for.
    fn note(ctx: *mut __sk_buff, origin: u32, code: i32) -> i32;
    /// Answers a ping to an address of Services.
    fn ping(ctx: *mut __sk_buff, origin: u32) -> i32;
    /// Takes a packet out of its carrier and decides on it.
    fn unpack(ctx: *mut __sk_buff, origin: u32) -> i32;
    /// Tells the sender of a packet why it ends here.
    fn tell(ctx: *mut __sk_buff, origin: u32, code: i32) -> i32;
}

steps! {
    Skb of TcContext by __sk_buff, Ipv4:
    look = lb_tc_look4(origin: u32),
    ask = lb_tc_ask4(origin: u32),
    begin = lb_tc_begin4(origin: u32),
    claim = lb_tc_claim4(number: u32),
    act = lb_tc_act4(origin: u32, code: i32),
    icmp = lb_tc_icmp4(origin: u32),
    later = lb_tc_later4(origin: u32),
    note = lb_tc_note4(origin: u32, code: i32),
    ping = lb_tc_ping4(origin: u32),
    unpack = lb_tc_unpack4(origin: u32),
    tell = lb_tc_tell4(origin: u32, code: i32),
}
steps! {
    Skb of TcContext by __sk_buff, Ipv6:
    look = lb_tc_look6(origin: u32),
    ask = lb_tc_ask6(origin: u32),
    begin = lb_tc_begin6(origin: u32),
    claim = lb_tc_claim6(number: u32),
    act = lb_tc_act6(origin: u32, code: i32),
    icmp = lb_tc_icmp6(origin: u32),
    later = lb_tc_later6(origin: u32),
    note = lb_tc_note6(origin: u32, code: i32),
    ping = lb_tc_ping6(origin: u32),
    unpack = lb_tc_unpack6(origin: u32),
    tell = lb_tc_tell6(origin: u32, code: i32),
}

/// An origin by its number.
#[inline(always)]
fn origin(number: u32) -> Origin {
    match number {
        CARRIED => Origin::Carried,
        1 => Origin::Forwarded,
        2 => Origin::Host,
        _ => Origin::Incoming,
    }
}

#[inline(always)]
fn look<A: Header + Maps + Routing>(mut skb: Skb, from: u32) -> i32 {
    A::parse(&mut skb, Look(origin(from))).unwrap_or_else(pass)
}

/// Goes on with the headers of a packet.
struct Look(Origin);

impl<A: Address + Maps + Routing> Next<A, Skb> for Look {
    type Output = i32;

    #[inline(always)]
    fn run(self, skb: &mut Skb, headers: &Headers<A>) -> i32 {
        let Self(origin) = self;
        let Some(tables) = BpfTables::new(skb.context()) else { return NEXT };
        if carrier::may_be(headers, &tables, origin) {
            return step::CARRIER;
        }
        let mut decision = CachedFlow::zeroed();
        match path::look(headers, &tables, origin, &mut decision) {
            path::Look::Act => {
                let verdict = path::act(skb, headers, &tables, &decision, Verdict::Send);
                match perform(skb, verdict, (&decision.hop, |_, _| None, origin.direction())) {
                    // Once more, with all that is needed to tell the sender.
                    step::TOO_BIG | step::TTL_EXPIRED => keep(headers),
                    code => code,
                }
            }
            path::Look::Ask => keep(headers),
            path::Look::Leave => NEXT,
        }
    }
}

/// Keeps the headers for the steps that follow: they would take a sixth of the stack.
#[inline(always)]
fn keep<A: Maps + Copy>(headers: &Headers<A>) -> i32 {
    let Some(kept) = A::headers() else { return NEXT };
    *kept = *headers;
    if headers.has_rest() { step::ASK_AND_NOTE } else { step::ASK }
}

#[inline(always)]
fn ask<A: Address + Maps + Routing>(skb: Skb, from: u32) -> i32 {
    let (Some(headers), Some(decision)) = (A::headers(), A::decision()) else { return NEXT };
    let Some(tables) = BpfTables::new(skb.context()) else { return NEXT };
    next(path::ask(headers, &tables, origin(from), decision))
}

#[inline(always)]
fn begin<A: Address + Maps + Routing>(skb: Skb, from: u32) -> i32 {
    let (Some(headers), Some(decision)) = (A::headers(), A::decision()) else { return NEXT };
    let Some(tables) = BpfTables::new(skb.context()) else { return NEXT };
    next(path::begin(headers, &tables, origin(from), decision))
}

#[inline(always)]
fn claim<A: Address + Maps + Routing>(skb: Skb, number: u32) -> i32 {
    let (Some(headers), Some(decision)) = (A::headers(), A::decision()) else { return NEXT };
    let Some(tables) = BpfTables::new(skb.context()) else { return NEXT };
    next(path::claim(headers, &tables, decision, number))
}

/// The step that follows from what was found.
#[inline(always)]
pub(super) fn next(found: Result<Found, Counter>) -> i32 {
    match found {
        Ok(Found::Answer(counter)) => step::REFUSE - counter as i32,
        Ok(Found::Decided) => step::DECIDED,
        Ok(Found::Claim) => step::CLAIM,
        Ok(Found::New) => step::BEGIN,
        Ok(Found::Nothing) => NEXT,
        Err(counter) => end(counter),
    }
}

#[inline(always)]
fn act<A: Address + Maps + Routing>(mut skb: Skb, from: u32, code: i32) -> i32 {
    let direction = origin(from).direction();
    let (Some(headers), Some(decision)) = (A::headers(), A::decision()) else { return NEXT };
    if code <= step::REFUSE {
        if let Err(counter) = refuse::refuse(&mut skb, headers) {
            return end(counter);
        }
        maps::count_number((step::REFUSE - code).cast_unsigned());
        return send_back(&mut skb, direction);
    }
    let Some(tables) = BpfTables::new(skb.context()) else { return NEXT };
    let verdict = path::act(&mut skb, headers, &tables, decision, Verdict::Route);
    perform(&mut skb, verdict, (&decision.hop, route::redirect::<A>, direction))
}

#[inline(always)]
fn icmp<A: Icmp + Maps + Routing>(mut skb: Skb, from: u32) -> i32 {
    let origin = origin(from);
    if A::header(&skb).is_none() {
        return if origin == Origin::Carried { end(Counter::CarrierRefused) } else { NEXT };
    }
    skb.pull(QUOTED_HEADERS);
    let direction = origin.direction();
    let Some(tables) = BpfTables::<A, _>::new(skb.context()) else { return NEXT };
    let verdict = icmp::icmp(&mut skb, &tables, origin);
    last(perform(&mut skb, verdict, (&NextHop::of(0), route::redirect::<A>, direction)))
}

#[inline(always)]
fn later<A: Header + FragmentMaps + Routing>(mut skb: Skb, from: u32) -> i32 {
    let origin = origin(from);
    let Some(tables) = BpfTables::<A, _>::new(skb.context()) else { return NEXT };
    let verdict = match fragment::later(&mut skb, &tables, origin) {
        Ok(verdict) => Ok(verdict),
        Err(Some(counter)) => Err(counter),
        Err(None) => return SHOT,
    };
    let hop = NextHop::of(0);
    last(perform(&mut skb, verdict, (&hop, route::redirect::<A>, origin.direction())))
}

#[inline(always)]
fn note<A: Header + FragmentMaps + Routing>(mut skb: Skb, from: u32, code: i32) -> i32 {
    let (Some(headers), Some(decision)) = (A::headers(), A::decision()) else { return NEXT };
    let Some(tables) = BpfTables::<A, _>::new(skb.context()) else { return NEXT };
    let rest = match code {
        TC_ACT_REDIRECT if decision.action == CtAction::FORWARD_DSR => {
            fragment::remember_carried(&skb, &tables, headers, decision);
            return NEXT;
        }
        NEXT => (FragmentAction::CONTINUE, 0),
        TC_ACT_REDIRECT if decision.action == CtAction::REPLY_TO_HOST => {
            (FragmentAction::DELIVER, decision.hop.device)
        }
        TC_ACT_REDIRECT => (FragmentAction::REDIRECT, u32::from(decision.action.is_forward())),
        _ => (FragmentAction::DROP, 0),
    };
    fragment::remember(&mut skb, &tables, headers, origin(from).direction(), rest);
    NEXT
}

#[inline(always)]
fn ping<A: Icmp + FragmentMaps + Routing>(mut skb: Skb, from: u32) -> i32 {
    let origin = origin(from);
    let Some(tables) = BpfTables::<A, _>::new(skb.context()) else { return NEXT };
    match answer::ping(&mut skb, &tables, origin) {
        Ok(true) => {
            maps::count(Counter::Ping);
            send_back(&mut skb, origin.direction())
        }
        Ok(false) => step::OTHER,
        Err(counter) => end(counter),
    }
}

#[inline(always)]
fn tell<A: Icmp + FragmentMaps + Routing>(mut skb: Skb, from: u32, code: i32) -> i32 {
    let verdict = last(code);
    let direction = origin(from).direction();
    let (Some(headers), Some(decision)) = (A::headers(), A::decision()) else { return verdict };
    let Some(tables) = BpfTables::<A, _>::new(skb.context()) else { return verdict };
    let narrow = (code == step::TOO_BIG).then_some(decision.hop.mtu);
    match answer::tell(&mut skb, &tables, headers, (narrow, direction)) {
        Ok(true) => send_back(&mut skb, direction),
        _ => verdict,
    }
}

/// Leaves a packet alone that is not one of a flow, and counts it if it could have been; goes on
/// with one of another protocol.
#[inline(always)]
pub(super) fn pass(reason: NoFlow) -> i32 {
    match reason {
        NoFlow::Fragment => step::LATER,
        NoFlow::Other => step::OTHER,
        NoFlow::Truncated => end(Counter::Truncated),
    }
}

/// Performs a verdict.
#[inline(always)]
fn perform(
    skb: &mut Skb,
    verdict: PathResult,
    (hop, route, direction): (&NextHop, impl FnOnce(&Skb, Direction) -> Option<i32>, Direction),
) -> i32 {
    match verdict {
        Ok(Verdict::Continue) => {
            if direction == Direction::Ingress {
                skb.set_mark(MARK.load());
            }
            NEXT
        }
        Ok(Verdict::Deliver(device)) => deliver(skb, device),
        Ok(Verdict::Pass) => NEXT,
        Ok(Verdict::Route) => {
            skb.set_mark(MARK.load());
            route(skb, direction).unwrap_or(SHOT)
        }
        Ok(Verdict::Send) => send(skb, hop),
        Err(counter) => end(counter),
    }
}

/// Counts a packet under a reason, and does with it what the reason says; leaves that to the last step
/// where the sender can be told.
#[inline(always)]
pub(super) fn end(counter: Counter) -> i32 {
    match counter {
        Counter::PacketTooBig => return step::TOO_BIG,
        Counter::TtlExpired => return step::TTL_EXPIRED,
        _ => maps::count(counter),
    }
    match counter.kind() {
        CounterKind::Pass | CounterKind::Serve => NEXT,
        CounterKind::Answer | CounterKind::Drop | CounterKind::Reject => SHOT,
    }
}

/// Makes what a step answers a verdict: no other step follows.
#[inline(always)]
fn last(code: i32) -> i32 {
    match code {
        step::TOO_BIG => maps::count(Counter::PacketTooBig),
        step::TTL_EXPIRED => maps::count(Counter::TtlExpired),
        verdict => return verdict,
    }
    SHOT
}

/// Sends the packet to a next hop.
#[inline(always)]
fn send(skb: &mut Skb, hop: &NextHop) -> i32 {
    if skb.write(0, &hop.macs).is_err() {
        return end(Counter::RewriteFailed);
    }
    skb.set_mark(MARK.load());
    // SAFETY: a helper that takes numbers.
    unsafe { bpf_redirect(hop.device, 0) as i32 }
}

/// Returns an answer to where its question came from.
#[inline(always)]
fn send_back(skb: &mut Skb, direction: Direction) -> i32 {
    skb.set_mark(MARK.load());
    let flags = if direction == Direction::Egress { u64::from(BPF_F_INGRESS) } else { 0 };
    // SAFETY: a helper that takes numbers.
    unsafe { bpf_redirect(skb.device(), flags) as i32 }
}

/// Hands the packet to the stack as if it had come in by another device.
#[inline(always)]
fn deliver(skb: &mut Skb, device: u32) -> i32 {
    let Some(target) = maps::device(device) else {
        return end(Counter::NoRoute);
    };
    if skb.write(0, &target.mac).is_err() {
        return end(Counter::RewriteFailed);
    }
    skb.set_mark(MARK.load());
    // SAFETY: a helper that takes numbers.
    unsafe { bpf_redirect(device, u64::from(BPF_F_INGRESS)) as i32 }
}

//! XDP: the same steps before the stack, for what can be ended or sent on without it.
//!
//! Every other packet goes on as it came, to TC at the same device: nothing has been written to it or
//! counted, and what is remembered of it is what TC would remember. So XDP is an acceleration and
//! nothing else.

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    helpers::bpf_redirect,
    programs::XdpContext,
};
use lb_common::abi::{Abi as _, Address, CachedFlow, Counter, CounterKind, Ipv4, Ipv6};
use lb_ebpf::{
    packet::Packet,
    parse::{self, Header, Headers, Next},
    path::{self, Found, Origin, PathResult, SNAT_TRIES, Verdict, carrier, refuse},
};

use super::{
    frame::{self, Crossing, Frame},
    route::Routing,
    tables::{BpfTables, Context as _},
};
use crate::maps::{self, Maps, fragments::FragmentMaps};

const PASS: i32 = xdp_action::XDP_PASS as i32;
/// What a step answers with if another one is to follow; a verdict of XDP otherwise.
mod step {
    /// There is a decision: act.
    pub(super) const ACT: i32 = -2;
    /// Ask the frontends.
    pub(super) const BEGIN: i32 = -3;
    /// Put it into its carrier, as was decided.
    pub(super) const CARRY: i32 = -4;
    /// Find a free source port.
    pub(super) const CLAIM: i32 = -5;
    /// Ask the hints.
    pub(super) const HINTED: i32 = -6;
    /// Ask conntrack.
    pub(super) const KNOWN: i32 = -7;
    /// No plain packet: read its headers one by one.
    pub(super) const READ: i32 = -8;
    /// Refuse: less the number of a counter.
    pub(super) const REFUSE: i32 = -16;
}

/// The program.
#[inline(always)]
pub fn receive(ctx: XdpContext) -> u32 {
    let frame = Frame::new(ctx);
    let verdict = match parse::ethertype(&frame) {
        Ipv4::ETHERTYPE => steps::<Ipv4>(frame.as_ptr()),
        Ipv6::ETHERTYPE => steps::<Ipv6>(frame.as_ptr()),
        _ => PASS,
    };
    verdict as u32
}

/// One step after the other, each in a stack of its own.
#[inline(always)]
fn steps<A: Steps>(ctx: *mut xdp_md) -> i32 {
    let mut code = A::look(ctx);
    if code >= 0 {
        return code;
    }
    if code == step::READ {
        code = A::read(ctx);
    }
    if code == step::KNOWN {
        code = A::known(ctx);
    }
    if code == step::HINTED {
        code = A::hinted(ctx);
    }
    if code == step::BEGIN {
        code = A::begin(ctx);
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
    if code == step::ACT || code <= step::REFUSE {
        code = A::act(ctx, code);
    }
    if code == step::CARRY { A::carry(ctx) } else { code }
}

steps! {
    Frame of XdpContext by xdp_md:
    /// Reads headers, filter and cache; acts on what is cached.
    look() = lb_xdp_look4, lb_xdp_look6;
    /// Reads headers one by one.
    read() = lb_xdp_read4, lb_xdp_read6;
    /// Asks conntrack.
    known() = lb_xdp_known4, lb_xdp_known6;
    /// Asks the hints.
    hinted() = lb_xdp_hinted4, lb_xdp_hinted6;
    /// Asks the frontends.
    begin() = lb_xdp_begin4, lb_xdp_begin6;
    /// Tries one source port.
    claim(number: u32) = lb_xdp_claim4, lb_xdp_claim6;
    /// Translates and sends, or refuses.
    act(code: i32) = lb_xdp_act4, lb_xdp_act6;
    /// Puts a packet into its carrier and sends it.
    carry() = lb_xdp_carry4, lb_xdp_carry6;
}

#[inline(always)]
fn look<A: Header + Maps + Routing>(mut frame: Frame) -> i32 {
    A::plain(&mut frame, Look).unwrap_or(step::READ)
}

/// Goes on with the headers of a plain packet.
struct Look;

impl<A: Address + Maps + Routing> Next<A, Frame> for Look {
    type Output = i32;

    #[inline(always)]
    fn run(self, frame: &mut Frame, headers: &Headers<A>) -> i32 {
        let Some(tables) = BpfTables::new(frame.context()) else { return PASS };
        let mut decision = CachedFlow::zeroed();
        match path::look(headers, &tables, Origin::Incoming, &mut decision) {
            path::Look::Act | path::Look::Ask if !frame.is_whole(headers) => PASS,
            path::Look::Act if decision.action.carries() => {
                let Some(kept) = A::decision() else { return PASS };
                *kept = decision;
                keep(headers, step::CARRY)
            }
            path::Look::Act => send(frame, headers, &decision, |frame| {
                path::act(frame, headers, &tables, &decision, Verdict::Send)
            }),
            path::Look::Ask => keep(headers, step::KNOWN),
            path::Look::Leave => PASS,
        }
    }
}

/// Keeps the headers for the steps that follow: they would take a sixth of the stack.
#[inline(always)]
fn keep<A: Maps + Copy>(headers: &Headers<A>, code: i32) -> i32 {
    let Some(kept) = A::headers() else { return PASS };
    *kept = *headers;
    code
}

#[inline(always)]
fn read<A: Header + Maps + Routing>(mut frame: Frame) -> i32 {
    A::parse(&mut frame, Read).unwrap_or(PASS)
}

/// Goes on with the headers of any packet.
struct Read;

impl<A: Address + Maps + Routing> Next<A, Frame> for Read {
    type Output = i32;

    #[inline(always)]
    fn run(self, frame: &mut Frame, headers: &Headers<A>) -> i32 {
        // What becomes of a first fragment must be noted for the rest, which TC does.
        if headers.is_later() || headers.has_rest() || !frame.is_whole(headers) {
            return PASS;
        }
        let Some(tables) = BpfTables::new(frame.context()) else { return PASS };
        let may_be_ours = path::may_be_ours(headers, &tables, Origin::Incoming);
        if may_be_ours { keep(headers, step::KNOWN) } else { PASS }
    }
}

#[inline(always)]
fn known<A: Address + Maps + Routing>(frame: Frame) -> i32 {
    let (Some(headers), Some(decision)) = (A::headers(), A::decision()) else { return PASS };
    let Some(tables) = BpfTables::new(frame.context()) else { return PASS };
    next(path::known(headers, &tables, Origin::Incoming, decision))
}

#[inline(always)]
fn hinted<A: Address + Maps + Routing>(frame: Frame) -> i32 {
    let (Some(headers), Some(decision)) = (A::headers(), A::decision()) else { return PASS };
    let Some(tables) = BpfTables::new(frame.context()) else { return PASS };
    next(Ok(path::hinted(headers, &tables, Origin::Incoming, decision)))
}

#[inline(always)]
fn begin<A: Address + Maps + Routing>(frame: Frame) -> i32 {
    let (Some(headers), Some(decision)) = (A::headers(), A::decision()) else { return PASS };
    let Some(tables) = BpfTables::new(frame.context()) else { return PASS };
    next(path::begin(headers, &tables, Origin::Incoming, decision))
}

#[inline(always)]
fn claim<A: Address + Maps + Routing>(frame: Frame, number: u32) -> i32 {
    let (Some(headers), Some(decision)) = (A::headers(), A::decision()) else { return PASS };
    let Some(tables) = BpfTables::new(frame.context()) else { return PASS };
    next(path::claim(headers, &tables, decision, number))
}

/// The step that follows from what was found.
#[inline(always)]
fn next(found: Result<Found, Counter>) -> i32 {
    match found {
        Ok(Found::Answer(counter)) => step::REFUSE - counter as i32,
        Ok(Found::Decided) => step::ACT,
        Ok(Found::Claim) => step::CLAIM,
        Ok(Found::New) => step::BEGIN,
        Ok(Found::Nothing) => PASS,
        Ok(Found::Unknown) => step::HINTED,
        // TC may know better, or tells the sender, and counts it.
        Err(Counter::NoRoute | Counter::RewriteFailed | Counter::TtlExpired) => PASS,
        Err(counter) if counter.kind() == CounterKind::Pass => PASS,
        Err(counter) => end(counter),
    }
}

#[inline(always)]
fn act<A: Address + FragmentMaps + Routing>(mut frame: Frame, code: i32) -> i32 {
    let (Some(headers), Some(decision)) = (A::headers(), A::decision()) else { return PASS };
    if code <= step::REFUSE {
        return answer(&mut frame, headers, (step::REFUSE - code).cast_unsigned());
    }
    if decision.action.carries() {
        return step::CARRY;
    }
    let Some(tables) = BpfTables::new(frame.context()) else { return PASS };
    send(&mut frame, headers, decision, |frame| {
        path::act(frame, headers, &tables, decision, Verdict::Send)
    })
}

#[inline(always)]
fn carry<A: Address + Maps + Routing>(mut frame: Frame) -> i32 {
    let (Some(headers), Some(decision)) = (A::headers(), A::decision()) else { return PASS };
    let Some(tables) = BpfTables::new(frame.context()) else { return PASS };
    send(&mut frame, headers, decision, |frame| {
        match carrier::pack(frame, &tables, decision, Verdict::Send) {
            // There is no room for a carrier: nothing was written.
            Err(Counter::RewriteFailed) => Ok(Verdict::Pass),
            result => result,
        }
    })
}

/// Carries a decision out where it is one to send the packet on, and this program can: `prepare` makes it what
/// is sent.
#[inline(always)]
fn send<A: Address>(
    frame: &mut Frame,
    headers: &Headers<A>,
    decision: &CachedFlow<A>,
    prepare: impl FnOnce(&mut Frame) -> PathResult,
) -> i32 {
    let hop = &decision.hop;
    let crossing = frame::crossing_to(&frame.context(), (hop.device, hop.flags));
    let Some(crossing) = crossing.filter(|_| can_send(frame, headers, decision)) else {
        return PASS;
    };
    match prepare(frame) {
        Ok(Verdict::Pass) => return PASS,
        Ok(_) => {}
        Err(counter) => return end(counter),
    }
    match frame.write(0, &hop.macs) {
        Ok(()) => cross(hop.device, crossing),
        Err(counter) => end(counter),
    }
}

/// Is a packet one to be sent on as it is, to a neighbour that is known, in one piece, before its time to
/// live ends?
#[inline(always)]
fn can_send<A: Address>(frame: &Frame, headers: &Headers<A>, decision: &CachedFlow<A>) -> bool {
    let hop = &decision.hop;
    decision.action.redirects() && hop.is_known() && frame.fits(hop.mtu) && headers.ttl > 1
}

/// Counts a packet under the reason why it ends here.
#[inline(always)]
fn end(counter: Counter) -> i32 {
    maps::count(counter);
    xdp_action::XDP_DROP as i32
}

/// Makes the packet its own refusal, counted by number, and returns it to where it came from.
#[inline(always)]
fn answer<A: Address + FragmentMaps + Routing>(
    frame: &mut Frame,
    headers: &Headers<A>,
    counter: u32,
) -> i32 {
    let device = frame.context().device();
    let flags = maps::device::flags(device);
    let Some(crossing) = frame::crossing_to(&frame.context(), (device, flags)) else {
        return PASS;
    };
    let Some(tables) = BpfTables::new(frame.context()) else { return PASS };
    match refuse::refuse(frame, headers, &tables) {
        Ok(()) => {
            maps::count_number(counter);
            cross(device, crossing)
        }
        // The frame cannot get as long as its answer.
        Err(Counter::RewriteFailed) => PASS,
        Err(counter) => end(counter),
    }
}

/// Sends a frame by a device.
#[inline(always)]
fn cross(device: u32, crossing: Crossing) -> i32 {
    if crossing == Crossing::Return {
        return xdp_action::XDP_TX as i32;
    }
    // SAFETY: a helper that takes numbers.
    unsafe { bpf_redirect(device, 0) as i32 }
}

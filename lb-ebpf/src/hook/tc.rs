//! TC: the entry of each hook, and verdicts as return codes.

use aya_ebpf::{
    bindings::{BPF_F_INGRESS, TC_ACT_SHOT},
    helpers::bpf_redirect,
    programs::TcContext,
};
use lb_common::abi::{Address, Counter, CounterKind, FragmentAction, Ipv4, Ipv6};
use lb_ebpf::{
    packet::Packet,
    parse::{self, Header, Headers, Next, NoFlow},
    path::{
        Direction, PathResult, Verdict, answer, egress as out, fragment,
        icmp::{self, Icmp},
        ingress as into,
    },
};

use super::{route::Routing, skb::Skb, tables::BpfTables};
use crate::{
    globals::MARK,
    maps::{
        self, Maps,
        fragments::{FragmentMaps, rest},
    },
};

/// Neither accepts nor drops: the next program, ours or a CNI's, decides (`TCX_NEXT`).
const NEXT: i32 = -1;
const SHOT: i32 = TC_ACT_SHOT as i32;
/// The largest answer that the kernel knows.
const LARGEST: i32 = 8;
/// Less the number of its counter: the answer about a packet that ends here, until all has been done.
const DROPPED: i32 = -16;
const TOO_BIG: i32 = DROPPED - Counter::PacketTooBig as i32;
const TTL_EXPIRED: i32 = DROPPED - Counter::TtlExpired as i32;
/// What a program answers with until all has been looked at: the packet may be one of ICMP.
const OTHER: i32 = -2;
/// The same for a later fragment.
const FRAGMENT: i32 = -3;
/// Added to the answer about a packet's first fragment: its rest is still to come.
const HAS_REST: i32 = 1 << 8;
/// Headers that a path may touch: Ethernet, IPv6, TCP.
const HEADERS: u32 = 14 + 40 + 20;
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
    skb.pull(HEADERS);
    match parse::ethertype(&skb) {
        Ipv4::ETHERTYPE => {
            other::<Ipv4>(ingress_of::<Ipv4>(&mut skb), &mut skb, Direction::Ingress)
        }
        Ipv6::ETHERTYPE => {
            other::<Ipv6>(ingress_of::<Ipv6>(&mut skb), &mut skb, Direction::Ingress)
        }
        _ => NEXT,
    }
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
    skb.pull(HEADERS);
    match parse::ethertype(&skb) {
        Ipv4::ETHERTYPE => other::<Ipv4>(egress_of::<Ipv4>(&mut skb), &mut skb, Direction::Egress),
        Ipv6::ETHERTYPE => other::<Ipv6>(egress_of::<Ipv6>(&mut skb), &mut skb, Direction::Egress),
        _ => NEXT,
    }
}

/// A function of its own, so that the two families do not share a stack.
#[inline(never)]
fn ingress_of<A: Header + Maps + Routing>(skb: &mut Skb) -> i32 {
    A::parse(skb, Path(Direction::Ingress)).unwrap_or_else(pass)
}

/// A function of its own, so that the two families do not share a stack.
#[inline(never)]
fn egress_of<A: Header + Maps + Routing>(skb: &mut Skb) -> i32 {
    A::parse(skb, Path(Direction::Egress)).unwrap_or_else(pass)
}

/// Goes on with a packet that has no ports, if it is one of ICMP or a fragment, with one that cannot
/// be forwarded, and notes what became of a first fragment.
///
/// Called when the functions for flows have given back their stack.
#[inline(always)]
fn other<A: Icmp + FragmentMaps + Routing>(code: i32, skb: &mut Skb, direction: Direction) -> i32 {
    if (NEXT..=LARGEST).contains(&code) {
        return code;
    }
    let mut code = code;
    if code > LARGEST {
        code -= HAS_REST;
        note_fragment::<A>(skb, code, direction);
    }
    if code == OTHER {
        code = ping::<A>(skb, direction);
    }
    let code = match (code, direction) {
        (FRAGMENT, _) => later_fragment::<A>(skb, direction),
        (OTHER, Direction::Egress) => icmp_at_egress::<A>(skb),
        (OTHER, Direction::Ingress) => icmp_at_ingress::<A>(skb),
        (TOO_BIG | TTL_EXPIRED, _) => tell::<A>(skb, code, direction),
        _ => code,
    };
    if code <= DROPPED { SHOT } else { code }
}

/// Answers a ping to an address of Services.
#[inline(never)]
fn ping<A: Icmp + FragmentMaps + Routing>(skb: &mut Skb, direction: Direction) -> i32 {
    let at = (direction, skb.origin());
    match answer::ping(skb, &BpfTables::<A>::new(skb.context()), at) {
        Ok(Verdict::Answer(counter)) => {
            maps::count(counter);
            send_back(skb, direction)
        }
        Ok(_) => OTHER,
        Err(counter) => end(counter),
    }
}

/// Tells the sender of a packet, which the program ends with `code` for, why it ends.
#[inline(never)]
fn tell<A: Icmp + FragmentMaps + Routing>(skb: &mut Skb, code: i32, direction: Direction) -> i32 {
    let Some(headers) = A::headers() else { return SHOT };
    let reason = if code == TOO_BIG { Counter::PacketTooBig } else { Counter::TtlExpired };
    let tables = BpfTables::<A>::new(skb.context());
    match answer::tell(skb, &tables, headers, (reason, direction)) {
        Ok(true) => send_back(skb, direction),
        _ => SHOT,
    }
}

#[inline(never)]
fn later_fragment<A: Icmp + FragmentMaps + Routing>(skb: &mut Skb, direction: Direction) -> i32 {
    let (tables, origin) = (BpfTables::<A>::new(skb.context()), skb.origin());
    match fragment::later(skb, &tables, (direction, origin)) {
        Ok(verdict) => act(skb, Ok(verdict), direction),
        Err(Some(counter)) => end(counter),
        Err(None) => SHOT,
    }
}

/// Remembers what became of a first fragment, which the program ends with `code` for.
#[inline(never)]
fn note_fragment<A: Icmp + FragmentMaps + Routing>(skb: &mut Skb, code: i32, direction: Direction) {
    let (Some(headers), Some(&mut sent)) = (A::headers(), rest()) else { return };
    let rest = match code {
        NEXT => (FragmentAction::CONTINUE, 0),
        code if code <= DROPPED => (FragmentAction::DROP, 0),
        _ => sent,
    };
    let tables = BpfTables::<A>::new(skb.context());
    fragment::remember(skb, &tables, headers, direction, rest);
}

/// Notes what the rest of a packet is for, if it has any, should the program send it somewhere.
#[inline(always)]
fn note_rest(action: FragmentAction, device: u32) {
    if let Some(rest) = rest() {
        *rest = (action, device);
    }
}

#[inline(never)]
fn icmp_at_ingress<A: Icmp + Maps + Routing>(skb: &mut Skb) -> i32 {
    icmp_of::<A>(skb, Direction::Ingress)
}

#[inline(never)]
fn icmp_at_egress<A: Icmp + Maps + Routing>(skb: &mut Skb) -> i32 {
    icmp_of::<A>(skb, Direction::Egress)
}

#[inline(always)]
fn icmp_of<A: Icmp + Maps + Routing>(skb: &mut Skb, direction: Direction) -> i32 {
    if A::header(skb).is_none() {
        return NEXT;
    }
    skb.pull(QUOTED_HEADERS);
    let verdict = icmp::icmp(skb, &BpfTables::<A>::new(skb.context()), direction);
    act(skb, verdict, direction)
}

/// Goes on with the path of a hook.
struct Path(Direction);

impl<A: Address + Maps + Routing> Next<A, Skb> for Path {
    type Output = i32;

    #[inline(always)]
    fn run(self, skb: &mut Skb, headers: &Headers<A>) -> i32 {
        // They would take a sixth of the stack.
        let Some(kept) = A::headers() else { return NEXT };
        *kept = *headers;
        if headers.has_rest() {
            note_rest(FragmentAction::REDIRECT, 0);
        }
        let (headers, tables) = (&*kept, BpfTables::new(skb.context()));
        let Self(direction) = self;
        let verdict = match direction {
            Direction::Egress => {
                let origin = skb.origin();
                out::egress(skb, headers, &tables, origin)
            }
            Direction::Ingress => into::ingress(skb, headers, &tables),
        };
        let code = act(skb, verdict, direction);
        if headers.has_rest() { HAS_REST + code } else { code }
    }
}

/// Leaves a packet alone that is not one of a flow, and counts it if it could have been; goes on
/// with one of another protocol.
#[inline(always)]
fn pass(reason: NoFlow) -> i32 {
    match reason {
        NoFlow::Fragment => FRAGMENT,
        NoFlow::Other => OTHER,
        NoFlow::Truncated => end(Counter::Truncated),
    }
}

/// Performs a verdict.
#[inline(always)]
fn act<A: Address + Routing>(skb: &mut Skb, verdict: PathResult<A>, direction: Direction) -> i32 {
    match verdict {
        Ok(Verdict::Answer(counter)) => {
            maps::count(counter);
            send_back(skb, direction)
        }
        Ok(Verdict::Continue) => {
            if direction == Direction::Ingress {
                skb.set_mark(MARK.load());
            }
            NEXT
        }
        Ok(Verdict::Deliver(device)) => deliver(skb, device),
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
    let is_too_big = counter == Counter::NoRoute && maps::narrow_mtu().is_some();
    let counter = if is_too_big { Counter::PacketTooBig } else { counter };
    maps::count(counter);
    match counter.kind() {
        CounterKind::Pass => NEXT,
        CounterKind::Answer | CounterKind::Drop | CounterKind::Reject => DROPPED - counter as i32,
    }
}

/// Returns an answer to where its question came from.
#[inline(always)]
fn send_back(skb: &mut Skb, direction: Direction) -> i32 {
    note_rest(FragmentAction::DROP, 0);
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
    note_rest(FragmentAction::DELIVER, device);
    skb.set_mark(MARK.load());
    // SAFETY: a helper that takes numbers.
    unsafe { bpf_redirect(device, u64::from(BPF_F_INGRESS)) as i32 }
}

//! TC: the entry of each hook, and verdicts as return codes.

use aya_ebpf::{
    bindings::{BPF_F_INGRESS, TC_ACT_SHOT},
    helpers::bpf_redirect,
    programs::TcContext,
};
use lb_common::abi::{Address, Counter, CounterKind, Ipv4, Ipv6};
use lb_ebpf::{
    packet::Packet,
    parse::{self, Header, Headers, Next, NoFlow},
    path::{
        Direction, PathResult, Verdict, egress as out,
        icmp::{self, Icmp},
        ingress as into,
    },
};

use super::{route::Routing, skb::Skb, tables::BpfTables};
use crate::{
    globals::MARK,
    maps::{self, Maps},
};

/// Neither accepts nor drops: the next program, ours or a CNI's, decides (`TCX_NEXT`).
const NEXT: i32 = -1;
/// What a program answers with until all has been looked at: the packet may be one of ICMP.
const OTHER: i32 = -2;
/// Headers that a path may touch: Ethernet, IPv6, TCP.
const HEADERS: u32 = 14 + 40 + 20;
/// The same of ICMP, as far as the quoted ports: an IPv6 redirect with a link-layer address is the
/// longest, longer than an error with two IPv4 headers that are full of options.
const QUOTED_HEADERS: u32 = 14 + 40 + 40 + 16 + 40 + 4;

/// The program at ingress.
#[inline(always)]
pub fn ingress(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(ctx);
    if skb.is_marked() {
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

/// Goes on with a packet that is not one of a flow, if it is one of ICMP.
///
/// Called when the functions for flows have given back their stack.
#[inline(always)]
fn other<A: Icmp + Maps + Routing>(code: i32, skb: &mut Skb, direction: Direction) -> i32 {
    if code != OTHER {
        return code;
    }
    match direction {
        Direction::Egress => icmp_at_egress::<A>(skb),
        Direction::Ingress => icmp_at_ingress::<A>(skb),
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
    let verdict = icmp::icmp(skb, &BpfTables::<A, _>::new(skb.context()), direction);
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
        let (headers, tables) = (&*kept, BpfTables::new(skb.context()));
        let Self(direction) = self;
        let verdict = match direction {
            Direction::Egress => {
                let origin = skb.origin();
                out::egress(skb, headers, &tables, origin)
            }
            Direction::Ingress => into::ingress(skb, headers, &tables),
        };
        act(skb, verdict, direction)
    }
}

/// Leaves a packet alone that is not one of a flow, and counts it if it could have been; goes on
/// with one of another protocol.
#[inline(always)]
fn pass(reason: NoFlow) -> i32 {
    match reason {
        NoFlow::Fragment => end(Counter::Fragment),
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
    maps::count(counter);
    match counter.kind() {
        CounterKind::Pass => NEXT,
        CounterKind::Drop | CounterKind::Reject => TC_ACT_SHOT as i32,
    }
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

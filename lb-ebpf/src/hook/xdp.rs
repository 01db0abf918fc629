//! XDP: the same paths before the stack, for what can be ended or sent on without it.
//!
//! Every other packet goes on as it came, to TC at the same device: nothing has been written to it,
//! counted or remembered of it that TC would not find as its own. So XDP is an acceleration and
//! nothing else.

use aya_ebpf::{bindings::xdp_action, helpers::bpf_redirect, programs::XdpContext};
use lb_common::abi::{Address, Counter, Ipv4, Ipv6};
use lb_ebpf::{
    packet::Packet,
    parse::{self, Header, Headers, Next},
    path::{PathResult, Verdict, ingress, refuse},
    tables::Route,
};

use super::{
    frame::{self, Crossing, Frame},
    route::Routing,
    tables::{BpfTables, Context as _},
};
use crate::maps::{self, Maps};

/// The program.
#[inline(always)]
pub fn receive(ctx: XdpContext) -> u32 {
    let mut frame = Frame::new(ctx);
    match parse::ethertype(&frame) {
        Ipv4::ETHERTYPE => receive_of::<Ipv4>(&mut frame),
        Ipv6::ETHERTYPE => receive_of::<Ipv6>(&mut frame),
        _ => xdp_action::XDP_PASS,
    }
}

/// A function of its own, so that the two families do not share a stack.
#[inline(never)]
fn receive_of<A: Header + Maps + Routing>(frame: &mut Frame) -> u32 {
    A::parse(frame, Path).unwrap_or(xdp_action::XDP_PASS)
}

/// Goes on with the path.
struct Path;

impl<A: Address + Maps + Routing> Next<A, Frame> for Path {
    type Output = u32;

    #[inline(always)]
    fn run(self, frame: &mut Frame, headers: &Headers<A>) -> u32 {
        // They would take a sixth of the stack.
        let Some(kept) = A::headers() else { return xdp_action::XDP_PASS };
        *kept = *headers;
        let headers = &*kept;
        if !frame.is_whole(headers) {
            return xdp_action::XDP_PASS;
        }
        let tables = BpfTables::new(frame.context());
        let verdict = ingress::judge(frame, headers, &tables);
        act(frame, headers, verdict)
    }
}

/// Performs a verdict.
#[inline(always)]
fn act<A: Address>(frame: &mut Frame, headers: &Headers<A>, verdict: PathResult<A>) -> u32 {
    match verdict {
        Ok(Verdict::Answer(counter)) => answer(frame, headers, counter),
        Ok(Verdict::Redirect(route)) => send(frame, &route),
        // What is for the stack is left alone, and so is what these say of a packet, before anything
        // was written to it.
        Ok(Verdict::Continue | Verdict::Deliver(_) | Verdict::Pass)
        | Err(Counter::NoRoute | Counter::RewriteFailed | Counter::TtlExpired) => {
            xdp_action::XDP_PASS
        }
        Err(counter) => end(counter),
    }
}

/// Counts a packet under the reason why it ends here.
#[inline(always)]
fn end(counter: Counter) -> u32 {
    maps::count(counter);
    xdp_action::XDP_DROP
}

/// Makes the packet its own refusal and returns it to where it came from.
#[inline(always)]
fn answer<A: Address>(frame: &mut Frame, headers: &Headers<A>, counter: Counter) -> u32 {
    let device = frame.context().device();
    if frame::crossing_to(&frame.context(), device).is_none() {
        return xdp_action::XDP_PASS;
    }
    match refuse::refuse(frame, headers) {
        Ok(()) => {
            maps::count(counter);
            cross(frame, device)
        }
        // The frame cannot get as long as its answer.
        Err(Counter::RewriteFailed) => xdp_action::XDP_PASS,
        Err(counter) => end(counter),
    }
}

/// Sends a frame to its next hop.
#[inline(always)]
fn send<A>(frame: &mut Frame, route: &Route<A>) -> u32 {
    let Some(addresses) = frame::link_addresses() else { return end(Counter::RewriteFailed) };
    if let Err(counter) = frame.write(0, &addresses) {
        return end(counter);
    }
    cross(frame, route.device)
}

/// Sends a frame by a device that it has been found to get to.
#[inline(always)]
fn cross(frame: &Frame, device: u32) -> u32 {
    if frame::crossing_to(&frame.context(), device) == Some(Crossing::Return) {
        return xdp_action::XDP_TX;
    }
    // SAFETY: a helper that takes numbers.
    unsafe { bpf_redirect(device, 0) as u32 }
}

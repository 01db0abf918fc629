//! The steps of the programs at TC, told to fakes.

use lb_common::abi::{Abi as _, CachedFlow, Counter, CounterKind, CtAction, FragmentAction};

use super::{Buffer, FakeTables, FromIp};
use crate::{
    cases::{DEVICE_MAC, Device, Fate, Hook},
    parse::{Headers, Next, NoFlow},
    path::{
        Found, Look, Origin, PathResult, SNAT_TRIES, Verdict, act, answer, ask, begin, carrier,
        claim, fragment,
        icmp::{Icmp, icmp},
        look,
        refuse::refuse,
    },
};

/// What the programs at TC do, without the kernel.
pub(super) fn judge_by<A: FromIp + Icmp>(
    tables: &mut FakeTables<A>,
    hook: Hook,
    packet: &mut Buffer,
) -> (Fate, Option<Counter>) {
    let (Hook::Egress(device) | Hook::HostEgress(device) | Hook::Ingress(device)) = hook;
    tables.device = device;
    let origin = match hook {
        Hook::Egress(_) => Origin::Forwarded,
        Hook::HostEgress(_) => Origin::Host,
        Hook::Ingress(_) => Origin::Incoming,
    };
    let mut decision = CachedFlow::zeroed();
    let verdict = match A::parse(packet, Path { origin, tables, decision: &mut decision }) {
        Ok(Judged::Refused(counter)) => return (Fate::Sent(device), Some(counter)),
        Ok(Judged::By(verdict)) => verdict,
        Err(NoFlow::Fragment) => match fragment::later(packet, tables, origin) {
            Ok(verdict) => Ok(verdict),
            Err(None) => return (Fate::Dropped, None),
            Err(Some(counter)) => Err(counter),
        },
        Err(NoFlow::Truncated) => Err(Counter::Truncated),
        Err(NoFlow::Other) => match answer::ping(packet, tables, origin) {
            Ok(true) => return (Fate::Sent(device), Some(Counter::Ping)),
            Ok(false) => icmp(packet, tables, origin),
            Err(counter) => Err(counter),
        },
    };
    let by = |index| Device::ALL.into_iter().find(|device| *device as u32 == index);
    let sent = |index| by(index).map_or(Fate::Dropped, Fate::Sent);
    match verdict {
        Ok(Verdict::Continue | Verdict::Pass) => (Fate::Next, None),
        Ok(Verdict::Deliver(index)) => {
            packet.0[..6].copy_from_slice(&DEVICE_MAC);
            (sent(index), None)
        }
        Ok(Verdict::Route) => (sent(tables.routed.get()), None),
        Ok(Verdict::Send) => {
            packet.0[..12].copy_from_slice(decision.hop.macs.as_bytes());
            (sent(decision.hop.device), None)
        }
        Err(counter) if counter.kind() == CounterKind::Pass => (Fate::Next, Some(counter)),
        Err(counter) => (Fate::Dropped, Some(counter)),
    }
}

/// What the steps make of a packet.
enum Judged {
    By(PathResult),
    Refused(Counter),
}

/// The steps that a hook takes.
struct Path<'a, A> {
    origin: Origin,
    tables: &'a FakeTables<A>,
    decision: &'a mut CachedFlow<A>,
}

impl<A: FromIp + Icmp> Next<A, Buffer> for Path<'_, A> {
    type Output = Judged;

    fn run(self, packet: &mut Buffer, headers: &Headers<A>) -> Judged {
        let Self { tables, decision, origin } = self;
        if carrier::may_be(headers, tables, origin) {
            return judge_carrier(packet, headers, tables, decision);
        }
        let judged = judge_flow(packet, headers, tables, (origin, decision));
        note(packet, headers, tables, (&judged, decision), origin);
        let (narrow, reason) = match judged {
            Judged::By(Err(Counter::PacketTooBig)) => {
                (Some(decision.hop.mtu), Counter::PacketTooBig)
            }
            Judged::By(Err(Counter::TtlExpired)) => (None, Counter::TtlExpired),
            _ => return judged,
        };
        match answer::tell(packet, tables, headers, (narrow, origin.direction())) {
            Ok(true) => Judged::Refused(reason),
            _ => judged,
        }
    }
}

fn judge_carrier<A: FromIp + Icmp>(
    packet: &mut Buffer,
    headers: &Headers<A>,
    tables: &FakeTables<A>,
    decision: &mut CachedFlow<A>,
) -> Judged {
    match carrier::unpack(packet, headers, tables, decision) {
        Ok(true) => {}
        Ok(false) => return Judged::By(Ok(Verdict::Pass)),
        Err(counter) => return Judged::By(Err(counter)),
    }
    match A::parse(packet, Accept { tables, decision }) {
        Ok(judged) => judged,
        Err(NoFlow::Truncated) => Judged::By(Err(Counter::CarrierRefused)),
        Err(NoFlow::Other) => Judged::By(icmp(packet, tables, Origin::Carried)),
        Err(NoFlow::Fragment) => {
            let verdict = fragment::later(packet, tables, Origin::Carried);
            Judged::By(verdict.map_err(|counter| counter.expect("nothing was dropped before")))
        }
    }
}

/// What is done with a packet that was carried here.
struct Accept<'a, A> {
    tables: &'a FakeTables<A>,
    decision: &'a mut CachedFlow<A>,
}

impl<A: FromIp + Icmp> Next<A, Buffer> for Accept<'_, A> {
    type Output = Judged;

    fn run(self, packet: &mut Buffer, headers: &Headers<A>) -> Judged {
        let Self { tables, decision } = self;
        let found = carrier::accept(headers, tables, decision);
        let found = claimed(found, |number| claim(headers, tables, decision, number));
        let judged = judge_found(packet, headers, tables, (found, decision));
        note(packet, headers, tables, (&judged, decision), Origin::Carried);
        judged
    }
}

fn judge_flow<A: FromIp>(
    packet: &mut Buffer,
    headers: &Headers<A>,
    tables: &FakeTables<A>,
    (origin, decision): (Origin, &mut CachedFlow<A>),
) -> Judged {
    let found = match look(headers, tables, origin, decision) {
        Look::Act => {
            return Judged::By(act(packet, headers, tables, decision, Verdict::Send));
        }
        Look::Ask => match ask(headers, tables, origin, decision) {
            Ok(Found::New) => {
                let begun = begin(headers, tables, origin, decision);
                claimed(begun, |number| claim(headers, tables, decision, number))
            }
            found => found,
        },
        Look::Leave => Ok(Found::Nothing),
    };
    judge_found(packet, headers, tables, (found, decision))
}

fn judge_found<A: FromIp>(
    packet: &mut Buffer,
    headers: &Headers<A>,
    tables: &FakeTables<A>,
    (found, decision): (Result<Found, Counter>, &CachedFlow<A>),
) -> Judged {
    Judged::By(match found {
        Ok(Found::Answer(counter)) => match refuse(packet, headers) {
            Ok(()) => return Judged::Refused(counter),
            Err(counter) => Err(counter),
        },
        Ok(Found::Decided) => act(packet, headers, tables, decision, Verdict::Route),
        Ok(Found::Claim | Found::New | Found::Nothing) => Ok(Verdict::Pass),
        Err(counter) => Err(counter),
    })
}

/// Notes what became of a first fragment.
fn note<A: FromIp + Icmp>(
    packet: &mut Buffer,
    headers: &Headers<A>,
    tables: &FakeTables<A>,
    (judged, decision): (&Judged, &CachedFlow<A>),
    origin: Origin,
) {
    let is_carried = matches!(judged, Judged::By(Ok(Verdict::Route | Verdict::Send)))
        && decision.action == CtAction::FORWARD_DSR;
    if headers.has_rest() && is_carried {
        fragment::remember_carried(packet, tables, headers, decision);
    } else if headers.has_rest() {
        let rest = rest(judged, decision);
        fragment::remember(packet, tables, headers, origin.direction(), rest);
    }
}

/// What is noted of a first fragment that was judged so.
fn rest<A>(judged: &Judged, decision: &CachedFlow<A>) -> (FragmentAction, u32) {
    match judged {
        Judged::By(Ok(Verdict::Continue | Verdict::Pass)) => (FragmentAction::CONTINUE, 0),
        Judged::By(Ok(_)) if decision.action == CtAction::REPLY_TO_HOST => {
            (FragmentAction::DELIVER, decision.hop.device)
        }
        Judged::By(Ok(_)) => (FragmentAction::REDIRECT, u32::from(decision.action.is_forward())),
        Judged::By(Err(_)) | Judged::Refused(_) => (FragmentAction::DROP, 0),
    }
}

/// Tries ports until one is free, where a decision lacks one.
fn claimed(
    begun: Result<Found, Counter>,
    mut claim: impl FnMut(u32) -> Result<Found, Counter>,
) -> Result<Found, Counter> {
    if begun != Ok(Found::Claim) {
        return begun;
    }
    let mut tries = (0..SNAT_TRIES).map(&mut claim);
    tries.find(|found| *found != Ok(Found::Claim)).unwrap_or(Err(Counter::SnatPortsExhausted))
}

//! The steps of the programs at TC, told to fakes.

use lb_common::abi::{Abi as _, CachedFlow, Counter, CounterKind, FragmentAction};

use super::{Buffer, FakeTables, FromIp};
use crate::{
    cases::{DEVICE_MAC, Device, Fate, Hook},
    parse::{Headers, Next, NoFlow},
    path::{
        Found, Look, Origin, PathResult, SNAT_TRIES, Verdict, act, answer, begin, carrier, claim,
        fragment::{self, Later},
        hinted,
        hold::{self, Held},
        icmp::{Icmp, icmp},
        ipip, known, look, may_be_ours, narrow,
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
    let mut steps = Steps { tables, origin, decision: CachedFlow::zeroed() };
    let judged = steps.run(packet);
    let hop = steps.decision.hop;
    let by = |index| Device::ALL.into_iter().find(|device| *device as u32 == index);
    let sent = |index| by(index).map_or(Fate::Dropped, Fate::Sent);
    let verdict = match judged {
        Judged::By(verdict) => verdict,
        Judged::Dropped => return (Fate::Dropped, None),
        Judged::Refused(counter) => return (Fate::Sent(device), Some(counter)),
    };
    match verdict {
        Ok(Verdict::Carry) => unreachable!("it is in its carrier by now"),
        Ok(Verdict::Continue | Verdict::Pass) => (Fate::Next, None),
        Ok(Verdict::Deliver(index)) => {
            packet.0[..6].copy_from_slice(&DEVICE_MAC);
            (sent(index), None)
        }
        Ok(Verdict::Route) => (sent(tables.routed.get()), None),
        Ok(Verdict::Send) => {
            packet.0[..12].copy_from_slice(hop.macs.as_bytes());
            (sent(hop.device), None)
        }
        Err(counter) if counter.kind() == CounterKind::Pass => (Fate::Next, Some(counter)),
        Err(counter) => (Fate::Dropped, Some(counter)),
    }
}

/// What the steps make of a packet.
enum Judged {
    By(PathResult),
    /// It ends here, and was counted earlier.
    Dropped,
    Refused(Counter),
}

const PASSED: Judged = Judged::By(Ok(Verdict::Pass));

/// The steps that a hook takes.
struct Steps<'a, A> {
    tables: &'a FakeTables<A>,
    origin: Origin,
    decision: CachedFlow<A>,
}

/// Returns headers.
struct Keep;

impl<A: Copy, P> Next<A, P> for Keep {
    type Output = Headers<A>;

    fn run(self, _: &mut P, headers: &Headers<A>) -> Headers<A> {
        *headers
    }
}

impl<A: FromIp + Icmp> Steps<'_, A> {
    fn run(&mut self, packet: &mut Buffer) -> Judged {
        let Self { tables, origin, .. } = *self;
        let Some(headers) = A::plain(packet, Keep) else { return self.read(packet) };
        if carrier::may_be(packet, &headers, tables, origin) {
            return self.unpack(packet, &headers);
        }
        match look(&headers, tables, origin, &mut self.decision) {
            Look::Act => {
                let judged = self.act(packet, &headers, Verdict::Send);
                self.tell(packet, &headers, judged)
            }
            Look::Ask => self.of_flow(packet, &headers),
            Look::Leave => PASSED,
        }
    }

    fn unpack(&mut self, packet: &mut Buffer, headers: &Headers<A>) -> Judged {
        match carrier::unpack(packet, headers, self.tables, &mut self.decision) {
            Ok(true) => self.origin = Origin::Carried,
            Ok(false) => {}
            Err(counter) => return Judged::By(Err(counter)),
        }
        self.read(packet)
    }

    fn unpack_ipip(&mut self, packet: &mut Buffer) -> Judged {
        match ipip::unpack(packet, self.tables, &mut self.decision) {
            Ok(true) => self.origin = Origin::Carried,
            Ok(false) => return PASSED,
            Err(counter) => return Judged::By(Err(counter)),
        }
        self.read(packet)
    }

    fn read(&mut self, packet: &mut Buffer) -> Judged {
        let is_carried = self.origin == Origin::Carried;
        let headers = match A::parse(packet, Keep) {
            Ok(headers) => headers,
            Err(NoFlow::Other) if ipip::may_be::<A>(packet, self.origin) => {
                return self.unpack_ipip(packet);
            }
            Err(NoFlow::Other) => return self.other(packet),
            Err(NoFlow::Truncated) if is_carried => {
                return Judged::By(Err(Counter::CarrierRefused));
            }
            Err(NoFlow::Truncated) => return Judged::By(Err(Counter::Truncated)),
        };
        if headers.is_later() {
            return self.later(packet, &headers);
        }
        if !headers.has_rest() && !is_carried && !may_be_ours(&headers, self.tables, self.origin) {
            return PASSED;
        }
        self.of_flow(packet, &headers)
    }

    fn other(&mut self, packet: &mut Buffer) -> Judged {
        let Self { tables, origin, .. } = *self;
        if origin != Origin::Carried {
            match answer::ping(packet, tables, origin) {
                Ok(true) => return Judged::Refused(Counter::Ping),
                Ok(false) => {}
                Err(counter) => return Judged::By(Err(counter)),
            }
        }
        if narrow::may_be(packet, tables, origin) {
            return self.narrow(packet);
        }
        let verdict = icmp(packet, tables, (origin, &mut self.decision));
        self.carried(packet, verdict, Verdict::Route)
    }

    fn narrow(&mut self, packet: &mut Buffer) -> Judged {
        let mut found = None;
        let keep = |headers: &Headers<A>| found = Some(*headers);
        let answer = narrow::reveal(packet, self.tables, (keep, &mut self.decision));
        match (answer, found) {
            (Ok(true), Some(headers)) => {
                self.tell(packet, &headers, Judged::By(Err(Counter::PacketTooBig)))
            }
            (Err(counter), _) => Judged::By(Err(counter)),
            _ => PASSED,
        }
    }

    fn later(&mut self, packet: &mut Buffer, headers: &Headers<A>) -> Judged {
        let place = (self.origin, &mut self.decision);
        match fragment::later(packet, headers, self.tables, place) {
            Ok(Later::By(verdict)) => self.carried(packet, Ok(verdict), Verdict::Route),
            Ok(Later::Ended) => Judged::Dropped,
            Ok(Later::Hold) => self.hold(packet, headers),
            Err(counter) => Judged::By(Err(counter)),
        }
    }

    fn hold(&mut self, packet: &mut Buffer, headers: &Headers<A>) -> Judged {
        let tables = self.tables;
        match hold::hold(packet, headers, tables) {
            Held::Kept => Judged::By(Err(Counter::FragmentHeld)),
            Held::Known => self.later(packet, headers),
            Held::NoRoom | Held::Taken => Judged::By(hold::refuse(headers, tables)),
        }
    }

    fn of_flow(&mut self, packet: &mut Buffer, headers: &Headers<A>) -> Judged {
        let found = self.found(headers);
        if headers.has_rest() && self.note(packet, headers, found) {
            return self.wake(packet, headers);
        }
        let judged = match found {
            Ok(Found::Answer(counter)) => match refuse(packet, headers, self.tables) {
                Ok(()) => Judged::Refused(counter),
                Err(counter) => Judged::By(Err(counter)),
            },
            Ok(Found::Decided) => self.act(packet, headers, Verdict::Route),
            Ok(_) => PASSED,
            Err(counter) => Judged::By(Err(counter)),
        };
        if let (true, Judged::By(Err(counter))) = (headers.has_rest(), &judged) {
            self.note(packet, headers, Err(*counter));
        }
        self.tell(packet, headers, judged)
    }

    /// Sends a first fragment in again, and those that wait for it.
    fn wake(&self, packet: &mut Buffer, headers: &Headers<A>) -> Judged {
        let tables = self.tables;
        for number in 0..hold::again(packet, headers, tables) {
            let is_released = hold::wake(packet, headers, tables, number);
            tables.held.released.set(tables.held.released.get() + usize::from(is_released));
        }
        Judged::Dropped
    }

    fn found(&mut self, headers: &Headers<A>) -> Result<Found, Counter> {
        let Self { tables, origin, ref mut decision } = *self;
        let mut found = known(headers, tables, origin, decision)?;
        if found == Found::Unknown {
            found = hinted(headers, tables, origin, decision);
        }
        if found == Found::New && origin == Origin::Carried {
            found = carrier::accept(headers, tables, decision)?;
        } else if found == Found::New {
            found = begin(headers, tables, origin, decision)?;
        }
        for number in 0..SNAT_TRIES {
            if found == Found::Claim {
                found = claim(headers, tables, decision, number)?;
            }
        }
        if found == Found::Claim { Err(Counter::SnatPortsExhausted) } else { Ok(found) }
    }

    fn act(&mut self, packet: &mut Buffer, headers: &Headers<A>, send: Verdict) -> Judged {
        let verdict = act(packet, headers, self.tables, &self.decision, send);
        self.carried(packet, verdict, send)
    }

    /// Puts a packet into its carrier, if it is to be carried.
    fn carried(&self, packet: &mut Buffer, verdict: PathResult, send: Verdict) -> Judged {
        Judged::By(match verdict {
            Ok(Verdict::Carry) => carrier::pack(packet, self.tables, &self.decision, send),
            verdict => verdict,
        })
    }

    /// Notes what becomes of a first fragment; do others wait for it?
    fn note(&self, packet: &Buffer, headers: &Headers<A>, found: Result<Found, Counter>) -> bool {
        let Self { tables, origin, ref decision } = *self;
        let old = [headers.flow.src, headers.flow.dst];
        let (ends, rest) = match found {
            Ok(Found::Decided) => {
                ([decision.src, decision.dst], fragment::decided(tables, decision))
            }
            Err(counter) if counter.kind() == CounterKind::Pass => {
                (old, (FragmentAction::CONTINUE, 0))
            }
            Ok(Found::Answer(_)) | Err(_) => (old, (FragmentAction::DROP, 0)),
            Ok(_) => (old, (FragmentAction::CONTINUE, 0)),
        };
        fragment::remember(packet, tables, (headers, origin), ends, rest)
            && rest.0 != FragmentAction::DROP
            && hold::is_waited_for(packet, headers, tables, origin)
    }

    /// Tells the sender of a packet that ends here, if it can be told.
    fn tell(&self, packet: &mut Buffer, headers: &Headers<A>, judged: Judged) -> Judged {
        let (narrow, reason) = match judged {
            Judged::By(Err(Counter::PacketTooBig)) => {
                (Some(self.decision.hop.mtu), Counter::PacketTooBig)
            }
            Judged::By(Err(Counter::TtlExpired)) => (None, Counter::TtlExpired),
            _ => return judged,
        };
        let direction = self.origin.direction();
        match answer::tell(packet, self.tables, headers, (narrow, direction)) {
            Ok(true) => Judged::Refused(reason),
            _ => judged,
        }
    }
}

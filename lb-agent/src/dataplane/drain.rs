//! The way out that breaks nothing: no flow begins, and connections that are known go on.
//!
//! Without frontends the programs leave what begins to the stack, where somebody else translates it;
//! flows that conntrack knows need no frontend. Only for an instance without an agent, which would
//! write the frontends again.

use std::path::Path;

use lb_common::{
    abi::{Abi, Address, CtEntry, CtKey, Frontend, FrontendKey, Ipv4, Ipv6, maps},
    conntrack::{CtState, TICK_SHIFT},
};

use super::{TableError, control::ControlMap, map::Map, pins::Pins, sys};

/// How long a connection whose first packet was not answered, or that nobody went on with, is waited for,
/// in ticks: what a client sends again within.
const OPENING: u32 = 60;
/// How long an ended connection is kept for its last packets, in ticks. Another connection from the
/// same port must not be taken for it.
const ENDED: u32 = 2;

/// Pinned tables that begin no flow.
pub struct Drain {
    control: ControlMap,
    v4: Map<CtKey<Ipv4>, CtEntry<Ipv4>>,
    v6: Map<CtKey<Ipv6>, CtEntry<Ipv6>>,
    half_open_v4: Map<CtKey<Ipv4>, CtEntry<Ipv4>>,
    half_open_v6: Map<CtKey<Ipv6>, CtEntry<Ipv6>>,
}

impl Drain {
    /// Takes all frontends out of the pinned tables; `None` if there are no tables.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn begin(bpffs: &Path) -> Result<Option<Self>, TableError> {
        let pins = Pins::at(bpffs);
        if !pins.maps.join(maps::CONNTRACK_V6).exists() {
            return Ok(None);
        }
        empty::<FrontendKey<Ipv4>, Frontend>(&pins, maps::FRONTENDS_V4)?;
        empty::<FrontendKey<Ipv6>, Frontend>(&pins, maps::FRONTENDS_V6)?;
        // A program that has found a frontend may be about to begin a flow.
        sys::settle();
        let v4 = Map::open(&pins.maps, maps::CONNTRACK_V4)?;
        let v6 = Map::open(&pins.maps, maps::CONNTRACK_V6)?;
        let half_open_v4 = Map::open(&pins.maps, maps::HALF_OPEN_V4)?;
        let half_open_v6 = Map::open(&pins.maps, maps::HALF_OPEN_V6)?;
        let control = ControlMap::open(&pins.maps)?;
        Ok(Some(Self { control, v4, v6, half_open_v4, half_open_v6 }))
    }

    /// Counts the connections that go on, and forgets what must not: datagrams, which would keep a
    /// backend that nobody watches (S11), and connections that have ended.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn living(&self) -> Result<u64, TableError> {
        let now = now();
        // Those that are proven meanwhile are found in the tables that come after.
        let half_open = living(&self.half_open_v4, now)? + living(&self.half_open_v6, now)?;
        let count = half_open + living(&self.v4, now)? + living(&self.v6, now)?;
        // What was forgotten may be cached.
        self.control.renew();
        Ok(count)
    }
}

fn empty<K: Abi, V: Abi>(pins: &Pins, name: &'static str) -> Result<(), TableError> {
    let map = Map::<K, V>::open(&pins.maps, name)?;
    map.entries()?.iter().try_for_each(|(key, _)| map.remove(key))
}

fn living<A: Address>(map: &Map<CtKey<A>, CtEntry<A>>, now: u32) -> Result<u64, TableError> {
    let mut count = 0;
    for (flow, entry) in map.entries()? {
        match fate(&flow, &entry, now) {
            Fate::Forgotten => map.remove(&flow)?,
            Fate::GoesOn => count += u64::from(entry.action.is_forward()),
        }
    }
    Ok(count)
}

/// What a drain does with an entry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fate {
    Forgotten,
    GoesOn,
}

fn fate<A: Address>(flow: &CtKey<A>, entry: &CtEntry<A>, now: u32) -> Fate {
    // Another CPU may have seen it just now.
    let silent = now.saturating_sub(entry.last_seen);
    let state = CtState(entry.state);
    let is_over = if !flow.protocol.has_connections() {
        // An answer that is under way still finds its entry.
        entry.action.is_forward()
    } else if state.is_closed() {
        silent > ENDED
    } else {
        (state == CtState::NEW || state.is_half_open()) && silent > OPENING
    };
    if is_over { Fate::Forgotten } else { Fate::GoesOn }
}

/// The time as entries have it.
fn now() -> u32 {
    u32::try_from(sys::monotonic() >> TICK_SHIFT).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use lb_common::{
        abi::{BePort, CtAction, L4Proto},
        conntrack::{End, TcpFlags},
    };

    use super::*;

    const NOW: u32 = 100_000;
    const SYN: TcpFlags = TcpFlags(0x02);
    const ACK: TcpFlags = TcpFlags(0x10);
    const FIN: TcpFlags = TcpFlags(0x11);

    fn after(protocol: L4Proto, action: CtAction, (state, silent): (CtState, u32)) -> Fate {
        let address = Ipv4::from(std::net::Ipv4Addr::LOCALHOST);
        let port = BePort::new(1);
        let flow = CtKey {
            src: address,
            dst: address,
            src_port: port,
            dst_port: port,
            protocol,
            pad: [0; 3],
        };
        let entry = CtEntry {
            src: address,
            dst: address,
            src_port: port,
            dst_port: port,
            action,
            state: state.0,
            pad: 0,
            service: 1,
            backend: 1,
            generation: 1,
            last_seen: NOW - silent,
            device: 0,
        };
        fate(&flow, &entry, NOW)
    }

    #[test]
    fn connections_go_on_until_both_ends_have_ended_them() {
        let open = CtState::NEW.next(SYN, End::Client);
        let half = open.next(ACK, End::Client).next(FIN, End::Client);
        let closed = half.next(FIN, End::Backend);
        for protocol in [L4Proto::TCP, L4Proto::SCTP] {
            let after = |state, silent| after(protocol, CtAction::FORWARD, (state, silent));
            assert_eq!(after(open.next(ACK, End::Client), 80_000), Fate::GoesOn);
            assert_eq!(after(half, 80_000), Fate::GoesOn);
            assert_eq!(after(closed, ENDED), Fate::GoesOn, "for the last packets");
            assert_eq!(after(closed, ENDED + 1), Fate::Forgotten);
            assert_eq!(after(open, OPENING), Fate::GoesOn);
            assert_eq!(after(open, OPENING + 1), Fate::Forgotten);
            let answered = CtState::HALF_OPEN.next(ACK, End::Backend);
            assert_eq!(after(answered, OPENING), Fate::GoesOn);
            assert_eq!(after(answered, OPENING + 1), Fate::Forgotten, "nobody goes on with it");
        }
    }

    #[test]
    fn s11_datagrams_are_let_go_at_once_and_their_answers_still_arrive() {
        let after = |action| after(L4Proto::UDP, action, (CtState::NEW, 0));
        for action in [CtAction::FORWARD, CtAction::FORWARD_FROM_HOST, CtAction::FORWARD_SNAT] {
            assert_eq!(after(action), Fate::Forgotten);
            assert_eq!(after(action.opposite()), Fate::GoesOn);
        }
    }
}

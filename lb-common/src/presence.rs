//! Which flows may have an entry: one byte tells that most have none, for less than a lookup costs.
//!
//! Each flow has a place; several share one. Whoever writes an entry marks its place before, with the
//! *round*; a walk marks the places of all entries that it finds, and the round is raised after
//! each complete one. So the place of an entry always has a mark of late, and a place without is that of a
//! flow without an entry. Marks are never taken away: they grow old. Not for: who walks, and when.

use crate::abi::BePort;

/// Tables of places.
pub const TABLES: usize = 2;
/// Places in each; one byte each.
pub const PLACES: usize = 1 << 21;
const SHIFT: u32 = 64 - 21;
/// First of the ports that SNAT uses if nothing else is asked for. Never another one: entries have their places by it.
const SNAT_PORTS: u16 = 61000;
/// Rounds after which a mark still counts.
///
/// A walk that finds an entry leaves it one old. It may pass one by: an entry next to it in the table that is
/// removed and used anew while the walk looks at it leads the walk elsewhere. That takes some 100 ns at the
/// right moment, and four walks in a row for a flow without a packet.
pub const AGES: u32 = 4;
/// Marks there are; zero is none.
const MARKS: u32 = u8::MAX as u32;

/// The table of a flow's place: flows to the ports that SNAT uses have one of their own. A flood under SNAT
/// needs an entry for each port and backend, and would have a mark at every place.
#[inline(always)]
#[must_use]
pub const fn table(port: BePort) -> u32 {
    (port.get() >= SNAT_PORTS) as u32
}

/// The place of a flow in its table, by the hash that its cached element has.
#[inline(always)]
#[must_use]
pub const fn place(hash: u64) -> usize {
    #[allow(clippy::cast_possible_truncation, reason = "21 bits are left")]
    let place = (hash >> SHIFT) as usize;
    place & (PLACES - 1)
}

/// The mark of a round.
///
/// Before the first walk, round zero, it is that of the first round: what is written meanwhile counts
/// when that begins.
#[inline(always)]
#[must_use]
pub const fn mark(round: u32) -> u8 {
    if round == 0 {
        return 1;
    }
    #[allow(clippy::cast_possible_truncation, reason = "rounds end at 255")]
    let mark = round as u8;
    mark
}

/// May a flow have an entry whose place has this mark?
#[inline(always)]
#[must_use]
pub const fn may_be_there(mark: u8, round: u32) -> bool {
    if round == 0 {
        return true;
    }
    let mark = mark as u32;
    // Another CPU may have read the round that follows, and marked the place since.
    if mark == next(round) {
        return true;
    }
    let turn = if mark > round { MARKS } else { 0 };
    mark != 0 && round.wrapping_add(turn).wrapping_sub(mark) <= AGES
}

/// The round that follows a complete walk.
#[inline(always)]
#[must_use]
pub const fn next(round: u32) -> u32 {
    if round >= MARKS { 1 } else { round + 1 }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn every_place_is_one_and_follows_from_the_highest_bits() {
        assert_eq!((place(0), place(u64::MAX), place(1 << SHIFT)), (0, PLACES - 1, 1));
        assert_eq!(
            [80, SNAT_PORTS - 1, SNAT_PORTS].map(|port| table(BePort::new(port))),
            [0, 0, 1]
        );
    }

    #[test]
    fn a_mark_counts_for_some_rounds_and_none_does_before_the_first_walk_is_over() {
        assert!(may_be_there(0, 0) && may_be_there(77, 0));
        for first in 1..=MARKS {
            let mut round = first;
            assert!(!may_be_there(0, round));
            for _ in 0..=AGES {
                assert!(may_be_there(mark(first), round), "{first} {round}");
                round = next(round);
            }
            for _ in AGES + 1..MARKS - 1 {
                assert!(!may_be_there(mark(first), round), "{first} {round}");
                round = next(round);
            }
            assert_eq!(next(round), first);
            assert!(may_be_there(mark(first), round), "by who read it a moment too early: {first}");
        }
        assert_eq!((next(0), mark(0), next(MARKS)), (1, mark(1), 1));
    }

    const FLOWS: usize = 12;

    /// What happens, in any order; a flow shares its place with two others.
    #[derive(Clone, Copy, Debug)]
    enum Event {
        /// A program reads the round, to write an entry or to touch one.
        Read(usize),
        /// It marks the flow's place, and the entry is there.
        Write(usize),
        /// An entry goes.
        Remove(usize),
        /// The walk goes on by one flow; false passes it by.
        Visit(bool),
        /// The agent dies, and another one begins its first walk.
        Die,
    }

    #[derive(Default)]
    struct World {
        round: u32,
        marks: [u8; FLOWS / 3],
        entries: [bool; FLOWS],
        /// Programs that have read a round, and the flow that they are at.
        read: Vec<(usize, u32)>,
        /// Walks in a row that have passed a flow by.
        missed: [u32; FLOWS],
        at: usize,
    }

    impl World {
        fn happen(&mut self, event: Event) {
            match event {
                Event::Read(flow) => self.read.push((flow, self.round)),
                Event::Write(nth) if !self.read.is_empty() => {
                    let (flow, round) = self.read.remove(nth % self.read.len());
                    self.marks[flow / 3] = mark(round);
                    self.entries[flow] = true;
                }
                Event::Write(_) => {}
                Event::Remove(flow) => self.entries[flow] = false,
                Event::Visit(finds) => self.visit(finds),
                Event::Die => self.at = 0,
            }
        }

        fn visit(&mut self, finds: bool) {
            if self.at == 0 {
                // The grace period before a walk: programs end.
                while !self.read.is_empty() {
                    self.happen(Event::Write(0));
                }
            }
            if finds || self.missed[self.at] + 1 == AGES {
                self.missed[self.at] = 0;
                if self.entries[self.at] {
                    self.marks[self.at / 3] = mark(self.round);
                }
            } else {
                self.missed[self.at] += 1;
            }
            self.at = (self.at + 1) % FLOWS;
            if self.at == 0 {
                self.round = next(self.round);
            }
        }
    }

    fn event() -> impl Strategy<Value = Event> {
        let flow = 0..FLOWS;
        prop_oneof![
            4 => flow.clone().prop_map(Event::Read),
            3 => flow.clone().prop_map(Event::Write),
            1 => flow.prop_map(Event::Remove),
            40 => prop::bool::weighted(0.7).prop_map(Event::Visit),
            1 => Just(Event::Die),
        ]
    }

    proptest! {
        #[test]
        fn no_entry_ever_counts_as_not_there(events in vec(event(), 0..500)) {
            let mut world = World::default();
            for event in events {
                world.happen(event);
                for flow in 0..FLOWS {
                    let mark = world.marks[flow / 3];
                    let is_seen = may_be_there(mark, world.round);
                    prop_assert!(!world.entries[flow] || is_seen, "{event:?}: {flow}");
                }
            }
        }
    }
}

//! How full conntrack is: when to walk over it again, when to warn, what a full table has thrown
//! out. Pure.

use std::{collections::BTreeMap, time::Duration};

use lb_common::abi::{Swept, maps};

use super::problems::{Finder, Problems};
use crate::model::{Family, Problem, ProblemKey};

/// A walk may take one part of so many of a CPU's time.
const SHARE: u32 = 100;
/// Free entries that the kernel keeps for each CPU and gives to no other one (`LOCAL_FREE_TARGET` of
/// `kernel/bpf/bpf_lru_list.c`).
const FREE_PER_CPU: u64 = 128;

/// How full the table of one family is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Fill {
    /// Live entries.
    pub(super) entries: u64,
    /// Room for so many.
    pub(super) capacity: u64,
}

impl Fill {
    fn percent(self) -> u64 {
        (100 * self.entries).checked_div(self.capacity).unwrap_or_default()
    }
}

/// How long to wait after a walk that took `cost` of CPU time: more often while a table fills, but never for
/// more than a bounded share of a CPU.
pub(super) fn pause(fills: &[Fill], cost: Duration) -> Duration {
    let seconds = match fills.iter().map(|fill| fill.percent()).max() {
        Some(75..) => 3,
        Some(50..) => 10,
        _ => 30,
    };
    (cost * (SHARE - 1)).max(Duration::from_secs(seconds))
}

/// Entries that a full table threw out, worked out of those that were made and those that are left.
#[derive(Debug, Default)]
pub(super) struct Evictions {
    last: Option<(i64, i64)>,
}

impl Evictions {
    /// How many since the walk before; `added` entries were made and not removed since the start.
    ///
    /// Packets come while a walk goes on, so that the numbers differ by a few: only where a table is
    /// full is the difference meant.
    pub(super) fn note(&mut self, added: i64, swept: &Swept, room: (u64, u64)) -> u64 {
        let (capacity, cpus) = room;
        let left = (swept.entries - swept.stale - swept.expired).cast_signed();
        let last = self.last.replace((added, left));
        let is_full = swept.entries + capacity / 8 + cpus * FREE_PER_CPU >= capacity;
        let Some((added_before, left_before)) = last.filter(|_| is_full) else { return 0 };
        let gone = (added - added_before) - (left - left_before);
        u64::try_from(gone).unwrap_or_default()
    }
}

/// Whether the table of a family is about to be full.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Pressure {
    /// There is room.
    #[default]
    None,
    /// More than 75 %.
    Filling,
    /// More than 90 %.
    Full,
}

impl Pressure {
    /// What follows from a fill; it ends only well below where it began.
    pub(super) fn next(self, fill: Fill) -> Self {
        match fill.percent() {
            90.. => Self::Full,
            80.. if self == Self::Full => Self::Full,
            75.. => Self::Filling,
            60.. => self.min(Self::Filling),
            _ => Self::None,
        }
    }

    /// As sentences; both stand while it is full.
    pub(super) fn problems(self, family: Family, capacity: u64) -> Vec<Problem> {
        let name = if family == Family::V4 { maps::CONNTRACK_V4 } else { maps::CONNTRACK_V6 };
        let all = [
            (Self::Filling, "75 % full"),
            (Self::Full, "90 % full: flows that were silent for longest make room for new ones"),
        ];
        let problem = |message| {
            Problem {
            key: ProblemKey { kind: "map", name: name.into() },
            field: String::new(),
            message: format!("of {capacity} entries, more than {message}"),
            mend: "raise --conntrack-max (it needs `lb-agent cleanup` and a start), or find who opens \
                   so many flows"
                .to_owned(),
        }
        };
        all.into_iter().filter(|(least, _)| self >= *least).map(|(_, m)| problem(m)).collect()
    }
}

/// Tells of tables that are about to be full, once each time.
#[derive(Debug, Default)]
pub(super) struct Watch(BTreeMap<Family, Pressure>);

impl Watch {
    /// Takes in how full the tables are.
    pub(super) fn see(&mut self, fills: [(Family, Fill); 2], problems: &mut Problems) {
        for (family, fill) in fills {
            let pressure = self.0.entry(family).or_default();
            *pressure = pressure.next(fill);
            problems.set(Finder::Conntrack(family), pressure.problems(family, fill.capacity));
        }
    }
}

#[cfg(test)]
mod tests {
    use lb_common::abi::Abi as _;

    use super::*;

    fn fill(entries: u64) -> Fill {
        Fill { entries, capacity: 1000 }
    }

    #[test]
    fn walks_are_more_frequent_the_fuller_a_table_is() {
        let pause = |entries, ms| pause(&[fill(0), fill(entries)], Duration::from_millis(ms));
        assert_eq!(pause(0, 1), Duration::from_secs(30));
        assert_eq!(pause(500, 1), Duration::from_secs(10));
        assert_eq!(pause(750, 1), Duration::from_secs(3));
        assert_eq!(pause(1000, 400), Duration::from_millis(39_600), "1 % of a CPU");
    }

    #[test]
    fn pressure_begins_at_once_and_ends_well_below() {
        let mut pressure = Pressure::None;
        let mut at = |entries| {
            pressure = pressure.next(fill(entries));
            (pressure, pressure.problems(Family::V6, 1000).len())
        };
        assert_eq!(at(749), (Pressure::None, 0));
        assert_eq!(at(750), (Pressure::Filling, 1));
        assert_eq!(at(900), (Pressure::Full, 2));
        assert_eq!(at(800), (Pressure::Full, 2));
        assert_eq!(at(790), (Pressure::Filling, 1));
        assert_eq!(at(899), (Pressure::Filling, 1));
        assert_eq!(at(600), (Pressure::Filling, 1));
        assert_eq!(at(590), (Pressure::None, 0));
        assert_eq!(at(600), (Pressure::None, 0));
        assert_eq!(at(1000), (Pressure::Full, 2));
        assert_eq!(at(700), (Pressure::Filling, 1), "at once");
        assert_eq!(at(0), (Pressure::None, 0));
    }

    #[test]
    fn a_problem_names_the_table_and_its_room() {
        for (family, name) in [(Family::V4, "CONNTRACK_V4"), (Family::V6, "CONNTRACK_V6")] {
            let problems = Pressure::Filling.problems(family, 1000);
            assert_eq!(problems[0].key.name.as_ref(), name);
            assert_eq!(problems[0].message, "of 1000 entries, more than 75 % full");
        }
    }

    #[test]
    fn evictions_are_what_was_made_and_is_not_there() {
        let swept = |entries, removed: u64| {
            let half = removed / 2;
            Swept { entries, stale: half, expired: half, ..Swept::zeroed() }
        };
        let mut evictions = Evictions::default();
        let mut note = |added, swept| evictions.note(added, &swept, (10_000, 2));
        assert_eq!(note(9_500, swept(9_900, 0)), 0, "what was before the start is not known");
        assert_eq!(note(9_600, swept(10_000, 0)), 0);
        assert_eq!(note(12_600, swept(10_000, 0)), 3_000);
        assert_eq!(note(10_600, swept(10_000, 2_000)), 0, "removed ones were not thrown out");
        assert_eq!(note(11_294, swept(8_494, 0)), 200, "an eighth, and 128 of each CPU");
        assert_eq!(note(11_394, swept(8_493, 0)), 0, "not full: a few came while it walked");
        assert_eq!(note(12_901, swept(9_990, 0)), 10, "since the walk before, full or not");
    }
}

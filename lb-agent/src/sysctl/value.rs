//! One number among the kernel's settings: what to write, and what to remember for taking it back.
//! Pure.

use serde::{Deserialize, Serialize};

/// What a setting should be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Goal {
    /// This or more.
    AtLeast(u64),
    /// This and nothing else.
    Exactly(u64),
    /// What it is without the agent.
    Untouched,
}

/// A setting that the agent has changed.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Change {
    /// What it was.
    pub(super) before: u64,
    /// What the agent made of it.
    pub(super) set: u64,
}

/// What to do about a setting.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Plan {
    /// The value to write, if it is another one.
    pub(super) write: Option<u64>,
    /// What to remember, if the setting then differs from what it was without the agent.
    pub(super) change: Option<Change>,
}

/// Plans one setting. What somebody else has set since the agent's last change is theirs: that
/// change is forgotten.
pub(super) fn plan(current: u64, goal: Goal, last: Option<Change>) -> Plan {
    let before = last.filter(|last| last.set == current).map_or(current, |last| last.before);
    let set = match goal {
        Goal::AtLeast(floor) => before.max(floor),
        Goal::Exactly(value) => value,
        Goal::Untouched => before,
    };
    Plan {
        write: (set != current).then_some(set),
        change: (set != before).then_some(Change { before, set }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn expect(current: u64, goal: Goal, last: Option<(u64, u64)>, plan_is: Plan) {
        let last = last.map(|(before, set)| Change { before, set });
        assert_eq!(plan(current, goal, last), plan_is, "{current} {goal:?} {last:?}");
    }

    fn planned(write: Option<u64>, change: Option<(u64, u64)>) -> Plan {
        Plan { write, change: change.map(|(before, set)| Change { before, set }) }
    }

    #[test]
    fn s16_a_setting_is_changed_once_and_its_first_value_remembered() {
        expect(60, Goal::Exactly(3600), None, planned(Some(3600), Some((60, 3600))));
        expect(3600, Goal::Exactly(3600), Some((60, 3600)), planned(None, Some((60, 3600))));
        expect(3600, Goal::Exactly(3600), None, planned(None, None));
        expect(3600, Goal::Exactly(9), Some((60, 3600)), planned(Some(9), Some((60, 9))));
    }

    #[test]
    fn s16_a_goal_that_is_less_leaves_more_alone() {
        expect(9, Goal::AtLeast(5), None, planned(None, None));
        expect(4, Goal::AtLeast(5), None, planned(Some(5), Some((4, 5))));
        expect(7, Goal::AtLeast(5), Some((4, 7)), planned(Some(5), Some((4, 5))));
    }

    #[test]
    fn s16_what_is_ours_is_taken_back_and_what_others_set_stays() {
        expect(3600, Goal::Untouched, Some((60, 3600)), planned(Some(60), None));
        expect(100, Goal::Untouched, Some((60, 3600)), planned(None, None));
        expect(100, Goal::Exactly(3600), Some((60, 7)), planned(Some(3600), Some((100, 3600))));
        expect(100, Goal::Untouched, None, planned(None, None));
    }
}

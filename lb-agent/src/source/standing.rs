//! The problems that have been told and not yet solved.
//!
//! One key may have several problems. When some of them go, the key is told as solved and those left
//! are told again, so a listener that drops all of a key on [`Event::ProblemSolved`] is right.

use std::collections::BTreeMap;

use crate::model::{Event, Problem, ProblemKey};

/// Problems by what they are about.
pub(super) type ProblemsByKey = BTreeMap<ProblemKey, Vec<Problem>>;

/// What a listener has been told.
#[derive(Debug, Default)]
pub(super) struct Standing(ProblemsByKey);

impl Standing {
    /// Makes `problems` all that is wrong with `key`; gives the events that say so.
    pub(super) fn set(&mut self, key: &ProblemKey, problems: Vec<Problem>) -> Vec<Event> {
        let old = self.0.get(key).map(Vec::as_slice).unwrap_or_default();
        if old == problems {
            return Vec::new();
        }
        let solved = (!old.is_empty()).then(|| Event::ProblemSolved(key.clone()));
        let events = solved.into_iter().chain(problems.iter().cloned().map(Event::Problem));
        let events = events.collect();
        if problems.is_empty() {
            self.0.remove(key);
        } else {
            self.0.insert(key.clone(), problems);
        }
        events
    }

    /// Makes `problems` all that is wrong with anything.
    pub(super) fn replace(&mut self, mut problems: ProblemsByKey) -> Vec<Event> {
        let gone: Vec<_> =
            self.0.keys().filter(|key| !problems.contains_key(key)).cloned().collect();
        problems.extend(gone.into_iter().map(|key| (key, Vec::new())));
        problems.into_iter().flat_map(|(key, problems)| self.set(&key, problems)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> ProblemKey {
        ProblemKey { kind: "Service", name: "default/web".into() }
    }

    fn problem(field: &str) -> Problem {
        Problem { key: key(), field: field.into(), message: "bad".into(), mend: "mend".into() }
    }

    #[test]
    fn a_problem_is_told_once() {
        let mut standing = Standing::default();
        let told = standing.set(&key(), vec![problem("a")]);
        assert_eq!(told, [Event::Problem(problem("a"))]);
        assert_eq!(standing.set(&key(), vec![problem("a")]), []);
    }

    #[test]
    fn what_is_left_is_told_again_after_solved() {
        let mut standing = Standing::default();
        standing.set(&key(), vec![problem("a"), problem("b")]);
        let told = standing.set(&key(), vec![problem("b")]);
        assert_eq!(told, [Event::ProblemSolved(key()), Event::Problem(problem("b"))]);
    }

    #[test]
    fn replacing_all_solves_what_is_not_named() {
        let mut standing = Standing::default();
        standing.set(&key(), vec![problem("a")]);
        assert_eq!(standing.replace(ProblemsByKey::new()), [Event::ProblemSolved(key())]);
    }
}

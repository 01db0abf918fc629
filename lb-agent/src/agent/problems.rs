//! What is wrong at this moment: said once when it begins and once when it ends.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{ObjectName, Problem, ProblemKey};

/// Who found a fault; each knows its own as a whole.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Finder {
    /// A device that could not be attached.
    Device(String),
    /// The rules of Kubernetes, about a Service.
    Rules(ObjectName),
    /// The source, about an object or a file.
    Source(ProblemKey),
    /// The tables, about a Service.
    Tables(ObjectName),
}

/// All faults that stand.
#[derive(Debug, Default)]
pub(super) struct Problems(BTreeMap<Finder, BTreeSet<String>>);

impl Problems {
    /// Replaces all that this finder had to say.
    pub(super) fn set(&mut self, finder: Finder, problems: impl IntoIterator<Item = Problem>) {
        let new: BTreeSet<String> = problems.into_iter().map(|p| p.to_string()).collect();
        let old = self.0.remove(&finder).unwrap_or_default();
        for begun in new.difference(&old) {
            tracing::error!("{begun}");
        }
        for ended in old.difference(&new) {
            tracing::info!("solved: {ended}");
        }
        if !new.is_empty() {
            self.0.insert(finder, new);
        }
    }

    /// Each fault in one sentence.
    pub(super) fn sentences(&self) -> impl Iterator<Item = &String> {
        self.0.values().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(message: &str) -> Problem {
        Problem {
            key: ProblemKey { kind: "Service", name: "a/b".into() },
            field: "spec.ports[0].port".into(),
            message: message.into(),
            mend: "mend it".into(),
        }
    }

    #[test]
    fn what_a_finder_no_longer_says_is_gone() {
        let mut problems = Problems::default();
        let rules = || Finder::Rules(ObjectName::new("a", "b"));
        problems.set(rules(), [problem("one"), problem("two")]);
        problems.set(Finder::Tables(ObjectName::new("a", "b")), [problem("full")]);
        assert_eq!(problems.sentences().count(), 3);
        problems.set(rules(), [problem("two")]);
        let left: Vec<_> = problems.sentences().collect();
        assert_eq!(left.len(), 2, "{left:?}");
        assert!(left[0].contains("spec.ports[0].port: two; mend it"), "{left:?}");
    }
}

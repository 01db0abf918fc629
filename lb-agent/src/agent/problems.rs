//! What is wrong at this moment: said once when it begins and once when it ends.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    desired::PortKey,
    model::{ObjectName, Problem, ProblemKey},
};

/// Who found a fault; each knows its own as a whole.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Finder {
    /// A process of this node has a Service's node port.
    Bound(PortKey),
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

    /// Ends what was said of devices that are not among these: gone, or renamed.
    pub(super) fn keep_devices(&mut self, names: &BTreeSet<&str>) {
        let is_gone = |finder: &&Finder| match finder {
            Finder::Device(name) => !names.contains(&**name),
            _ => false,
        };
        let gone: Vec<_> = self.0.keys().filter(is_gone).cloned().collect();
        for finder in gone {
            self.set(finder, None);
        }
    }

    /// Adds to what this finder had to say.
    pub(super) fn add(&mut self, finder: Finder, problem: &Problem) {
        let sentence = problem.to_string();
        let standing = self.0.entry(finder).or_default();
        if !standing.contains(&sentence) {
            tracing::error!("{sentence}");
            standing.insert(sentence);
        }
    }

    /// Each fault in one sentence.
    pub(super) fn sentences(&self) -> impl Iterator<Item = &String> {
        self.0.values().flatten()
    }
}

/// What a source says of faults in one batch of events: what it takes back and says again at once
/// is no news.
#[derive(Debug, Default)]
pub(super) struct Told(BTreeMap<ProblemKey, (bool, Vec<Problem>)>);

impl Told {
    /// There is a fault, beside others with the same key.
    pub(super) fn add(&mut self, problem: Problem) {
        self.0.entry(problem.key.clone()).or_default().1.push(problem);
    }

    /// All faults with this key are gone.
    pub(super) fn solved(&mut self, key: ProblemKey) {
        self.0.insert(key, (true, Vec::new()));
    }

    /// Passes on what is left at the end of the batch.
    pub(super) fn settle(self, problems: &mut Problems) {
        for (key, (solved, found)) in self.0 {
            if solved {
                problems.set(Finder::Source(key), found);
            } else {
                for problem in &found {
                    problems.add(Finder::Source(key.clone()), problem);
                }
            }
        }
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

    #[test]
    fn nothing_is_said_of_a_device_that_is_gone() {
        let mut problems = Problems::default();
        for name in ["eth0", "eth1"] {
            problems.set(Finder::Device(name.to_owned()), [problem(name)]);
        }
        problems.set(Finder::Rules(ObjectName::new("a", "b")), [problem("one")]);
        problems.keep_devices(&BTreeSet::from(["eth1"]));
        let left: Vec<_> = problems.sentences().collect();
        assert_eq!(left.len(), 2, "{left:?}");
        assert!(left[0].contains("eth1"), "{left:?}");
    }

    #[test]
    fn a_source_adds_faults_to_a_key_and_takes_all_of_them_back() {
        let mut problems = Problems::default();
        let tell = |problems: &mut Problems, solved: bool, messages: &[&str]| {
            let mut told = Told::default();
            if solved {
                told.solved(problem("").key);
            }
            for message in messages {
                told.add(problem(message));
            }
            told.settle(problems);
        };
        tell(&mut problems, false, &["one"]);
        tell(&mut problems, false, &["two"]);
        assert_eq!(problems.sentences().count(), 2);
        tell(&mut problems, true, &["two"]);
        assert_eq!(problems.sentences().count(), 1);
        tell(&mut problems, true, &[]);
        assert_eq!(problems.sentences().count(), 0);
    }
}

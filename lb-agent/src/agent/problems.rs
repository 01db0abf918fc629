//! What is wrong at this moment: said once when it begins and once when it ends.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::mpsc;

use crate::{
    desired::PortKey,
    model::{Family, ObjectName, Problem, ProblemKey},
};

/// Who found a fault; each knows its own as a whole.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Finder {
    /// A process of this node has a Service's node port.
    Bound(PortKey),
    /// How full the flow table of a family is.
    Conntrack(Family),
    /// A device that could not be attached.
    Device(String),
    /// The server of a Service's health check port.
    HealthPort(ObjectName),
    /// The rules of Kubernetes, about a Service.
    Rules(ObjectName),
    /// A table with another size than the one asked for.
    Size(&'static str),
    /// The source, about an object or a file.
    Source(ProblemKey),
    /// The tables, about a Service.
    Tables(ObjectName),
}

/// All faults that stand.
#[derive(Debug, Default)]
pub(super) struct Problems {
    standing: BTreeMap<Finder, BTreeSet<String>>,
    /// Where those that begin are told as well.
    complaints: Option<mpsc::Sender<Problem>>,
}

impl Problems {
    /// There are none; those that begin are told there as well.
    pub(super) fn told_to(complaints: Option<mpsc::Sender<Problem>>) -> Self {
        Self { complaints, ..Self::default() }
    }

    /// Replaces all that this finder had to say.
    pub(super) fn set(&mut self, finder: Finder, problems: impl IntoIterator<Item = Problem>) {
        let old = self.standing.remove(&finder).unwrap_or_default();
        let mut new = BTreeSet::new();
        for problem in problems {
            let sentence = problem.to_string();
            if !old.contains(&sentence) && !new.contains(&sentence) {
                self.begin(&problem, &sentence);
            }
            new.insert(sentence);
        }
        for ended in old.difference(&new) {
            tracing::info!("solved: {ended}");
        }
        if !new.is_empty() {
            self.standing.insert(finder, new);
        }
    }

    /// A fault is new. Where too many are, the log alone has them all.
    fn begin(&self, problem: &Problem, sentence: &str) {
        tracing::error!("{sentence}");
        if let Some(complaints) = &self.complaints
            && let Err(error) = complaints.try_send(problem.clone())
        {
            tracing::debug!(%error, "no Event for a problem");
        }
    }

    /// Ends what was said of devices that are not among these: gone, or renamed.
    pub(super) fn keep_devices(&mut self, names: &BTreeSet<&str>) {
        let is_gone = |finder: &&Finder| match finder {
            Finder::Device(name) => !names.contains(&**name),
            _ => false,
        };
        let gone: Vec<_> = self.standing.keys().filter(is_gone).cloned().collect();
        for finder in gone {
            self.set(finder, None);
        }
    }

    /// Adds to what this finder had to say.
    pub(super) fn add(&mut self, finder: Finder, problem: &Problem) {
        let sentence = problem.to_string();
        if !self.standing.get(&finder).is_some_and(|known| known.contains(&sentence)) {
            self.begin(problem, &sentence);
            self.standing.entry(finder).or_default().insert(sentence);
        }
    }

    /// Each fault in one sentence.
    pub(super) fn sentences(&self) -> impl Iterator<Item = &String> {
        self.standing.values().flatten()
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
    fn what_begins_is_told_once_and_again_after_it_ended() {
        let (sender, mut told) = mpsc::channel(2);
        let mut problems = Problems::told_to(Some(sender));
        let rules = || Finder::Rules(ObjectName::new("a", "b"));
        problems.set(rules(), [problem("one")]);
        problems.set(rules(), [problem("one")]);
        problems.add(rules(), &problem("one"));
        assert_eq!(told.try_recv().unwrap().message, "one");
        assert!(told.try_recv().is_err(), "told once");
        problems.set(rules(), None);
        problems.set(rules(), [problem("one"), problem("two"), problem("three")]);
        assert_eq!(problems.sentences().count(), 3, "a full channel costs nothing else");
        assert_eq!(told.len(), 2);
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

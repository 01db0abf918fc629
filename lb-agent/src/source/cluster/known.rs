//! The names that have been told of, so that a list which leaves one out can tell that it is gone.

use std::collections::{HashMap, HashSet};

use super::Kind;
use crate::model::ObjectName;

/// Names by kind.
#[derive(Debug, Default)]
pub(super) struct Known(HashMap<Kind, Names>);

#[derive(Debug, Default)]
struct Names {
    told: HashSet<ObjectName>,
    /// Named by the list that is going on.
    named: Option<HashSet<ObjectName>>,
    listed: bool,
}

impl Known {
    pub(super) fn insert(&mut self, kind: Kind, name: ObjectName) {
        self.names(kind).told.insert(name);
    }

    /// Says whether it had been told of.
    pub(super) fn remove(&mut self, kind: Kind, name: &ObjectName) -> bool {
        self.names(kind).told.remove(name)
    }

    /// A list names the object, whether it is one to program or not.
    pub(super) fn heard_of(&mut self, kind: Kind, name: &ObjectName) {
        if let Some(named) = &mut self.names(kind).named {
            named.insert(name.clone());
        }
    }

    pub(super) fn begin_list(&mut self, kind: Kind) {
        self.names(kind).named = Some(HashSet::new());
    }

    /// Gives those that had been told of and were not named again, and forgets them.
    pub(super) fn end_list(&mut self, kind: Kind) -> Vec<ObjectName> {
        let names = self.names(kind);
        names.listed = true;
        let Some(listed) = names.named.take() else { return Vec::new() };
        let gone: Vec<_> = names.told.difference(&listed).cloned().collect();
        for name in &gone {
            names.told.remove(name);
        }
        gone
    }

    pub(super) fn is_listed(&self, kind: Kind) -> bool {
        self.0.get(&kind).is_some_and(|names| names.listed)
    }

    fn names(&mut self, kind: Kind) -> &mut Names {
        self.0.entry(kind).or_default()
    }
}

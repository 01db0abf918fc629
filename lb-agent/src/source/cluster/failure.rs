//! What went wrong with the API server, in words that name the mend.

use std::collections::BTreeMap;

use super::{Kind, client::chain};
use crate::model::{Problem, ProblemKey};

/// One failure of one watch.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Failure {
    message: String,
    mend: String,
}

impl Failure {
    /// Of a list or watch (`verb`) of `kind`.
    pub(super) fn new(kind: Kind, verb: &str, error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::of_status(kind, verb, status),
            other => Self {
                message: chain(other),
                mend: "check that the API server runs and can be reached; it is tried again".into(),
            },
        }
    }

    /// Of an answer that is an error.
    pub(super) fn of_status(kind: Kind, verb: &str, status: &kube::core::Status) -> Self {
        let (group, resource) = kind.resource();
        let (code, text) = (status.code, status.message.trim());
        match code {
            401 => Self {
                message: "the API server does not know who is asking (401)".into(),
                mend: "give the kubeconfig or service account valid credentials".into(),
            },
            403 => Self {
                message: format!("not allowed to {verb} {resource} (403)"),
                mend: format!(
                    "add a ClusterRole rule apiGroups [\"{group}\"], resources [\"{resource}\"], \
                     verbs [\"list\", \"watch\"] to this account"
                ),
            },
            _ => Self {
                message: format!("the API server answered {code} to {verb} {resource}: {text}"),
                mend: "look at the API server's log; it is tried again".into(),
            },
        }
    }

    /// Of a server that ends each watch at once.
    pub(super) fn of_short_watch(kind: Kind) -> Self {
        Self {
            message: format!("the API server ends each watch of {} at once", kind.resource().1),
            mend: "look for a proxy in between that cuts long answers; it is tried again".into(),
        }
    }
}

/// What is wrong at this moment.
#[derive(Debug)]
pub(super) struct Failures {
    key: ProblemKey,
    by_kind: BTreeMap<Kind, Failure>,
}

impl Failures {
    pub(super) fn new(server: &str) -> Self {
        let key = ProblemKey { kind: "source", name: server.into() };
        Self { key, by_kind: BTreeMap::new() }
    }

    pub(super) fn key(&self) -> &ProblemKey {
        &self.key
    }

    pub(super) fn add(&mut self, kind: Kind, failure: Failure) {
        self.by_kind.insert(kind, failure);
    }

    /// The kind's watch works; says whether it had not.
    pub(super) fn solve(&mut self, kind: Kind) -> bool {
        self.by_kind.remove(&kind).is_some()
    }

    /// One problem for each failure that differs from the others.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> = Vec::new();
        for Failure { message, mend } in self.by_kind.values() {
            if problems.iter().all(|problem| problem.message != *message) {
                problems.push(Problem {
                    key: self.key.clone(),
                    field: String::new(),
                    message: message.clone(),
                    mend: mend.clone(),
                });
            }
        }
        problems
    }
}

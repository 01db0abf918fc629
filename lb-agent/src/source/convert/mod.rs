//! From Kubernetes objects to the model: pure, object by object.
//!
//! A field that cannot be used becomes a [`Problem`] naming object, field and mend, and costs no more
//! than itself: one bad port leaves its Service the others. What the rules say to ignore (S13) gives
//! no object and no problem. Not for: choices that need more than one object.

mod address;
pub(super) mod annotation;
mod node;
mod port;
mod service;
mod slice;

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::model::{ObjectName, Problem, ProblemKey};

pub(crate) use self::{
    address::{family_name, usable_address},
    port::parse_protocol,
};
pub use self::{
    address::{parse_address, parse_cidr},
    node::node,
    service::service,
    slice::slice,
};

/// Label that hands a Service or slice to another proxy (S13).
pub const SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Label of Services and slices that no proxy programs (S13).
pub const HEADLESS: &str = "service.kubernetes.io/headless";
/// Label that joins a slice to its Service (S1.9).
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Faults of one object that are told apart; the rest are counted in a last one.
const FAULTS_SHOWN: usize = 10;

/// What became of one object.
#[derive(Clone, Debug, PartialEq)]
pub struct Converted<T> {
    /// The object; none if it is not one to program.
    pub object: Option<T>,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

/// Reads a document as one of Kubernetes' own types.
///
/// # Errors
///
/// The first field that does not fit.
pub(crate) fn typed<T: DeserializeOwned>(
    key: ProblemKey,
    mut document: Value,
) -> Result<T, Problem> {
    // Conditions say something of Pods alone, and some writers leave the times of others null.
    if key.kind != "Pod"
        && let Some(Value::Object(status)) = document.get_mut("status")
    {
        status.remove("conditions");
    }
    serde_path_to_error::deserialize(document).map_err(|error| Problem {
        field: error.path().to_string(),
        message: error.inner().to_string(),
        mend: format!("write the field as the {} API has it; its last good state stays", key.kind),
        key,
    })
}

impl<T> Converted<T> {
    fn ignored() -> Self {
        Self { object: None, problems: Vec::new() }
    }
}

/// The faults of one object, gathered while it is read.
#[derive(Debug)]
pub(crate) struct Faults {
    key: ProblemKey,
    problems: Vec<Problem>,
    unshown: usize,
}

impl Faults {
    pub(crate) fn new(kind: &'static str, name: &ObjectName) -> Self {
        let key = ProblemKey { kind, name: name.to_string().into() };
        Self { key, problems: Vec::new(), unshown: 0 }
    }

    pub(crate) fn add(
        &mut self,
        field: impl Into<String>,
        message: impl Into<String>,
        mend: impl Into<String>,
    ) {
        if self.problems.len() >= FAULTS_SHOWN {
            self.unshown += 1;
            return;
        }
        let (field, message, mend) = (field.into(), message.into(), mend.into());
        self.problems.push(Problem { key: self.key.clone(), field, message, mend });
    }

    /// Whether a fault of that field has been told.
    pub(crate) fn has(&self, field: &str) -> bool {
        self.problems.iter().any(|problem| problem.field == field)
    }

    pub(crate) fn into_problems(mut self) -> Vec<Problem> {
        if self.unshown > 0 {
            self.problems.push(Problem {
                key: self.key,
                field: String::new(),
                message: format!("{} more faults like these", self.unshown),
                mend: "mend the ones shown, and the rest show".into(),
            });
        }
        self.problems
    }
}

/// Whether a label says that another proxy, or none, serves the object (S13).
fn is_excluded(labels: Option<&std::collections::BTreeMap<String, String>>) -> bool {
    labels.is_some_and(|l| l.contains_key(SERVICE_PROXY_NAME) || l.contains_key(HEADLESS))
}

/// The text as a shared string, unless it is empty or missing.
fn shared(text: Option<&String>) -> Option<Arc<str>> {
    text.filter(|text| !text.is_empty()).map(|text| Arc::from(text.as_str()))
}

#[cfg(test)]
mod tests;

//! What a source says, and how it tells of faults.

use std::{fmt, sync::Arc};

use super::{EndpointSlice, Node, ObjectName, Service};

/// What a source says, one at a time, in the order it happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A Service is new or changed.
    ServiceApplied(Service),
    /// A Service is gone, or is no longer one to program.
    ServiceDeleted(ObjectName),
    /// A slice is new or changed.
    SliceApplied(EndpointSlice),
    /// A slice is gone, or is no longer one to program.
    SliceDeleted(ObjectName),
    /// This node's own object is new or changed.
    NodeApplied(Node),
    /// This node's own object is gone.
    NodeDeleted,
    /// Every kind has been listed completely once (S16): what was not named is not there.
    Listed,
    /// Something is wrong with one object; what can be used of it is, else its last good state
    /// stays. A key may have several problems at a time.
    Problem(Problem),
    /// The faults told of that key are gone; those that are left are told again after this.
    ProblemSolved(ProblemKey),
}

/// Which thing a [`Problem`] is about: an object or a file.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ProblemKey {
    /// Kind: `Service`, `EndpointSlice`, `Pod`, `Node`, `file`, `source`.
    pub kind: &'static str,
    /// Name of the object, or path of the file.
    pub name: Arc<str>,
}

/// One clear error: object, field, what is wrong and how to mend it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    /// What it is about.
    pub key: ProblemKey,
    /// Path of the field, as `spec.ports[0].protocol`; empty where no single field is at fault.
    pub field: String,
    /// What is wrong, with the value.
    pub message: String,
    /// What the user should do.
    pub mend: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem { key, field, message, mend } = self;
        write!(f, "{} {}: ", key.kind, key.name)?;
        if !field.is_empty() {
            write!(f, "{field}: ")?;
        }
        write!(f, "{message}; {mend}")
    }
}

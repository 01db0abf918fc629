//! What a folder's files hold, once parsed: Services with the API's defaults, the rest slim.

use std::{collections::BTreeMap, net::IpAddr, num::NonZeroU16, sync::Arc};

use k8s_openapi::api::core::v1 as core;

use crate::{
    model::{EndpointSlice, Node, ObjectName, Problem, Protocol},
    source::convert::Converted,
};

/// Kind and name: what tells objects apart, over all files.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct ObjectKey {
    pub(super) kind: &'static str,
    pub(super) name: ObjectName,
}

/// One object of a kind that matters.
#[derive(Clone, Debug)]
pub(super) enum Object {
    Node(Arc<Converted<Node>>),
    Pod(Arc<Pod>),
    Service(Arc<core::Service>),
    Slice(Arc<Converted<EndpointSlice>>),
}

/// What the endpoints of a selector follow from.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pod {
    pub(super) name: ObjectName,
    pub(super) labels: BTreeMap<String, String>,
    /// `status.podIPs`, or `status.podIP`.
    pub(super) addresses: Vec<IpAddr>,
    /// Condition `Ready`; a Pod without any conditions counts as ready, so that a manifest written
    /// by hand needs only an address.
    pub(super) ready: bool,
    /// It has a deletion timestamp.
    pub(super) terminating: bool,
    /// Phase `Succeeded` or `Failed`.
    pub(super) finished: bool,
    pub(super) node: Option<Arc<str>>,
    pub(super) ports: Vec<ContainerPort>,
    pub(super) problems: Vec<Problem>,
}

/// A named port of a container.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct ContainerPort {
    pub(super) name: String,
    pub(super) protocol: Protocol,
    pub(super) port: NonZeroU16,
}

/// A file's objects.
#[derive(Clone, Debug, Default)]
pub(super) struct ParsedFile {
    pub(super) objects: Vec<(ObjectKey, Object)>,
    /// What was wrong with single objects of it.
    pub(super) problems: Vec<Problem>,
    /// Objects that are named but cannot be read: their last good state stays.
    pub(super) unreadable: Vec<ObjectKey>,
    /// Objects of other kinds, as `Deployment default/web`.
    pub(super) skipped: Vec<String>,
}

impl ParsedFile {
    /// Takes over from the file's state before those objects that cannot be read any more.
    pub(super) fn keep_last_good(&mut self, before: &Self) {
        for key in &self.unreadable {
            if let Some(object) = before.objects.iter().find(|(other, _)| other == key) {
                self.objects.push(object.clone());
            }
        }
    }
}

//! Slices of endpoints, and the nodes they run on.

use std::{net::IpAddr, num::NonZeroU16, sync::Arc};

use jiff::Timestamp;

use super::{Family, ObjectName, Protocol};

/// One endpoint of a slice: its first address only (S1.9).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoint {
    /// Address of the family of its slice.
    pub address: IpAddr,
    /// Condition `ready`; a missing one is true.
    pub ready: bool,
    /// Condition `serving`; a missing one is true.
    pub serving: bool,
    /// Condition `terminating`; a missing one is false.
    pub terminating: bool,
    /// Node it runs on.
    pub node: Option<Arc<str>>,
    /// Zones it should be used from (`hints.forZones`).
    pub zone_hints: Vec<Arc<str>>,
    /// Nodes it should be used from (`hints.forNodes`).
    pub node_hints: Vec<Arc<str>>,
    /// The pod behind it (`targetRef`), for people to read.
    pub pod: Option<ObjectName>,
}

/// One port of a slice. Ports without a number are left out by the source (S1.9).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SlicePort {
    /// Name of the Service port it belongs to.
    pub name: Arc<str>,
    /// Protocol of the Service port it belongs to.
    pub protocol: Protocol,
    /// Port of the endpoints.
    pub port: NonZeroU16,
}

/// An `EndpointSlice` of a known Service: S13 has been applied already.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EndpointSlice {
    /// Its own name.
    pub name: ObjectName,
    /// The Service it belongs to (label `kubernetes.io/service-name`).
    pub service: ObjectName,
    /// Family of all its addresses.
    pub family: Family,
    /// Ports that all its endpoints have.
    pub ports: Vec<SlicePort>,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
    /// When the Pod or Service changed that its newest change follows from (S20).
    pub last_change: Option<Timestamp>,
}

/// A node of the cluster, as the API tells of it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Node {
    /// Its name.
    pub name: Arc<str>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<ipnet::IpNet>,
    /// It is being deleted, by its object or by the cluster's autoscaler (S4).
    pub is_leaving: bool,
}

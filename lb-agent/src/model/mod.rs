//! Services, endpoints and nodes as this program means them: parsed, so no invalid state is left.
//!
//! The sources (a cluster, a folder) turn Kubernetes objects into these types; `desired` reads
//! nothing else. Not for: anything that decides what the kernel holds.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU16,
    sync::Arc,
};

/// Namespace and name of an object.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ObjectName {
    /// Namespace; empty for objects without one, such as Nodes.
    pub namespace: Arc<str>,
    /// Name within the namespace.
    pub name: Arc<str>,
}

impl ObjectName {
    /// Joins a namespace and a name.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.namespace {
            "" => f.write_str(&self.name),
            namespace => write!(f, "{namespace}/{}", self.name),
        }
    }
}

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Protocol {
    /// Stream Control Transmission Protocol.
    Sctp,
    /// Transmission Control Protocol.
    Tcp,
    /// User Datagram Protocol.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sctp => "SCTP",
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// `internalTrafficPolicy`, `externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum TrafficPolicy {
    /// All endpoints of the cluster.
    #[default]
    Cluster,
    /// Endpoints on the node that the traffic reached.
    Local,
}

/// `spec.type`, as far as a proxy tells them apart. `ExternalName` never becomes a [`Service`].
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum ServiceType {
    /// Reached by cluster IP.
    #[default]
    ClusterIp,
    /// And by load balancer addresses and node ports.
    LoadBalancer,
    /// And by a port of each node.
    NodePort,
}

/// One port of a Service.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServicePort {
    /// Name; empty where the Service has one unnamed port.
    pub name: Arc<str>,
    /// Port that clients ask for.
    pub port: NonZeroU16,
    /// Protocol.
    pub protocol: Protocol,
    /// Port on each node, where there is one.
    pub node_port: Option<NonZeroU16>,
}

/// A Service that this node programs: S13 has been applied already.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Service {
    /// Its name.
    pub name: ObjectName,
    /// Its type.
    pub service_type: ServiceType,
    /// Creation time in seconds since the epoch: the elder wins a clash (S21).
    pub created: i64,
    /// One address a family at most, in the API's order.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip` with `ipMode` VIP (S14).
    pub load_balancer_ips: Vec<IpAddr>,
    /// Its ports, unique by name and by port and protocol.
    pub ports: Vec<ServicePort>,
    /// Policy for cluster IPs (S7).
    pub internal_policy: TrafficPolicy,
    /// Policy for all other addresses (S6).
    pub external_policy: TrafficPolicy,
    /// Timeout in seconds of `ClientIP` session affinity, where asked for (S10).
    pub affinity_timeout: Option<u32>,
    /// `spec.loadBalancerSourceRanges` (S9).
    pub source_ranges: Vec<ipnet::IpNet>,
    /// `spec.healthCheckNodePort` (S3).
    pub health_check_node_port: Option<NonZeroU16>,
}

/// Address family of a slice.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of `address`.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

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
}

impl Default for ObjectName {
    fn default() -> Self {
        Self::new("", "")
    }
}

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
    /// Something is wrong with one object; the last good state of it stays.
    Problem(Problem),
    /// A fault named earlier is gone.
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

/// All that a node's tables follow from, but for the facts of the node itself.
#[derive(Clone, Debug, Default)]
pub struct Model {
    services: BTreeMap<ObjectName, Service>,
    slices: BTreeMap<ObjectName, BTreeMap<ObjectName, EndpointSlice>>,
    slice_owners: BTreeMap<ObjectName, ObjectName>,
    node: Option<Node>,
}

/// What an [`Event`] makes necessary.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Change {
    /// These Services must be worked out again (at most two: a slice may change its owner).
    Services(Vec<ObjectName>),
    /// The node's zone or name changed: everything must be worked out again.
    Node,
    /// Nothing that the tables depend on.
    Nothing,
}

impl Model {
    /// Takes in one event and says what follows from it.
    pub fn apply(&mut self, event: Event) -> Change {
        match event {
            Event::ServiceApplied(service) => {
                let name = service.name.clone();
                match self.services.insert(name.clone(), service) {
                    Some(old) if self.services.get(&name) == Some(&old) => Change::Nothing,
                    _ => Change::Services(vec![name]),
                }
            }
            Event::ServiceDeleted(name) => match self.services.remove(&name) {
                Some(_) => Change::Services(vec![name]),
                None => Change::Nothing,
            },
            Event::SliceApplied(slice) => self.apply_slice(slice),
            Event::SliceDeleted(name) => self.delete_slice(&name),
            Event::NodeApplied(node) => self.set_node(Some(node)),
            Event::NodeDeleted => self.set_node(None),
            Event::Listed | Event::Problem(_) | Event::ProblemSolved(_) => Change::Nothing,
        }
    }

    /// The Services, in order of their names.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    /// The Service of that name.
    #[must_use]
    pub fn service(&self, name: &ObjectName) -> Option<&Service> {
        self.services.get(name)
    }

    /// The slices of a Service, in order of their names.
    pub fn slices(&self, service: &ObjectName) -> impl Iterator<Item = &EndpointSlice> {
        self.slices.get(service).into_iter().flat_map(BTreeMap::values)
    }

    /// This node's own object, where the source has it.
    #[must_use]
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    fn apply_slice(&mut self, slice: EndpointSlice) -> Change {
        let (name, owner) = (slice.name.clone(), slice.service.clone());
        let mut touched = Vec::new();
        if let Some(old_owner) = self.slice_owners.insert(name.clone(), owner.clone())
            && old_owner != owner
        {
            self.forget_slice(&old_owner, &name);
            touched.push(old_owner);
        }
        let slices = self.slices.entry(owner.clone()).or_default();
        if slices.get(&name) != Some(&slice) {
            slices.insert(name, slice);
            touched.push(owner);
        }
        if touched.is_empty() { Change::Nothing } else { Change::Services(touched) }
    }

    fn delete_slice(&mut self, name: &ObjectName) -> Change {
        let Some(owner) = self.slice_owners.remove(name) else {
            return Change::Nothing;
        };
        self.forget_slice(&owner, name);
        Change::Services(vec![owner])
    }

    fn forget_slice(&mut self, owner: &ObjectName, name: &ObjectName) {
        if let Some(slices) = self.slices.get_mut(owner) {
            slices.remove(name);
            if slices.is_empty() {
                self.slices.remove(owner);
            }
        }
    }

    fn set_node(&mut self, node: Option<Node>) -> Change {
        if self.node == node {
            return Change::Nothing;
        }
        self.node = node;
        Change::Node
    }
}

/// An address that may be a frontend's or an endpoint's at all: neither unspecified, loopback,
/// link-local nor multicast (the API's own rule for endpoint addresses).
#[must_use]
pub fn is_routable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            !(v4.is_unspecified()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4 == Ipv4Addr::BROADCAST)
        }
        IpAddr::V6(v6) => {
            !(v6.is_unspecified()
                || v6.is_loopback()
                || v6.is_unicast_link_local()
                || v6.is_multicast()
                || v6.to_ipv4_mapped().is_some())
        }
    }
}

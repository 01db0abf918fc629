//! Services.

use std::{net::IpAddr, num::NonZeroU16, sync::Arc};

use super::{Forwarding, ObjectName, Protocol};

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
    /// How packets come to endpoints on other nodes, where it says so itself.
    pub forwarding: Option<Forwarding>,
    /// `spec.healthCheckNodePort` (S3).
    pub health_check_node_port: Option<NonZeroU16>,
}

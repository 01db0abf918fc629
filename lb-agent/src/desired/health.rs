//! What the outside is told of the endpoints on this node: health check ports (S3), and how many
//! Service ports send nobody anywhere because of a Local policy (S20).

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU16,
    ops::{AddAssign, SubAssign},
};

use lb_common::abi::{FrontendFlags, FrontendKind};

use crate::model::{EndpointSlice, Family, Service, ServiceType, TrafficPolicy};

use super::{NodeFacts, PortTables, ServiceTables};

/// A Service's health check port, and what it answers with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HealthCheck {
    /// `spec.healthCheckNodePort`.
    pub port: NonZeroU16,
    /// Addresses of ready endpoints on this node, in each family of the Service.
    pub local_endpoints: BTreeMap<Family, usize>,
}

impl HealthCheck {
    /// The endpoints that a prober of `family` hears of: those of the other family, where the
    /// Service has no addresses of its own.
    pub fn count(&self, family: Family) -> usize {
        let count = self.local_endpoints.get(&family);
        count.or_else(|| self.local_endpoints.values().next()).copied().unwrap_or(0)
    }
}

/// The health check port that a Service has: only one that sends load balancers' clients to
/// endpoints of the node they came to.
pub(super) fn health_check(
    service: &Service,
    slices: &[&EndpointSlice],
    facts: &NodeFacts,
) -> Option<HealthCheck> {
    let is_wanted = service.service_type == ServiceType::LoadBalancer
        && service.external_policy == TrafficPolicy::Local;
    let port = service.health_check_node_port.filter(|_| is_wanted)?;
    let families: BTreeSet<Family> = service.cluster_ips.iter().map(|ip| Family::of(*ip)).collect();
    let count = |family| (family, local_endpoints(slices, family, facts));
    Some(HealthCheck { port, local_endpoints: families.into_iter().map(count).collect() })
}

/// One that ends is not ready, though it may serve: load balancers leave before traffic must.
fn local_endpoints(slices: &[&EndpointSlice], family: Family, facts: &NodeFacts) -> usize {
    let slices = slices.iter().filter(|slice| slice.family == family && !slice.ports.is_empty());
    let endpoints = slices.flat_map(|slice| &slice.endpoints);
    let local = endpoints.filter(|e| e.ready && e.node.as_ref() == Some(&facts.name));
    local.map(|endpoint| endpoint.address).collect::<BTreeSet<_>>().len()
}

/// Service ports that drop clients because the policy is Local and this node has no endpoint, in
/// one family or over both.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct NoLocalEndpoints {
    /// By `internalTrafficPolicy`.
    pub internal: usize,
    /// By `externalTrafficPolicy`.
    pub external: usize,
}

impl NoLocalEndpoints {
    /// Of one Service, in one family.
    pub(super) fn of(service: &ServiceTables, family: Family) -> Self {
        let drops = |port: &PortTables, is_cluster_ip: bool, flag| {
            let frontends =
                port.families.get(&family).into_iter().flat_map(|f| f.frontends.values());
            let mut kind =
                frontends.filter(|f| (f.kind == FrontendKind::CLUSTER_IP) == is_cluster_ip);
            kind.any(|frontend| frontend.flags.has(flag))
        };
        let count = |is_cluster_ip, flag| {
            service.ports.values().filter(|port| drops(port, is_cluster_ip, flag)).count()
        };
        Self {
            internal: count(true, FrontendFlags::DROP_INTERNAL),
            external: count(false, FrontendFlags::DROP_EXTERNAL),
        }
    }
}

impl AddAssign for NoLocalEndpoints {
    fn add_assign(&mut self, other: Self) {
        self.internal += other.internal;
        self.external += other.external;
    }
}

impl SubAssign for NoLocalEndpoints {
    fn sub_assign(&mut self, other: Self) {
        self.internal -= other.internal;
        self.external -= other.external;
    }
}

//! What the kernel should hold for a Service port, by address and name: no ids, no slots.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;
use lb_common::abi::{BackendFlags, FrontendFlags, FrontendKind};

use crate::model::{Family, Forwarding, ObjectName, Problem, Protocol};

use super::HealthCheck;

/// What the rules depend on besides the cluster's objects.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct NodeFacts {
    /// Name of this node, as endpoints say it.
    pub name: Arc<str>,
    /// Zone of this node (S2).
    pub zone: Option<Arc<str>>,
    /// Addresses of this node that `NodePort`s answer on (S8); 127.0.0.1 and `::1` for sockets of
    /// the host alone.
    pub node_port_addresses: BTreeSet<IpAddr>,
    /// Addresses that local devices hold: a cluster IP among them is left alone (S22).
    pub local_addresses: BTreeSet<IpAddr>,
    /// The node's own address of each family, towards other nodes.
    pub primary_addresses: BTreeSet<IpAddr>,
    /// Sources that are clients on this node, whatever device their packets come in by (S6).
    pub local_sources: BTreeSet<IpNet>,
    /// How packets of clients outside come to endpoints on other nodes, where a Service does not say.
    pub forwarding: Forwarding,
    /// Do backends see this node in place of all clients, but where policy Local keeps them?
    pub masquerade_all: bool,
}

/// Address, port and protocol of a frontend.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct FrontendAddress {
    /// Address.
    pub ip: IpAddr,
    /// Port, in host order.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

impl fmt::Display for FrontendAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", SocketAddr::new(self.ip, self.port), self.protocol)
    }
}

/// One port of one Service, among all of the cluster.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PortKey {
    /// The Service.
    pub service: ObjectName,
    /// Name of the port; empty for the only one.
    pub port: Arc<str>,
    /// Protocol of the port.
    pub protocol: Protocol,
}

/// Which list of endpoints a client is given one of (S1).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ListKind {
    /// Endpoints of the whole cluster, after topology.
    Cluster,
    /// Endpoints on this node.
    Local,
}

/// One endpoint of a Service port.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Backend {
    /// Local, serving, and the lists that hold it where the Service asks for affinity.
    pub flags: BackendFlags,
    /// Node it runs on, for people to read.
    pub node: Option<Arc<str>>,
    /// Pod behind it, for people to read.
    pub pod: Option<ObjectName>,
}

/// One address that a Service port answers on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Frontend {
    /// What kind of address it is.
    pub kind: FrontendKind,
    /// Refuse or drop, and for whom.
    pub flags: FrontendFlags,
    /// For clients on this node.
    pub internal: ListKind,
    /// For clients from outside.
    pub external: ListKind,
}

/// One Service port within one address family.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FamilyTables {
    /// All endpoints that flows may go to, new ones or known ones only.
    pub backends: BTreeMap<SocketAddr, Backend>,
    /// The Cluster list, in ascending order.
    pub cluster: Arc<[SocketAddr]>,
    /// The Local list, in ascending order.
    pub local: Arc<[SocketAddr]>,
    /// Its addresses.
    pub frontends: BTreeMap<FrontendAddress, Frontend>,
    /// Who may ask those of them that check it (S9).
    pub source_ranges: BTreeSet<IpNet>,
}

impl FamilyTables {
    /// The list of that kind.
    pub fn list(&self, kind: ListKind) -> &Arc<[SocketAddr]> {
        match kind {
            ListKind::Cluster => &self.cluster,
            ListKind::Local => &self.local,
        }
    }

    /// The lists that a frontend leads to and that are not empty; each content once.
    pub fn used_lists(&self) -> impl Iterator<Item = &Arc<[SocketAddr]>> {
        let uses = |kind| self.frontends.values().any(|f| f.internal == kind || f.external == kind);
        let cluster = uses(ListKind::Cluster) && !self.cluster.is_empty();
        let same = cluster && self.cluster == self.local;
        let local = uses(ListKind::Local) && !self.local.is_empty() && !same;
        cluster.then_some(&self.cluster).into_iter().chain(local.then_some(&self.local))
    }
}

/// One Service port.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PortTables {
    /// Affinity timeout in seconds; zero without affinity.
    pub affinity_timeout: u32,
    /// The families that it has addresses of.
    pub families: BTreeMap<Family, FamilyTables>,
    /// Cluster IPs that a local device holds (S22): nothing answers there, also for no other
    /// Service that asks for one.
    pub left_alone: BTreeSet<FrontendAddress>,
}

impl PortTables {
    /// All its endpoints.
    pub fn backends(&self) -> impl Iterator<Item = (&SocketAddr, &Backend)> {
        self.families.values().flat_map(|family| &family.backends)
    }

    /// The endpoint of that address.
    pub fn backend(&self, address: &SocketAddr) -> Option<&Backend> {
        self.families.get(&Family::of(address.ip()))?.backends.get(address)
    }

    /// All its frontends.
    pub fn frontends(&self) -> impl Iterator<Item = (&FrontendAddress, &Frontend)> {
        self.families.values().flat_map(|family| &family.frontends)
    }

    /// Who may ask its frontends that check it.
    pub fn source_ranges(&self) -> impl Iterator<Item = &IpNet> {
        self.families.values().flat_map(|family| &family.source_ranges)
    }

    /// The frontend of that address.
    pub fn frontend(&self, address: &FrontendAddress) -> Option<&Frontend> {
        self.families.get(&Family::of(address.ip))?.frontends.get(address)
    }

    /// The same with those endpoints alone that `keeps` names.
    #[must_use]
    pub fn reduced(&self, keeps: impl Fn(&SocketAddr) -> bool) -> Self {
        let mut rest = self.clone();
        for family in rest.families.values_mut() {
            family.backends.retain(|address, _| keeps(address));
            for list in [&mut family.cluster, &mut family.local] {
                *list = list.iter().copied().filter(&keeps).collect();
            }
        }
        rest
    }

    /// All lists that must be in the tables.
    pub fn used_lists(&self) -> impl Iterator<Item = &Arc<[SocketAddr]>> {
        self.families.values().flat_map(FamilyTables::used_lists)
    }
}

/// One Service: what it asks for, before clashes with other Services are settled.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ServiceTables {
    /// Creation time in seconds since the epoch.
    pub created: i64,
    /// Its ports.
    pub ports: BTreeMap<PortKey, Arc<PortTables>>,
    /// Its health check port, if it has one.
    pub health_check: Option<HealthCheck>,
    /// What is wrong with it by itself.
    pub problems: Vec<Problem>,
}

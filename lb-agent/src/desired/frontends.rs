//! The addresses of one Service port in one family, and what each does with a client (S5 to S8).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;
use lb_common::abi::{BackendFlags, FrontendFlags, FrontendKind};

use crate::model::{Family, Service, ServicePort, TrafficPolicy, is_routable};

use super::{
    Backend, FamilyTables, Frontend, FrontendAddress, ListKind, NodeFacts, endpoints::Candidates,
};

/// One Service port in one family, on its way to become [`FamilyTables`].
pub(super) struct Exposure<'a> {
    pub(super) service: &'a Service,
    pub(super) port: &'a ServicePort,
    pub(super) family: Family,
    pub(super) facts: &'a NodeFacts,
    /// Cluster IPs that are somebody else's on this node (S22).
    pub(super) left_alone: &'a BTreeSet<FrontendAddress>,
}

impl Exposure<'_> {
    /// Works out everything.
    pub(super) fn tables(&self, candidates: &Candidates<'_>) -> FamilyTables {
        let nothing = || Arc::<[SocketAddr]>::default();
        let cluster =
            if self.uses_cluster() { candidates.cluster_list(self.facts) } else { nothing() };
        let local = if self.uses_local() { candidates.local_list() } else { nothing() };
        // Of S5: with policy Local, an endpoint that is somewhere else makes refuse into drop.
        let local_drops = local.is_empty() && candidates.has_any();
        let frontends = self.frontends(local_drops);
        let source_ranges = self.source_ranges();
        let mut backends = candidates.backends();
        if self.service.affinity_timeout.is_some() {
            mark(&mut backends, &cluster, BackendFlags::AFFINE_CLUSTER);
            mark(&mut backends, &local, BackendFlags::AFFINE_LOCAL);
        }
        FamilyTables { backends, cluster, local, frontends, source_ranges }
    }

    /// Can clients from outside the cluster reach it (S1.1)?
    fn is_external(&self) -> bool {
        self.port.node_port.is_some()
            || self.load_balancer_ips().next().is_some()
            || self.of_family(&self.service.external_ips).next().is_some()
    }

    /// S1.2.
    fn uses_cluster(&self) -> bool {
        self.service.internal_policy != TrafficPolicy::Local || self.is_external()
    }

    /// S1.3.
    fn uses_local(&self) -> bool {
        self.service.internal_policy == TrafficPolicy::Local
            || (self.service.external_policy == TrafficPolicy::Local && self.is_external())
    }

    /// The first kind listed keeps an address that the Service has twice.
    fn frontends(&self, local_drops: bool) -> BTreeMap<FrontendAddress, Frontend> {
        let internal = list_of(self.service.internal_policy);
        let external = list_of(self.service.external_policy);
        let entry = |kind, internal, external, more| Frontend {
            kind,
            flags: flags(internal, external, local_drops).with(more),
            internal,
            external,
        };
        // S6.3, S6.4: clients on this node skip externalTrafficPolicy.
        let outside = self.outside_flags();
        let short_circuit =
            |kind, more| entry(kind, ListKind::Cluster, external, outside.with(more));
        let cluster_ip = entry(
            FrontendKind::CLUSTER_IP,
            internal,
            internal,
            self.masquerade().with(self.forwarding()),
        );
        let balancer = short_circuit(FrontendKind::LOAD_BALANCER, self.source_check());
        let external_ip = short_circuit(FrontendKind::EXTERNAL_IP, FrontendFlags::NONE);
        let node_port = short_circuit(FrontendKind::NODE_PORT, FrontendFlags::NONE);
        let loopback = short_circuit(FrontendKind::NODE_PORT, FrontendFlags::HOST_ONLY);
        let guard = short_circuit(FrontendKind::NODE_PORT, self.guard_flags());

        let mut frontends = BTreeMap::new();
        let mut add = |address, frontend| {
            if !self.left_alone.contains(&address) {
                frontends.entry(address).or_insert(frontend);
            }
        };
        self.at_port(&self.service.cluster_ips).for_each(|address| add(address, cluster_ip));
        self.load_balancer_ips().for_each(|address| add(address, balancer));
        self.at_port(&self.service.external_ips).for_each(|address| add(address, external_ip));
        self.node_ports().for_each(|address| add(address, node_port));
        self.loopback_node_port().into_iter().for_each(|address| add(address, loopback));
        self.guard().into_iter().for_each(|address| add(address, guard));
        frontends
    }

    fn load_balancer_ips(&self) -> impl Iterator<Item = FrontendAddress> {
        self.at_port(&self.service.load_balancer_ips)
    }

    fn masquerade(&self) -> FrontendFlags {
        if self.facts.masquerade_all { FrontendFlags::MASQUERADE } else { FrontendFlags::NONE }
    }

    /// Policy Local leads clients outside to endpoints of this node alone.
    fn forwarding(&self) -> FrontendFlags {
        let forwarding = self.service.forwarding.unwrap_or(self.facts.forwarding);
        let carries = forwarding.carries(self.port.protocol);
        if carries { FrontendFlags::DSR } else { FrontendFlags::NONE }
    }

    /// What addresses for clients outside the cluster have in common. Policy Local keeps clients'
    /// addresses (S6.2), and so asks who is local.
    fn outside_flags(&self) -> FrontendFlags {
        match self.service.external_policy {
            TrafficPolicy::Cluster => self.masquerade().with(self.forwarding()),
            TrafficPolicy::Local if self.facts.local_sources.is_empty() => FrontendFlags::NONE,
            TrafficPolicy::Local => FrontendFlags::LOCAL_BY_SOURCE,
        }
    }

    /// S9: ranges of the other family alone leave this one open, as kube-proxy does.
    fn source_check(&self) -> FrontendFlags {
        match self.asked_ranges().next() {
            Some(_) => FrontendFlags::CHECK_SOURCE,
            None => FrontendFlags::NONE,
        }
    }

    fn asked_ranges(&self) -> impl Iterator<Item = &IpNet> {
        self.service.source_ranges.iter().filter(|range| Family::of(range.addr()) == self.family)
    }

    /// Who may ask at load balancer addresses. Where this node may, so may these addresses: one that
    /// the node holds is the source of its own packets to it.
    fn source_ranges(&self) -> BTreeSet<IpNet> {
        let mut ranges: BTreeSet<IpNet> = self.asked_ranges().copied().collect();
        let vips: BTreeSet<IpNet> =
            self.load_balancer_ips().map(|address| IpNet::from(address.ip)).collect();
        let mut own = self.facts.primary_addresses.iter();
        if own.any(|ip| ranges.iter().any(|range| range.contains(ip))) {
            ranges.extend(&vips);
        }
        if vips.is_empty() { BTreeSet::new() } else { ranges }
    }

    fn at_port<'b>(
        &self,
        addresses: impl IntoIterator<Item = &'b IpAddr>,
    ) -> impl Iterator<Item = FrontendAddress> {
        self.of_family(addresses).map(|ip| self.address(ip, self.port.port.get()))
    }

    fn node_ports(&self) -> impl Iterator<Item = FrontendAddress> {
        let addresses = self.of_family(&self.facts.node_port_addresses);
        let routable = addresses.filter(|ip| is_routable(*ip));
        routable.filter_map(|ip| Some(self.address(ip, self.port.node_port?.get())))
    }

    fn loopback_node_port(&self) -> Option<FrontendAddress> {
        let ip: IpAddr = match self.family {
            Family::V4 => Ipv4Addr::LOCALHOST.into(),
            Family::V6 => Ipv6Addr::LOCALHOST.into(),
        };
        let node_port = self.port.node_port?.get();
        self.facts.node_port_addresses.contains(&ip).then(|| self.address(ip, node_port))
    }

    /// At the unspecified address, where this family answers on the node port at all: keeps
    /// processes of the host from binding the port.
    fn guard(&self) -> Option<FrontendAddress> {
        let any = match self.family {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        let answered = self.node_ports().chain(self.loopback_node_port()).next()?;
        Some(FrontendAddress { ip: any, ..answered })
    }

    /// `connect` to the unspecified address means loopback, which may have no node ports.
    fn guard_flags(&self) -> FrontendFlags {
        match self.loopback_node_port() {
            Some(_) => FrontendFlags::HOST_ONLY,
            None => FrontendFlags::HOST_ONLY.with(FrontendFlags::BIND_ONLY),
        }
    }

    fn of_family<'b>(
        &self,
        addresses: impl IntoIterator<Item = &'b IpAddr>,
    ) -> impl Iterator<Item = IpAddr> {
        let family = self.family;
        addresses.into_iter().copied().filter(move |ip| Family::of(*ip) == family)
    }

    fn address(&self, ip: IpAddr, port: u16) -> FrontendAddress {
        FrontendAddress { ip, port, protocol: self.port.protocol }
    }
}

/// S10: affinity holds only to backends of the list that a client chooses from.
fn mark(backends: &mut BTreeMap<SocketAddr, Backend>, list: &[SocketAddr], flag: BackendFlags) {
    for address in list {
        if let Some(backend) = backends.get_mut(address) {
            backend.flags = backend.flags.with(flag);
        }
    }
}

fn list_of(policy: TrafficPolicy) -> ListKind {
    match policy {
        TrafficPolicy::Cluster => ListKind::Cluster,
        TrafficPolicy::Local => ListKind::Local,
    }
}

fn flags(internal: ListKind, external: ListKind, local_drops: bool) -> FrontendFlags {
    let drop_if = |list, flag| {
        if local_drops && list == ListKind::Local { flag } else { FrontendFlags::NONE }
    };
    drop_if(internal, FrontendFlags::DROP_INTERNAL)
        .with(drop_if(external, FrontendFlags::DROP_EXTERNAL))
}

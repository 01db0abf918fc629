//! Writes the Services of cases as the agent writes those of a cluster.

use std::collections::BTreeSet;

use anyhow::Result;
use ipnet::IpNet;
use lb_agent::dataplane::{
    BackendEntry, BackendId, FrontendAddress, FrontendEntry, KernelTables, PerformError, ServiceId,
    Step, Tables as _,
};
use lb_agent::model::{Family, Protocol};
use lb_common::abi::{FrontendKind, L4Proto, LOCAL_SOURCES, Region};
use lb_ebpf::cases::{BackendSpec, FrontendSpec, Prefix, SERVICE as NUMBER};

const SERVICE: ServiceId = ServiceId(NUMBER);

/// The tables, and the first chunk that no region has.
pub(super) struct Filled {
    tables: KernelTables,
    next_chunk: u32,
}

impl Filled {
    pub(super) fn new(tables: KernelTables) -> Self {
        Self { tables, next_chunk: 0 }
    }

    pub(super) fn put_backend(
        &mut self,
        index: u32,
        backend: &BackendSpec,
    ) -> Result<(), PerformError> {
        let &BackendSpec { address, flags, generation } = backend;
        let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
        let id = BackendId { family, index };
        let entry = BackendEntry { address, flags, generation, service: SERVICE };
        let put = Step::PutBackend(id, entry);
        let step = if generation == 0 { Step::RemoveBackend(id) } else { put };
        self.tables.perform(&[step])
    }

    pub(super) fn put_frontend(&mut self, frontend: &FrontendSpec<'_>) -> Result<(), PerformError> {
        let address = FrontendAddress {
            ip: frontend.address.ip(),
            port: frontend.address.port(),
            protocol: match frontend.protocol {
                L4Proto::SCTP => Protocol::Sctp,
                L4Proto::TCP => Protocol::Tcp,
                _ => Protocol::Udp,
            },
        };
        let entry = FrontendEntry {
            service: SERVICE,
            kind: FrontendKind::CLUSTER_IP,
            flags: frontend.flags,
            affinity_timeout: frontend.affinity_timeout,
            internal: self.put_region(frontend.internal)?,
            external: self.put_region(frontend.external)?,
        };
        self.tables.perform(&[Step::PutFrontend(address, entry)])
    }

    /// Makes these the sources of a Service port, and no others.
    pub(super) fn set_sources(&mut self, service: u32, prefixes: &[Prefix]) -> Result<()> {
        let net = |&(ip, length): &Prefix| IpNet::new(ip, length).map(|net| net.trunc());
        let wanted = prefixes.iter().map(net).collect::<Result<BTreeSet<_>, _>>()?;
        if service == LOCAL_SOURCES {
            return Ok(self.tables.set_local_sources(&wanted)?);
        }
        let id = ServiceId(service);
        let ranges = self.tables.snapshot()?.source_ranges.into_iter();
        let held = ranges.filter(|(other, _)| *other == id).map(|(_, range)| range);
        let gone = held.filter(|range| !wanted.contains(range));
        let gone = gone.map(|range| Step::RemoveSourceRange(id, range));
        let puts = wanted.iter().map(|range| Step::PutSourceRange(id, *range));
        Ok(self.tables.perform(&gone.chain(puts).collect::<Vec<_>>())?)
    }

    /// Takes all of it away again.
    pub(super) fn clear(&mut self) -> Result<()> {
        let held = self.tables.snapshot()?;
        let frontends = held.frontends.into_keys().map(Step::RemoveFrontend);
        let backends = held.backends.into_keys().map(Step::RemoveBackend);
        let ranges = held.source_ranges.into_iter();
        let ranges = ranges.map(|(service, range)| Step::RemoveSourceRange(service, range));
        self.tables.perform(&frontends.chain(backends).chain(ranges).collect::<Vec<_>>())?;
        self.next_chunk = 0;
        Ok(self.tables.set_local_sources(&BTreeSet::new())?)
    }

    /// Writes the slots of at most one chunk.
    fn put_region(&mut self, ids: &[u32]) -> Result<Region, PerformError> {
        let length = u32::try_from(ids.len()).unwrap_or_default();
        if length == 0 {
            return Ok(Region::EMPTY);
        }
        let region = Region { first_chunk: self.next_chunk, length };
        self.next_chunk += 1;
        self.tables.perform(&[Step::PutRegion(region, ids.into())])?;
        Ok(region)
    }
}

//! The tries of source ranges: whom a Service port lets in, and which sources count as local.

use std::{collections::BTreeSet, net::IpAddr, path::Path};

use ipnet::IpNet;
use lb_common::abi::{Address, Ipv4, Ipv6, LOCAL_SOURCES, SourceRange, maps};

use super::{ServiceId, TableError, map::Map};

/// Where the local sources stand.
const LOCAL: ServiceId = ServiceId(LOCAL_SOURCES);

/// The tries of both families. What a range leads to says nothing.
pub(super) struct Sources {
    v4: Map<SourceRange<Ipv4>, u32>,
    v6: Map<SourceRange<Ipv6>, u32>,
}

impl Sources {
    pub(super) fn open(folder: &Path) -> Result<Self, TableError> {
        Ok(Self {
            v4: Map::open(folder, maps::SOURCE_RANGES_V4)?,
            v6: Map::open(folder, maps::SOURCE_RANGES_V6)?,
        })
    }

    pub(super) fn put(&self, id: ServiceId, range: &IpNet) -> Result<(), TableError> {
        match range {
            IpNet::V4(v4) => self.v4.put(&range_of(id, Ipv4::from(v4.addr()), range), &1),
            IpNet::V6(v6) => self.v6.put(&range_of(id, Ipv6::from(v6.addr()), range), &1),
        }
    }

    pub(super) fn remove(&self, id: ServiceId, range: &IpNet) -> Result<(), TableError> {
        match range {
            IpNet::V4(v4) => self.v4.remove(&range_of(id, Ipv4::from(v4.addr()), range)),
            IpNet::V6(v6) => self.v6.remove(&range_of(id, Ipv6::from(v6.addr()), range)),
        }
    }

    /// Reads the ranges of all Service ports.
    pub(super) fn of_services(&self) -> Result<BTreeSet<(ServiceId, IpNet)>, TableError> {
        let mut ranges = self.all()?;
        ranges.retain(|(id, _)| *id != LOCAL);
        Ok(ranges)
    }

    /// Makes these the local sources, and no others.
    pub(super) fn set_local(&self, wanted: &BTreeSet<IpNet>) -> Result<(), TableError> {
        let is_local = |(id, range): (ServiceId, IpNet)| (id == LOCAL).then_some(range);
        let held: BTreeSet<IpNet> = self.all()?.into_iter().filter_map(is_local).collect();
        wanted.difference(&held).try_for_each(|range| self.put(LOCAL, range))?;
        held.difference(wanted).try_for_each(|range| self.remove(LOCAL, range))
    }

    fn all(&self) -> Result<BTreeSet<(ServiceId, IpNet)>, TableError> {
        let mut all = ranges(&self.v4)?;
        all.append(&mut ranges(&self.v6)?);
        Ok(all)
    }
}

fn range_of<A: Address>(ServiceId(id): ServiceId, address: A, range: &IpNet) -> SourceRange<A> {
    SourceRange::new(id, address, range.prefix_len())
}

fn ranges<A: Address + Into<IpAddr>>(
    map: &Map<SourceRange<A>, u32>,
) -> Result<BTreeSet<(ServiceId, IpNet)>, TableError> {
    let read = |(range, _): (SourceRange<A>, u32)| {
        let net = IpNet::new(range.first.address.into(), range.length()?).ok()?;
        Some((ServiceId(range.first.service), net))
    };
    Ok(map.entries()?.into_iter().filter_map(read).collect())
}

//! The backends of one family, and those of this node by their addresses.
//!
//! What a carrier may name follows from the backends as they are written, so it is no matter of plans.
//! Programs look at the backend as well: an entry too many does no harm.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

use lb_common::abi::{Abi as _, Address, Backend, BackendFlags, Target};

use super::{
    BackendEntry, BackendId, ServiceId, Snapshot, TableError,
    map::Map,
    targets::{Changes, Targets},
};
use crate::model::Family;

/// The maps of one family.
pub(super) struct Backends<A> {
    by_id: Map<u32, Backend<A>>,
    targets: Map<Target<A>, u32>,
    /// What is in that map.
    held: Targets,
}

impl<A: Address + Into<IpAddr>> Backends<A> {
    /// Opens the maps of these names in a folder of pins.
    pub(super) fn open(
        folder: &Path,
        [backends, targets]: [&'static str; 2],
    ) -> Result<Self, TableError> {
        let (backends, targets) = (Map::open(folder, backends)?, Map::open(folder, targets)?);
        let mut held = Targets::default();
        for (_, id) in targets.entries()? {
            if let Some(backend) = backends.get(&id)?.filter(Backend::is_live) {
                held.put(id, &backend);
            }
        }
        Ok(Self { by_id: backends, targets, held })
    }

    /// Room for so many.
    pub(super) const fn capacity(&self) -> u32 {
        self.by_id.capacity()
    }

    /// Writes backends by id.
    pub(super) fn put_all(&mut self, entries: &[(u32, Backend<A>)]) -> Result<(), TableError> {
        let local = entries.iter().filter(|(_, backend)| backend.flags.has(BackendFlags::LOCAL));
        let held = &mut self.held;
        let targets: Vec<_> =
            local.flat_map(|(id, backend)| held.put(*id, backend).written).collect();
        self.targets.put_all(&targets).map_err(|(_, error)| error)?;
        self.by_id.put_all(entries).map_err(|(_, error)| error)
    }

    /// Clears a backend but for its generation, which the next use of the id goes on from.
    pub(super) fn retire(&mut self, id: u32) -> Result<(), TableError> {
        let Some(old) = self.by_id.get(&id)? else { return Ok(()) };
        self.by_id.put(&id, &Backend { generation: old.generation, ..Backend::zeroed() })?;
        let Changes { written, removed } = self.held.remove(id, &old);
        written.iter().try_for_each(|(target, id)| self.targets.put(target, id))?;
        removed.iter().try_for_each(|target| self.targets.remove(target))
    }

    /// Reads them all.
    pub(super) fn read(&self, snapshot: &mut Snapshot, family: Family) -> Result<(), TableError> {
        for (index, backend) in self.by_id.entries()? {
            let id = BackendId { family, index };
            if !backend.is_live() {
                if backend.generation != 0 {
                    snapshot.retired.insert(id, backend.generation);
                }
                continue;
            }
            let entry = BackendEntry {
                address: SocketAddr::new(backend.address.into(), backend.port.get()),
                flags: backend.flags,
                generation: backend.generation,
                service: ServiceId(backend.service),
            };
            snapshot.backends.insert(id, entry);
        }
        Ok(())
    }
}

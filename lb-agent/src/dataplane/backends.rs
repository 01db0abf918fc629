//! The backends of one family, and those of this node by their addresses.
//!
//! What a carrier may name follows from the backends as they are written, so it is no matter of plans.
//! Programs look at the backend as well: an entry too many does no harm.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

use lb_common::abi::{Abi as _, Address, Backend, BackendFlags, Target};

use super::{BackendEntry, BackendId, ServiceId, Snapshot, TableError, map::Map};
use crate::model::Family;

/// The maps of one family.
pub(super) struct Backends<A> {
    backends: Map<u32, Backend<A>>,
    targets: Map<Target<A>, u32>,
}

impl<A: Address + Into<IpAddr>> Backends<A> {
    /// Opens the maps of these names in a folder of pins.
    pub(super) fn open(
        folder: &Path,
        [backends, targets]: [&'static str; 2],
    ) -> Result<Self, TableError> {
        let (backends, targets) = (Map::open(folder, backends)?, Map::open(folder, targets)?);
        Ok(Self { backends, targets })
    }

    /// Room for so many.
    pub(super) const fn capacity(&self) -> u32 {
        self.backends.capacity()
    }

    /// Writes backends by id.
    pub(super) fn put_all(&self, entries: &[(u32, Backend<A>)]) -> Result<(), TableError> {
        let local = entries.iter().filter(|(_, backend)| backend.flags.has(BackendFlags::LOCAL));
        let targets: Vec<_> = local.map(|(id, backend)| (target(backend), *id)).collect();
        self.targets.put_all(&targets).map_err(|(_, error)| error)?;
        self.backends.put_all(entries).map_err(|(_, error)| error)
    }

    /// Clears a backend but for its generation, which the next use of the id goes on from.
    pub(super) fn retire(&self, id: u32) -> Result<(), TableError> {
        let Some(old) = self.backends.get(&id)? else { return Ok(()) };
        self.backends.put(&id, &Backend { generation: old.generation, ..Backend::zeroed() })?;
        // Another use of the address may have another id by now.
        if old.is_live() && self.targets.get(&target(&old))? == Some(id) {
            self.targets.remove(&target(&old))?;
        }
        Ok(())
    }

    /// Reads them all.
    pub(super) fn read(&self, snapshot: &mut Snapshot, family: Family) -> Result<(), TableError> {
        for (index, backend) in self.backends.entries()? {
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

fn target<A: Address>(backend: &Backend<A>) -> Target<A> {
    Target::new(backend.address, backend.port, backend.service)
}

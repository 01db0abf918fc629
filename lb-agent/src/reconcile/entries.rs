//! What a wanted frontend looks like in its table: ids and regions in place of names and lists.

use lb_common::abi::{FrontendFlags, Region};

use crate::{
    dataplane::{FrontendEntry, ServiceId},
    desired::{Frontend, ListKind, PortTables},
    model::Family,
};

use super::held::Held;

/// The entry of a frontend of a prepared Service port.
pub(super) fn frontend_entry(
    service: ServiceId,
    tables: &PortTables,
    frontend: Frontend,
    family: Family,
    held: &Held,
) -> FrontendEntry {
    let region = |kind: ListKind| {
        let list = tables.families.get(&family).map(|family| family.list(kind));
        list.and_then(|list| held.region(list)).map_or(Region::EMPTY, |held| held.region)
    };
    FrontendEntry {
        service,
        kind: frontend.kind,
        flags: frontend
            .flags
            .with(local(frontend.internal, FrontendFlags::INTERNAL_LOCAL))
            .with(local(frontend.external, FrontendFlags::EXTERNAL_LOCAL)),
        affinity_timeout: tables.affinity_timeout,
        internal: region(frontend.internal),
        external: region(frontend.external),
    }
}

/// The flag that says where a frontend leads to the Local list.
fn local(list: ListKind, flag: FrontendFlags) -> FrontendFlags {
    match list {
        ListKind::Cluster => FrontendFlags::NONE,
        ListKind::Local => flag,
    }
}

//! What the numbers in the tables stand for, for people to read.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use crate::{
    dataplane::{BackendId, ServiceId},
    desired::{PortKey, PortTables},
    model::ObjectName,
};

use super::held::Held;

/// The names behind one Service id.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServiceNames {
    /// The id.
    pub id: ServiceId,
    /// Service, port and protocol.
    pub port: PortKey,
    /// Its backends that are in the tables.
    pub backends: BTreeMap<BackendId, BackendName>,
}

/// The names behind one backend.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BackendName {
    /// Address and port.
    pub address: SocketAddr,
    /// Node it runs on.
    pub node: Option<Arc<str>>,
    /// Pod behind it.
    pub pod: Option<ObjectName>,
}

impl ServiceNames {
    pub(super) fn new(id: ServiceId, port: &PortKey, tables: &PortTables, held: &Held) -> Self {
        let written = held.backends.iter().filter(|(_, backend)| backend.written.is_some());
        let name = |address: &SocketAddr| {
            let backend = tables.backend(address);
            BackendName {
                address: *address,
                node: backend.and_then(|backend| backend.node.clone()),
                pod: backend.and_then(|backend| backend.pod.clone()),
            }
        };
        let backends = written.map(|(address, backend)| (backend.id, name(address)));
        Self { id, port: port.clone(), backends: backends.collect() }
    }
}

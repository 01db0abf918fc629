//! Node ports that a process of this node had before their Services: said, since what is bound
//! already is not taken away.

use std::collections::BTreeMap;

use super::problems::{Finder, Problems};
use crate::{
    desired::{Delta, PortKey, PortTables, problem_key},
    model::{Problem, Protocol},
    net,
};

/// The node ports that this node answers on.
#[derive(Default)]
pub(super) struct TakenPorts {
    ports: BTreeMap<PortKey, NodePort>,
}

#[derive(Clone, Copy, Eq, PartialEq)]
struct NodePort {
    port: (Protocol, u16),
    is_taken: bool,
}

impl TakenPorts {
    /// Looks once for who has the node ports that this change brings.
    pub(super) fn see(&mut self, delta: &Delta, problems: &mut Problems) {
        let mut new = BTreeMap::new();
        for (key, tables) in &delta.ports {
            let port = tables.as_deref().and_then(node_port);
            if port == self.ports.get(key).map(|known| known.port) {
                continue;
            }
            if self.ports.remove(key).is_some_and(|known| known.is_taken) {
                problems.set(Finder::Bound(key.clone()), None);
            }
            new.extend(port.map(|port| (key.clone(), port)));
        }
        self.look(new, problems);
    }

    /// Looks again at those that were taken.
    pub(super) fn look_again(&mut self, problems: &mut Problems) {
        let taken = self.ports.iter().filter(|(_, known)| known.is_taken);
        let taken = taken.map(|(key, known)| (key.clone(), known.port)).collect();
        self.look(taken, problems);
    }

    fn look(&mut self, ports: BTreeMap<PortKey, (Protocol, u16)>, problems: &mut Problems) {
        if ports.is_empty() {
            return;
        }
        let bound = net::bound_ports();
        for (key, port) in ports {
            let is_taken = bound.contains(&port);
            let was_taken = self.ports.get(&key).is_some_and(|known| known.is_taken);
            if is_taken || was_taken {
                let fault = is_taken.then(|| fault(&key, port));
                problems.set(Finder::Bound(key.clone()), fault);
            }
            self.ports.insert(key, NodePort { port, is_taken });
        }
    }
}

/// The node port of a Service port, if it answers here: that of its guard.
fn node_port(tables: &PortTables) -> Option<(Protocol, u16)> {
    let guard = tables.frontends().find(|(address, _)| address.ip.is_unspecified());
    guard.map(|(address, _)| (address.protocol, address.port))
}

fn fault(key: &PortKey, (protocol, port): (Protocol, u16)) -> Problem {
    Problem {
        key: problem_key(&key.service),
        field: "spec.ports".to_owned(),
        message: format!("node port {port}/{protocol} is used by a process of this node"),
        mend: "stop that process, or give one of them another port".to_owned(),
    }
}

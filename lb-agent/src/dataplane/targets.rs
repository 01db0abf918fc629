//! The backends of this node by their addresses: what a carrier may name.
//!
//! Of those that a Service port has at one address, which is hardly ever more than one, the lowest id is found
//! without a port, and the others with theirs. So each takes one entry, and a carrier that names no port leads
//! to the lowest.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use lb_common::abi::{Address, Backend, BePort, Target};

/// Which backends of a Service port there are at each address.
#[derive(Debug, Default)]
pub(super) struct Targets(HashMap<(IpAddr, u32), Ports>);

/// Ports by the ids of their backends.
type Ports = BTreeMap<u32, BePort>;

/// What becomes of the entries.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Changes<A> {
    /// To be written, in this order.
    pub(super) written: Vec<(Target<A>, u32)>,
    /// To be removed after that.
    pub(super) removed: Vec<Target<A>>,
}

impl Targets {
    /// Takes note of a backend.
    pub(super) fn put<A: Address + Into<IpAddr>>(
        &mut self,
        id: u32,
        backend: &Backend<A>,
    ) -> Changes<A> {
        self.change(backend, |ports| {
            ports.insert(id, backend.port);
        })
    }

    /// Forgets a backend.
    pub(super) fn remove<A: Address + Into<IpAddr>>(
        &mut self,
        id: u32,
        backend: &Backend<A>,
    ) -> Changes<A> {
        self.change(backend, |ports| {
            ports.remove(&id);
        })
    }

    fn change<A: Address + Into<IpAddr>>(
        &mut self,
        backend: &Backend<A>,
        change: impl FnOnce(&mut Ports),
    ) -> Changes<A> {
        let place = (backend.address.into(), backend.service);
        let ports = self.0.entry(place).or_default();
        let before = entries(ports);
        change(ports);
        let after = entries(ports);
        if ports.is_empty() {
            self.0.remove(&place);
        }
        let at = |port: u16| Target::new(backend.address, BePort(port), backend.service);
        // The lowest id comes last, so that no backend is without an entry for a moment.
        let written = after.iter().rev().filter(|(port, id)| before.get(port) != Some(id));
        let removed = before.keys().filter(|port| !after.contains_key(port));
        Changes {
            written: written.map(|(port, id)| (at(*port), *id)).collect(),
            removed: removed.map(|port| at(*port)).collect(),
        }
    }
}

/// The entries of the backends at one address: ids by ports.
fn entries(ports: &Ports) -> BTreeMap<u16, u32> {
    let places = ports.iter().enumerate();
    places.map(|(place, (id, port))| (if place == 0 { 0 } else { port.0 }, *id)).collect()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use lb_common::abi::{Abi as _, Ipv4};

    use super::*;

    fn backend(port: u16) -> Backend<Ipv4> {
        let address = Ipv4Addr::new(10, 248, 1, 21).into();
        Backend { address, port: BePort::new(port), service: 7, ..Backend::zeroed() }
    }

    fn target(port: u16) -> Target<Ipv4> {
        Target::new(backend(0).address, BePort::new(port), 7)
    }

    fn changes<const W: usize, const R: usize>(
        written: [(u16, u32); W],
        removed: [u16; R],
    ) -> Changes<Ipv4> {
        let written = written.map(|(port, id)| (target(port), id));
        Changes { written: written.into(), removed: removed.map(target).into() }
    }

    #[test]
    fn a_backend_has_one_entry_that_needs_no_port() {
        let mut targets = Targets::default();
        assert_eq!(targets.put(5, &backend(80)), changes([(0, 5)], []));
        assert_eq!(targets.put(5, &backend(80)), changes([], []), "once more");
        assert_eq!(targets.remove(4, &backend(80)), changes([], []), "another one");
        assert_eq!(targets.remove(5, &backend(80)), changes([], [0]));
        assert!(targets.0.is_empty());
    }

    #[test]
    fn of_several_ports_at_an_address_the_lowest_id_needs_none() {
        let mut targets = Targets::default();
        targets.put(5, &backend(80));
        assert_eq!(targets.put(7, &backend(90)), changes([(90, 7)], []));
        assert_eq!(targets.put(3, &backend(70)), changes([(80, 5), (0, 3)], []));
        assert_eq!(targets.remove(7, &backend(90)), changes([], [90]));
        assert_eq!(targets.remove(3, &backend(70)), changes([(0, 5)], [80]));
    }

    #[test]
    fn a_new_use_of_an_address_outlives_the_old_one() {
        let mut targets = Targets::default();
        targets.put(5, &backend(80));
        targets.put(6, &backend(80));
        assert_eq!(targets.put(7, &backend(80)), changes([(80, 7)], []));
        assert_eq!(targets.remove(6, &backend(80)), changes([], []));
        assert_eq!(targets.remove(5, &backend(80)), changes([(0, 7)], [80]));
    }
}

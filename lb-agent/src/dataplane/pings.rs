//! Which addresses answer to pings: those of frontends, but for the node's own.
//!
//! Follows from the frontends as they are written, so it is no matter of plans: an address answers
//! from its first frontend to its last.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::abi::{Abi as _, Address, Frontend, FrontendFlags, FrontendKey, FrontendKind};

use super::{FrontendAddress, FrontendEntry, Step, TableError, map::Map};

/// The addresses of frontends, and those among them whose answer is written.
#[derive(Default)]
pub(super) struct Pings {
    used: BTreeMap<IpAddr, BTreeSet<FrontendAddress>>,
    written: BTreeSet<IpAddr>,
    /// Those of which the two may differ.
    doubtful: BTreeSet<IpAddr>,
}

impl Pings {
    /// Forgets what it knows: the tables are about to be read.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Notes an address that the tables have an answer for.
    pub(super) fn found(&mut self, ip: IpAddr) {
        self.written.insert(ip);
        self.doubtful.insert(ip);
    }

    /// Notes a frontend that is in the tables, or is written.
    pub(super) fn put(&mut self, address: &FrontendAddress, entry: &FrontendEntry) {
        if !answers(address.ip, entry) {
            return self.remove(address);
        }
        let is_first = self.used.entry(address.ip).or_default().insert(*address);
        if is_first {
            self.doubtful.insert(address.ip);
        }
    }

    /// Notes that steps were performed.
    pub(super) fn follow(&mut self, steps: &[Step]) {
        for step in steps {
            match step {
                Step::PutFrontend(address, entry) => self.put(address, entry),
                Step::RemoveFrontend(address) => self.remove(address),
                _ => {}
            }
        }
    }

    /// Has `write` make the tables answer for an address, or not; one that fails is tried again
    /// with the next steps.
    pub(super) fn sync(&mut self, mut write: impl FnMut(IpAddr, bool) -> Result<(), TableError>) {
        for ip in std::mem::take(&mut self.doubtful) {
            let (is_used, is_written) = (self.used.contains_key(&ip), self.written.contains(&ip));
            if is_used == is_written {
                continue;
            }
            if write(ip, is_used).is_err() {
                self.doubtful.insert(ip);
            } else if is_used {
                self.written.insert(ip);
            } else {
                self.written.remove(&ip);
            }
        }
    }

    fn remove(&mut self, address: &FrontendAddress) {
        let Some(frontends) = self.used.get_mut(&address.ip) else { return };
        frontends.remove(address);
        if frontends.is_empty() {
            self.used.remove(&address.ip);
            self.doubtful.insert(address.ip);
        }
    }
}

/// Has an address answer to pings, or not.
pub(super) fn write<A: Address>(
    frontends: &Map<FrontendKey<A>, Frontend>,
    address: A,
    is_answered: bool,
) -> Result<(), TableError> {
    let key = FrontendKey::ping(address);
    if is_answered { frontends.put(&key, &Frontend::zeroed()) } else { frontends.remove(&key) }
}

/// Must packets to this frontend's address be answered here? The kernel answers for the addresses
/// of the node, which node ports and what is for the host alone are at.
fn answers(ip: IpAddr, entry: &FrontendEntry) -> bool {
    let is_of_node =
        entry.kind == FrontendKind::NODE_PORT || entry.flags.has(FrontendFlags::HOST_ONLY);
    !is_of_node && !ip.is_unspecified() && !ip.is_loopback()
}

#[cfg(test)]
mod tests {
    use lb_common::abi::Region;

    use super::*;
    use crate::{dataplane::ServiceId, model::Protocol};

    fn step(ip: &str, port: u16, kind: FrontendKind) -> Step {
        let address = FrontendAddress { ip: ip.parse().unwrap(), port, protocol: Protocol::Tcp };
        let entry = FrontendEntry {
            service: ServiceId(1),
            kind,
            flags: FrontendFlags::NONE,
            affinity_timeout: 0,
            internal: Region::EMPTY,
            external: Region::EMPTY,
        };
        Step::PutFrontend(address, entry)
    }

    fn removal(step: &Step) -> Step {
        let Step::PutFrontend(address, _) = step else { panic!("{step:?}") };
        Step::RemoveFrontend(*address)
    }

    /// What is written after some steps.
    fn written(pings: &mut Pings, steps: &[Step]) -> Vec<(String, bool)> {
        pings.follow(steps);
        let mut written = Vec::new();
        pings.sync(|ip, is_there| {
            written.push((ip.to_string(), is_there));
            Ok(())
        });
        written
    }

    #[test]
    fn an_address_answers_from_its_first_frontend_to_its_last() {
        let mut pings = Pings::default();
        let [http, https] = [80, 443].map(|port| step("10.96.0.1", port, FrontendKind::CLUSTER_IP));
        let there = ("10.96.0.1".to_owned(), true);
        assert_eq!(written(&mut pings, &[http.clone(), https.clone()]), [there]);
        assert_eq!(written(&mut pings, &[http.clone(), removal(&http)]), []);
        let gone = ("10.96.0.1".to_owned(), false);
        assert_eq!(written(&mut pings, &[removal(&https)]), [gone]);
    }

    #[test]
    fn addresses_of_the_node_are_left_to_the_kernel() {
        let mut pings = Pings::default();
        let steps =
            ["172.20.0.11", "0.0.0.0", "::"].map(|ip| step(ip, 30080, FrontendKind::NODE_PORT));
        assert_eq!(written(&mut pings, &steps), []);
    }

    #[test]
    fn what_is_in_the_tables_is_mended_and_what_fails_is_tried_again() {
        let mut pings = Pings::default();
        let Step::PutFrontend(address, entry) = step("fd00::1", 80, FrontendKind::CLUSTER_IP)
        else {
            unreachable!()
        };
        pings.found("10.96.0.9".parse().unwrap());
        pings.put(&address, &entry);
        let error = || TableError::System {
            map: "FRONTENDS_V6",
            operation: "put",
            source: std::io::Error::other("full"),
        };
        pings.sync(|ip, _| if ip.is_ipv6() { Err(error()) } else { Ok(()) });
        assert_eq!(written(&mut pings, &[]), [("fd00::1".to_owned(), true)]);
        assert_eq!(written(&mut pings, &[]), []);
    }
}

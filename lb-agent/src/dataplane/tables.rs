//! [`Tables`] on the pinned maps.

use std::{
    collections::{BTreeSet, btree_map::Entry},
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
};

use ipnet::IpNet;
use lb_common::abi::{Address, Backend, BePort, Frontend, FrontendKey, Ipv4, Ipv6, L4Proto, maps};

use super::{
    BackendEntry, FrontendAddress, FrontendEntry, PerformError, ServiceId, Snapshot, Step,
    TableError, Tables,
    backends::Backends,
    control::ControlMap,
    filter::{self, Writes},
    map::Map,
    pings::{self, Pings},
    slots::Slots,
    sources::Sources,
    sys,
};
use crate::model::{Family, Protocol};

/// The maps of one family.
struct FamilyMaps<A> {
    frontends: Map<FrontendKey<A>, Frontend>,
    backends: Backends<A>,
}

impl<A: Address + Into<IpAddr>> FamilyMaps<A> {
    fn put_frontends(
        &self,
        entries: &[(FrontendKey<A>, Frontend)],
    ) -> Result<(), (usize, TableError)> {
        self.frontends.put_all(entries)
    }

    fn read_frontends(&self, snapshot: &mut Snapshot, pings: &mut Pings) -> Result<(), TableError> {
        for (key, frontend) in self.frontends.entries()? {
            let (ip, port) = (key.address.into(), key.port.get());
            let Some(protocol) = protocol(key.protocol) else {
                pings.found(ip);
                continue;
            };
            let address = FrontendAddress { ip, port, protocol };
            let entry = from_frontend(&frontend);
            pings.put(&address, &entry);
            snapshot.frontends.insert(address, entry);
        }
        Ok(())
    }
}

/// The kernel's tables for Services, in pinned maps.
pub struct KernelTables {
    v4: FamilyMaps<Ipv4>,
    v6: FamilyMaps<Ipv6>,
    slots: Slots,
    sources: Sources,
    pings: Pings,
    control: ControlMap,
    writes: Arc<Writes>,
}

impl KernelTables {
    /// Opens the maps in a folder of pins.
    ///
    /// # Errors
    ///
    /// If one is not there or has another shape.
    pub fn open(folder: &Path) -> Result<Self, TableError> {
        Ok(Self {
            v4: FamilyMaps {
                frontends: Map::open(folder, maps::FRONTENDS_V4)?,
                backends: Backends::open(folder, [maps::BACKENDS_V4, maps::TARGETS_V4])?,
            },
            v6: FamilyMaps {
                frontends: Map::open(folder, maps::FRONTENDS_V6)?,
                backends: Backends::open(folder, [maps::BACKENDS_V6, maps::TARGETS_V6])?,
            },
            slots: Slots::open(folder)?,
            sources: Sources::open(folder)?,
            pings: Pings::default(),
            control: ControlMap::open(folder)?,
            writes: Arc::default(),
        })
    }

    /// Lets the maker of filters know what is written.
    pub(super) fn shared_with(self, writes: &Arc<Writes>) -> Self {
        Self { writes: Arc::clone(writes), ..self }
    }

    /// Makes these the sources that count as clients on this node, and no others.
    ///
    /// # Errors
    ///
    /// What the kernel says; what was written until then stays.
    pub fn set_local_sources(&self, sources: &BTreeSet<IpNet>) -> Result<(), TableError> {
        self.sources.set_local(sources)
    }

    /// Performs a run of steps of one kind; how many of them were done if one fails.
    fn perform_run(&mut self, run: &[Step]) -> Result<(), (usize, TableError)> {
        let writes = Arc::clone(&self.writes);
        let bits: Vec<u32> = run.iter().flat_map(bits).collect();
        let _writing = (!bits.is_empty()).then(|| writes.begin());
        for bit in bits {
            self.control.set(bit);
        }
        match &run[0] {
            Step::PutBackend(..) => self.put_backends(run),
            Step::PutFrontend(..) => self.put_frontends(run),
            Step::Settle => {
                sys::settle();
                Ok(())
            }
            Step::PutRegion(..) => self.put_regions(run),
            Step::PutSourceRange(..)
            | Step::RemoveBackend(_)
            | Step::RemoveFrontend(_)
            | Step::RemoveSourceRange(..) => {
                let mut steps = run.iter().enumerate();
                let performed = steps.try_for_each(|(done, step)| {
                    self.perform_one(step).map_err(|error| (done, error))
                });
                self.writes.removed();
                performed
            }
        }
    }

    /// Has the addresses of frontends answer to pings, after steps that were performed.
    fn answer_pings(&mut self, done: &[Step]) {
        let (v4, v6) = (&self.v4, &self.v6);
        self.pings.follow(done);
        self.pings.sync(|ip, is_answered| match ip {
            IpAddr::V4(ip) => pings::write::<Ipv4>(&v4.frontends, ip.into(), is_answered),
            IpAddr::V6(ip) => pings::write::<Ipv6>(&v6.frontends, ip.into(), is_answered),
        });
    }

    fn perform_one(&mut self, step: &Step) -> Result<(), TableError> {
        match step {
            Step::RemoveFrontend(address) => match address.ip {
                IpAddr::V4(ip) => self.v4.frontends.remove(&frontend_key(Ipv4::from(ip), address)),
                IpAddr::V6(ip) => self.v6.frontends.remove(&frontend_key(Ipv6::from(ip), address)),
            },
            Step::RemoveBackend(id) => match id.family {
                Family::V4 => self.v4.backends.retire(id.index),
                Family::V6 => self.v6.backends.retire(id.index),
            },
            Step::PutSourceRange(id, range) => self.sources.put(*id, range),
            Step::RemoveSourceRange(id, range) => self.sources.remove(*id, range),
            _ => Ok(()),
        }
    }

    fn put_regions(&mut self, run: &[Step]) -> Result<(), (usize, TableError)> {
        let regions = || {
            run.iter().filter_map(|step| match step {
                Step::PutRegion(region, slots) => Some((*region, slots)),
                _ => None,
            })
        };
        // A region whose array cannot be made is refused when it is put.
        self.slots.make_arrays(regions().map(|(region, _)| region)).map_err(|error| (0, error))?;
        for (done, (region, slots)) in regions().enumerate() {
            self.slots.put(region, slots).map_err(|error| (done, error))?;
        }
        Ok(())
    }

    fn put_backends(&mut self, run: &[Step]) -> Result<(), (usize, TableError)> {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for step in run {
            let Step::PutBackend(id, entry) = step else { continue };
            match entry.address.ip() {
                IpAddr::V4(ip) => v4.push((id.index, backend(Ipv4::from(ip), entry))),
                IpAddr::V6(ip) => v6.push((id.index, backend(Ipv6::from(ip), entry))),
            }
        }
        // Families may be mixed in a run: after a failure none of it counts as done. Writing an
        // entry twice does no harm.
        self.v4.backends.put_all(&v4).map_err(|error| (0, error))?;
        self.v6.backends.put_all(&v6).map_err(|error| (0, error))
    }

    fn put_frontends(&self, run: &[Step]) -> Result<(), (usize, TableError)> {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for step in run {
            let Step::PutFrontend(address, entry) = step else { continue };
            let value = to_frontend(entry);
            match address.ip {
                IpAddr::V4(ip) => v4.push((frontend_key(Ipv4::from(ip), address), value)),
                IpAddr::V6(ip) => v6.push((frontend_key(Ipv6::from(ip), address), value)),
            }
        }
        self.v4.put_frontends(&v4)?;
        self.v6.put_frontends(&v6).map_err(|(done, error)| (v4.len() + done, error))
    }
}

impl Tables for KernelTables {
    fn perform(&mut self, steps: &[Step]) -> Result<(), PerformError> {
        let mut done = 0;
        let result = steps.chunk_by(is_same_run).try_for_each(|run| {
            let result = self.perform_run(run);
            // Also of what was written before something failed.
            self.control.renew();
            done += result.as_ref().map_or_else(|(in_run, _)| *in_run, |()| run.len());
            result.map_err(|(_, source)| source)
        });
        self.answer_pings(&steps[..done]);
        result.map_err(|source| PerformError { done, source })
    }

    fn snapshot(&mut self) -> Result<Snapshot, TableError> {
        let source_ranges = self.sources.of_services()?;
        let mut snapshot = Snapshot { source_ranges, ..Snapshot::default() };
        self.pings.clear();
        self.v4.read_frontends(&mut snapshot, &mut self.pings)?;
        self.v6.read_frontends(&mut snapshot, &mut self.pings)?;
        self.v4.backends.read(&mut snapshot, Family::V4)?;
        self.v6.backends.read(&mut snapshot, Family::V6)?;
        // An agent that adopts the tables of another one has set none of their bits.
        snapshot.frontends.keys().for_each(|address| self.control.set(frontend_bit(address)));
        let backends = snapshot.backends.values().map(|entry| entry.address);
        backends.flat_map(filter::bits_of_backend).for_each(|bit| self.control.set(bit));
        let named = snapshot.frontends.values().flat_map(|entry| [entry.internal, entry.external]);
        for region in named.filter(|region| region.length > 0) {
            if let Entry::Vacant(place) = snapshot.regions.entry(region.first_chunk) {
                place.insert((region, self.slots.get(region)?));
            }
        }
        Ok(snapshot)
    }

    fn backend_capacity(&self, family: Family) -> u32 {
        match family {
            Family::V4 => self.v4.backends.capacity(),
            Family::V6 => self.v6.backends.capacity(),
        }
    }
}

/// Can two neighbouring steps be written by one system call? Frontends of one family only, so that
/// a failure says which of them was refused.
fn is_same_run(a: &Step, b: &Step) -> bool {
    match (a, b) {
        (Step::PutFrontend(a, _), Step::PutFrontend(b, _)) => a.ip.is_ipv4() == b.ip.is_ipv4(),
        _ => std::mem::discriminant(a) == std::mem::discriminant(b),
    }
}

/// The filter's bits for what a step writes.
fn bits(step: &Step) -> Vec<u32> {
    match step {
        Step::PutBackend(_, entry) => filter::bits_of_backend(entry.address).to_vec(),
        Step::PutFrontend(address, _) => vec![frontend_bit(address)],
        _ => Vec::new(),
    }
}

fn frontend_bit(address: &FrontendAddress) -> u32 {
    let socket = SocketAddr::new(address.ip, address.port);
    filter::bit_of_frontend(socket, proto(address.protocol))
}

fn frontend_key<A: Address>(ip: A, address: &FrontendAddress) -> FrontendKey<A> {
    FrontendKey::new(ip, BePort::new(address.port), proto(address.protocol))
}

fn backend<A>(ip: A, entry: &BackendEntry) -> Backend<A> {
    Backend {
        address: ip,
        port: BePort::new(entry.address.port()),
        flags: entry.flags,
        generation: entry.generation,
        service: entry.service.0,
    }
}

fn to_frontend(entry: &FrontendEntry) -> Frontend {
    Frontend {
        service: entry.service.0,
        flags: entry.flags,
        kind: entry.kind,
        affinity_timeout: entry.affinity_timeout,
        internal: entry.internal,
        external: entry.external,
    }
}

fn from_frontend(frontend: &Frontend) -> FrontendEntry {
    FrontendEntry {
        service: ServiceId(frontend.service),
        kind: frontend.kind,
        flags: frontend.flags,
        affinity_timeout: frontend.affinity_timeout,
        internal: frontend.internal,
        external: frontend.external,
    }
}

/// The number of a protocol.
const fn proto(protocol: Protocol) -> L4Proto {
    match protocol {
        Protocol::Sctp => L4Proto::SCTP,
        Protocol::Tcp => L4Proto::TCP,
        Protocol::Udp => L4Proto::UDP,
    }
}

fn protocol(number: L4Proto) -> Option<Protocol> {
    [Protocol::Sctp, Protocol::Tcp, Protocol::Udp].into_iter().find(|p| proto(*p) == number)
}

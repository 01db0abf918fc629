//! Makes the filter anew, without the bits of frontends and backends that nothing needs any more.
//!
//! The filter that does not count is emptied, gets the bits of all that the tables hold, then those of
//! all living flows, and counts from there on. A flow that begins meanwhile has the frontend and the
//! backend of an entry, whose bits are in both filters.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::BorrowedFd,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
};

use lb_common::{
    abi::{Address, Backend, BePort, Frontend, FrontendKey, Ipv4, Ipv6, L4Proto, maps},
    filter,
};

use super::{TableError, control::ControlMap, map::Map, mapped::Mapped, sys};

/// What the writers of tables and the maker of filters know of each other.
#[derive(Debug, Default)]
pub(super) struct Writes {
    /// Held from before an entry's bits are set until it is written: a filter that is emptied in
    /// between would be without them.
    writing: Mutex<()>,
    removed: AtomicBool,
}

impl Writes {
    /// Keeps the filter from being emptied.
    pub(super) fn begin(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that an entry was removed, whose bits may be of no use.
    pub(super) fn removed(&self) {
        self.removed.store(true, SeqCst);
    }
}

/// Tables of one family, to be read.
struct Ends<A> {
    frontends: Map<FrontendKey<A>, Frontend>,
    backends: Map<u32, Backend<A>>,
}

impl<A: Address> Ends<A> {
    fn open(folder: &Path, [frontends, backends]: [&'static str; 2]) -> Result<Self, TableError> {
        let frontends = Map::open(folder, frontends)?;
        Ok(Self { frontends, backends: Map::open(folder, backends)? })
    }

    fn set_bits(&self, control: &ControlMap) -> Result<(), TableError> {
        self.frontends.for_each(|key, _| {
            control.set(filter::frontend(&key.address, key.port, key.protocol));
        })?;
        self.backends.for_each(|_, backend| {
            if backend.is_live() {
                for bit in backend_bits(&backend.address, backend.port) {
                    control.set(bit);
                }
            }
        })
    }
}

/// Makes filters; walks over all flows in between are another's.
pub(super) struct FilterMaker {
    v4: Ends<Ipv4>,
    v6: Ends<Ipv6>,
    control: ControlMap,
    writes: Arc<Writes>,
    /// The ends of living flows, as walks note them.
    living: Mapped<filter::Words>,
}

impl FilterMaker {
    pub(super) fn open(
        folder: &Path,
        living: BorrowedFd<'_>,
        writes: Arc<Writes>,
    ) -> Result<Self, TableError> {
        let fail = |source| TableError::System { map: maps::LIVING, operation: "map", source };
        Ok(Self {
            v4: Ends::open(folder, [maps::FRONTENDS_V4, maps::BACKENDS_V4])?,
            v6: Ends::open(folder, [maps::FRONTENDS_V6, maps::BACKENDS_V6])?,
            control: ControlMap::open(folder)?,
            writes,
            living: Mapped::new(living).map_err(fail)?,
        })
    }

    /// Has anything been removed since the last filter was begun?
    pub(super) fn is_due(&self) -> bool {
        self.writes.removed.load(SeqCst)
    }

    /// Begins a filter with all that the tables hold.
    ///
    /// # Errors
    ///
    /// What the kernel says; the filter that counts stays as it is.
    pub(super) fn begin(&self) -> Result<(), TableError> {
        self.writes.removed.store(false, SeqCst);
        self.living_words().for_each(|(_, word)| word.store(0, SeqCst));
        let writing = self.writes.begin();
        self.control.begin_filter();
        drop(writing);
        let read = self.v4.set_bits(&self.control).and_then(|()| self.v6.set_bits(&self.control));
        // It is tried again.
        read.inspect_err(|_| self.writes.removed())?;
        // A packet on its way may begin a flow with what was just removed: let it end first.
        sys::settle();
        Ok(())
    }

    /// Makes the filter count that was begun, after walks over all flows.
    pub(super) fn end(&self) {
        for (number, word) in self.living_words() {
            if self.control.add_to_made(number, word.load(SeqCst)) {
                // A flow outlives its frontend or backend: another filter when it has ended.
                self.writes.removed();
            }
        }
        self.control.end_filter();
    }

    fn living_words(&self) -> impl Iterator<Item = (usize, &AtomicU64)> {
        (0..filter::WORDS).map(|number| (number, self.living.word(number * size_of::<u64>())))
    }
}

/// The bits of a backend: of any protocol, since it does not say its own.
pub(super) fn backend_bits<A: Address>(address: &A, port: BePort) -> [u32; 3] {
    [L4Proto::SCTP, L4Proto::TCP, L4Proto::UDP]
        .map(|protocol| filter::backend(address, port, protocol))
}

/// The bits of a backend at this address.
pub(super) fn bits_of_backend(address: SocketAddr) -> [u32; 3] {
    let port = BePort::new(address.port());
    match address.ip() {
        IpAddr::V4(ip) => backend_bits(&Ipv4::from(ip), port),
        IpAddr::V6(ip) => backend_bits(&Ipv6::from(ip), port),
    }
}

/// The bit of a frontend at this address.
pub(super) fn bit_of_frontend(address: SocketAddr, protocol: L4Proto) -> u32 {
    let port = BePort::new(address.port());
    match address.ip() {
        IpAddr::V4(ip) => filter::frontend(&Ipv4::from(ip), port, protocol),
        IpAddr::V6(ip) => filter::frontend(&Ipv6::from(ip), port, protocol),
    }
}

//! Walks over all sockets and flows: what leads to backends that no longer serve, and flows that are
//! silent for too long.
//!
//! Iterators of the kernel judge each where it is, so that nothing is copied of what stays. Not for:
//! closing sockets (`net`).

use std::{
    io::{self, Read as _},
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
};

use aya::{
    Btf, Ebpf,
    maps::{MapData, PerCpuArray},
    programs::{Program, ProgramError},
};
use lb_common::abi::{Abi, StaleSocket, Swept, maps};

use super::{
    KernelError, TableError,
    filter::{FilterMaker, Writes},
    load::load_and_pin,
    pins::Pins,
    presence::Marks,
    sizes::capacity,
    sys,
};
use crate::model::Family;

/// A program, and the kernel's name of what it visits.
type Iterator = (&'static str, &'static str);

const SOCKETS: Iterator = ("lb_stale_sockets", "bpf_sk_storage_map");
const FLOWS_V4: Iterator = ("lb_sweep_v4", "bpf_map_elem");
const FLOWS_V6: Iterator = ("lb_sweep_v6", "bpf_map_elem");
const HALF_OPEN_V4: Iterator = ("lb_half_open_v4", "bpf_map_elem");
const HALF_OPEN_V6: Iterator = ("lb_half_open_v6", "bpf_map_elem");

/// Finds sockets and forgets flows that lead to backends that no longer serve; forgets flows that
/// have been silent for too long.
pub struct StaleFinder {
    sockets: OwnedFd,
    v4: OwnedFd,
    v6: OwnedFd,
    half_open: HalfOpen,
    marks: Marks,
    counts: PerCpuArray<MapData, u64>,
    capacity: u64,
    filter: FilterMaker,
}

/// What walks over flows that are not proven.
struct HalfOpen {
    v4: OwnedFd,
    v6: OwnedFd,
    capacity: u64,
}

/// Loads the programs and aims each at its map.
pub(super) fn load(
    ebpf: &mut Ebpf,
    pins: &Pins,
    writes: &Arc<Writes>,
) -> Result<StaleFinder, KernelError> {
    let btf = Btf::from_sys_fs().map_err(|error| KernelError::Load(error.into()))?;
    let mut link = |iterator, map| aim(ebpf, &btf, pins, (iterator, map));
    Ok(StaleFinder {
        sockets: link(SOCKETS, maps::SOCKETS)?,
        v4: link(FLOWS_V4, maps::CONNTRACK_V4)?,
        v6: link(FLOWS_V6, maps::CONNTRACK_V6)?,
        half_open: HalfOpen {
            v4: link(HALF_OPEN_V4, maps::HALF_OPEN_V4)?,
            v6: link(HALF_OPEN_V6, maps::HALF_OPEN_V6)?,
            capacity: capacity(pins, maps::HALF_OPEN_V4)?.into(),
        },
        marks: Marks::open(&pins.maps)?,
        counts: counts(ebpf)?,
        capacity: capacity(pins, maps::CONNTRACK_V4)?.into(),
        filter: filter_maker(ebpf, pins, writes)?,
    })
}

/// Takes the counts of entries that the packet programs make and remove.
fn counts(ebpf: &mut Ebpf) -> Result<PerCpuArray<MapData, u64>, KernelError> {
    let map = ebpf.take_map(maps::TURNOVER).expect("invariant: the object holds each map");
    PerCpuArray::try_from(map).map_err(|error| KernelError::Load(error.into()))
}

fn filter_maker(
    ebpf: &Ebpf,
    pins: &Pins,
    writes: &Arc<Writes>,
) -> Result<FilterMaker, KernelError> {
    let Some(aya::maps::Map::Array(living)) = ebpf.map(maps::LIVING) else {
        unreachable!("invariant: the object holds each map")
    };
    Ok(FilterMaker::open(&pins.maps, living.fd().as_fd(), Arc::clone(writes))?)
}

fn aim(
    ebpf: &mut Ebpf,
    btf: &Btf,
    pins: &Pins,
    ((program, kind), map): (Iterator, &'static str),
) -> Result<OwnedFd, KernelError> {
    let load = |program: &mut Program| match program {
        Program::Iter(program) => program.load(kind, btf),
        _ => Err(ProgramError::UnexpectedProgramType),
    };
    let loaded = load_and_pin(ebpf, program, pins, load)?;
    let link = sys::obj_get(&pins.maps.join(map))
        .and_then(|map| sys::link_iterator(loaded.as_fd(), map.as_fd()));
    link.map_err(|source| KernelError::Attach { program, target: format!("map {map}"), source })
}

impl StaleFinder {
    /// Sockets that are connected to a backend that no longer serves.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn sockets(&self) -> io::Result<Vec<StaleSocket>> {
        visit(&self.sockets)
    }

    /// Room of each family's table.
    pub const fn capacity(&self) -> u64 {
        self.capacity
    }

    /// CPUs that the kernel may have.
    pub fn cpus(&self) -> u64 {
        sys::possible_cpus() as u64
    }

    /// Entries of a family that were made since this agent started, less those that were removed;
    /// what is more than that is there no longer was thrown out by a full table.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn added(&self, family: Family) -> Result<i64, TableError> {
        let first = if family == Family::V4 { 0 } else { 2 };
        let sum = |index| -> Result<i64, TableError> {
            let values = self.counts.get(&index, 0).map_err(|error| TableError::System {
                map: maps::TURNOVER,
                operation: "lookup",
                source: io::Error::other(error),
            })?;
            Ok(values.iter().sum::<u64>().cast_signed())
        };
        Ok(sum(first)? - sum(first + 1)?)
    }

    /// Does the filter have bits that may stand for nothing?
    pub fn is_filter_due(&self) -> bool {
        self.filter.is_due()
    }

    /// Begins a filter without such bits: each [`sweep`](Self::sweep) sets those of living flows in it.
    ///
    /// # Errors
    ///
    /// What the kernel says; the filter that counts stays as it is.
    pub fn begin_filter(&self) -> Result<(), TableError> {
        self.filter.begin()
    }

    /// Makes the filter count that was begun. Only after two walks over each family: a walk may miss a
    /// flow whose neighbour in the table is exchanged while it looks at that.
    pub fn end_filter(&self) {
        self.filter.end();
    }

    /// Is a flow known to have no entry by its mark alone? Not before there was a complete walk.
    pub fn are_marks_believed(&self) -> bool {
        self.marks.are_believed()
    }

    /// Begins a walk over all flows: [`sweep`](Self::sweep) and [`mark_half_open`](Self::mark_half_open) of each family.
    pub fn begin_walk(&self) {
        // A program that began in the round before must not write its mark over the walk's.
        sys::settle();
    }

    /// Ends a walk, which must have come by all flows: what it has not marked has no entry after a few more.
    pub fn end_walk(&self) {
        self.marks.end_walk();
    }

    /// Marks the flows of a family that are not proven; tells how many of them were seen in the last ten seconds,
    /// and for how many there is room.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn mark_half_open(&self, family: Family) -> Result<(u64, u64), TableError> {
        let (link, map) = match family {
            Family::V4 => (&self.half_open.v4, maps::HALF_OPEN_V4),
            Family::V6 => (&self.half_open.v6, maps::HALF_OPEN_V6),
        };
        Ok((walk(link, map)?.entries, self.half_open.capacity))
    }

    /// Forgets the UDP flows of a family whose backend no longer serves (S11), and all its flows that
    /// have been silent for too long; tells how many entries that were, two for most flows.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn sweep(&self, family: Family) -> Result<Swept, TableError> {
        let (link, map) = match family {
            Family::V4 => (&self.v4, maps::CONNTRACK_V4),
            Family::V6 => (&self.v6, maps::CONNTRACK_V6),
        };
        walk(link, map)
    }
}

/// Visits all flows of a table.
fn walk(link: &OwnedFd, map: &'static str) -> Result<Swept, TableError> {
    let fail = |source| TableError::System { map, operation: "visit", source };
    let swept = visit(link).map_err(fail)?;
    swept.last().copied().ok_or_else(|| fail(io::ErrorKind::UnexpectedEof.into()))
}

/// What a program writes when it visits all elements.
fn visit<T: Abi>(link: &OwnedFd) -> io::Result<Vec<T>> {
    let mut visits = sys::iterate(link.as_fd())?;
    let mut bytes = Vec::new();
    loop {
        match visits.read_to_end(&mut bytes) {
            Ok(_) => break,
            // A million elements without a word.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes.chunks_exact(size_of::<T>()).filter_map(T::from_bytes).collect())
}

//! What leads to backends that no longer serve: sockets for others to close, flows to forget.
//!
//! Iterators of the kernel compare every socket and every flow with the backend tables, so that
//! nothing is copied where nothing is stale. Not for: closing sockets (`net`).

use std::{
    io::{self, Read as _},
    os::fd::{AsFd as _, OwnedFd},
};

use aya::{
    Btf, Ebpf,
    programs::{Program, ProgramError},
};
use lb_common::abi::{Abi, Address, CtEntry, CtKey, Ipv4, Ipv6, StaleSocket, maps};

use super::{KernelError, TableError, load::load_and_pin, map::Map, pins::Pins, sys};
use crate::model::Family;

/// A program, and the kernel's name of what it visits.
type Iterator = (&'static str, &'static str);

const SOCKETS: Iterator = ("lb_stale_sockets", "bpf_sk_storage_map");
const FLOWS_V4: Iterator = ("lb_stale_flows_v4", "bpf_map_elem");
const FLOWS_V6: Iterator = ("lb_stale_flows_v6", "bpf_map_elem");

/// Finds what leads to backends that no longer serve.
#[derive(Debug)]
pub struct StaleFinder {
    sockets: OwnedFd,
    v4: Flows<Ipv4>,
    v6: Flows<Ipv6>,
}

/// The flows of one family.
#[derive(Debug)]
struct Flows<A> {
    link: OwnedFd,
    conntrack: Map<CtKey<A>, CtEntry<A>>,
}

/// Loads the programs and aims each at its map.
pub(super) fn load(ebpf: &mut Ebpf, pins: &Pins) -> Result<StaleFinder, KernelError> {
    let btf = Btf::from_sys_fs().map_err(|error| KernelError::Load(error.into()))?;
    let mut link = |iterator, map| aim(ebpf, &btf, pins, (iterator, map));
    Ok(StaleFinder {
        sockets: link(SOCKETS, maps::SOCKETS)?,
        v4: Flows {
            link: link(FLOWS_V4, maps::CONNTRACK_V4)?,
            conntrack: Map::open(&pins.maps, maps::CONNTRACK_V4)?,
        },
        v6: Flows {
            link: link(FLOWS_V6, maps::CONNTRACK_V6)?,
            conntrack: Map::open(&pins.maps, maps::CONNTRACK_V6)?,
        },
    })
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

    /// Forgets the UDP flows of a family whose backend no longer serves (S11), and tells how many
    /// entries that were: two for most flows.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn forget_flows(&self, family: Family) -> Result<u64, TableError> {
        match family {
            Family::V4 => self.v4.forget(maps::CONNTRACK_V4),
            Family::V6 => self.v6.forget(maps::CONNTRACK_V6),
        }
    }
}

impl<A: Address> Flows<A> {
    fn forget(&self, map: &'static str) -> Result<u64, TableError> {
        let fail = |source| TableError::System { map, operation: "visit", source };
        let flows: Vec<CtKey<A>> = visit(&self.link).map_err(fail)?;
        // A flow that has chosen again meanwhile chooses once more, and the same.
        flows.iter().try_for_each(|flow| self.conntrack.remove(flow))?;
        Ok(flows.len() as u64)
    }
}

/// What a program writes when it visits all elements.
fn visit<T: Abi>(link: &OwnedFd) -> io::Result<Vec<T>> {
    let mut bytes = Vec::new();
    sys::iterate(link.as_fd())?.read_to_end(&mut bytes)?;
    Ok(bytes.chunks_exact(size_of::<T>()).filter_map(T::from_bytes).collect())
}

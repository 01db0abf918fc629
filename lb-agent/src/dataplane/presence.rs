//! The generation of the marks that tell which flows may have an entry (`lb_common::presence`).
//!
//! It is raised after each complete walk, by who walks; programs mark with it, and believe marks by it.

use std::{path::Path, sync::atomic::Ordering::SeqCst};

use lb_common::{
    abi::{Presence, maps},
    presence,
};

use super::{TableError, map::Map, mapped::Mapped, sys};

/// The one element of `PRESENCE`, mapped.
pub(super) struct Marks(Mapped<Presence>);

impl Marks {
    pub(super) fn open(folder: &Path) -> Result<Self, TableError> {
        let map = Map::<u32, Presence>::open(folder, maps::PRESENCE)?;
        let fail = |source| TableError::System { map: maps::PRESENCE, operation: "map", source };
        Mapped::new(map.fd()).map(Self).map_err(fail)
    }

    /// Has there been a complete walk since the map was made? Until then no mark is believed.
    pub(super) fn are_believed(&self) -> bool {
        self.generation() != 0
    }

    /// Waits for programs that mark with the generation before: none may write over the marks of the walk that
    /// comes.
    pub(super) fn begin_walk(&self) {
        sys::settle();
    }

    /// Raises the generation: a walk has come by all entries there were.
    pub(super) fn end_walk(&self) {
        let next = presence::next(self.generation());
        self.0.half(std::mem::offset_of!(Presence, generation)).store(next, SeqCst);
    }

    fn generation(&self) -> u32 {
        self.0.half(std::mem::offset_of!(Presence, generation)).load(SeqCst)
    }
}

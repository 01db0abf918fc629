//! The round of the marks that tell which flows may have an entry (`lb_common::presence`).
//!
//! It is raised after each complete walk, by who walks; programs mark with it, and believe marks by it.

use std::{
    path::Path,
    sync::atomic::{AtomicU32, Ordering::SeqCst},
};

use lb_common::{
    abi::{Presence, maps},
    presence,
};

use super::{TableError, map::Map, mapped::Mapped};

/// The elements of `PRESENCE`, mapped.
pub(super) struct Marks(Mapped<[Presence; presence::TABLES]>);

impl Marks {
    pub(super) fn open(folder: &Path) -> Result<Self, TableError> {
        let map = Map::<u32, Presence>::open(folder, maps::PRESENCE)?;
        let fail = |source| TableError::System { map: maps::PRESENCE, operation: "map", source };
        Mapped::new(map.fd()).map(Self).map_err(fail)
    }

    /// Has there been a complete walk since the map was made? Until then no mark is believed.
    pub(super) fn are_believed(&self) -> bool {
        self.round_of(0).load(SeqCst) != 0
    }

    /// Raises the round: a walk has come by all entries there were.
    pub(super) fn end_walk(&self) {
        for table in 0..presence::TABLES {
            let round = self.round_of(table);
            round.store(presence::next(round.load(SeqCst)), SeqCst);
        }
    }

    fn round_of(&self, table: usize) -> &AtomicU32 {
        let at = table * size_of::<Presence>() + std::mem::offset_of!(Presence, round);
        self.0.half(at)
    }
}

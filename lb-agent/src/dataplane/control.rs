//! What all programs are told at once: which ends may be frontends or backends, and that what they
//! have cached is no longer true.
//!
//! A bit of the filter is set before the entry that it stands for is written, and outlives it:
//! connections go on with a backend that was removed.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
    sync::atomic::Ordering::{Relaxed, SeqCst},
};

use lb_common::{
    abi::{Control, maps},
    cache::FACTORS,
    filter,
};

use super::{TableError, map::Map, mapped::Mapped};

/// What packets of known flows are served from.
pub struct FlowCache(ControlMap);

impl FlowCache {
    pub(super) fn open(folder: &Path) -> Result<Self, TableError> {
        ControlMap::open(folder).map(Self)
    }

    /// Ends all that is cached: each flow's next packet asks again, also where to go.
    pub fn renew(&self) {
        self.0.renew();
    }
}

/// The one element of `CONTROL`, mapped.
pub(super) struct ControlMap(Mapped<Control>);

impl ControlMap {
    /// Maps it, and makes its random numbers if they are not there yet.
    pub(super) fn open(folder: &Path) -> Result<Self, TableError> {
        let map = Map::<u32, Control>::open(folder, maps::CONTROL)?;
        let fail = |source| TableError::System { map: maps::CONTROL, operation: "map", source };
        let mapped = Mapped::new(map.fd()).map_err(fail)?;
        for (number, random) in random().map_err(fail)?.into_iter().enumerate() {
            let at = std::mem::offset_of!(Control, factors) + number * size_of::<u64>();
            // What an earlier agent chose stays, and with it what is cached.
            let _ = mapped.word(at).compare_exchange(0, random | 1, SeqCst, Relaxed);
        }
        Ok(Self(mapped))
    }

    /// Ends all that the packet path has cached: what was written until now is asked for again.
    pub(super) fn renew(&self) {
        self.0.half(std::mem::offset_of!(Control, epoch)).fetch_add(1, SeqCst);
    }

    /// Sets a bit in the filters.
    pub(super) fn set(&self, bit: u32) {
        let (word, bit) = filter::place(bit);
        for half in 0..2 {
            let filters = std::mem::offset_of!(Control, filters);
            let word = self.0.word(filters + (half * filter::WORDS + word) * size_of::<u64>());
            if word.load(Relaxed) & bit == 0 {
                word.fetch_or(bit, SeqCst);
            }
        }
    }
}

fn random() -> io::Result<[u64; FACTORS]> {
    let mut bytes = [[0; size_of::<u64>()]; FACTORS];
    File::open("/dev/urandom")?.read_exact(bytes.as_flattened_mut())?;
    Ok(bytes.map(u64::from_ne_bytes))
}

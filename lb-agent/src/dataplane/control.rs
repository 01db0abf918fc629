//! What all programs are told at once: which ends may be frontends or backends, and that what they
//! have cached is no longer true.
//!
//! A bit of the filter is set before the entry that it stands for is written, and outlives it:
//! connections go on with a backend that was removed. `filter` makes a new one without bits that
//! stand for nothing.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
    sync::atomic::{
        AtomicU32, AtomicU64,
        Ordering::{Relaxed, SeqCst},
    },
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

    /// Which filter counts.
    fn counts(&self) -> &AtomicU32 {
        self.0.half(std::mem::offset_of!(Control, filter))
    }

    /// A word of one of the filters.
    fn filter_word(&self, filter: usize, word: usize) -> &AtomicU64 {
        let filters = std::mem::offset_of!(Control, filters);
        self.0.word(filters + (filter * filter::WORDS + word) * size_of::<u64>())
    }

    /// The filter that does not count.
    fn made(&self) -> usize {
        usize::from(self.counts().load(SeqCst) & 1 == 0)
    }

    /// Begins another filter: without a bit, and walks over all flows note their ends from here on.
    pub(super) fn begin_filter(&self) {
        let made = self.made();
        (0..filter::WORDS).for_each(|word| self.filter_word(made, word).store(0, SeqCst));
        self.counts().fetch_or(Control::MAKES_FILTER, SeqCst);
    }

    /// Sets the bits of a word in the filter that is being made; were any of them not set?
    pub(super) fn add_to_made(&self, word: usize, bits: u64) -> bool {
        let before = self.filter_word(self.made(), word).fetch_or(bits, SeqCst);
        bits & !before != 0
    }

    /// Makes the filter count that was begun.
    pub(super) fn end_filter(&self) {
        self.counts().store(u32::from(self.made() == 1), SeqCst);
    }

    /// Sets a bit in the filters.
    pub(super) fn set(&self, bit: u32) {
        let (word, bit) = filter::place(bit);
        for filter in 0..2 {
            let word = self.filter_word(filter, word);
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

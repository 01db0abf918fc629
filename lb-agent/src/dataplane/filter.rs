//! The filter of the packet path: which ends may be frontends or backends.
//!
//! A bit is set before the entry that it stands for is written, and outlives it: connections go on
//! with a backend that was removed.

use std::{collections::BTreeSet, path::Path};

use lb_common::{abi::maps, filter};

use super::{TableError, map::Map};

/// The filter, and a copy of it.
pub(super) struct Filter {
    words: Map<u32, u64>,
    copy: Vec<u64>,
}

impl Filter {
    pub(super) fn open(folder: &Path) -> Result<Self, TableError> {
        let words = Map::open(folder, maps::FILTER)?;
        let copy = words.entries()?.into_iter().map(|(_, word)| word).collect();
        Ok(Self { words, copy })
    }

    /// Sets bits; those that are set already cost nothing.
    pub(super) fn set(&mut self, bits: impl Iterator<Item = u32>) -> Result<(), TableError> {
        let mut changed = BTreeSet::new();
        for bit in bits {
            let (word, bit) = filter::place(bit);
            let Some(copy) = self.copy.get_mut(word as usize) else { continue };
            if *copy & bit == 0 {
                *copy |= bit;
                changed.insert(word);
            }
        }
        let entry = |word: u32| (word, self.copy[word as usize]);
        let entries: Vec<_> = changed.into_iter().map(entry).collect();
        if entries.is_empty() {
            return Ok(());
        }
        self.words.put_all(&entries).map_err(|(_, error)| {
            // What the kernel holds is not known: the next bit of any word is written again.
            for (word, _) in entries {
                self.copy[word as usize] = 0;
            }
            error
        })
    }
}

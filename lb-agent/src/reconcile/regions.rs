//! Room for Maglev tables in the slots: a buddy allocator over chunks.
//!
//! A region takes a power of two of chunks within one array, so a freed one always fits its like
//! again and neighbours join into larger ones.

use std::collections::BTreeSet;

use lb_common::abi::{CHUNKS_PER_ARRAY, MAX_CHUNK_ARRAYS, Region, SLOTS_PER_CHUNK};

/// Order of a whole array.
const TOP: usize = CHUNKS_PER_ARRAY.ilog2() as usize;

/// Which chunks are free.
#[derive(Debug)]
pub(super) struct Regions {
    /// First chunks of the free blocks of `1 << order` chunks.
    free: [BTreeSet<u32>; TOP + 1],
    /// Arrays from here on have never been touched.
    next_array: u32,
    used_chunks: u32,
}

impl Regions {
    /// Everything free.
    pub(super) fn new() -> Self {
        Self { free: Default::default(), next_array: 0, used_chunks: 0 }
    }

    /// A free region of `length` slots: the one with the lowest number of the tightest fit.
    pub(super) fn allocate(&mut self, length: u32) -> Option<Region> {
        let order = order(length);
        let from = match (order..=TOP).find(|order| !self.free[*order].is_empty()) {
            Some(from) => from,
            None => self.open_array()?,
        };
        let first_chunk = self.free[from].pop_first()?;
        self.split(first_chunk, from, order, first_chunk);
        self.used_chunks += 1 << order;
        Some(Region { first_chunk, length })
    }

    /// Takes a region that is in use already; `false` if any of it is taken or out of range.
    pub(super) fn reserve(&mut self, region: Region) -> bool {
        let (order, target) = (order(region.length), region.first_chunk);
        if target % (1 << order) != 0 {
            return false;
        }
        while self.next_array <= target / CHUNKS_PER_ARRAY && self.open_array().is_some() {}
        let holds = |from: &usize| self.free[*from].contains(&(target >> from << from));
        let Some(from) = (order..=TOP).find(holds) else {
            return false;
        };
        let block = target >> from << from;
        self.free[from].remove(&block);
        self.split(block, from, order, target);
        self.used_chunks += 1 << order;
        true
    }

    /// Makes a region free.
    pub(super) fn release(&mut self, region: Region) {
        let (mut order, mut block) = (order(region.length), region.first_chunk);
        self.used_chunks -= 1 << order;
        while order < TOP && self.free[order].remove(&(block ^ 1 << order)) {
            block &= !(1 << order);
            order += 1;
        }
        self.free[order].insert(block);
    }

    /// Chunks that regions take.
    pub(super) fn used_chunks(&self) -> u32 {
        self.used_chunks
    }

    fn open_array(&mut self) -> Option<usize> {
        if self.next_array == MAX_CHUNK_ARRAYS {
            return None;
        }
        self.free[TOP].insert(self.next_array * CHUNKS_PER_ARRAY);
        self.next_array += 1;
        Some(TOP)
    }

    /// Halves a block until one of size `to` is left at `target`; the other halves become free.
    fn split(&mut self, mut block: u32, from: usize, to: usize, target: u32) {
        for order in (to..from).rev() {
            let upper = block + (1 << order);
            let rest = if target < upper { upper } else { std::mem::replace(&mut block, upper) };
            self.free[order].insert(rest);
        }
    }
}

/// The order of the block that holds so many slots.
fn order(length: u32) -> usize {
    length.div_ceil(SLOTS_PER_CHUNK).max(1).next_power_of_two().ilog2() as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LENGTHS: [u32; 5] = [251, 509, 2039, 16381, 65521];

    fn chunks(region: Region) -> std::ops::Range<u32> {
        region.first_chunk..region.first_chunk + (1 << order(region.length))
    }

    #[test]
    fn a_region_takes_the_next_power_of_two_of_chunks() {
        assert_eq!(chunks(Region { first_chunk: 0, length: 251 }).len(), 16);
        assert_eq!(chunks(Region { first_chunk: 0, length: 65521 }).len(), 4096);
    }

    #[test]
    fn the_largest_regions_fill_the_space_exactly() {
        let mut regions = Regions::new();
        let all: Vec<Region> = std::iter::from_fn(|| regions.allocate(65521)).collect();
        assert_eq!(all.len(), MAX_CHUNK_ARRAYS as usize);
        assert_eq!(regions.allocate(251), None);
        for region in all {
            regions.release(region);
        }
        assert_eq!(regions.used_chunks(), 0);
    }

    #[test]
    fn a_region_that_overlaps_or_lies_outside_cannot_be_reserved() {
        let mut regions = Regions::new();
        let region = |first_chunk, length| Region { first_chunk, length };
        assert!(regions.reserve(region(4096 + 32, 251)));
        assert_eq!(regions.next_array, 2, "no more arrays than it takes");
        assert!(!regions.reserve(region(4096 + 32, 251)), "taken");
        assert!(!regions.reserve(region(4096, 65521)), "overlaps");
        assert!(!regions.reserve(region(8, 251)), "not where a block begins");
        assert!(!regions.reserve(region(CHUNKS_PER_ARRAY * MAX_CHUNK_ARRAYS, 251)), "outside");
        assert!(!regions.reserve(region(0, u32::MAX)), "larger than an array");
        assert!(regions.reserve(region(4096 + 48, 251)));
    }

    proptest! {
        #[test]
        fn regions_never_overlap_and_nothing_leaks(
            actions in prop::collection::vec((any::<bool>(), 0..5_usize, any::<prop::sample::Index>()), 1..80)
        ) {
            let (mut regions, mut live) = (Regions::new(), Vec::<Region>::new());
            for (allocates, size, which) in actions {
                if allocates || live.is_empty() {
                    let new = regions.allocate(LENGTHS[size]).unwrap();
                    for old in &live {
                        let (old, new) = (chunks(*old), chunks(new));
                        prop_assert!(old.end <= new.start || new.end <= old.start);
                    }
                    live.push(new);
                } else {
                    regions.release(live.swap_remove(which.index(live.len())));
                }
                let used: u32 = live.iter().map(|region| chunks(*region).end - region.first_chunk).sum();
                prop_assert_eq!(regions.used_chunks(), used);
            }
            let mut restored = Regions::new();
            for region in &live {
                prop_assert!(restored.reserve(*region));
            }
            for region in live {
                restored.release(region);
            }
            prop_assert_eq!(restored.free[TOP].len(), restored.next_array as usize);
        }
    }
}

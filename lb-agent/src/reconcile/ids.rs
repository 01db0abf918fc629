//! Numbers for Services and backends: which are free, and which use of a number it is.

use std::collections::{BTreeMap, VecDeque};

/// Freed numbers that rest before the first is used again, while fresh ones are left.
const RESTING: usize = 256;

/// Numbers `1..capacity`, each with a count of its uses.
///
/// Freed numbers are used again oldest first, so a number rests as long as possible.
#[derive(Debug)]
pub(super) struct Pool {
    capacity: u32,
    /// Never handed out from here on.
    next: u32,
    freed: VecDeque<u32>,
    generations: BTreeMap<u32, u32>,
    /// Generation of a number whose earlier uses are not known.
    first_generation: u32,
}

impl Pool {
    /// The numbers in `used` are taken, each with its generation.
    ///
    /// Nothing tells how often the others were used before: their generations begin above all
    /// that are seen.
    pub(super) fn restored(capacity: u32, mut used: BTreeMap<u32, u32>) -> Self {
        used.retain(|number, _| (1..capacity).contains(number));
        let next = used.last_key_value().map_or(1, |(last, _)| last + 1);
        Self {
            capacity,
            next,
            freed: (1..next).filter(|number| !used.contains_key(number)).collect(),
            first_generation: successor(used.values().max().copied().unwrap_or(0)),
            generations: used,
        }
    }

    /// Takes in what earlier uses of numbers were; what is known already counts.
    pub(super) fn remember(&mut self, earlier: impl IntoIterator<Item = (u32, u32)>) {
        for (number, generation) in earlier {
            self.generations.entry(number).or_insert(generation);
        }
    }

    /// The last use of each number that was ever used.
    pub(super) fn generations(&self) -> impl Iterator<Item = (u32, u32)> {
        self.generations.iter().map(|(number, generation)| (*number, *generation))
    }

    /// A free number and its new generation.
    pub(super) fn allocate(&mut self) -> Option<(u32, u32)> {
        let number = self.take_number()?;
        let first = self.first_generation;
        let generation = self
            .generations
            .entry(number)
            .and_modify(|generation| *generation = successor(*generation))
            .or_insert(first);
        Some((number, *generation))
    }

    /// Makes a number free. One out of range was found in the tables and is nobody's.
    pub(super) fn release(&mut self, number: u32) {
        if (1..self.capacity).contains(&number) {
            self.freed.push_back(number);
        }
    }

    /// How many numbers there are.
    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    fn take_number(&mut self) -> Option<u32> {
        let has_fresh = self.next < self.capacity;
        if self.freed.len() > RESTING || !has_fresh {
            return self.freed.pop_front();
        }
        self.next += 1;
        Some(self.next - 1)
    }
}

/// Zero means "never used".
fn successor(generation: u32) -> u32 {
    generation.checked_add(1).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_number_rests_while_others_are_there_and_comes_back_with_a_new_generation() {
        let mut pool = Pool::restored(4, BTreeMap::new());
        assert_eq!(pool.allocate(), Some((1, 1)));
        pool.release(1);
        assert_eq!(pool.allocate(), Some((2, 1)));
        pool.release(2);
        assert_eq!(pool.allocate(), Some((3, 1)));
        assert_eq!(pool.allocate(), Some((1, 2)), "the oldest of the freed ones");
        assert_eq!(pool.allocate(), Some((2, 2)));
        assert_eq!(pool.allocate(), None);
    }

    #[test]
    fn fresh_numbers_are_spared_once_enough_freed_ones_rest() {
        let resting = u32::try_from(RESTING).unwrap();
        let mut pool = Pool::restored(1000, (1..400).map(|number| (number, 1)).collect());
        (1..=resting).for_each(|number| pool.release(number));
        assert_eq!(pool.allocate(), Some((400, 2)), "fresh");
        pool.release(resting + 1);
        assert_eq!(pool.allocate(), Some((1, 2)), "the oldest of the freed ones");
        assert_eq!(pool.allocate(), Some((401, 2)), "fresh");
    }

    #[test]
    fn restored_numbers_keep_their_generation_and_unknown_ones_begin_above() {
        let mut pool = Pool::restored(6, BTreeMap::from([(2, 7), (4, 3)]));
        assert_eq!(pool.allocate(), Some((5, 8)));
        assert_eq!(pool.allocate(), Some((1, 8)));
        pool.release(4);
        assert_eq!(pool.allocate(), Some((3, 8)));
        assert_eq!(pool.allocate(), Some((4, 4)));
    }

    #[test]
    fn a_number_that_is_remembered_goes_on_from_there() {
        let mut pool = Pool::restored(3, BTreeMap::from([(1, 4)]));
        pool.remember([(1, 9), (2, 7)]);
        assert_eq!(pool.allocate(), Some((2, 8)));
        pool.release(1);
        assert_eq!(pool.allocate(), Some((1, 5)), "what is in use is known better");
    }

    #[test]
    fn a_generation_is_never_zero() {
        let mut pool = Pool::restored(3, BTreeMap::from([(1, u32::MAX), (2, u32::MAX)]));
        pool.release(1);
        assert_eq!(pool.allocate(), Some((1, 1)));
        assert_eq!(Pool::restored(3, BTreeMap::from([(1, u32::MAX)])).allocate(), Some((2, 1)));
    }
}

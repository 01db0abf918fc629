//! The Maglev tables: slots in chunks, in arrays that are made when first needed.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::AsRawFd,
    path::Path,
    sync::Arc,
};

use lb_common::abi::{
    Abi, CHUNKS_PER_ARRAY, Chunk, MAX_CHUNK_ARRAYS, Region, SLOTS_PER_CHUNK, maps,
};

use super::{TableError, map::Map, sys};

/// The Maglev tables: an array of arrays of chunks, the inner ones made when first needed.
pub(super) struct Slots {
    outer: Map<u32, u32>,
    inner: BTreeMap<u32, Map<u32, Chunk>>,
}

impl Slots {
    pub(super) fn open(folder: &Path) -> Result<Self, TableError> {
        Ok(Self { outer: Map::open(folder, maps::SLOTS)?, inner: BTreeMap::new() })
    }

    /// Makes the arrays that are missing for these regions, all by one write: the kernel ends each
    /// write to an array of arrays with a grace period.
    pub(super) fn make_arrays(
        &mut self,
        regions: impl Iterator<Item = Region>,
    ) -> Result<(), TableError> {
        let indices: BTreeSet<u32> = regions
            .map(|region| region.first_chunk / CHUNKS_PER_ARRAY)
            .filter(|index| *index < MAX_CHUNK_ARRAYS && !self.inner.contains_key(index))
            .collect();
        let mut made = BTreeMap::new();
        for index in indices {
            if self.outer.get(&index)?.is_none() {
                let fd = sys::create_array::<Chunk>("SLOTS.inner", CHUNKS_PER_ARRAY)
                    .map_err(fail("create"))?;
                made.insert(index, fd);
            }
        }
        if made.is_empty() {
            return Ok(());
        }
        let entries: Vec<(u32, u32)> =
            made.iter().map(|(index, fd)| (*index, fd.as_raw_fd().cast_unsigned())).collect();
        self.outer.put_all(&entries).map_err(|(_, error)| error)?;
        for (index, fd) in made {
            self.inner.insert(index, Map::from_fd(fd, maps::SLOTS)?);
        }
        Ok(())
    }

    pub(super) fn put(&mut self, region: Region, slots: &[u32]) -> Result<(), TableError> {
        let first = region.first_chunk % CHUNKS_PER_ARRAY;
        let chunks: Vec<(u32, Chunk)> = (first..)
            .zip(slots.chunks(SLOTS_PER_CHUNK as usize))
            .map(|(index, slots)| {
                let mut chunk = Chunk::zeroed();
                chunk[..slots.len()].copy_from_slice(slots);
                (index, chunk)
            })
            .collect();
        self.array(region)?.put_all(&chunks).map_err(|(_, error)| error)
    }

    pub(super) fn get(&mut self, region: Region) -> Result<Arc<[u32]>, TableError> {
        let first = region.first_chunk % CHUNKS_PER_ARRAY;
        let chunks = region.length.div_ceil(SLOTS_PER_CHUNK);
        let array = self.array(region)?;
        let mut slots = Vec::with_capacity((chunks * SLOTS_PER_CHUNK) as usize);
        for index in first..first + chunks {
            slots.extend(array.get(&index)?.unwrap_or_default());
        }
        slots.truncate(region.length as usize);
        Ok(slots.into())
    }

    fn array(&mut self, region: Region) -> Result<&Map<u32, Chunk>, TableError> {
        let index = region.first_chunk / CHUNKS_PER_ARRAY;
        if !self.inner.contains_key(&index) {
            let map = self.open_array(index)?;
            self.inner.insert(index, map);
        }
        Ok(&self.inner[&index])
    }

    fn open_array(&self, index: u32) -> Result<Map<u32, Chunk>, TableError> {
        if index >= MAX_CHUNK_ARRAYS {
            let capacity = MAX_CHUNK_ARRAYS * CHUNKS_PER_ARRAY;
            return Err(TableError::Full { map: maps::SLOTS, capacity, flag: "" });
        }
        let id = self.outer.get(&index)?;
        let id = id.ok_or_else(|| fail("lookup")(std::io::ErrorKind::NotFound.into()))?;
        Map::from_fd(sys::map_by_id(id).map_err(fail("open"))?, maps::SLOTS)
    }
}

/// Makes the error of an operation on the slots.
fn fail(operation: &'static str) -> impl Fn(std::io::Error) -> TableError {
    move |source| TableError::System { map: maps::SLOTS, operation, source }
}

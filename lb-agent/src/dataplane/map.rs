//! A pinned map with the types of its keys and values.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use lb_common::abi::Abi;

use super::{TableError, sys};

/// A map opened from its pin.
#[derive(Debug)]
pub(super) struct Map<K, V> {
    fd: OwnedFd,
    name: &'static str,
    capacity: u32,
    types: PhantomData<(K, V)>,
}

/// Entries that one batch reads.
const BATCH: u32 = 4096;

impl<K: Abi, V: Abi> Map<K, V> {
    /// Opens the map of that name in a folder of pins.
    ///
    /// # Errors
    ///
    /// If it is not there, or has keys or values of another size.
    pub(super) fn open(folder: &Path, name: &'static str) -> Result<Self, TableError> {
        let fail = |source| TableError::System { map: name, operation: "open", source };
        let fd = sys::obj_get(&folder.join(name)).map_err(fail)?;
        Self::from_fd(fd, name)
    }

    /// Takes over a descriptor.
    ///
    /// # Errors
    ///
    /// If the map has keys or values of another size.
    pub(super) fn from_fd(fd: OwnedFd, name: &'static str) -> Result<Self, TableError> {
        let fail = |source| TableError::System { map: name, operation: "open", source };
        let info = sys::map_info(fd.as_fd()).map_err(fail)?;
        if (info.key_size as usize, info.value_size as usize) != (size_of::<K>(), size_of::<V>()) {
            return Err(TableError::Shape { map: name });
        }
        Ok(Self { fd, name, capacity: info.max_entries, types: PhantomData })
    }

    /// Room for so many entries.
    pub(super) const fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Reads an entry.
    ///
    /// # Errors
    ///
    /// What the kernel says, but for "not there".
    pub(super) fn get(&self, key: &K) -> Result<Option<V>, TableError> {
        let mut bytes = vec![0; size_of::<V>().next_multiple_of(8)];
        let found = sys::lookup(self.fd(), key.as_bytes(), &mut bytes)
            .map_err(|source| self.error("lookup", source))?;
        Ok(found.then(|| V::from_bytes(&bytes[..size_of::<V>()])).flatten())
    }

    /// Writes an entry.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub(super) fn put(&self, key: &K, value: &V) -> Result<(), TableError> {
        sys::update(self.fd(), key.as_bytes(), value.as_bytes())
            .map_err(|source| self.error("update", source))
    }

    /// Writes entries in order; on an error says how many it wrote.
    ///
    /// # Errors
    ///
    /// The number of entries written, and what the kernel says.
    pub(super) fn put_all(&self, entries: &[(K, V)]) -> Result<(), (usize, TableError)> {
        let keys: Vec<u8> = entries.iter().flat_map(|(key, _)| key.as_bytes()).copied().collect();
        let values: Vec<u8> =
            entries.iter().flat_map(|(_, value)| value.as_bytes()).copied().collect();
        let count = u32::try_from(entries.len()).expect("invariant: a batch fits its counter");
        let (done, answer) = sys::update_batch(self.fd(), &keys, &values, count);
        answer.map_err(|source| (done as usize, self.error("update", source)))
    }

    /// Deletes an entry; one that is not there is no error.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub(super) fn remove(&self, key: &K) -> Result<(), TableError> {
        sys::delete(self.fd(), key.as_bytes())
            .map(drop)
            .map_err(|source| self.error("delete", source))
    }

    /// Reads all entries.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub(super) fn entries(&self) -> Result<Vec<(K, V)>, TableError> {
        let mut entries = Vec::new();
        let keep = |key, value| entries.push((key, value));
        self.read_batches(keep).map_err(|source| self.error("list", source))?;
        Ok(entries)
    }

    /// Shows each entry to `look`, a batch in memory at a time.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub(super) fn for_each(&self, look: impl FnMut(K, V)) -> Result<(), TableError> {
        self.read_batches(look).map_err(|source| self.error("list", source))
    }

    /// Counts the entries that `is_it` holds for, a batch in memory at a time.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub(super) fn count(&self, is_it: impl Fn(&V) -> bool) -> Result<u64, TableError> {
        let mut count = 0;
        self.for_each(|_, value| count += u64::from(is_it(&value)))?;
        Ok(count)
    }

    fn read_batches(&self, mut take: impl FnMut(K, V)) -> io::Result<()> {
        // Arrays and hashes keep their place in four bytes; others may need a whole key.
        let mut cursor = vec![0; size_of::<K>().max(8)];
        let mut batch = BATCH.min(self.capacity);
        let mut more = true;
        let mut is_first = true;
        while more {
            let mut keys = vec![0; batch as usize * size_of::<K>()];
            // The kernel pads each value to eight bytes in memory, but copies the plain size.
            let mut values = vec![0; batch as usize * size_of::<V>()];
            let place = (cursor.as_mut_slice(), is_first);
            let read = sys::lookup_batch(self.fd(), place, &mut keys, &mut values, batch);
            let count = match read {
                // A bucket holds more than the batch: ask for more at once.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    batch *= 2;
                    continue;
                }
                Err(error) => return Err(error),
                Ok((count, has_more)) => {
                    more = has_more;
                    count as usize
                }
            };
            is_first = false;
            let keys = keys.chunks_exact(size_of::<K>()).take(count).map(K::from_bytes);
            let values = values.chunks_exact(size_of::<V>()).take(count).map(V::from_bytes);
            for (key, value) in keys.zip(values).filter_map(|(key, value)| key.zip(value)) {
                take(key, value);
            }
        }
        Ok(())
    }

    /// The map itself.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn error(&self, operation: &'static str, source: io::Error) -> TableError {
        let is_full = matches!(source.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC));
        match super::size_flag(self.name) {
            Some(flag) if is_full => {
                TableError::Full { map: self.name, capacity: self.capacity, flag }
            }
            _ => TableError::System { map: self.name, operation, source },
        }
    }
}

//! A map's first element in this process's memory.
#![allow(unsafe_code, reason = "memory that the kernel shares")]

use std::{
    io,
    marker::PhantomData,
    num::NonZeroUsize,
    os::fd::BorrowedFd,
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64},
};

use lb_common::abi::Abi;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// The first element of an array that was made to be mapped (`BPF_F_MMAPABLE`).
pub(super) struct Mapped<T> {
    address: NonNull<libc::c_void>,
    types: PhantomData<T>,
}

// SAFETY: the memory stays mapped as long as the value lives, and is only used by atomic operations.
unsafe impl<T> Send for Mapped<T> {}

impl<T: Abi> Mapped<T> {
    const LENGTH: NonZeroUsize = NonZeroUsize::new(size_of::<T>()).expect("an element with bytes");

    /// Maps the element.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub(super) fn new(map: BorrowedFd<'_>) -> io::Result<Self> {
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let address =
            unsafe { mmap(None, Self::LENGTH, protection, MapFlags::MAP_SHARED, map, 0) }?;
        Ok(Self { address, types: PhantomData })
    }

    /// The eight bytes at an offset, which must be a multiple of eight.
    pub(super) fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= size_of::<T>(), "offset {offset}");
        // SAFETY: aligned and within the mapping, which lives as long as the reference.
        unsafe { self.address.byte_add(offset).cast().as_ref() }
    }

    /// The four bytes at an offset, which must be a multiple of four.
    pub(super) fn half(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= size_of::<T>(), "offset {offset}");
        // SAFETY: aligned and within the mapping, which lives as long as the reference.
        unsafe { self.address.byte_add(offset).cast().as_ref() }
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and nothing refers to it any more.
        let unmapped = unsafe { munmap(self.address, size_of::<T>()) };
        debug_assert!(unmapped.is_ok(), "a mapping of our own");
    }
}

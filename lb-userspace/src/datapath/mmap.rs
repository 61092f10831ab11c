//! Map memory shared with the packet path.
//!
//! Everything is read and written as whole aligned 64-bit words: on every architecture with a BPF JIT such an access is one
//! load or store, and so are the packet path's. A field smaller than a word changes together with its word's neighbours;
//! where the packet path writes one of them, only compare-and-swap may be used on the word.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use bytemuck::Pod;

/// Bytes in a word.
const WORD: usize = 8;

/// An array map of `T` rows in this process's memory, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Mapped<T> {
    words: NonNull<AtomicU64>,
    rows: u32,
    row: PhantomData<T>,
}

// SAFETY: the memory is only reached through atomics, and stays mapped wherever the owner is moved to.
unsafe impl<T> Send for Mapped<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Mapped<T> {}

impl<T: Pod> Mapped<T> {
    const ROW_WORDS: usize = {
        assert!(size_of::<T>().is_multiple_of(WORD) && align_of::<T>() >= WORD, "rows are made of whole words");
        size_of::<T>() / WORD
    };

    /// Maps all `rows` rows of an array map with `BPF_F_MMAPABLE` whose values are `T`.
    pub(crate) fn new(map: BorrowedFd<'_>, rows: u32) -> io::Result<Self> {
        let bytes = Self::bytes(rows).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: a new mapping wherever the kernel likes touches no memory of ours. The kernel refuses a length beyond
        // the map's (`remap_vmalloc_range`), so the mapping is backed all through.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let words = NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { words, rows, row: PhantomData })
    }

    fn bytes(rows: u32) -> Option<usize> {
        (rows as usize).checked_mul(size_of::<T>()).filter(|&bytes| bytes > 0)
    }

    /// How many rows there are.
    pub(crate) fn rows(&self) -> u32 {
        self.rows
    }

    /// All words of all rows.
    #[inline]
    pub(crate) fn words(&self) -> &[AtomicU64] {
        // SAFETY: `new` mapped this many words, readable, writable and page-aligned, until drop; others (the kernel)
        // change them only as an atomic in another process would.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), self.rows as usize * Self::ROW_WORDS) }
    }

    /// The words of one row.
    #[inline]
    pub(crate) fn row(&self, index: u32) -> Option<&[AtomicU64]> {
        let start = index as usize * Self::ROW_WORDS;
        self.words().get(start..start + Self::ROW_WORDS)
    }

    /// A copy of a row: each word whole, but not all of one moment.
    pub(crate) fn read(&self, index: u32) -> Option<T> {
        let row = self.row(index)?;
        let mut value = T::zeroed();
        let words: &mut [u64] = bytemuck::cast_slice_mut(std::slice::from_mut(&mut value));
        for (to, from) in words.iter_mut().zip(row) {
            *to = from.load(Ordering::Relaxed);
        }
        Some(value)
    }

    /// Stores the words of `value` that differ, the first word last, so that whoever sees the new first word sees all of
    /// the row. False if there is no such row.
    pub(crate) fn write(&self, index: u32, value: &T) -> bool {
        let Some(row) = self.row(index) else { return false };
        let words: &[u64] = bytemuck::cast_slice(std::slice::from_ref(value));
        for (to, &word) in row.iter().zip(words).rev() {
            if to.load(Ordering::Relaxed) != word {
                to.store(word, Ordering::Release);
            }
        }
        true
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        let bytes = self.rows as usize * size_of::<T>();
        // SAFETY: exactly the mapping that `new` made; no reference into it outlives `self`.
        unsafe { libc::munmap(self.words.as_ptr().cast(), bytes) };
    }
}

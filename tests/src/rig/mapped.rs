//! An array map seen as memory.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd, AsRawFd as _},
    ptr::{self, NonNull},
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Map, MapData};
use bytemuck::Pod;

/// All rows of a `BPF_F_MMAPABLE` array, mapped into this process.
///
/// Every access is a volatile read or write of a whole row: the program may run meanwhile on another CPU, and what the
/// rig wants to be atomic it keeps within one word.
#[derive(Debug)]
pub struct Mapped<T> {
    base: NonNull<T>,
    rows: u32,
    bytes: usize,
    _rows: PhantomData<T>,
}

// SAFETY: the memory is shared with the kernel in any case, and the accesses do not depend on the thread.
unsafe impl<T: Send> Send for Mapped<T> {}
// SAFETY: as above; rows are plain data.
unsafe impl<T: Sync> Sync for Mapped<T> {}

impl<T: Pod> Mapped<T> {
    /// Maps the array called `name`; its rows must be as large as a `T`.
    pub fn of(map: &Map, name: &str) -> Result<Self> {
        let Map::Array(data) = map else { anyhow::bail!("{name} is not an array") };
        Self::new(data).with_context(|| format!("map {name} into memory"))
    }

    /// Maps an array.
    pub fn new(data: &MapData) -> Result<Self> {
        let info = data.info()?;
        ensure!(
            info.value_size() as usize == size_of::<T>() && size_of::<T>().is_multiple_of(8),
            "rows of {} bytes, {} expected",
            info.value_size(),
            size_of::<T>()
        );
        let rows = info.max_entries();
        let bytes = (rows as usize * size_of::<T>()).next_multiple_of(4096);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(ptr::null_mut(), bytes, protection, libc::MAP_SHARED, data.fd().as_fd().as_raw_fd(), 0)
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error().into());
        }
        let base = NonNull::new(base.cast()).context("mapped at null")?;
        Ok(Self { base, rows, bytes, _rows: PhantomData })
    }

    /// How many rows there are.
    pub fn rows(&self) -> u32 {
        self.rows
    }

    fn at(&self, row: u32) -> *mut T {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: within the mapping, by the line above.
        unsafe { self.base.as_ptr().add(row as usize) }
    }

    /// A copy of a row.
    pub fn get(&self, row: u32) -> T {
        // SAFETY: a mapped row; any bytes are a `T`.
        unsafe { ptr::read_volatile(self.at(row)) }
    }

    /// Stores a row.
    pub fn set(&self, row: u32, value: T) {
        // SAFETY: as for `get`.
        unsafe { ptr::write_volatile(self.at(row), value) }
    }

    /// Changes a row; not atomic.
    pub fn change(&self, row: u32, change: impl FnOnce(&mut T)) {
        let mut value = self.get(row);
        change(&mut value);
        self.set(row, value);
    }

    /// All rows, copied one after the other.
    pub fn iter(&self) -> impl Iterator<Item = T> {
        (0..self.rows).map(|row| self.get(row))
    }

    /// Zeroes all rows; the program must not run meanwhile.
    pub fn clear(&self) {
        // SAFETY: the whole mapping is ours to write, and all zeroes is a `T`.
        unsafe { ptr::write_bytes(self.base.as_ptr().cast::<u8>(), 0, self.bytes) }
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length, and no reference into it outlives a call.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

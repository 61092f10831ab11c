//! Maps on memory that somebody else provides.
//!
//! A map's static has the map's name as its symbol, as in the object; whoever fills the maps reaches it by that name and
//! as one of the untyped structures here, which the typed maps are made of and nothing else.

use std::{
    borrow::Borrow,
    collections::BTreeMap,
    marker::PhantomData,
    ptr::null_mut,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicPtr, AtomicU32, Ordering::Relaxed},
    },
};

/// An array's memory.
#[repr(C)]
#[derive(Debug)]
pub struct Rows {
    base: AtomicPtr<u8>,
    rows: AtomicU32,
}

impl Rows {
    const fn none() -> Self {
        Self { base: AtomicPtr::new(null_mut()), rows: AtomicU32::new(0) }
    }

    /// Puts memory behind the array.
    ///
    /// # Safety
    ///
    /// `base` points at `rows` rows of the array's type, aligned for it, which nobody else touches while the program runs, and
    /// which live until other memory is bound.
    pub unsafe fn bind(&self, base: *mut u8, rows: u32) {
        self.base.store(base, Relaxed);
        self.rows.store(rows, Relaxed);
    }

    fn at<T>(&self, index: u32) -> Option<*mut T> {
        if index >= self.rows.load(Relaxed) {
            return None;
        }
        // SAFETY: within the memory that `bind` was given.
        Some(unsafe { self.base.load(Relaxed).cast::<T>().add(index as usize) })
    }
}

/// `BPF_MAP_TYPE_ARRAY`.
#[repr(transparent)]
#[derive(Debug)]
pub struct Array<T, const MAX_ENTRIES: usize, const FLAGS: usize = 0> {
    rows: Rows,
    value: PhantomData<fn() -> T>,
}

impl<T, const N: usize, const F: usize> Array<T, N, F> {
    /// One without memory.
    #[expect(clippy::new_without_default, reason = "made as a static, as aya-ebpf's is")]
    pub const fn new() -> Self {
        Self { rows: Rows::none(), value: PhantomData }
    }

    /// A row.
    pub fn get(&self, index: u32) -> Option<&T> {
        // SAFETY: a row of bound memory, which nobody else changes while the program runs.
        self.rows.at(index).map(|row| unsafe { &*row })
    }

    /// A row to write to.
    pub fn get_ptr_mut(&self, index: u32) -> Option<*mut T> {
        self.rows.at(index)
    }
}

/// `BPF_MAP_TYPE_PERCPU_ARRAY`, of one row; its memory comes from the heap by itself.
#[derive(Debug)]
pub struct PerCpuArray<T, const MAX_ENTRIES: usize> {
    row: AtomicPtr<T>,
}

impl<T, const N: usize> PerCpuArray<T, N> {
    /// One without memory.
    #[expect(clippy::new_without_default, reason = "made as a static, as aya-ebpf's is")]
    pub const fn new() -> Self {
        Self { row: AtomicPtr::new(null_mut()) }
    }

    /// The row.
    pub fn get_ptr_mut(&self, index: u32) -> Option<*mut T> {
        if index != 0 {
            return None;
        }
        if self.row.load(Relaxed).is_null() {
            // Zeroes, as the kernel's are: the rows' types are plain data. Never freed, like a static.
            // SAFETY: the layout is not empty.
            let row = unsafe { std::alloc::alloc_zeroed(std::alloc::Layout::new::<T>()) };
            self.row.store(row.cast(), Relaxed);
        }
        Some(self.row.load(Relaxed))
    }
}

/// A hash map's entries: bytes of the key to words of the value.
#[derive(Debug)]
pub struct Entries(Mutex<BTreeMap<Vec<u8>, Box<[u64]>>>);

impl Entries {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Vec<u8>, Box<[u64]>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Empties the map.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// Puts an entry there, both sides as the bytes that they have in memory.
    pub fn put(&self, key: &[u8], value: &[u64]) {
        self.lock().insert(key.to_vec(), value.into());
    }
}

/// `BPF_MAP_TYPE_HASH` and `BPF_MAP_TYPE_LRU_HASH`: nothing is ever displaced.
#[repr(transparent)]
#[derive(Debug)]
pub struct HashMap<K, V, const MAX_ENTRIES: usize> {
    entries: Entries,
    kind: PhantomData<fn() -> (K, V)>,
}

/// The bytes of a key or value.
fn bytes<T>(of: &T) -> &[u8] {
    // SAFETY: keys and values of maps are plain data without padding (`lb_common`'s invariant, held by bytemuck).
    unsafe { std::slice::from_raw_parts((&raw const *of).cast(), size_of::<T>()) }
}

impl<K, V, const N: usize> HashMap<K, V, N> {
    /// An empty one.
    #[expect(clippy::new_without_default, reason = "made as a static, as aya-ebpf's is")]
    pub const fn new() -> Self {
        Self { entries: Entries(Mutex::new(BTreeMap::new())), kind: PhantomData }
    }

    /// The value of a key.
    ///
    /// # Safety
    ///
    /// The value is not used after the map has changed.
    pub unsafe fn get(&self, key: impl Borrow<K>) -> Option<&V> {
        let at = self.entries.lock().get(bytes(key.borrow()))?.as_ptr();
        // SAFETY: as many words as a value has, by `insert` and `put`; the caller's promise for how long.
        Some(unsafe { &*at.cast() })
    }

    /// Sets the value of a key.
    pub fn insert(&self, key: impl Borrow<K>, value: impl Borrow<V>, _flags: u64) -> Result<(), i32> {
        let value = bytes(value.borrow());
        let mut words = vec![0; value.len().div_ceil(8)];
        for (word, bytes) in words.iter_mut().zip(value.chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_ne_bytes(whole);
        }
        self.entries.put(bytes(key.borrow()), &words);
        Ok(())
    }
}

/// Arrays by their index in an array of arrays.
#[derive(Debug)]
pub struct Nest(Mutex<BTreeMap<u32, Rows>>);

impl Nest {
    /// Puts an array there.
    ///
    /// # Safety
    ///
    /// As for [`Rows::bind`].
    pub unsafe fn bind(&self, index: u32, base: *mut u8, rows: u32) {
        let array = Rows::none();
        // SAFETY: the caller's.
        unsafe { array.bind(base, rows) };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(index, array);
    }
}

/// An array that can stand in an array of arrays.
pub trait Inner {
    /// What its rows are.
    type Value;
}

impl<T, const N: usize, const F: usize> Inner for Array<T, N, F> {
    type Value = T;
}

/// `BPF_MAP_TYPE_ARRAY_OF_MAPS`.
#[repr(transparent)]
#[derive(Debug)]
pub struct ArrayOfMaps<M, const MAX_ENTRIES: usize> {
    nest: Nest,
    inner: PhantomData<fn() -> M>,
}

impl<M: Inner, const N: usize> ArrayOfMaps<M, N> {
    /// An empty one.
    #[expect(clippy::new_without_default, reason = "made as a static, as aya-ebpf's is")]
    pub const fn new() -> Self {
        Self { nest: Nest(Mutex::new(BTreeMap::new())), inner: PhantomData }
    }

    /// A row of one of its arrays.
    pub fn get_value_ptr_mut(&self, index: u32, row: &u32) -> Option<*mut M::Value> {
        self.nest.0.lock().unwrap_or_else(PoisonError::into_inner).get(&index)?.at(*row)
    }
}

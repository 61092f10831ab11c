//! The few commands of bpf(2) that aya does not offer, each as a safe function over owned descriptors.
//!
//! Layouts are those of `union bpf_attr` in include/uapi/linux/bpf.h: the kernel takes any prefix of the union whose rest
//! is zero, so each command has a struct of just the fields it uses.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use bytemuck::{Pod, Zeroable};

/// `enum bpf_cmd`.
mod command {
    pub(super) const MAP_CREATE: libc::c_long = 0;
    pub(super) const MAP_LOOKUP_ELEM: libc::c_long = 1;
    pub(super) const MAP_UPDATE_ELEM: libc::c_long = 2;
    pub(super) const MAP_DELETE_ELEM: libc::c_long = 3;
    pub(super) const OBJ_PIN: libc::c_long = 6;
    pub(super) const OBJ_GET: libc::c_long = 7;
    pub(super) const MAP_GET_FD_BY_ID: libc::c_long = 14;
    pub(super) const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
    pub(super) const MAP_UPDATE_BATCH: libc::c_long = 26;
    pub(super) const LINK_CREATE: libc::c_long = 28;
    pub(super) const LINK_UPDATE: libc::c_long = 29;
    pub(super) const LINK_DETACH: libc::c_long = 34;
}

/// `BPF_MAP_TYPE_ARRAY`.
pub(crate) const ARRAY: u32 = 2;
/// `BPF_MAP_TYPE_ARRAY_OF_MAPS`.
pub(crate) const ARRAY_OF_MAPS: u32 = 12;
/// `BPF_F_MMAPABLE`.
pub(crate) const MMAPABLE: u32 = 1 << 10;
/// `BPF_F_INNER_MAP`: arrays of different lengths may stand in one array of maps.
pub(crate) const INNER_MAP: u32 = 1 << 12;

/// `enum bpf_attach_type`: `BPF_XDP`.
const ATTACH_XDP: u32 = 37;
/// `BPF_LINK_TYPE_XDP`.
const LINK_TYPE_XDP: u32 = 6;

/// A descriptor as the attributes have it.
fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// Calls bpf(2).
///
/// # Safety
///
/// `attr` must be the command's, and every address in it must point to memory of the size the command reads or writes,
/// which lives across the call.
unsafe fn bpf<T: Pod>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the attributes are a live object of the size given; the caller answers for the addresses in it.
    let ret = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret) }
}

/// As [`bpf`] for commands that return a descriptor.
///
/// # Safety
///
/// As [`bpf`]; and the command must be one that returns a new descriptor.
unsafe fn bpf_fd<T: Pod>(command: libc::c_long, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: passed on to the caller.
    let fd = unsafe { bpf(command, attr)? };
    // SAFETY: the kernel just made this descriptor for us (close-on-exec, as all of bpf(2)'s).
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: [u8; 16],
}

/// What a map is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MapSpec<'a> {
    /// At most 15 bytes.
    pub(crate) name: &'a str,
    pub(crate) map_type: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) flags: u32,
    /// For an array of maps: a map like those it will hold.
    pub(crate) inner: Option<BorrowedFd<'a>>,
}

/// Makes a map whose key is a `u32` index.
pub(crate) fn create_map(spec: MapSpec<'_>) -> io::Result<OwnedFd> {
    let mut attr = MapCreate {
        map_type: spec.map_type,
        key_size: 4,
        value_size: spec.value_size,
        max_entries: spec.max_entries,
        map_flags: spec.flags,
        inner_map_fd: spec.inner.map_or(0, number),
        ..Zeroable::zeroed()
    };
    for (to, from) in attr.map_name.iter_mut().zip(spec.name.bytes().take(15)) {
        *to = from;
    }
    // SAFETY: the attributes hold no address.
    unsafe { bpf_fd(command::MAP_CREATE, &mut attr) }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Element {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

fn element(map: BorrowedFd<'_>, key: &u32, value: u64) -> Element {
    Element { map_fd: number(map), pad: 0, key: std::ptr::from_ref(key) as u64, value, flags: 0 }
}

/// Puts `inner` at `index` of an array of maps; returns after a grace period (`maybe_wait_bpf_programs` in
/// kernel/bpf/syscall.c).
pub(crate) fn set_inner_map(outer: BorrowedFd<'_>, index: u32, inner: BorrowedFd<'_>) -> io::Result<()> {
    let fd = number(inner);
    let mut attr = element(outer, &index, std::ptr::from_ref(&fd) as u64);
    // SAFETY: key and value are u32 objects that outlive the call; an array of maps has 4-byte keys and is given
    // 4-byte descriptors. A map of another shape was refused when it was opened.
    unsafe { bpf(command::MAP_UPDATE_ELEM, &mut attr) }.map(drop)
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Batch {
    start: u64,
    next: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// As [`set_inner_map`] for many, with one grace period for all of them.
pub(crate) fn set_inner_maps(outer: BorrowedFd<'_>, indices: &[u32], inner: &[OwnedFd]) -> io::Result<()> {
    let fds: Vec<u32> = inner.iter().map(|fd| number(fd.as_fd())).collect();
    let count = indices.len().min(fds.len()) as u32;
    let mut attr = Batch {
        keys: indices.as_ptr() as u64,
        values: fds.as_ptr() as u64,
        count,
        map_fd: number(outer),
        ..Zeroable::zeroed()
    };
    // SAFETY: keys and values are arrays of at least `count` u32 each, which outlive the call; an array of maps has
    // 4-byte keys and is given 4-byte descriptors.
    unsafe { bpf(command::MAP_UPDATE_BATCH, &mut attr) }?;
    // The kernel writes how many it did.
    if attr.count == count { Ok(()) } else { Err(io::Error::other("not all maps were put in place")) }
}

/// Empties `index` of an array of maps; returns after a grace period. An empty one is left as it is.
pub(crate) fn clear_inner_map(outer: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let mut attr = element(outer, &index, 0);
    // SAFETY: the key is a u32 object that outlives the call; the command reads no value.
    match unsafe { bpf(command::MAP_DELETE_ELEM, &mut attr) } {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other.map(drop),
    }
}

/// The number of the map at `index` of an array of maps, if there is one.
pub(crate) fn inner_map_id(outer: BorrowedFd<'_>, index: u32) -> io::Result<Option<u32>> {
    let mut id = 0u32;
    let mut attr = element(outer, &index, std::ptr::from_mut(&mut id) as u64);
    // SAFETY: key and value are u32 objects that outlive the call; looking up an inner map writes its 4-byte id.
    match unsafe { bpf(command::MAP_LOOKUP_ELEM, &mut attr) } {
        Ok(_) => Ok(Some(id)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ById {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// Opens a map by its number, which takes `CAP_SYS_ADMIN`.
pub(crate) fn map_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attr = ById { id, ..Zeroable::zeroed() };
    // SAFETY: the attributes hold no address.
    unsafe { bpf_fd(command::MAP_GET_FD_BY_ID, &mut attr) }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ObjectPath {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)
}

/// Pins an object.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = ObjectPath { pathname: path.as_ptr() as u64, bpf_fd: number(object), file_flags: 0 };
    // SAFETY: the path is a terminated string that outlives the call.
    unsafe { bpf(command::OBJ_PIN, &mut attr) }.map(drop)
}

/// Opens a pinned object.
pub(crate) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = ObjectPath { pathname: path.as_ptr() as u64, ..Zeroable::zeroed() };
    // SAFETY: the path is a terminated string that outlives the call.
    unsafe { bpf_fd(command::OBJ_GET, &mut attr) }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct InfoByFd {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

fn info<T: Pod>(object: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = T::zeroed();
    let mut attr = InfoByFd {
        bpf_fd: number(object),
        info_len: size_of::<T>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    // SAFETY: the kernel writes at most `info_len` bytes, the size of `info`, which outlives the call; any bytes are a `T`.
    unsafe { bpf(command::OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

/// The beginning of `struct bpf_map_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub(crate) struct MapInfo {
    pub(crate) map_type: u32,
    pub(crate) id: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) map_flags: u32,
}

/// What a map is.
pub(crate) fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    info(map)
}

/// The beginning of `struct bpf_link_info` for an XDP link.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RawLinkInfo {
    link_type: u32,
    id: u32,
    prog_id: u32,
    pad: u32,
    xdp_ifindex: u32,
    pad2: u32,
}

/// An XDP link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkInfo {
    pub(crate) prog_id: u32,
    /// 0 once the interface is gone.
    pub(crate) ifindex: u32,
}

/// What an XDP link joins.
pub(crate) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let raw: RawLinkInfo = info(link)?;
    if raw.link_type != LINK_TYPE_XDP {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not an XDP link"));
    }
    Ok(LinkInfo { prog_id: raw.prog_id, ifindex: raw.xdp_ifindex })
}

/// Whether the calling thread's network namespace has this interface; an interface keeps its program when it goes to another one.
/// When the kernel cannot be asked, it has.
pub(crate) fn has_interface(ifindex: u32) -> bool {
    let mut name = [0; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the size that the call asks for.
    let found = unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr()) };
    !found.is_null() || !matches!(io::Error::last_os_error().raw_os_error(), Some(libc::ENXIO | libc::ENODEV))
}

/// The beginning of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ProgInfo {
    prog_type: u32,
    id: u32,
}

/// A program's id.
pub(crate) fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    info::<ProgInfo>(program).map(|info| info.id)
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct LinkCreate {
    prog_fd: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// Attaches an XDP program; the link detaches it when neither a descriptor nor a pin holds it any more. `flags` are
/// `XDP_FLAGS_*`.
pub(crate) fn attach_xdp(program: BorrowedFd<'_>, ifindex: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut attr = LinkCreate { prog_fd: number(program), target: ifindex, attach_type: ATTACH_XDP, flags };
    // SAFETY: the attributes hold no address.
    unsafe { bpf_fd(command::LINK_CREATE, &mut attr) }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// Puts another program behind a link in one step: every packet meets the old one or the new one.
pub(crate) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdate { link_fd: number(link), new_prog_fd: number(program), ..Zeroable::zeroed() };
    // SAFETY: the attributes hold no address.
    unsafe { bpf(command::LINK_UPDATE, &mut attr) }.map(drop)
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct LinkDetach {
    link_fd: u32,
}

/// Detaches a link's program from its interface, whoever else holds the link.
pub(crate) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkDetach { link_fd: number(link) };
    // SAFETY: the attributes hold no address.
    unsafe { bpf(command::LINK_DETACH, &mut attr) }.map(drop)
}

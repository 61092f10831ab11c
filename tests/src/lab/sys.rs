//! The few system calls the lab needs that no safe wrapper offers. All of the crate's `unsafe` is here.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    path::Path,
};

const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// True when this process may make namespaces and load programs.
pub(crate) fn is_root() -> bool {
    // SAFETY: geteuid has no arguments and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Moves the calling thread into the network namespace behind `netns`.
///
/// Async-signal-safe, so it may run between fork and exec.
pub(crate) fn enter_netns(netns: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is valid for the duration of the call; no memory is passed.
    check(unsafe { libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
}

/// Moves the calling thread into a network namespace of its own.
pub(crate) fn enter_new_netns() -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).map(drop)
}

/// Makes a `Command` enter `netns` in the child before it becomes the program.
pub(crate) fn enter_before_exec(command: &mut std::process::Command, netns: OwnedFd) {
    use std::{os::fd::AsFd, os::unix::process::CommandExt};
    // SAFETY: the closure makes one async-signal-safe system call and allocates nothing.
    unsafe { command.pre_exec(move || enter_netns(netns.as_fd())) };
}

/// Sends `signal` to the process `pid`. Signal 0 only asks whether it exists.
pub(crate) fn signal(pid: u32, signal: i32) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::kill(pid.cast_signed(), signal) }).map(drop)
}

/// Raises the limit on open files as far as this process may, and returns it.
pub(crate) fn raise_file_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is writable for the call.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    let kernel_limit = std::fs::read_to_string("/proc/sys/fs/nr_open")?;
    let kernel_limit = kernel_limit.trim().parse().map_err(io::Error::other)?;
    // The kernel's own limit needs CAP_SYS_RESOURCE, which root in a container may lack.
    for wanted in [kernel_limit, limit.rlim_max] {
        let raised = libc::rlimit { rlim_cur: wanted, rlim_max: wanted };
        // SAFETY: `raised` lives across the call, which only reads it.
        if check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) }).is_ok() {
            return Ok(wanted);
        }
    }
    Ok(limit.rlim_cur)
}

/// Mounts bpffs at /sys/fs/bpf unless it is there already.
pub(crate) fn ensure_bpffs() -> io::Result<()> {
    let place = c"/sys/fs/bpf";
    // SAFETY: statfs is plain integers, for which all zeroes is a value.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path is NUL-terminated and `stat` is writable for the call.
    check(unsafe { libc::statfs(place.as_ptr(), &raw mut stat) })?;
    if stat.f_type == BPF_FS_MAGIC {
        return Ok(());
    }
    // SAFETY: all strings are NUL-terminated literals; the data argument may be null.
    check(unsafe { libc::mount(c"bpf".as_ptr(), place.as_ptr(), c"bpf".as_ptr(), 0, std::ptr::null()) }).map(drop)
}

/// Makes closing `socket` send nothing (TCP_REPAIR, by which processes move to other hosts).
pub(crate) fn say_nothing_on_close(socket: &std::net::TcpStream) -> io::Result<()> {
    let on: libc::c_int = 1;
    let len = size_of_val(&on) as libc::socklen_t;
    // SAFETY: the option's value lives across the call, with its true length.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_REPAIR, (&raw const on).cast(), len)
    };
    check(result).map(drop)
}

/// Makes closing `socket` send an RST instead of a FIN (SO_LINGER with no time).
pub(crate) fn reset_on_close(socket: &std::net::TcpStream) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let len = size_of_val(&linger) as libc::socklen_t;
    // SAFETY: the option's value lives across the call, with its true length.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), len)
    };
    check(result).map(drop)
}

/// Takes the file's exclusive lock, or says `false` when another process holds it.
pub(crate) fn try_lock(file: &std::fs::File) -> io::Result<bool> {
    // SAFETY: the descriptor is valid; no memory is passed.
    match check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

/// Unmounts the bind mount that keeps a named namespace alive.
pub(crate) fn detach_mount(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_encoded_bytes())?;
    // SAFETY: the path is NUL-terminated.
    check(unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) }).map(drop)
}

/// Mounts a file system of so many bytes, in memory, for root alone.
pub(crate) fn mount_tmpfs(path: &Path, bytes: u64) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_encoded_bytes())?;
    let options = CString::new(format!("mode=700,size={bytes}"))?;
    let kind = c"tmpfs".as_ptr();
    // SAFETY: all strings are NUL-terminated and live across the call.
    check(unsafe { libc::mount(kind, path.as_ptr(), kind, 0, options.as_ptr().cast()) }).map(drop)
}

/// Sets the limit on another process's descriptors, of which each new one must be below; returns the one before.
pub(crate) fn limit_files(pid: u32, limit: u64) -> io::Result<u64> {
    let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the new limit may be null; the old one is writable for the call.
    check(unsafe { libc::prlimit(pid.cast_signed(), libc::RLIMIT_NOFILE, std::ptr::null(), &raw mut before) })?;
    let new = libc::rlimit { rlim_cur: limit.min(before.rlim_max), rlim_max: before.rlim_max };
    // SAFETY: `new` lives across the call, which only reads it; the old limit may be null.
    check(unsafe { libc::prlimit(pid.cast_signed(), libc::RLIMIT_NOFILE, &raw const new, std::ptr::null_mut()) })?;
    Ok(before.rlim_cur)
}

/// A device feature that `ethtool -K` would set.
#[derive(Clone, Copy)]
pub(crate) enum Feature {
    /// `tx off`: senders leave complete checksums, and segment in software.
    TxChecksum,
    /// `gro off`: frames stay as they came.
    Gro,
}

/// Switches `feature` of `device`, in the calling thread's namespace, off.
///
/// Uses the one-feature commands of linux/ethtool.h, which every driver takes.
pub(crate) fn switch_off(device: &str, feature: Feature) -> io::Result<()> {
    #[repr(C)]
    struct EthtoolValue {
        command: u32,
        value: u32,
    }
    const ETHTOOL_STXCSUM: u32 = 0x17;
    const ETHTOOL_SGRO: u32 = 0x2c;
    const SIOCETHTOOL: libc::Ioctl = 0x8946;

    let mut argument = EthtoolValue {
        command: match feature {
            Feature::TxChecksum => ETHTOOL_STXCSUM,
            Feature::Gro => ETHTOOL_SGRO,
        },
        value: 0,
    };
    // SAFETY: ifreq is plain data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if device.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = (&raw mut argument).cast();
    let socket = std::net::UdpSocket::bind(("127.0.0.1", 0))?;
    // SAFETY: `request` and the structure its pointer names live across the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) }).map(drop)
}

/// The argument of bpf(2), as bytes: the lab uses two commands and a dozen fields of it.
#[repr(C, align(8))]
pub(crate) struct BpfArgument([u8; 128]);

impl BpfArgument {
    pub(crate) const fn new() -> Self {
        Self([0; 128])
    }

    /// Stores a 32-bit field at its offset in `union bpf_attr`.
    pub(crate) fn put_u32(&mut self, offset: usize, value: u32) {
        self.0[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
    }

    /// Stores a pointer at its offset; what it points to must outlive the call it is passed to.
    pub(crate) fn put_pointer<T>(&mut self, offset: usize, value: *const T) {
        self.0[offset..offset + 8].copy_from_slice(&(value.expose_provenance() as u64).to_ne_bytes());
    }
}

/// Calls bpf(2) for a command that answers with a descriptor.
///
/// # Safety
/// Every pointer stored in `argument` must be valid, for the length stored beside it, during the call.
pub(crate) unsafe fn bpf(command: u32, argument: &mut BpfArgument) -> io::Result<OwnedFd> {
    // SAFETY: `argument` is 128 writable bytes; its inner pointers are the caller's promise.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, (&raw mut argument.0).cast::<libc::c_void>(), argument.0.len())
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both commands the lab uses return a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
}

/// Opens the map pinned at `path`.
pub(crate) fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    const OBJ_GET: u32 = 7;
    let path = CString::new(path.as_os_str().as_encoded_bytes())?;
    let mut argument = BpfArgument::new();
    argument.put_pointer(0, path.as_ptr());
    // SAFETY: the path is NUL-terminated and lives across the call.
    unsafe { bpf(OBJ_GET, &mut argument) }
}

/// A map's value size in bytes and its number of entries, as /proc tells them.
pub(crate) fn map_size(map: &OwnedFd) -> io::Result<(usize, usize)> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|value| value.trim().parse().ok()).ok_or(io::ErrorKind::InvalidData)
    };
    Ok((field("value_size:")?, field("max_entries:")?))
}

/// Zeroes the first `len` bytes of an array map that may be mapped into memory.
pub(crate) fn zero_mapped(map: &OwnedFd, len: usize) -> io::Result<()> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice; nothing else refers to it.
    let mapped = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_SHARED, map.as_raw_fd(), 0) };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `len` bytes are mapped and writable, and unmapped only after their last use. That the packet
    // path reads and writes them meanwhile is the point; no Rust reference to them exists.
    unsafe {
        mapped.cast::<u8>().write_bytes(0, len);
        libc::munmap(mapped, len);
    }
    Ok(())
}

/// The index of `device` in the calling thread's namespace.
pub(crate) fn interface_index(device: &str) -> io::Result<u32> {
    let name = CString::new(device)?;
    // SAFETY: the name is NUL-terminated.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

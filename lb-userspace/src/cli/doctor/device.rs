//! What only the ethtool ioctl tells about a device (`SIOCETHTOOL`, include/uapi/linux/ethtool.h).

use std::{io, mem, net::UdpSocket, os::fd::AsRawFd};

const ETHTOOL_GRINGPARAM: u32 = 0x10;
const ETHTOOL_GFLAGS: u32 = 0x25;
/// `ETH_FLAG_LRO`.
const FLAG_LRO: u32 = 1 << 15;
/// `ETH_FLAG_RXVLAN`.
const FLAG_RXVLAN: u32 = 1 << 8;

/// Sizes of a device's rings, in packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rings {
    /// The receive ring.
    pub(super) receive: u32,
    /// The largest it can be.
    pub(super) receive_max: u32,
}

/// What a device does by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Features {
    /// Joins received packets into larger ones.
    pub(super) large_receive_offload: bool,
    /// Takes VLAN tags out of received frames.
    pub(super) takes_tags_out: bool,
}

/// `struct ethtool_ringparam`.
#[repr(C)]
#[derive(Default)]
struct RingParam {
    cmd: u32,
    rx_max_pending: u32,
    rx_mini_max_pending: u32,
    rx_jumbo_max_pending: u32,
    tx_max_pending: u32,
    rx_pending: u32,
    rx_mini_pending: u32,
    rx_jumbo_pending: u32,
    tx_pending: u32,
}

/// `struct ethtool_value`.
#[repr(C)]
#[derive(Default)]
struct Value {
    cmd: u32,
    data: u32,
}

/// The sizes of a device's rings; an error where the driver has none to tell.
pub(super) fn rings(name: &str) -> io::Result<Rings> {
    let mut param = RingParam { cmd: ETHTOOL_GRINGPARAM, ..RingParam::default() };
    ask(name, &mut param)?;
    Ok(Rings { receive: param.rx_pending, receive_max: param.rx_max_pending })
}

/// What a device does by itself.
pub(super) fn features(name: &str) -> io::Result<Features> {
    let mut value = Value { cmd: ETHTOOL_GFLAGS, data: 0 };
    ask(name, &mut value)?;
    Ok(Features { large_receive_offload: value.data & FLAG_LRO != 0, takes_tags_out: value.data & FLAG_RXVLAN != 0 })
}

/// Sends one ethtool command. `T` is the command's own structure, which begins with its number.
fn ask<T>(name: &str, request: &mut T) -> io::Result<()> {
    // Any socket of the namespace will do: the ioctl is about the device, not about the socket.
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: an all-zero ifreq is a valid one: integers, arrays of them and a null pointer.
    let mut ifreq: libc::ifreq = unsafe { mem::zeroed() };
    if name.len() >= ifreq.ifr_name.len() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, from) in ifreq.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    ifreq.ifr_ifru.ifru_data = (&raw mut *request).cast();
    // SAFETY: `ifr_name` ends in a zero, `ifru_data` points to the structure the command in its first field asks for,
    // and both outlive the call.
    let failed = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut ifreq) };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there_is_an_error() {
        assert!(rings("ebb-none0").is_err());
        assert!(features("a-name-longer-than-any-interface-has").is_err());
    }

    #[test]
    fn loopback_has_features() {
        assert_eq!(features("lo").map(|features| features.large_receive_offload).ok(), Some(false));
    }
}

//! One address type for both families.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytemuck::{Pod, Zeroable};

/// An IP address in network byte order; IPv4 is kept in its IPv4-mapped form (`::ffff:a.b.c.d`, RFC 4291 2.5.5.2).
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Addr {
    /// Two halves as loaded from memory: native integers whose bytes are in network order.
    pub halves: [u64; 2],
}

const MAPPED_HIGH: u64 = u32::from_ne_bytes([0, 0, 0xff, 0xff]) as u64;

impl Addr {
    /// The mapped form of an IPv4 address given as the word loaded from the packet.
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        // Memory order of the second half is 00 00 ff ff a b c d.
        let low = if cfg!(target_endian = "little") {
            MAPPED_HIGH | ((word as u64) << 32)
        } else {
            (MAPPED_HIGH << 32) | word as u64
        };
        Self { halves: [0, low] }
    }

    /// The address in the 16 bytes of an IPv6 header.
    #[inline(always)]
    pub const fn from_v6_halves(halves: [u64; 2]) -> Self {
        Self { halves }
    }

    /// Whether this is an IPv4-mapped address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        let top = if cfg!(target_endian = "little") { self.halves[1] & 0xffff_ffff } else { self.halves[1] >> 32 };
        self.halves[0] == 0 && top == MAPPED_HIGH
    }

    /// The word of an IPv4 address as it stands in a packet (meaningless for IPv6).
    #[inline(always)]
    pub const fn v4_word(&self) -> u32 {
        if cfg!(target_endian = "little") { (self.halves[1] >> 32) as u32 } else { self.halves[1] as u32 }
    }

    /// The four 32-bit words as they stand in a packet.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        let [a, b] = self.halves;
        if cfg!(target_endian = "little") {
            [a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32]
        } else {
            [(a >> 32) as u32, a as u32, (b >> 32) as u32, b as u32]
        }
    }

    /// The sixteen bytes in network order.
    pub const fn octets(&self) -> [u8; 16] {
        let a = self.halves[0].to_ne_bytes();
        let b = self.halves[1].to_ne_bytes();
        [a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::from_v4_word(u32::from_ne_bytes(v4.octets())),
            IpAddr::V6(v6) => {
                let o = v6.octets();
                Self {
                    halves: [
                        u64::from_ne_bytes([o[0], o[1], o[2], o[3], o[4], o[5], o[6], o[7]]),
                        u64::from_ne_bytes([o[8], o[9], o[10], o[11], o[12], o[13], o[14], o[15]]),
                    ],
                }
            }
        }
    }
}

impl From<Addr> for IpAddr {
    fn from(addr: Addr) -> Self {
        if addr.is_v4() {
            IpAddr::V4(Ipv4Addr::from(addr.v4_word().to_ne_bytes()))
        } else {
            IpAddr::V6(Ipv6Addr::from(addr.octets()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_survive_the_round_trip() {
        for text in ["10.1.2.3", "255.255.255.255", "0.0.0.0", "2001:db8::1", "::1", "fe80::ff:fe00:1"] {
            let ip: IpAddr = text.parse().unwrap();
            let addr = Addr::from(ip);
            assert_eq!(IpAddr::from(addr), ip);
            assert_eq!(addr.is_v4(), ip.is_ipv4());
        }
    }

    #[test]
    fn octets_are_in_network_order() {
        let addr = Addr::from("10.1.2.3".parse::<IpAddr>().unwrap());
        assert_eq!(addr.octets()[10..], [0xff, 0xff, 10, 1, 2, 3]);
        assert_eq!(addr.words()[3].to_ne_bytes(), [10, 1, 2, 3]);
    }
}

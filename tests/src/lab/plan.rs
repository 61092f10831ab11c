//! What a lab looks like: its topology, its addresses, and the `ip` scripts that make it so.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// An address family; every lab has both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// How many interfaces the balancer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arms {
    /// One: clients and backends are on one segment with it, and packets leave where they came in (XDP_TX).
    One,
    /// Two: `eth0` faces the clients, `eth1` the backends, and packets cross from one to the other (redirect).
    Two,
}

/// The way the backends' replies take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replies {
    /// Straight to the client, from the VIP that each backend holds on its loopback: `dsr` and `tunnel`.
    Direct,
    /// Back through the balancer, from the backend's own address: `nat`.
    ThroughBalancer,
}

/// The lab to build. Start from [`Plan::default`] and change what the test is about.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Number of backends, at most 200.
    pub backends: usize,
    /// Number of addresses that the client namespace can send from, per family, at most 200.
    pub client_addresses: usize,
    /// Number of VIPs, per family, that are routed to the balancer (and held by the backends if replies are direct).
    pub vips: usize,
    /// Interfaces of the balancer.
    pub arms: Arms,
    /// Way back.
    pub replies: Replies,
    /// Queues of the balancer's interfaces; packets of different queues may be processed on different CPUs.
    pub queues: usize,
    /// Whether the balancer's kernel forwards packets (`ip_forward`). Ebb does not need it.
    pub forwarding: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            backends: 3,
            client_addresses: 1,
            vips: 2,
            arms: Arms::One,
            replies: Replies::Direct,
            queues: 1,
            forwarding: false,
        }
    }
}

impl Plan {
    /// The client's address number `index`.
    pub fn client(family: Family, index: usize) -> IpAddr {
        address(family, 1, 10 + index)
    }

    /// The balancer's own address on the clients' subnet, by which VIPs are routed.
    pub fn balancer(family: Family) -> IpAddr {
        address(family, 1, 1)
    }

    /// The balancer's own address on the backends' subnet.
    pub fn balancer_inside(family: Family) -> IpAddr {
        address(family, 2, 1)
    }

    /// The switch's address on the clients' subnet.
    pub fn router(family: Family) -> IpAddr {
        address(family, 1, ROUTER)
    }

    /// The switch's address on the backends' subnet.
    pub fn router_inside(family: Family) -> IpAddr {
        address(family, 2, ROUTER)
    }

    /// The address of backend number `index`.
    pub fn backend(family: Family, index: usize) -> IpAddr {
        address(family, 2, 10 + index)
    }

    /// The MAC address of the balancer's `eth0`.
    pub fn balancer_mac() -> [u8; 6] {
        mac(1, 1)
    }

    /// The MAC address of backend number `index`.
    pub fn backend_mac(index: usize) -> [u8; 6] {
        mac(2, 10 + index)
    }

    /// VIP number `index`.
    pub fn vip(family: Family, index: usize) -> IpAddr {
        address(family, 9, 1 + index)
    }

    /// Where a server on backend `index` must listen to serve VIP number `vip` at `port`.
    pub fn listen(&self, family: Family, index: usize, vip: usize, port: u16) -> SocketAddr {
        match self.replies {
            Replies::Direct => SocketAddr::new(Self::vip(family, vip), port),
            Replies::ThroughBalancer => SocketAddr::new(Self::backend(family, index), port),
        }
    }

    /// The balancer's interfaces, the clients' side first.
    pub fn interfaces(&self) -> &'static [&'static str] {
        match self.arms {
            Arms::One => &["eth0"],
            Arms::Two => &["eth0", "eth1"],
        }
    }

    /// The switch's ends of the balancer's cables.
    pub(crate) fn far_ends(&self) -> &'static [&'static str] {
        match self.arms {
            Arms::One => &["lb0"],
            Arms::Two => &["lb0", "lb1"],
        }
    }

    /// One script for `ip -batch` that makes the namespaces and the cables between them.
    pub(crate) fn cabling(&self, name: impl Fn(&str) -> String) -> String {
        let mut script = String::new();
        let mut hosts = vec!["switch".to_owned(), "lb".to_owned(), "client".to_owned()];
        hosts.extend((0..self.backends).map(backend_host));
        for host in &hosts {
            line(&mut script, format_args!("netns add {}", name(host)));
        }
        let mut cable = |host: &str, device: &str, port: &str, mac: [u8; 6], queues: usize| {
            line(&mut script, format_args!("{}", cable(&name(host), device, &name("switch"), port, mac, queues)));
        };
        cable("client", "eth0", "client", mac(1, 10), 1);
        for (subnet, (device, port)) in (1..).zip(self.interfaces().iter().zip(self.far_ends())) {
            cable("lb", device, port, mac(subnet, 1), self.queues);
        }
        for index in 0..self.backends {
            cable(&backend_host(index), "eth0", &backend_host(index), mac(2, 10 + index), 1);
        }
        script
    }

    /// The script that takes the balancer's first interface away and makes it anew.
    pub(crate) fn replug(&self, name: impl Fn(&str) -> String) -> String {
        let (lb, switch) = (name("lb"), name("switch"));
        let cable = cable(&lb, "eth0", &switch, "lb0", mac(1, 1), self.queues);
        format!("{cable}\n")
    }

    /// The script that plugs the switch's end of it in again.
    pub(crate) fn plugged() -> &'static str {
        "link set lb0 master outside up\n"
    }

    /// The script for the switch, which also routes between the subnets when they are on two segments.
    pub(crate) fn switch_script(&self) -> String {
        let mut script = String::from("link set lo up\n");
        let inside = if self.arms == Arms::One { "outside" } else { "inside" };
        let mut bridges = vec!["outside", inside];
        bridges.dedup();
        for bridge in bridges {
            line(
                &mut script,
                format_args!("link add {bridge} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"),
            );
            line(&mut script, format_args!("link set {bridge} up"));
        }
        let mut port = |device: &str, bridge: &str| {
            line(&mut script, format_args!("link set {device} master {bridge} up"));
        };
        port("client", "outside");
        for (device, bridge) in self.far_ends().iter().zip(["outside", inside]) {
            port(device, bridge);
        }
        for index in 0..self.backends {
            port(&backend_host(index), inside);
        }
        for family in FAMILIES {
            own(&mut script, "outside", family, 1, ROUTER);
            own(&mut script, inside, family, 2, ROUTER);
        }
        script
    }

    /// The script for the client.
    pub(crate) fn client_script(&self) -> String {
        let mut script = String::from("link set lo up\nlink set eth0 up\n");
        for family in FAMILIES {
            for index in 0..self.client_addresses {
                own(&mut script, "eth0", family, 1, 10 + index);
            }
            for index in 0..self.vips {
                let (vip, via) = (Self::vip(family, index), Self::balancer(family));
                line(&mut script, format_args!("route add {vip} via {via}"));
            }
            self.reach(&mut script, family, 1, 2);
        }
        script
    }

    /// The script for the balancer.
    pub(crate) fn balancer_script(&self) -> String {
        let mut script = String::from("link set lo up\n");
        for device in self.interfaces() {
            line(&mut script, format_args!("link set {device} up"));
        }
        let inside = if self.arms == Arms::One { "eth0" } else { "eth1" };
        for family in FAMILIES {
            own(&mut script, "eth0", family, 1, 1);
            own(&mut script, inside, family, 2, 1);
        }
        script
    }

    /// The script for backend number `index`.
    pub(crate) fn backend_script(&self, index: usize) -> String {
        let mut script = String::from("link set lo up\nlink set eth0 up\n");
        for family in FAMILIES {
            own(&mut script, "eth0", family, 2, 10 + index);
            match self.replies {
                Replies::Direct => {
                    for vip in 0..self.vips {
                        let vip = Self::vip(family, vip);
                        let bits = if family == Family::V4 { 32 } else { 128 };
                        line(&mut script, format_args!("addr add {vip}/{bits} dev lo{}", no_dad(family)));
                    }
                    self.reach(&mut script, family, 2, 1);
                }
                Replies::ThroughBalancer => {
                    let (net, via) = (subnet(family, 1), Self::balancer_inside(family));
                    line(&mut script, format_args!("route add {net} via {via}"));
                }
            }
        }
        script
    }

    /// A route from subnet `from` to subnet `to` that leaves the balancer out.
    fn reach(&self, script: &mut String, family: Family, from: u8, to: u8) {
        let net = subnet(family, to);
        match self.arms {
            Arms::One => line(script, format_args!("route add {net} dev eth0")),
            Arms::Two => {
                let via = address(family, from, ROUTER);
                line(script, format_args!("route add {net} via {via}"));
            }
        }
    }
}

/// The line that makes a veth pair between two namespaces.
fn cable(host: &str, device: &str, switch: &str, port: &str, mac: [u8; 6], queues: usize) -> String {
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    let queues = format!("numtxqueues {queues} numrxqueues {queues}");
    format!("link add {device} address {mac} netns {host} {queues} type veth peer name {port} netns {switch} {queues}")
}

/// Both families, for loops.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Host number of the switch's routing addresses.
const ROUTER: usize = 254;

/// The name, within its lab, of backend number `index`.
pub(crate) fn backend_host(index: usize) -> String {
    format!("b{index}")
}

/// Host number `host` of subnet 1 (clients), 2 (backends) or 9 (VIPs).
fn address(family: Family, subnet: u8, host: usize) -> IpAddr {
    assert!(host < 255, "a lab's subnets have 254 hosts");
    match family {
        Family::V4 => Ipv4Addr::new(10, subnet, 0, host as u8).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, subnet.into(), 0, 0, 0, 0, 0, host as u16).into(),
    }
}

fn subnet(family: Family, subnet: u8) -> String {
    match family {
        Family::V4 => format!("10.{subnet}.0.0/24"),
        Family::V6 => format!("fd00:{subnet}::/64"),
    }
}

fn own(script: &mut String, device: &str, family: Family, subnet: u8, host: usize) {
    let bits = if family == Family::V4 { 24 } else { 64 };
    let own = address(family, subnet, host);
    line(script, format_args!("addr add {own}/{bits} dev {device}{}", no_dad(family)));
}

/// Duplicate address detection would keep a new IPv6 address unusable for a second.
fn no_dad(family: Family) -> &'static str {
    if family == Family::V6 { " nodad" } else { "" }
}

fn mac(subnet: u8, host: usize) -> [u8; 6] {
    [0x02, 0xeb, 0xb0, 0x00, subnet, host as u8]
}

fn line(script: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(script, "{text}");
}

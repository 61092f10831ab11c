//! What there is to say about one interface.

use super::{Finding, Level, device};
use crate::datapath::ONE_PAGE_MTU;
use crate::net::links::{Link, XdpMode};

/// Below this, a burst at line rate overruns the queue before the CPU gets to it.
const SMALL_RING: u32 = 512;

/// All findings about `link`; `ours` when the running daemon balances on it.
pub(super) fn findings(link: &Link, ours: bool) -> Vec<Finding> {
    let mut findings = vec![state(link), program(link, ours)];
    findings.extend(jumbo(link));
    if link.is_veth {
        findings.extend(veth(link));
    } else if let Ok(features) = device::features(&link.name) {
        findings.push(large_receive(link, features));
        findings.extend(tags(link, features));
    }
    findings.extend(device::rings(&link.name).ok().and_then(|rings| ring(link, rings)));
    findings
}

fn state(link: &Link) -> Finding {
    let Link { name, mtu, .. } = link;
    if link.up {
        Finding::ok(name, format!("up, MTU {mtu}"))
    } else {
        Finding::bad(Level::Fail, name, "is down", Some(format!("ip link set {name} up")))
    }
}

fn program(link: &Link, ours: bool) -> Finding {
    let check = format!("{}: program", link.name);
    match link.xdp {
        None => Finding::ok(check, "none attached: free for ebb"),
        Some((XdpMode::Native, _)) if ours => Finding::ok(check, "ebb, in the driver"),
        Some((XdpMode::Generic, _)) if ours => Finding::bad(
            Level::Warn,
            check,
            "ebb, in the network stack (generic): several times slower than in the driver",
            Some(format!("ebb run -i {} --mode native, which says what the driver lacks", link.name)),
        ),
        Some((mode, id)) => Finding::bad(
            Level::Warn,
            check,
            format!(
                "XDP program {id} is attached ({}); unless it is ebb's, ebb run refuses this interface",
                mode.name()
            ),
            Some(format!("bpftool prog show id {id}; ip link set {} xdp off", link.name)),
        ),
    }
}

fn veth(link: &Link) -> Vec<Finding> {
    let findings = vec![Finding::bad(
        Level::Warn,
        format!("{}: veth", link.name),
        "a sender behind it leaves checksums unfinished, and its peer must run an XDP program to get what ebb sends back",
        Some("ethtool -K DEV tx off (in the peer's namespace), and a passing XDP program on the peer".to_owned()),
    )];
    findings
}

fn jumbo(link: &Link) -> Option<Finding> {
    (link.mtu > ONE_PAGE_MTU).then(|| {
        Finding::bad(
            Level::Warn,
            format!("{}: MTU", link.name),
            format!("{} is above {ONE_PAGE_MTU}: the driver's mode will be refused, or packets lost", link.mtu),
            Some(format!("ip link set {} mtu 1500 (a veth: on both ends), or --mode generic", link.name)),
        )
    })
}

fn large_receive(link: &Link, features: device::Features) -> Finding {
    let check = format!("{}: offloads", link.name);
    if features.large_receive_offload {
        return Finding::bad(
            Level::Warn,
            check,
            "large receive offload joins packets before the program sees them: drivers refuse XDP with it",
            Some(format!("ethtool -K {} lro off", link.name)),
        );
    }
    Finding::ok(check, "no large receive offload")
}

fn tags(link: &Link, features: device::Features) -> Option<Finding> {
    features.takes_tags_out.then(|| {
        Finding::bad(
            Level::Warn,
            format!("{}: VLAN tags", link.name),
            "the device takes them out of frames: if clients or backends are in VLANs, answers to them go astray",
            Some(if link.is_veth {
                format!("ethtool -K DEV txvlan off (on the other end of {}, which leaves them out)", link.name)
            } else {
                format!("ethtool -K {} rxvlan off", link.name)
            }),
        )
    })
}

fn ring(link: &Link, rings: device::Rings) -> Option<Finding> {
    let check = format!("{}: receive ring", link.name);
    if rings.receive == 0 {
        return None;
    }
    if rings.receive < SMALL_RING && rings.receive < rings.receive_max {
        return Some(Finding::bad(
            Level::Warn,
            check,
            format!("{} of at most {} packets: bursts may be lost", rings.receive, rings.receive_max),
            Some(format!("ethtool -G {} rx {}", link.name, rings.receive_max)),
        ));
    }
    Some(Finding::ok(check, format!("{} packets", rings.receive)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link() -> Link {
        Link {
            index: 2,
            name: "eth0".to_owned(),
            mac: Some([2; 6]),
            mtu: 1500,
            up: true,
            vlan: None,
            is_veth: false,
            xdp: None,
        }
    }

    #[test]
    fn a_foreign_program_is_a_warning_with_its_id() {
        let mut link = link();
        assert_eq!(program(&link, false).level, Level::Ok);
        link.xdp = Some((XdpMode::Native, 42));
        let finding = program(&link, false);
        assert_eq!(finding.level, Level::Warn);
        assert!(finding.detail.contains("42") && finding.fix.is_some_and(|fix| fix.contains("xdp off")));
        assert_eq!(program(&link, true).level, Level::Ok);
    }

    #[test]
    fn a_small_ring_that_can_grow_is_a_warning() {
        let link = link();
        assert_eq!(ring(&link, device::Rings { receive: 0, receive_max: 0 }), None);
        let level = |receive, receive_max| ring(&link, device::Rings { receive, receive_max }).map(|found| found.level);
        assert_eq!(level(256, 4096), Some(Level::Warn));
        assert_eq!(level(256, 256), Some(Level::Ok));
        assert_eq!(level(4096, 4096), Some(Level::Ok));
    }
}

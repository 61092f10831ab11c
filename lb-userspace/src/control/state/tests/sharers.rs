//! Backends of several `nat` services at one endpoint.

use lb_common::service::SHARED_BY;

use super::*;
use crate::control::{
    ErrorKind,
    model::WantedService,
    reconcile::{self, Command},
};

const ROOM: Limits = Limits { services: 16, backends: 64 };

/// A service with that number, which reaches its one backend by `nat`.
fn wanted(number: u32, protocol: &str, address: &str) -> WantedService {
    let service = serde_json::json!({
        "name": format!("s{number}"), "vip": format!("10.0.1.{}:80/{protocol}", 1 + number), "forward": "nat",
    });
    let backend = serde_json::json!({ "name": "b", "address": address });
    WantedService {
        service: serde_json::from_value(service).expect("a service"),
        backends: vec![serde_json::from_value(backend).expect("a backend")],
    }
}

struct Sharing {
    balancer: Balancer,
    now: Now,
}

impl Sharing {
    /// As many services at one endpoint as there can be.
    fn full() -> Self {
        let now = Now { mono_ns: SECOND_NS, wall: Timestamp::from_second(1_700_000_000).expect("in range") };
        let mut sharing = Self { balancer: Balancer::default(), now };
        for number in 0..SHARED_BY {
            sharing.add(wanted(number, "tcp", "10.0.0.11")).expect("there is room");
        }
        sharing
    }

    fn add(&mut self, wanted: WantedService) -> Result<(), ErrorKind> {
        let name = wanted.service.name.clone();
        self.balancer.add_service(wanted.service, ROOM, self.now).expect("a service");
        self.balancer.add_backends(&name, wanted.backends, ROOM, self.now).map_err(|error| error.kind())
    }
}

#[test]
fn one_more_than_replies_can_be_told_apart_of_is_refused() {
    let mut sharing = Sharing::full();
    assert_eq!(sharing.add(wanted(10, "tcp", "10.0.0.11:80")), Err(ErrorKind::Conflict), "the port said or not");
    sharing.add(wanted(11, "tcp", "10.0.0.11:81")).expect("another port");
    sharing.add(wanted(12, "udp", "10.0.0.11")).expect("another protocol");
    sharing.add(wanted(13, "tcp", "10.0.0.12")).expect("another address");
    let spec = wanted(10, "tcp", "10.0.0.11").backends.remove(0);
    let refused = sharing.balancer.add_backend("s10", spec.clone(), ROOM, sharing.now).expect_err("still too many");
    assert!(refused.to_string().contains("10.0.0.11 port 80"), "{refused}");
    sharing.balancer.remove_service("s0", true, sharing.now).expect("it goes");
    sharing.balancer.forget_service("s0", sharing.now);
    sharing.balancer.add_backend("s10", spec, ROOM, sharing.now).expect("now there is room");
}

/// What is there already stays, and may be in the file.
#[test]
fn a_file_with_as_many_as_there_are_is_taken() {
    let mut sharing = Sharing::full();
    let mut file: Vec<WantedService> = (0..=SHARED_BY).map(|number| wanted(number, "tcp", "10.0.0.11")).collect();
    let plan = |sharing: &Sharing, file: &[WantedService]| reconcile::plan(&sharing.balancer.services, file);
    // A state from before this was looked at.
    let extra = file[SHARED_BY as usize].clone();
    let dsr = ServiceSpec { forward: crate::datapath::Forward::Dsr, ..extra.service.clone() };
    sharing.add(WantedService { service: dsr, ..extra.clone() }).expect("no reply comes this way");
    sharing.balancer.services[SHARED_BY as usize].spec.forward = crate::datapath::Forward::Nat;
    assert_eq!(plan(&sharing, &file).expect("all is there"), []);
    file.truncate(SHARED_BY as usize);
    let steps = plan(&sharing, &file).expect("one goes");
    assert!(matches!(&steps[..], [step] if matches!(step.command, Command::RemoveService(_))), "{steps:?}");
}

//! Backends' ids in QUIC connection ids.

use super::*;
use crate::control::{
    ErrorKind,
    model::WantedService,
    quic::{QuicCid, ServerId},
    reconcile::{self, Command},
};

const NAME: &str = "h3";

/// A balancer with a service for QUIC, and its backends with these ids.
struct Quic {
    balancer: Balancer,
    now: Now,
}

fn spec(cid: Option<&str>) -> ServiceSpec {
    serde_json::from_value(serde_json::json!({ "name": NAME, "vip": "10.0.0.100:443/udp", "quic_cid": cid }))
        .expect("a service")
}

fn backend(number: u32, id: Option<&str>) -> BackendSpec {
    serde_json::from_value(serde_json::json!({
        "name": format!("b{number}"), "address": format!("10.0.0.{}", 11 + number), "server_id": id,
    }))
    .expect("a backend")
}

impl Quic {
    fn with(cid: Option<&str>, ids: &[Option<&str>]) -> Self {
        let now = Now { mono_ns: SECOND_NS, wall: Timestamp::from_second(1_700_000_000).expect("in range") };
        let mut quic = Self { balancer: Balancer::default(), now };
        quic.balancer.add_service(spec(cid), LIMITS, now).expect("a service");
        for (number, id) in (0..).zip(ids) {
            quic.add(number, *id).expect("a backend");
        }
        quic
    }

    fn add(&mut self, number: u32, id: Option<&str>) -> Result<(), ErrorKind> {
        self.balancer.add_backend(NAME, backend(number, id), LIMITS, self.now).map_err(|error| error.kind())
    }

    fn set(&mut self, number: u32, id: Option<&str>) -> Result<(), ErrorKind> {
        let id = id.map(|id| id.parse().expect("well formed"));
        let patch = BackendPatch { server_id: Some(id), ..BackendPatch::default() };
        self.balancer.set_backend(NAME, &format!("b{number}"), &patch, self.now).map_err(|error| error.kind())
    }

    fn form(&mut self, cid: Option<&str>) -> Result<(), ErrorKind> {
        let cid: Option<QuicCid> = cid.map(|cid| cid.parse().expect("well formed"));
        let patch = ServicePatch { quic_cid: Some(cid), ..ServicePatch::default() };
        self.balancer.set_service(NAME, patch, self.now).map(drop).map_err(|error| error.kind())
    }

    fn ids(&self) -> Vec<Option<ServerId>> {
        let service = &self.balancer.services[0];
        service.backends.iter().map(|entry| service.server_id(entry)).collect()
    }

    fn said(&self) -> Vec<String> {
        self.ids().into_iter().map(|id| id.map_or_else(String::new, |id| id.to_string())).collect()
    }
}

#[test]
fn ids_are_given_or_assigned_and_none_twice() {
    let mut quic = Quic::with(Some("2"), &[Some("0001"), None, None]);
    let before = quic.said();
    assert_eq!(before[0], "0001");
    assert_eq!(before.iter().collect::<BTreeSet<_>>().len(), 3);
    assert!(before.iter().all(|id| id.len() == 4), "{before:?}");
    assert_eq!(quic.add(3, Some("0001")), Err(ErrorKind::Conflict), "given to another");
    assert_eq!(quic.add(3, Some(&before[1])), Err(ErrorKind::Conflict), "assigned to another");
    assert_eq!(quic.add(3, Some("01")), Err(ErrorKind::Invalid), "too short");
    assert_eq!(quic.set(1, Some("0001")), Err(ErrorKind::Conflict));
    assert_eq!(quic.said(), before, "nothing has changed");
    quic.set(1, Some("0002")).expect("it is free");
    assert_eq!(quic.said()[1], "0002");
    quic.set(1, None).expect("assigned again");
    assert_eq!(quic.said(), before, "the same as at first");
}

#[test]
fn assigned_ids_are_the_same_on_another_node() {
    assert_eq!(Quic::with(Some("4"), &[None; 8]).ids(), Quic::with(Some("4"), &[None; 8]).ids());
    let turned = Quic::with(Some("4"), &[None, None]).ids();
    let mut other = Quic::with(Some("4"), &[]);
    other.add(1, None).expect("a backend");
    other.add(0, None).expect("a backend");
    assert_eq!(other.ids().into_iter().rev().collect::<Vec<_>>(), turned);
}

#[test]
fn there_is_an_id_for_each_or_a_refusal() {
    let mut quic = Quic::with(Some("1"), &[]);
    let limits = Limits { services: 4, backends: 1_000 };
    for number in 0..256 {
        let mut spec = backend(0, None);
        spec.name = format!("b{number}");
        spec.address = format!("10.0.{}.{}", 1 + number / 100, 1 + number % 100).parse().expect("an address");
        quic.balancer.add_backend(NAME, spec, limits, quic.now).expect("a backend");
    }
    assert_eq!(quic.ids().iter().collect::<BTreeSet<_>>().len(), 256);
    let one_more =
        quic.balancer.add_backend(NAME, BackendSpec { name: "b".into(), ..backend(0, None) }, limits, quic.now);
    assert_eq!(one_more.map_err(|error| error.kind()), Err(ErrorKind::Refused));
}

#[test]
fn the_form_changes_with_its_ids_or_not_at_all() {
    let mut quic = Quic::with(None, &[Some("0001"), None]);
    assert_eq!(quic.ids(), [None, None], "nobody looks at them");
    quic.form(Some("2")).expect("they fit");
    let two = quic.said();
    assert_eq!((two[0].as_str(), two[1].len()), ("0001", 4));
    assert_eq!(quic.form(Some("3")), Err(ErrorKind::Invalid), "the given one is too short");
    quic.form(Some("sid=2,cr=5")).expect("the ids stay");
    assert_eq!(quic.said(), two);
    quic.form(None).expect("off");
    quic.form(Some("2")).expect("on");
    assert_eq!(quic.said(), two, "they are kept meanwhile");
    assert_eq!(
        quic.balancer
            .set_service(NAME, ServicePatch { per_datagram: Some(true), ..ServicePatch::default() }, quic.now)
            .map(drop)
            .map_err(|error| error.kind()),
        Err(ErrorKind::Invalid)
    );
}

/// A file's ids are put into force whatever they were before: swapped, longer, none.
#[test]
fn a_file_may_change_the_form_and_every_id() {
    for (cid, ids) in [
        (Some("2"), [Some("0002"), Some("0001")]),
        (Some("3"), [Some("000003"), Some("000001")]),
        (Some("1"), [None, Some("01")]),
        (Some("2"), [None, None]),
    ] {
        let mut quic = Quic::with(Some("2"), &[Some("0001"), Some("0002")]);
        let backends = (0..).zip(ids).map(|(number, id)| backend(number, id)).collect();
        let wanted = [WantedService { service: spec(cid), backends }];
        for step in reconcile::plan(&quic.balancer.services, &wanted).expect("a plan") {
            let done = match step.command {
                Command::SetService(name, patch) => quic.balancer.set_service(&name, *patch, quic.now).map(drop),
                Command::SetBackend(service, name, patch) => {
                    quic.balancer.set_backend(&service, &name, &patch, quic.now)
                }
                other => panic!("{other:?}"),
            };
            done.expect("a step");
        }
        let said = quic.said();
        for (said, wanted) in said.iter().zip(ids) {
            assert!(wanted.is_none_or(|wanted| wanted == said), "{said} is not {wanted:?}");
        }
        assert_eq!(reconcile::plan(&quic.balancer.services, &wanted).expect("a plan"), [], "as the file wants it");
    }
    let twice =
        [WantedService { service: spec(Some("1")), backends: vec![backend(0, Some("01")), backend(1, Some("01"))] }];
    assert_eq!(reconcile::plan(&[], &twice).map_err(|error| error.kind()), Err(ErrorKind::Conflict));
}

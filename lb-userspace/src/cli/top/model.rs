//! What is on the screen and what keys do to it: no terminal and no daemon here.

use std::{collections::HashMap, fmt::Display, time::Instant};

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use crate::control::model::{BackendStatus, ServiceStatus, State, Status};

/// A service's name and a backend's.
type Names = (String, String);

/// Everything that is shown.
#[derive(Debug, Default)]
pub(super) struct Model {
    /// The latest look.
    pub(super) status: Option<Status>,
    /// The selected backend, by its names: it stays selected while others come and go.
    pub(super) selected: Option<Names>,
    /// What is waiting for a yes.
    pub(super) asking: Option<Request>,
    /// What the last request came to, or why there is no fresh look.
    pub(super) message: Option<String>,
    rates: HashMap<Names, Rates>,
    before: Option<(Instant, HashMap<Names, Totals>)>,
}

/// What a key asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request {
    /// Leave.
    Quit,
    /// Drain a backend with its service's settings.
    Drain {
        /// Its service.
        service: String,
        /// Its name.
        backend: String,
    },
    /// Cancel a backend's drain, or bring it back.
    Activate {
        /// Its service.
        service: String,
        /// Its name.
        backend: String,
    },
}

/// What goes to a backend in a second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Rates {
    /// New flows.
    pub(super) new_flows: f64,
    /// Packets.
    pub(super) packets: f64,
    /// Bytes.
    pub(super) bytes: f64,
}

#[derive(Debug, Clone, Copy)]
struct Totals {
    new_flows: u64,
    packets: u64,
    bytes: u64,
}

impl Model {
    /// Takes a fresh look in, and works the rates out from the one before.
    pub(super) fn look(&mut self, status: Status, at: Instant) {
        let totals: HashMap<_, _> =
            each(&status).map(|(service, backend)| (names(service, backend), totals(backend))).collect();
        if let Some((then, before)) = &self.before {
            let seconds = at.duration_since(*then).as_secs_f64();
            self.rates = totals
                .iter()
                .filter_map(|(name, now)| Some((name.clone(), rates(before.get(name)?, now, seconds))))
                .collect();
        }
        self.before = Some((at, totals));
        if self.status.is_none() && self.message.is_some() {
            self.message = None;
        }
        self.status = Some(status);
        if self.position().is_none() {
            self.selected = self.names().into_iter().next();
        }
    }

    /// There was no fresh look. What is shown is from before and says so.
    pub(super) fn away(&mut self, error: &impl Display) {
        self.message = Some(error.to_string());
        self.before = None;
        self.rates.clear();
    }

    /// What goes to a backend; nothing until there have been two looks.
    pub(super) fn rates(&self, service: &str, backend: &str) -> Option<Rates> {
        self.rates.get(&(service.to_owned(), backend.to_owned())).copied()
    }

    /// The selected backend, where it still exists.
    pub(super) fn selection(&self) -> Option<(&ServiceStatus, &BackendStatus)> {
        let selected = self.selected.as_ref()?;
        each(self.status.as_ref()?).find(|(service, backend)| names(service, backend) == *selected)
    }

    /// What a key press asks for, if it asks for anything. Changes need a second key that confirms them.
    pub(super) fn key(&mut self, key: KeyEvent) -> Option<Request> {
        if key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL) {
            return Some(Request::Quit);
        }
        if let Some(request) = self.asking.take() {
            let confirmed = matches!(key.code, KeyCode::Char('y' | 'Y') | KeyCode::Enter);
            return confirmed.then_some(request);
        }
        self.message = None;
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Some(Request::Quit),
            KeyCode::Up | KeyCode::Char('k') => self.step(-1),
            KeyCode::Down | KeyCode::Char('j') => self.step(1),
            KeyCode::Char('d') => self.ask(true),
            KeyCode::Char('a') => self.ask(false),
            _ => {}
        }
        None
    }

    /// What the daemon made of a request.
    pub(super) fn answered(&mut self, request: &Request, answer: Result<(), impl Display>) {
        let what = match request {
            Request::Drain { service, backend } => format!("drain {service}/{backend}"),
            Request::Activate { service, backend } => format!("activate {service}/{backend}"),
            Request::Quit => return,
        };
        self.message = Some(match answer {
            Ok(()) => format!("{what}: done"),
            Err(error) => format!("{what}: {error}"),
        });
    }

    fn ask(&mut self, drain: bool) {
        let Some((service, backend)) = self.selection() else { return };
        let (names, state) = (names(service, backend), backend.state);
        let useless = match state {
            State::Draining | State::Drained => drain,
            State::Active => !drain,
            State::Initial | State::Unhealthy | State::UnhealthyDraining => false,
        };
        let (service, backend) = names;
        if useless {
            let word = if drain { "draining or drained" } else { "active" };
            self.message = Some(format!("{service}/{backend} is {word} already"));
            return;
        }
        self.asking =
            Some(if drain { Request::Drain { service, backend } } else { Request::Activate { service, backend } });
    }

    fn step(&mut self, by: isize) {
        let names = self.names();
        let at = self.position().unwrap_or(0).saturating_add_signed(by).min(names.len().saturating_sub(1));
        self.selected = names.into_iter().nth(at);
    }

    fn position(&self) -> Option<usize> {
        let selected = self.selected.as_ref()?;
        self.names().iter().position(|names| names == selected)
    }

    fn names(&self) -> Vec<(String, String)> {
        self.status.iter().flat_map(each).map(|(service, backend)| names(service, backend)).collect()
    }
}

fn each(status: &Status) -> impl Iterator<Item = (&ServiceStatus, &BackendStatus)> {
    status.services.iter().flat_map(|service| service.backends.iter().map(move |backend| (service, backend)))
}

fn names(service: &ServiceStatus, backend: &BackendStatus) -> (String, String) {
    (service.name.clone(), backend.name.clone())
}

fn totals(backend: &BackendStatus) -> Totals {
    Totals { new_flows: backend.new_flows_total, packets: backend.packets_total, bytes: backend.bytes_total }
}

/// A total that fell belongs to another backend of the same name: it counts from zero.
fn rates(before: &Totals, now: &Totals, seconds: f64) -> Rates {
    let rate = |before: u64, now: u64| {
        #[expect(clippy::cast_precision_loss, reason = "two or three digits of it are shown")]
        let more = now.saturating_sub(before) as f64;
        more / seconds.max(0.001)
    };
    Rates {
        new_flows: rate(before.new_flows, now.new_flows),
        packets: rate(before.packets, now.packets),
        bytes: rate(before.bytes, now.bytes),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;

    /// Two services; `web/web-2` is draining.
    pub(in super::super) fn status(web_1_new: u64) -> Status {
        let backend = |name: &str, state: &str, new: u64, drain: &str| {
            format!(
                r#"{{"name":"{name}","address":"10.0.0.11","weight":1,"state":"{state}","reason":"resolved",
                "since":"2026-01-01T00:00:00Z","removing":false,"active_flows":7,"new_flows_total":{new},
                "packets_total":100,"bytes_total":6400,"drain":{drain},"last_drain":null}}"#
            )
        };
        let drain = r#"{"started_at":"2026-01-01T00:00:00Z","deadline":null,"remaining_s":41.5,"initial_flows":14,
            "remaining_flows":7,"on_timeout":"reset","idle_flows":0,"oldest_flow_s":null,"rate_per_s":null,
            "estimate_s":null}"#;
        let service = |name: &str, vip: &str, backends: &[String]| {
            format!(
                r#"{{"name":"{name}","vip":"{vip}","forward":"dsr","drain_timeout_s":300,"on_drain_timeout":"reset",
                "backends":[{}]}}"#,
                backends.join(",")
            )
        };
        let web = [backend("web-1", "active", web_1_new, "null"), backend("web-2", "draining", 5, drain)];
        let dns = [backend("dns-1", "active", 3, "null")];
        let text = format!(
            r#"{{"services":[{},{}],"datapath":{{"interfaces":[{{"name":"eth0","mode":"native"}}],
            "flows":{{"live":21,"opening":1,"closing":2,"untracked":0,"capacity":65536}}}}}}"#,
            service("web", "10.0.0.100:80/tcp", &web),
            service("dns", "10.0.0.100:53/udp", &dns)
        );
        serde_json::from_str(&text).expect("a status")
    }

    pub(in super::super) fn model() -> Model {
        let mut model = Model::default();
        let then = Instant::now();
        model.look(status(100), then);
        model.look(status(120), then + Duration::from_secs(2));
        model
    }

    fn press(model: &mut Model, code: char) -> Option<Request> {
        model.key(KeyEvent::from(KeyCode::Char(code)))
    }

    #[test]
    fn rates_are_over_the_time_between_two_looks() {
        let rates = model().rates("web", "web-1").expect("two looks");
        assert!((rates.new_flows - 10.0).abs() < 0.01 && rates.packets == 0.0, "{rates:?}");
        assert_eq!(model().rates("web", "nobody"), None);
    }

    #[test]
    fn a_drain_needs_a_second_key() {
        let mut model = model();
        assert_eq!(press(&mut model, 'd'), None);
        let asked = Request::Drain { service: "web".to_owned(), backend: "web-1".to_owned() };
        assert_eq!(model.asking, Some(asked.clone()));
        assert_eq!(press(&mut model, 'n'), None, "anything but yes is no");
        assert_eq!((press(&mut model, 'd'), press(&mut model, 'y')), (None, Some(asked)));
    }

    #[test]
    fn what_is_so_already_is_not_asked_for() {
        let mut model = model();
        assert_eq!(press(&mut model, 'a'), None);
        assert!(model.asking.is_none() && model.message.is_some());
        press(&mut model, 'j');
        press(&mut model, 'a');
        assert_eq!(model.asking, Some(Request::Activate { service: "web".to_owned(), backend: "web-2".to_owned() }));
    }

    #[test]
    fn the_selection_stays_within_the_list_and_with_its_backend() {
        let mut model = model();
        press(&mut model, 'k');
        assert_eq!(model.selected, Some(("web".to_owned(), "web-1".to_owned())));
        for _ in 0..5 {
            press(&mut model, 'j');
        }
        assert_eq!(model.selected, Some(("dns".to_owned(), "dns-1".to_owned())));
        let mut fewer = status(130);
        fewer.services.pop();
        model.look(fewer, Instant::now());
        assert_eq!(model.selected, Some(("web".to_owned(), "web-1".to_owned())), "gone: back to the first");
    }

    #[test]
    fn control_c_leaves_even_from_a_question() {
        let mut model = model();
        press(&mut model, 'd');
        let key = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(model.key(key), Some(Request::Quit));
    }
}

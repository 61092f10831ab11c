//! The file that `run`, `check` and `apply` read, as types.

use std::{collections::HashMap, fmt::Display, hash::Hash, net::SocketAddr, ops::Range, path::PathBuf, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::{
    diagnose::{self, Mistake},
    health::CheckSettings,
    remote::Remote,
};
use crate::{
    api::socket::SocketMode,
    control::{
        Error,
        duration::{Limit, Seconds},
        hold::HoldResult,
        model::{Affinity, BackendSpec, MAX_WEIGHT, MaxOut, ServicePatch, ServiceSpec, WantedService, WhenUnhealthy},
        quic::{QuicCid, ServerId},
        sharers::Sharers,
        validate,
        vip::{BackendAddress, Vip, check_name},
    },
    daemon::{flow_log::FlowLogSpec, hooks::HookSpec},
    datapath::{CutPolicy, Echo, Forward},
};

/// A whole file.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// How the daemon runs. The command line's flags win over it.
    #[serde(default)]
    pub daemon: Daemon,
    /// The services, in the file's order.
    #[serde(default, rename = "service")]
    pub services: Vec<Service>,
}

/// `[daemon]`: the flags of `ebb run`, in snake_case.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Daemon {
    /// Interfaces to balance on.
    #[serde(default)]
    pub interfaces: Vec<String>,
    /// How the program is attached.
    pub mode: Option<Mode>,
    /// Flows that can be tracked at once.
    #[schemars(with = "Option<u32>")]
    pub max_flows: Option<MaxFlows>,
    /// Where metrics are served, e.g. `127.0.0.1:9090`.
    pub metrics: Option<SocketAddr>,
    /// Mode of the control socket, in octal: who may write to it may do everything.
    #[schemars(with = "Option<String>")]
    pub socket_mode: Option<SocketMode>,
    /// Group of the control socket, by name or number.
    pub socket_group: Option<String>,
    /// Where the status page is served, to whoever can connect and to look only, e.g. `127.0.0.1:8080`.
    pub status: Option<SocketAddr>,
    /// Directory on bpffs for the pinned datapath.
    pub pin_path: Option<PathBuf>,
    /// Directory for what must survive a reboot.
    pub state_dir: Option<PathBuf>,
    /// Where flows that are over are told.
    pub flow_log: Option<FlowLogSpec>,
    /// Who may control the daemon from other hosts.
    pub remote: Option<Remote>,
    /// Who is told what happens to backends.
    #[serde(default, rename = "hook")]
    pub hooks: Vec<HookSpec>,
}

/// Flows that can be tracked at once, from 1 to [`MaxFlows::MOST`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "i64")]
pub struct MaxFlows(u32);

impl MaxFlows {
    /// The most: a table of 5 GB.
    pub const MOST: u32 = 1 << 26;

    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<i64> for MaxFlows {
    type Error = Error;

    fn try_from(flows: i64) -> Result<Self, Error> {
        let known = u32::try_from(flows).ok().filter(|flows| (1..=Self::MOST).contains(flows));
        known.map(Self).ok_or_else(|| not_flows(&flows))
    }
}

impl FromStr for MaxFlows {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        text.parse::<i64>().map_err(|_| not_flows(&text))?.try_into()
    }
}

fn not_flows(given: &dyn Display) -> Error {
    Error::Invalid(format!("'{given}' is not a number of flows: write a whole number from 1 to {}", MaxFlows::MOST))
}

/// Where the program runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// In the driver where that works, in the network stack with a warning where it does not.
    #[default]
    Auto,
    /// In the driver, or not at all.
    Native,
    /// In the network stack: slower, works everywhere.
    Generic,
}

/// `[[service]]`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Unique name.
    #[schemars(with = "String")]
    pub name: Spanned<String>,
    /// Where clients send to.
    #[schemars(with = "Vip")]
    pub vip: Spanned<Vip>,
    /// How packets reach the backends.
    pub forward: Option<Forward>,
    /// How long a drain may take.
    pub drain_timeout: Option<Limit>,
    /// What happens to flows still open at the deadline.
    pub on_drain_timeout: Option<CutPolicy>,
    /// How long a silent flow is kept.
    pub idle_timeout: Option<Seconds>,
    /// Silence after the client's FIN that ends a half-seen flow.
    pub fin_quiet: Option<Seconds>,
    /// Cuts at a deadline are spread over this time, which ends at the deadline.
    pub cut_window: Option<Seconds>,
    /// While a drain runs, flows silent for this long are ended.
    pub drain_idle: Option<Limit>,
    /// Once its flows are over, a drain waits this long for `ebb hook`, which can put it off.
    pub drain_hold: Option<Limit>,
    /// What a held drain ends with when nobody answers.
    pub on_hold_timeout: Option<HoldResult>,
    /// How long a new or returning backend takes to its whole share.
    pub slow_start: Option<Seconds>,
    /// How many backends may be out of rotation at once: `2` or `"25%"`.
    pub max_out: Option<MaxOut>,
    /// Steer by the client's address alone: `"source"`, or `"source/24"` for its leading bits.
    pub affinity: Option<Affinity>,
    /// UDP only: each datagram is steered by itself.
    pub per_datagram: Option<bool>,
    /// UDP only: a migrating QUIC connection keeps the backend that its connection id names, by QUIC-LB's plaintext algorithm:
    /// the length of server ids, `4`, or with the configuration, `"sid=4,cr=0"`.
    pub quic_cid: Option<QuicCid>,
    /// Who answers echo requests (ping) to the VIP's address.
    pub echo: Option<Echo>,
    /// Answer ARP requests and neighbour solicitations for the VIP's address, and announce it.
    pub announce: Option<bool>,
    /// How long the flows of a backend that fails its checks are kept; 0 cuts them at once.
    pub unhealthy_drain: Option<Limit>,
    /// What happens when no backend is healthy.
    pub when_unhealthy: Option<WhenUnhealthy>,
    /// How the backends are checked.
    #[schemars(with = "Option<CheckSettings>")]
    pub health_check: Option<Spanned<CheckSettings>>,
    /// The backends, in the file's order.
    #[serde(default, rename = "backend")]
    pub backends: Vec<Backend>,
}

/// `[[service.backend]]`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Backend {
    /// Unique in its service.
    #[schemars(with = "String")]
    pub name: Spanned<String>,
    /// Where it is. Up to four `nat` services may have one address and port.
    #[schemars(with = "BackendAddress")]
    pub address: Spanned<BackendAddress>,
    /// Its share of new flows relative to the others.
    #[schemars(with = "Option<u32>")]
    pub weight: Option<Spanned<u32>>,
    /// Its id in QUIC connection ids, in hexadecimal, where the service has `quic_cid`; assigned unless given.
    #[schemars(with = "Option<ServerId>")]
    pub server_id: Option<Spanned<ServerId>>,
}

impl File {
    /// The services as the daemon takes them. What the file leaves out gets the daemon's defaults.
    pub fn wanted(&self) -> Result<Vec<WantedService>, Error> {
        self.services.iter().map(Service::wanted).collect()
    }
}

impl Service {
    fn wanted(&self) -> Result<WantedService, Error> {
        let service = NewService {
            name: self.name.get_ref(),
            vip: *self.vip.get_ref(),
            forward: self.forward,
            settings: ServicePatch {
                drain_timeout_s: self.drain_timeout,
                on_drain_timeout: self.on_drain_timeout,
                idle_timeout_s: self.idle_timeout.map(Some),
                fin_quiet_s: self.fin_quiet,
                cut_window_s: self.cut_window,
                drain_idle_s: self.drain_idle,
                drain_hold_s: self.drain_hold,
                on_hold_timeout: self.on_hold_timeout,
                slow_start_s: self.slow_start,
                max_out: self.max_out.map(Some),
                affinity: self.affinity.map(Some),
                per_datagram: self.per_datagram,
                quic_cid: self.quic_cid.map(Some),
                echo: self.echo,
                announce: self.announce,
                unhealthy_drain_s: self.unhealthy_drain,
                when_unhealthy: self.when_unhealthy,
                health: self.health_check.as_ref().map(|check| check.get_ref().over(None)).transpose()?.map(Some),
            },
        };
        Ok(WantedService { service: service.spec()?, backends: self.backends.iter().map(Backend::spec).collect() })
    }
}

impl Backend {
    fn spec(&self) -> BackendSpec {
        BackendSpec {
            name: self.name.get_ref().clone(),
            address: *self.address.get_ref(),
            weight: self.weight.as_ref().map_or(1, |weight| *weight.get_ref()),
            server_id: self.server_id.as_ref().map(|id| *id.get_ref()),
        }
    }
}

/// A service as someone asks for it, with only what they said about it.
#[derive(Debug, Serialize)]
pub struct NewService<'a> {
    /// Its name.
    pub name: &'a str,
    /// Where clients send to.
    pub vip: Vip,
    /// How packets reach the backends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forward: Option<Forward>,
    /// The rest.
    #[serde(flatten)]
    pub settings: ServicePatch,
}

impl NewService<'_> {
    /// Refuses what the daemon would refuse whatever services it has.
    pub fn check(&self) -> Result<(), Error> {
        validate::service(&self.spec()?)
    }

    /// With the defaults filled in. They are written down once, where the wire's shape is read.
    fn spec(&self) -> Result<ServiceSpec, Error> {
        serde_json::to_value(self)
            .and_then(serde_json::from_value)
            .map_err(|error| Error::Invalid(format!("service '{}': {error}", self.name)))
    }
}

/// Reads a file's text and checks all that can be checked without a daemon.
pub fn parse(text: &str) -> Result<File, Mistake> {
    let file: File = diagnose::read(text)?;
    check_hooks(text, &file.daemon.hooks)?;
    file.daemon.remote.as_ref().map_or(Ok(()), |remote| remote.check(text))?;
    let mut names = HashMap::new();
    let mut vips = HashMap::new();
    let mut sharers = Sharers::default();
    for service in &file.services {
        named(text, "service", &service.name)?;
        unique(text, &mut names, "service", service.name.get_ref(), &service.name)?;
        unique(text, &mut vips, "VIP", service.vip.get_ref(), &service.vip)?;
        check_backends(text, service)?;
        check_server_ids(text, service)?;
        check_health(text, service)?;
        check_settings(text, service)?;
        check_endpoints(text, service, &mut sharers)?;
    }
    let backends = file.services.iter().flat_map(|service| &service.backends);
    for weight in backends.filter_map(|backend| backend.weight.as_ref()) {
        if *weight.get_ref() > MAX_WEIGHT {
            let message = format!("weight {} is too large: the most is {MAX_WEIGHT}", weight.get_ref());
            return Err(Mistake::at(text, weight.span(), message));
        }
    }
    Ok(file)
}

/// A hook is named in the message; the file's types keep no place for it.
fn check_hooks(text: &str, hooks: &[HookSpec]) -> Result<(), Mistake> {
    let place = text.find("[[daemon.hook]]").unwrap_or(0);
    for (at, hook) in hooks.iter().enumerate() {
        hook.check().map_err(|error| Mistake::at(text, place..place, error.to_string()))?;
        if hooks[..at].iter().any(|earlier| earlier.name == hook.name) {
            return Err(Mistake::at(text, place..place, format!("hook \"{}\" is there twice", hook.name)));
        }
    }
    Ok(())
}

fn check_health(text: &str, service: &Service) -> Result<(), Mistake> {
    let Some(settings) = &service.health_check else { return Ok(()) };
    let name = service.name.get_ref();
    let checked = settings.get_ref().over(None).and_then(|health| {
        validate::vip_check(name, service.forward.unwrap_or_default(), &health)?;
        validate::health(name, &health)
    });
    checked.map_err(|error| Mistake::at(text, settings.span(), error.to_string()))
}

/// What the daemon would refuse. The service is named in the message; the file's types keep no place for each setting.
fn check_settings(text: &str, service: &Service) -> Result<(), Mistake> {
    let checked = service.wanted().and_then(|wanted| validate::service(&wanted.service));
    checked.map_err(|error| Mistake::at(text, service.name.span(), error.to_string()))
}

/// Whether replies of the service's backends can be told from those of others at the same endpoints.
fn check_endpoints(text: &str, service: &Service, sharers: &mut Sharers) -> Result<(), Mistake> {
    let Ok(wanted) = service.wanted() else { return Ok(()) };
    for (backend, spec) in service.backends.iter().zip(&wanted.backends) {
        let admitted = sharers.admit(&wanted.service, spec);
        admitted.map_err(|error| Mistake::at(text, backend.address.span(), error.to_string()))?;
    }
    Ok(())
}

fn check_backends(text: &str, service: &Service) -> Result<(), Mistake> {
    let mut names = HashMap::new();
    let mut addresses = HashMap::new();
    let vip = service.vip.get_ref();
    for backend in &service.backends {
        named(text, "backend", &backend.name)?;
        unique(text, &mut names, "backend", backend.name.get_ref(), &backend.name)?;
        let address = backend.address.get_ref();
        // With its port: the VIP's written out is the same as none.
        unique(text, &mut addresses, "address", address.endpoint(*vip), &backend.address)?;
        let forward = service.forward.unwrap_or_default();
        let other_port = address.port.is_some_and(|port| port != vip.address.port());
        let other_family = address.ip.is_ipv4() != vip.address.is_ipv4();
        let refused = if forward != Forward::Nat && other_port {
            format!("only forward = \"nat\" can change the port: leave it out, or write {}", vip_port(address.ip, vip))
        } else if forward != Forward::Tunnel && other_family {
            "the backend's address is of another family than the VIP: only forward = \"tunnel\" crosses families"
                .to_owned()
        } else if address.ip == vip.address.ip() {
            "this is the VIP: write the backend's own address".to_owned()
        } else {
            continue;
        };
        return Err(Mistake::at(text, backend.address.span(), refused));
    }
    Ok(())
}

fn check_server_ids(text: &str, service: &Service) -> Result<(), Mistake> {
    let mut ids = HashMap::new();
    for id in service.backends.iter().filter_map(|backend| backend.server_id.as_ref()) {
        let refused = match service.quic_cid {
            None => "the service has no quic_cid: without it nothing looks at server ids".to_owned(),
            Some(cid) if !id.get_ref().fits(cid) => {
                format!("by the service's quic_cid server ids have {} bytes", cid.server_id_len)
            }
            Some(_) => {
                unique(text, &mut ids, "server id", id.get_ref(), id)?;
                continue;
            }
        };
        return Err(Mistake::at(text, id.span(), refused));
    }
    Ok(())
}

fn vip_port(ip: std::net::IpAddr, vip: &Vip) -> SocketAddr {
    SocketAddr::new(ip, vip.address.port())
}

fn named(text: &str, what: &str, name: &Spanned<String>) -> Result<(), Mistake> {
    check_name(what, name.get_ref()).map_err(|error| Mistake::at(text, name.span(), error.to_string()))
}

/// Refuses a value that an earlier entry has, saying where that is.
fn unique<K: Eq + Hash, T: Display>(
    text: &str,
    seen: &mut HashMap<K, Range<usize>>,
    what: &str,
    key: K,
    value: &Spanned<T>,
) -> Result<(), Mistake> {
    match seen.insert(key, value.span()) {
        None => Ok(()),
        Some(earlier) => {
            let earlier = Mistake::at(text, earlier, String::new());
            let message = format!("{what} \"{}\" is already used on line {}", value.get_ref(), earlier.line);
            Err(Mistake::at(text, value.span(), message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTRACT: &str = r#"
[daemon]
interfaces = ["eth0"]
mode = "generic"
max_flows = 65536
[[service]]
name = "web"
vip = "10.0.0.100:80/tcp"
forward = "dsr"
drain_timeout = "300s"
on_drain_timeout = "reset"
  [[service.backend]]
  name = "web-1"
  address = "10.0.0.11"
  weight = 1
  [[service.backend]]
  name = "web-2"
  address = "10.0.0.12"
"#;

    fn said(text: &str) -> String {
        parse(text).expect_err("the text is wrong").to_string()
    }

    #[test]
    fn the_contract_s_example_is_read() {
        let file = parse(CONTRACT).expect("the example");
        assert_eq!(file.daemon.interfaces, ["eth0"]);
        assert_eq!(file.daemon.mode, Some(Mode::Generic));
        let wanted = file.wanted().expect("well formed");
        assert_eq!(wanted.len(), 1);
        assert_eq!(wanted[0].service.drain_timeout_s, Limit::seconds(300));
        assert_eq!(wanted[0].backends[1].weight, 1);
        assert_eq!(wanted[0].backends[1].address.to_string(), "10.0.0.12");
    }

    #[test]
    fn what_is_left_out_has_the_daemon_s_default() {
        let file = parse("[[service]]\nname = \"w\"\nvip = \"10.0.0.1:80/tcp\"\n").expect("enough");
        let asked: ServiceSpec =
            serde_json::from_str(r#"{"name":"w","vip":"10.0.0.1:80/tcp"}"#).expect("enough over the wire too");
        assert_eq!(file.wanted().expect("well formed")[0].service, asked);
    }

    const CHECKED: &str = r#"
[[service]]
name = "web"
vip = "10.0.0.100:80/tcp"
unhealthy_drain = "30s"
when_unhealthy = "refuse"
  [service.health_check]
  check = "http"
  path = "/up"
  interval = "2s"
"#;

    #[test]
    fn a_health_check_is_read() {
        let wanted = parse(CHECKED).expect("well formed").wanted().expect("well formed");
        let service = &wanted[0].service;
        assert_eq!((service.unhealthy_drain_s, service.when_unhealthy), (Limit::seconds(30), WhenUnhealthy::Refuse));
        let health = service.health.as_ref().expect("it has a check");
        assert_eq!((health.interval_s, health.fall), (Seconds::new(2), 3));
    }

    #[test]
    fn a_wrong_health_check_is_placed() {
        for (from, to, expected) in [
            ("path =", "paht =", "line 9, column 3: unknown key \"paht\", did you mean \"path\"?"),
            ("\"/up\"", "\"up\"", "line 7, column 3: service web: health check: the path begins with /"),
            ("\"http\"", "\"tcp\"", "line 7, column 3: health check: path is a setting of http checks"),
            ("\"http\"", "\"htp\"", "line 8, column 11: unknown value \"htp\", did you mean \"http\"?"),
            ("\"2s\"", "\"1ms\"", "line 7, column 3: service web: health check: the interval is at least 100ms"),
        ] {
            let line = said(&CHECKED.replace(from, to));
            assert!(line.starts_with(expected), "{to}: {line}");
        }
    }

    #[test]
    fn hooks_are_read_and_checked() {
        let hook = "[[daemon.hook]]\nname = \"pager\"\nurl = \"http://192.0.2.1/ebb\"\ntimeout = \"3s\"\n";
        let file = parse(hook).expect("well formed");
        assert_eq!((&*file.daemon.hooks[0].name, file.daemon.hooks[0].retries), ("pager", 5));
        let line = said(&hook.replace("http:", "https:"));
        assert!(line.starts_with("line 1, column 1: hook pager: 'https://"), "{line}");
        let line = said(&format!("{hook}{hook}"));
        assert_eq!(line, "line 1, column 1: hook \"pager\" is there twice");
    }

    #[test]
    fn who_may_control_it_from_afar_is_read_and_checked() {
        let remote = "[daemon.remote]\nlisten = \"192.0.2.1:7443\"\ncert = \"a\"\nkey = \"b\"\nclient_ca = \"c\"\n\
                      [[daemon.remote.client]]\nname = \"host-1\"\nright = \"own_address\"\naddresses = [\"10.0.0.11\"]\n\
                      [[daemon.remote.client]]\nname = \"deploy\"\nright = \"admin\"\n";
        let file = parse(remote).expect("well formed");
        let settings = file.daemon.remote.expect("it is there").settings();
        assert_eq!((settings.clients.len(), settings.clients[0].addresses.len()), (2, 1));
        for (from, to, expected) in [
            (
                "own_address",
                "own_adress",
                "line 8, column 9: unknown value \"own_adress\", did you mean \"own_address\"?",
            ),
            ("own_address", "read", "line 9, column 13: addresses go with right = \"own_address\" only"),
            ("deploy", "host-1", "line 11, column 8: client \"host-1\" is there twice"),
            ("key = \"b\"\n", "", "line 1, column 1: missing key \"key\""),
            ("192.0.2.1:7443", "192.0.2.1", "line 2, column 10: "),
        ] {
            let line = said(&remote.replace(from, to));
            assert!(line.starts_with(expected), "{to}: {line}");
        }
    }

    #[test]
    fn an_empty_file_is_a_file() {
        assert!(parse("").expect("nothing is wrong").services.is_empty());
    }

    #[test]
    fn services_at_one_endpoint_are_as_many_as_can_be_told_apart() {
        let service = |number| {
            format!(
                "[[service]]\nname = \"s{number}\"\nvip = \"10.0.1.{number}:80/tcp\"\nforward = \"nat\"\n\
                 [[service.backend]]\nname = \"b\"\naddress = \"10.0.0.11\"\n"
            )
        };
        let text: String = (1..=5).map(service).collect();
        let expected = "line 35, column 11: backend s5/b: 4 services reach 10.0.0.11 port 80 by nat already";
        assert!(said(&text).starts_with(expected), "{}", said(&text));
        parse(&text.replace("10.0.1.5:80", "10.0.1.5:81")).expect("another port of the backend");
    }

    #[test]
    fn values_are_checked_where_they_stand() {
        for (from, to, expected) in [
            ("\"10.0.0.100:80/tcp\"", "\"10.0.0.100\"", "line 8, column 7: '10.0.0.100' is not a VIP"),
            ("\"300s\"", "\"soon\"", "line 10, column 17: 'soon' is not a duration"),
            ("\"10.0.0.12\"", "\"10.0.0.11\"", "line 18, column 13: address \"10.0.0.11\" is already used on line 14"),
            ("\"web-2\"", "\"web-1\"", "line 17, column 10: backend \"web-1\" is already used on line 13"),
            ("\"10.0.0.12\"", "\"10.0.0.12:81\"", "line 18, column 13: only forward = \"nat\" can change the port"),
            ("\"10.0.0.12\"", "\"fd00::b\"", "line 18, column 13: the backend's address is of another family"),
            ("\"10.0.0.12\"", "\"10.0.0.100\"", "line 18, column 13: this is the VIP"),
            ("\"web\"", "\"a/b\"", "line 7, column 8: 'a/b' cannot name a service"),
            ("weight = 1", "weight = 70000", "line 15, column 12: weight 70000 is too large"),
            ("weight = 1", "weight = -1", "line 15, column 12: "),
            ("\"reset\"", "\"rset\"", "line 11, column 20: unknown value \"rset\", did you mean \"reset\"?"),
            ("65536", "0", "line 5, column 13: '0' is not a number of flows: write a whole number from 1 to 67108864"),
            ("65536", "67108865", "line 5, column 13: '67108865' is not a number of flows"),
            ("65536", "-1", "line 5, column 13: '-1' is not a number of flows"),
            ("max_flows", "max_flow", "line 5, column 1: unknown key \"max_flow\", did you mean \"max_flows\"?"),
            ("[daemon]", "[deamon]", "line 2, column 2: unknown key \"deamon\", did you mean \"daemon\"?"),
        ] {
            let line = said(&CONTRACT.replace(from, to));
            assert!(line.starts_with(expected), "{to}: {line}");
        }
    }
}

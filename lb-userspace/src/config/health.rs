//! A health check as people write it, in the file and on the command line: one flat list of settings.

use std::fmt;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::control::{
    Error,
    duration::Seconds,
    model::{Check, HealthSpec},
};

/// `[service.health_check]`, and the `--check…` flags. What is left out is as it was, or the default.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckSettings {
    /// What is done to a backend; a new check needs it.
    pub check: Option<CheckKind>,
    /// `http`: the path asked for; `/` unless given.
    pub path: Option<String>,
    /// `http`: good answers; 200 to 399 unless given.
    pub statuses: Option<Vec<u16>>,
    /// `http`: the host header; the backend's address unless given.
    pub host: Option<String>,
    /// `udp`: what is sent.
    pub send: Option<String>,
    /// `udp`: what the answer begins with.
    pub expect: Option<String>,
    /// `command`: the program and its arguments.
    pub command: Option<Vec<String>>,
    /// The port to check instead of the backend's own.
    pub port: Option<u16>,
    /// In `dsr` and `tunnel`: also check that the backend answers for the VIP; a `tcp` check then asks for nothing else.
    pub vip: Option<bool>,
    /// Time between two checks of a backend.
    pub interval: Option<Seconds>,
    /// How long one may take.
    pub timeout: Option<Seconds>,
    /// So many passes in a row make a backend healthy.
    pub rise: Option<u32>,
    /// So many failures in a row make it unhealthy.
    pub fall: Option<u32>,
    /// Intervals vary by up to this share.
    pub jitter: Option<f64>,
}

/// The kinds of [`Check`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CheckKind {
    /// A TCP connection is accepted.
    Tcp,
    /// An HTTP request is answered well.
    Http,
    /// A datagram is answered.
    Udp,
    /// A command exits with 0.
    Command,
}

impl CheckKind {
    fn of(check: &Check) -> Self {
        match check {
            Check::Tcp => Self::Tcp,
            Check::Http { .. } => Self::Http,
            Check::Udp { .. } => Self::Udp,
            Check::Command { .. } => Self::Command,
        }
    }
}

impl fmt::Display for CheckKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::Udp => "udp",
            Self::Command => "command",
        })
    }
}

impl CheckSettings {
    /// What these settings make of the check that is there. Another kind of check keeps the times and counts.
    pub fn over(&self, present: Option<&HealthSpec>) -> Result<HealthSpec, Error> {
        let before = present.map(|health| CheckKind::of(&health.check));
        let kind = self.check.or(before).ok_or_else(|| {
            Error::Invalid("a health check needs to know what to check: tcp, http, udp or command".to_owned())
        })?;
        self.fits(kind)?;
        let unreadable = |error: serde_json::Error| Error::Invalid(format!("health check: {error}"));
        let mut health = present.map_or_else(|| Ok(json!({})), serde_json::to_value).map_err(unreadable)?;
        let mut check = if before == Some(kind) { health["check"].take() } else { json!({}) };
        check["kind"] = kind.to_string().into();
        set(&mut check, "path", self.path.clone());
        set(&mut check, "statuses", self.statuses.clone());
        set(&mut check, "host", self.host.clone());
        set(&mut check, "send", self.send.clone());
        set(&mut check, "expect", self.expect.clone());
        set(&mut check, "argv", self.command.clone());
        health["check"] = check;
        set(&mut health, "port", self.port);
        set(&mut health, "vip", self.vip);
        set(&mut health, "interval_s", self.interval.map(|interval| interval.0.as_secs_f64()));
        set(&mut health, "timeout_s", self.timeout.map(|timeout| timeout.0.as_secs_f64()));
        set(&mut health, "rise", self.rise);
        set(&mut health, "fall", self.fall);
        set(&mut health, "jitter", self.jitter);
        serde_json::from_value(health).map_err(unreadable)
    }

    /// The kind that these settings are for, `tcp` where they are for any.
    pub fn kind(&self) -> CheckKind {
        let given = self.of_one_kind().into_iter().find(|(.., given)| *given).map(|(_, kind, _)| kind);
        self.check.or(given).unwrap_or(CheckKind::Tcp)
    }

    /// The settings that only one kind has, and whether they are given.
    fn of_one_kind(&self) -> [(&'static str, CheckKind, bool); 6] {
        [
            ("path", CheckKind::Http, self.path.is_some()),
            ("statuses", CheckKind::Http, self.statuses.is_some()),
            ("host", CheckKind::Http, self.host.is_some()),
            ("send", CheckKind::Udp, self.send.is_some()),
            ("expect", CheckKind::Udp, self.expect.is_some()),
            ("command", CheckKind::Command, self.command.is_some()),
        ]
    }

    /// Whether all settings given are for this kind.
    fn fits(&self, kind: CheckKind) -> Result<(), Error> {
        match self.of_one_kind().iter().find(|(_, of, given)| *given && *of != kind) {
            Some((name, of, _)) => Err(Error::Invalid(format!(
                "health check: {name} is a setting of {of} checks, and this is a {kind} check"
            ))),
            None if kind == CheckKind::Command && self.command.is_none() && self.check.is_some() => {
                Err(Error::Invalid("health check: a command check needs a command".to_owned()))
            }
            None => Ok(()),
        }
    }
}

fn set<T: Into<Value>>(object: &mut Value, name: &str, value: Option<T>) {
    if let (Some(value), Some(object)) = (value, object.as_object_mut()) {
        object.insert(name.to_owned(), value.into());
    }
}

/// A check in a line for people.
pub fn describe(health: &HealthSpec) -> String {
    let what = match &health.check {
        Check::Tcp => "tcp".to_owned(),
        Check::Http { path, statuses, host } => {
            let host = host.as_ref().map(|host| format!(" of {host}")).unwrap_or_default();
            let statuses: Vec<_> = statuses.iter().map(u16::to_string).collect();
            let wanted = if statuses.is_empty() { String::new() } else { format!(" for {}", statuses.join(" or ")) };
            format!("http {path}{host}{wanted}")
        }
        Check::Udp { .. } => "udp".to_owned(),
        Check::Command { argv } => format!("command {}", argv.join(" ")),
    };
    let port = health.port.map(|port| format!(" at port {port}")).unwrap_or_default();
    let vip = if health.vip { " and the VIP" } else { "" };
    format!(
        "{what}{port}{vip}, every {} for up to {}, rise {}, fall {}",
        health.interval_s, health.timeout_s, health.rise, health.fall
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http() -> HealthSpec {
        let settings = CheckSettings {
            check: Some(CheckKind::Http),
            path: Some("/up".to_owned()),
            statuses: Some(vec![200, 204]),
            interval: Some(Seconds::new(2)),
            fall: Some(5),
            ..CheckSettings::default()
        };
        settings.over(None).expect("a check")
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let health = http();
        let statuses = vec![200, 204];
        assert_eq!(health.check, Check::Http { path: "/up".to_owned(), statuses, host: None });
        assert_eq!((health.interval_s, health.timeout_s), (Seconds::new(2), Seconds::new(2)));
        assert_eq!((health.rise, health.fall, health.port), (2, 5, None));
        assert_eq!(describe(&health), "http /up for 200 or 204, every 2s for up to 2s, rise 2, fall 5");
    }

    #[test]
    fn what_is_there_stays_unless_it_is_changed() {
        let slower = CheckSettings { interval: Some(Seconds::new(9)), ..CheckSettings::default() };
        let health = slower.over(Some(&http())).expect("a check");
        assert_eq!(health, HealthSpec { interval_s: Seconds::new(9), ..http() });
        let other = CheckSettings { check: Some(CheckKind::Tcp), ..CheckSettings::default() };
        assert_eq!(other.over(Some(&http())).expect("a check"), HealthSpec { check: Check::Tcp, ..http() });
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let path = CheckSettings { path: Some("/".to_owned()), ..CheckSettings::default() };
        let refused = path.over(None).expect_err("no kind").to_string();
        assert!(refused.contains("tcp, http, udp or command"), "{refused}");
        let refused = CheckSettings { check: Some(CheckKind::Tcp), ..path }.over(None).expect_err("tcp").to_string();
        assert_eq!(refused, "health check: path is a setting of http checks, and this is a tcp check");
        let refused = CheckSettings { check: Some(CheckKind::Command), ..CheckSettings::default() }.over(None);
        assert!(refused.is_err());
    }
}

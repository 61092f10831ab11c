//! The flags of a service's health check.

use clap::{Args, builder::TypedValueParser};

use super::values::{OrNone, words};
use crate::{
    config::health::{CheckKind, CheckSettings},
    control::{Error, duration::Seconds, model::HealthSpec},
};

const KINDS: [(&str, OrNone<CheckKind>); 5] = [
    ("tcp", OrNone(Some(CheckKind::Tcp))),
    ("http", OrNone(Some(CheckKind::Http))),
    ("udp", OrNone(Some(CheckKind::Udp))),
    ("command", OrNone(Some(CheckKind::Command))),
    ("none", OrNone(None)),
];

fn kinds() -> impl TypedValueParser<Value = OrNone<CheckKind>> {
    words(&KINDS)
}

/// Settings of a service's health check. With `set`, those not given stay as they are.
#[derive(Debug, Clone, Default, PartialEq, Args)]
#[command(next_help_heading = "Health check")]
pub struct CheckArgs {
    /// Check the backends: tcp connects, http asks for a path, udp sends a datagram, command runs one; none does nothing [default: none]
    #[arg(long, value_name = "KIND", value_parser = kinds())]
    pub check: Option<OrNone<CheckKind>>,
    /// http: the path asked for [default: /]
    #[arg(long, value_name = "PATH")]
    pub check_path: Option<String>,
    /// http: good answers, e.g. 200,204 [default: 200 to 399]
    #[arg(long, value_name = "STATUS,…", value_delimiter = ',')]
    pub check_status: Option<Vec<u16>>,
    /// http: the host header [default: the backend's address]
    #[arg(long, value_name = "HOST")]
    pub check_host: Option<String>,
    /// udp: what is sent [default: an empty datagram]
    #[arg(long, value_name = "TEXT")]
    pub check_send: Option<String>,
    /// udp: what the answer begins with [default: anything]
    #[arg(long, value_name = "TEXT")]
    pub check_expect: Option<String>,
    /// command: a line for /bin/sh on this host, which finds the backend in EBB_ADDRESS, EBB_PORT, EBB_BACKEND, …
    #[arg(long, value_name = "LINE")]
    pub check_command: Option<String>,
    /// The port to check [default: the backend's]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub check_port: Option<u16>,
    /// dsr and tunnel: also check that the backend answers for the VIP; tcp then asks for nothing else [default: false]
    #[arg(long, value_name = "true|false")]
    pub check_vip: Option<bool>,
    /// Time between two checks of a backend [default: 5s]
    #[arg(long, value_name = "DUR")]
    pub check_interval: Option<Seconds>,
    /// How long a check may take [default: 2s]
    #[arg(long, value_name = "DUR")]
    pub check_timeout: Option<Seconds>,
    /// So many passes in a row make a backend healthy [default: 2]
    #[arg(long, value_name = "N")]
    pub check_rise: Option<u32>,
    /// So many failures in a row make it unhealthy [default: 3]
    #[arg(long, value_name = "N")]
    pub check_fall: Option<u32>,
    /// Intervals vary by up to this share, 0 to 1 [default: 0.1]
    #[arg(long, value_name = "SHARE")]
    pub check_jitter: Option<f64>,
}

impl CheckArgs {
    /// Whether what they make depends on the check that is there.
    pub fn build_on_present(&self) -> bool {
        *self != Self::default() && !matches!(self.check, Some(OrNone(None)))
    }

    /// The check that these flags ask for: `None` leaves it as it is, `Some(None)` takes it away.
    pub fn health(&self, present: Option<&HealthSpec>) -> Result<Option<Option<HealthSpec>>, Error> {
        if *self == Self::default() {
            return Ok(None);
        }
        let given = self.settings();
        if matches!(self.check, Some(OrNone(None))) {
            if given != CheckSettings::default() {
                return Err(Error::Invalid("--check none takes no other --check flag".to_owned()));
            }
            return Ok(Some(None));
        }
        given.over(present).map(|health| Some(Some(health)))
    }

    /// As [`CheckArgs::health`] where what is there is not known: a check of a kind that these flags can be for.
    pub fn alone(&self) -> Result<Option<Option<HealthSpec>>, Error> {
        if !self.build_on_present() {
            return self.health(None);
        }
        let kind = OrNone(Some(self.settings().kind()));
        Self { check: Some(kind), ..self.clone() }.health(None)
    }

    fn settings(&self) -> CheckSettings {
        CheckSettings {
            check: self.check.and_then(|check| check.0),
            path: self.check_path.clone(),
            statuses: self.check_status.clone(),
            host: self.check_host.clone(),
            send: self.check_send.clone(),
            expect: self.check_expect.clone(),
            command: self.check_command.as_ref().map(|line| ["/bin/sh", "-c", line].map(str::to_owned).to_vec()),
            port: self.check_port,
            vip: self.check_vip,
            interval: self.check_interval,
            timeout: self.check_timeout,
            rise: self.check_rise,
            fall: self.check_fall,
            jitter: self.check_jitter,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::{
        cli::args::{Cli, Command, ServiceCommand},
        control::model::Check,
    };

    fn typed(flags: &[&str]) -> CheckArgs {
        let words = ["ebb", "service", "set", "web"].iter().chain(flags);
        let cli = Cli::try_parse_from(words).expect("well formed");
        let Command::Service(ServiceCommand::Set { settings, .. }) = cli.command else { panic!("it is a set") };
        *settings.check
    }

    #[test]
    fn flags_make_a_check() {
        let flags =
            ["--check", "http", "--check-path", "/up", "--check-status", "200,204", "--check-interval", "500ms"];
        let health = typed(&flags).health(None).expect("well formed").expect("given").expect("a check");
        assert_eq!(health.check, Check::Http { path: "/up".to_owned(), statuses: vec![200, 204], host: None });
        assert_eq!(health.interval_s.0.as_millis(), 500);
        let other = typed(&["--check-fall", "9"]);
        assert!(other.build_on_present() && other.health(None).is_err(), "there is nothing to change");
        assert_eq!(other.health(Some(&health)), Ok(Some(Some(HealthSpec { fall: 9, ..health }))));
    }

    #[test]
    fn flags_alone_are_for_a_check_that_has_them() {
        let kind = |flags: &[&str]| typed(flags).alone().map(|health| health.flatten().map(|health| health.check));
        assert_eq!(kind(&[]), Ok(None));
        assert_eq!(kind(&["--check", "none"]), Ok(None));
        assert_eq!(kind(&["--check-rise", "3"]), Ok(Some(Check::Tcp)));
        let udp = Check::Udp { send: String::new(), expect: Some("pong".to_owned()) };
        assert_eq!(kind(&["--check-expect", "pong"]), Ok(Some(udp)));
        assert!(kind(&["--check-expect", "pong", "--check-path", "/"]).is_err(), "no check has both");
        assert!(kind(&["--check", "command"]).is_err());
    }

    #[test]
    fn none_takes_it_away_and_nothing_leaves_it() {
        assert_eq!(typed(&["--check", "none"]).health(None), Ok(Some(None)));
        assert_eq!(typed(&[]).health(None), Ok(None));
        assert!(typed(&["--check", "none", "--check-rise", "3"]).health(None).is_err());
    }

    #[test]
    fn a_command_is_a_line_for_the_shell() {
        let health = typed(&["--check", "command", "--check-command", "true && true"]).health(None);
        let argv = ["/bin/sh", "-c", "true && true"].map(str::to_owned).to_vec();
        assert_eq!(health.expect("well formed").flatten().map(|health| health.check), Some(Check::Command { argv }));
    }
}

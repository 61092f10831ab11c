//! What is typed to name things: each parses, or says in one sentence what it should look like.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::control::{Error, model::MAX_WEIGHT, vip::check_name};

/// `SERVICE/BACKEND`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The service.
    pub service: String,
    /// The backend in it.
    pub backend: String,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service, self.backend)
    }
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (service, backend) = text.split_once('/').ok_or_else(|| {
            Error::Invalid(format!("'{text}' names no backend: write SERVICE/BACKEND, e.g. web/web-1"))
        })?;
        Ok(Self { service: service_name(service)?, backend: backend_name(backend)? })
    }
}

/// `SERVICE` or `SERVICE/BACKEND`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowScope {
    /// The service.
    pub service: String,
    /// Only this backend of it.
    pub backend: Option<String>,
}

impl FromStr for FlowScope {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (service, backend) = match text.split_once('/') {
            Some((service, backend)) => (service, Some(backend_name(backend)?)),
            None => (text, None),
        };
        Ok(Self { service: service_name(service)?, backend })
    }
}

/// A service's name.
pub fn service_name(text: &str) -> Result<String, Error> {
    check_name("service", text).map(|()| text.to_owned())
}

/// A backend's name.
pub fn backend_name(text: &str) -> Result<String, Error> {
    check_name("backend", text).map(|()| text.to_owned())
}

/// An address of a host.
pub fn host(text: &str) -> Result<IpAddr, Error> {
    text.parse().map_err(|_| {
        Error::Invalid(format!("'{text}' is not a host's address: write 10.0.0.11 or fd00::b, without a port"))
    })
}

/// An address and port to listen on.
pub fn listen_address(text: &str) -> Result<SocketAddr, Error> {
    text.parse().map_err(|_| {
        Error::Invalid(format!("'{text}' is not an address to listen on: write 127.0.0.1:9090 or [::1]:9090"))
    })
}

/// A value, or `none` to take it away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OrNone<T>(pub Option<T>);

/// A value, or `none`.
pub fn or_none<T: FromStr<Err: fmt::Display>>(text: &str) -> Result<OrNone<T>, Error> {
    if text == "none" {
        return Ok(OrNone(None));
    }
    let parsed = text.parse().map_err(|error| Error::Invalid(format!("{error}, or none")))?;
    Ok(OrNone(Some(parsed)))
}

/// One of some words, each standing for a value; help and completions list them.
pub fn words<T: Copy + Send + Sync + 'static>(words: &'static [(&'static str, T)]) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(words.iter().map(|(word, _)| *word)).try_map(|typed| {
        let known = words.iter().find(|(word, _)| *word == typed);
        known.map(|(_, value)| *value).ok_or("unknown word")
    })
}

/// A revision, as the daemon tells it.
pub fn revision(text: &str) -> Result<String, Error> {
    if text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(text.to_ascii_lowercase());
    }
    Err(Error::Invalid(format!(
        "'{text}' is not a revision: \"ebb service show\" and \"ebb apply --dry-run\" tell them"
    )))
}

/// A backend's share of new flows.
pub fn weight(text: &str) -> Result<u32, Error> {
    text.parse()
        .ok()
        .filter(|weight| *weight <= MAX_WEIGHT)
        .ok_or_else(|| Error::Invalid(format!("'{text}' is not a weight: write a whole number from 0 to {MAX_WEIGHT}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_bounded() {
        assert_eq!(weight("0"), Ok(0));
        assert_eq!(weight("65535"), Ok(65_535));
        for bad in ["-1", "65536", "1.5", "many", ""] {
            assert!(weight(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn targets_need_both_halves() {
        let target: Target = "web/web-1".parse().expect("a target");
        assert_eq!(target.to_string(), "web/web-1");
        for bad in ["web", "web/", "/web-1", "a/b/c", ""] {
            assert!(bad.parse::<Target>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_scope_may_be_a_service_or_a_backend() {
        let scope: FlowScope = "web".parse().expect("a service");
        assert_eq!((scope.service.as_str(), scope.backend), ("web", None));
        let scope: FlowScope = "web/web-1".parse().expect("a backend");
        assert_eq!(scope.backend.as_deref(), Some("web-1"));
        assert!("web/".parse::<FlowScope>().is_err());
    }

    #[test]
    fn a_host_has_no_port() {
        assert!(host("10.0.0.11").is_ok() && host("fd00::b").is_ok());
        for bad in ["10.0.0.11:80", "[fd00::b]:80", "web-1", ""] {
            assert!(host(bad).is_err(), "{bad:?}");
        }
    }
}

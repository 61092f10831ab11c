//! `[daemon.remote]`: who may control this balancer from other hosts.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use schemars::JsonSchema;
use serde::Deserialize;
use toml::Spanned;

use super::diagnose::Mistake;
use crate::api::{
    remote::{ClientRule, Settings, Terms},
    rights::Right,
};

/// `[daemon.remote]`.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Remote {
    /// Where to listen for other hosts, e.g. `192.0.2.1:7443`.
    pub listen: SocketAddr,
    /// The daemon's certificate in PEM, and those that vouch for it.
    #[schemars(with = "String")]
    pub cert: Spanned<PathBuf>,
    /// Its private key in PEM.
    #[schemars(with = "String")]
    pub key: Spanned<PathBuf>,
    /// The authorities in PEM whose certificates callers may show.
    #[schemars(with = "String")]
    pub client_ca: Spanned<PathBuf>,
    /// Who may do what.
    #[serde(default, rename = "client")]
    pub clients: Vec<RemoteClient>,
}

/// `[[daemon.remote.client]]`.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoteClient {
    /// A DNS or URI name of the certificate, or the common name of one that has neither.
    #[schemars(with = "String")]
    pub name: Spanned<String>,
    /// What it may do: everything, only look, or only see, drain, activate and wait for the backends at its own address.
    pub right: Right,
    /// Under `own_address`: which addresses are its own, instead of the one that it connects from.
    #[schemars(with = "Option<Vec<String>>")]
    pub addresses: Option<Spanned<Vec<IpAddr>>>,
}

impl Remote {
    /// As the daemon takes it.
    pub fn settings(&self) -> Settings {
        let rule = |client: &RemoteClient| ClientRule {
            name: client.name.get_ref().clone(),
            right: client.right,
            addresses: client.addresses.as_ref().map(|listed| listed.get_ref().clone()).unwrap_or_default(),
        };
        Settings {
            listen: self.listen,
            cert: self.cert.get_ref().clone(),
            key: self.key.get_ref().clone(),
            client_ca: self.client_ca.get_ref().clone(),
            clients: self.clients.iter().map(rule).collect(),
        }
    }

    /// What can be seen wrong without the files.
    pub(super) fn check(&self, text: &str) -> Result<(), Mistake> {
        for (at, client) in self.clients.iter().enumerate() {
            let name = &client.name;
            if name.get_ref().is_empty() {
                return Err(Mistake::at(text, name.span(), "a client's name is one in its certificate, not empty"));
            }
            if self.clients[..at].iter().any(|earlier| earlier.name == *name) {
                return Err(Mistake::at(text, name.span(), format!("client \"{}\" is there twice", name.get_ref())));
            }
            if let Some(listed) = client.addresses.as_ref().filter(|_| client.right != Right::OwnAddress) {
                return Err(Mistake::at(text, listed.span(), "addresses go with right = \"own_address\" only"));
            }
        }
        Ok(())
    }

    /// What is wrong with the files, on the host where they are.
    pub(super) fn check_files(&self, text: &str) -> Result<(), Mistake> {
        let Err(error) = Terms::load(&self.settings()) else { return Ok(()) };
        let place = [("cert", &self.cert), ("key", &self.key), ("client_ca", &self.client_ca)];
        let span = place.iter().find(|(key, _)| *key == error.key).map_or(0..0, |(_, value)| value.span());
        Err(Mistake::at(text, span, error.message))
    }
}

//! Who may control this balancer from afar, as it is written, and in force.

use std::{
    fmt, fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ServerConfig,
    pki_types::CertificateDer,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};

use crate::{
    api::rights::{Caller, Right},
    tls,
};

/// `[daemon.remote]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where callers connect.
    pub listen: SocketAddr,
    /// The daemon's certificate, and those that vouch for it.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authorities whose certificates callers may have.
    pub client_ca: PathBuf,
    /// Who may do what.
    pub clients: Vec<ClientRule>,
}

/// What the owner of a certificate may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientRule {
    /// A name in the certificate.
    pub name: String,
    /// The right.
    pub right: Right,
    /// The addresses that count as its own, instead of the one that it connects from.
    pub addresses: Vec<IpAddr>,
}

/// Why these settings cannot be put in force.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct SettingsError {
    /// Which of them.
    pub key: &'static str,
    /// What is wrong with it.
    pub message: String,
}

/// Settings in force, with what their files hold.
pub struct Terms {
    clients: Vec<ClientRule>,
    /// The files as they were read, to tell whether they have changed.
    files: [Vec<u8>; 3],
    tls: Arc<ServerConfig>,
}

impl fmt::Debug for Terms {
    /// Without the files, of which one is a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terms").field("clients", &self.clients).finish_non_exhaustive()
    }
}

impl PartialEq for Terms {
    fn eq(&self, other: &Self) -> bool {
        self.clients == other.clients && self.files == other.files
    }
}

impl Terms {
    /// Reads the files and checks that they fit together.
    pub fn load(settings: &Settings) -> Result<Self, SettingsError> {
        let wrong = |key| move |error: tls::TlsFileError| SettingsError { key, message: error.to_string() };
        let chain = tls::chain(&settings.cert).map_err(wrong("cert"))?;
        let secret = tls::key(&settings.key).map_err(wrong("key"))?;
        let authorities = tls::authorities(&settings.client_ca).map_err(wrong("client_ca"))?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), tls::provider())
            .build()
            .map_err(|error| SettingsError { key: "client_ca", message: error.to_string() })?;
        let mut config = ServerConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(tls::VERSIONS)
            .and_then(|config| config.with_client_cert_verifier(verifier).with_single_cert(chain, secret))
            .map_err(|error| SettingsError { key: "key", message: misfit(settings, &error) })?;
        // A resumed session would not be checked against expiry and authorities again.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let read = |path: &Path| fs::read(path).unwrap_or_default();
        let files = [read(&settings.cert), read(&settings.key), read(&settings.client_ca)];
        Ok(Self { clients: settings.clients.clone(), files, tls: Arc::new(config) })
    }

    pub(super) fn tls(&self) -> &Arc<ServerConfig> {
        &self.tls
    }

    /// Who somebody is that showed this certificate (whose authority has been checked) from there. The first entry that names it
    /// counts. What a certificate says about addresses does not: a certificate is a file that may be copied, or shared by a
    /// fleet, while a caller cannot complete a handshake from an address that is not its own.
    pub(super) fn caller(&self, peer: IpAddr, certificate: &CertificateDer<'_>) -> Caller {
        let names = tls::names(certificate);
        let rule = self.clients.iter().find(|rule| names.iter().any(|name| is_same(&rule.name, name)));
        let own = |rule: &ClientRule| match rule.addresses.as_slice() {
            [] => vec![peer.to_canonical()],
            listed => listed.iter().map(IpAddr::to_canonical).collect(),
        };
        Caller {
            name: rule.map_or_else(|| names.join(", "), |rule| rule.name.clone()),
            right: rule.map(|rule| rule.right),
            addresses: rule.map_or_else(|| vec![peer.to_canonical()], own),
        }
    }
}

/// Host names differ in more than their case; URIs need not.
fn is_same(listed: &str, shown: &str) -> bool {
    listed == shown || (!listed.contains(':') && listed.eq_ignore_ascii_case(shown))
}

fn misfit(settings: &Settings, error: &rustls::Error) -> String {
    match error {
        rustls::Error::InconsistentKeys(_) => {
            format!("{} is not the key of the certificate in {}", settings.key.display(), settings.cert.display())
        }
        error => format!("{} with {}: {error}", settings.key.display(), settings.cert.display()),
    }
}

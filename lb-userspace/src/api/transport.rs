//! How a client reaches a daemon: by the socket on its own host, or over TLS from another.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hyper::Uri;
use rustls::{AlertDescription, ClientConfig, pki_types::ServerName};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::TlsConnector;

use crate::tls::{self, TlsFileError};

/// How long connecting to another host may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a daemon is.
#[derive(Debug, Clone)]
pub(super) enum Place {
    Socket(PathBuf),
    Server(Arc<Server>),
}

/// A daemon on another host, and what we show it.
pub struct Server {
    url: Uri,
    host: String,
    port: u16,
    name: ServerName<'static>,
    tls: TlsConnector,
    cert: PathBuf,
    ca: PathBuf,
}

/// Why there is no server to talk to.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The URL is not one.
    #[error("'{0}' is not a server's URL: write https://HOST:PORT")]
    Url(String),
    /// A file does not serve.
    #[error(transparent)]
    File(#[from] TlsFileError),
    /// The files do not fit together.
    #[error("{} is not the key of the certificate in {}: {cause}", key.display(), cert.display())]
    Misfit {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
        /// Why.
        cause: String,
    },
}

impl Server {
    /// The daemon at this URL, who must have a certificate from `ca`, and to whom we show ours.
    pub fn new(url: &str, cert: &Path, key: &Path, ca: &Path) -> Result<Self, ServerError> {
        let wrong = || ServerError::Url(url.to_owned());
        let parsed: Uri = url.parse().map_err(|_| wrong())?;
        let authority = parsed.authority().ok_or_else(wrong)?;
        let plain = parsed.path() == "/" && parsed.query().is_none() && !authority.as_str().contains('@');
        if parsed.scheme_str() != Some("https") || !plain {
            return Err(wrong());
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host.clone()).map_err(|_| wrong())?;
        let authorities = tls::authorities(ca)?;
        let (chain, secret) = (tls::chain(cert)?, tls::key(key)?);
        let mut config = ClientConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(tls::VERSIONS)
            .and_then(|config| config.with_root_certificates(authorities).with_client_auth_cert(chain, secret))
            .map_err(|error| ServerError::Misfit {
                cert: cert.to_owned(),
                key: key.to_owned(),
                cause: error.to_string(),
            })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            host,
            port: authority.port_u16().unwrap_or(443),
            name,
            tls: TlsConnector::from(Arc::new(config)),
            cert: cert.to_owned(),
            ca: ca.to_owned(),
            url: parsed,
        })
    }

    /// What a failed conversation was about, if it was about who somebody is.
    pub(super) fn distrust(&self, error: &(dyn std::error::Error + 'static)) -> Option<String> {
        let (url, cert) = (self.to_string(), self.cert.display());
        Some(match rustls_error(error)? {
            rustls::Error::AlertReceived(alert) => match alert {
                AlertDescription::CertificateExpired => {
                    format!("{url} does not take the certificate in {cert}: it has expired, or is not valid yet")
                }
                AlertDescription::UnknownCA => {
                    format!("{url} does not take the certificate in {cert}: it is not from the server's client_ca")
                }
                AlertDescription::CertificateRequired => format!("{url} takes callers with a certificate only"),
                alert => format!("{url} does not take the certificate in {cert}: {alert:?}"),
            },
            rustls::Error::InvalidCertificate(why) => format!(
                "the certificate that {url} shows is not one to trust by {}: {}",
                self.ca.display(),
                rustls::Error::InvalidCertificate(why.clone())
            ),
            other => format!("{url} speaks no TLS that could be understood: {other}"),
        })
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.url.to_string().trim_end_matches('/'))
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({self})")
    }
}

/// Finds what TLS had to say below an error of I/O or HTTP.
fn rustls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // What an I/O error was made of does not count as its source.
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(found) = inner.and_then(|inner| inner.downcast_ref()) {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// What bytes go over.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Place {
    /// Connects.
    pub(super) async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        match self {
            Self::Socket(path) => Ok(Box::new(UnixStream::connect(path).await?)),
            Self::Server(server) => server.connect().await,
        }
    }

    /// What goes into the request's host header.
    pub(super) fn host(&self) -> String {
        match self {
            Self::Socket(_) => "ebb".to_owned(),
            Self::Server(server) => server.url.authority().map(ToString::to_string).unwrap_or_default(),
        }
    }
}

impl Server {
    async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        let connecting = async {
            let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
            keep_alive(&stream);
            self.tls.connect(self.name.clone(), stream).await
        };
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("no answer in {CONNECT_TIMEOUT:?}")))??;
        Ok(Box::new(stream))
    }
}

/// Has the kernel notice a peer that is gone: waiting for a drain may take hours without a byte.
pub(super) fn keep_alive(stream: &TcpStream) {
    let often =
        TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(10)).with_retries(3);
    // Without it the connection works too, only longer than it need when the peer has gone.
    let _ = SockRef::from(stream).set_tcp_keepalive(&often);
    let _ = stream.set_nodelay(true);
}

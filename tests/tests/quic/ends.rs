//! Both ends of QUIC connections, by quinn: servers whose connection ids tell who they are, and a client that moves.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use ebb_tests::{lab::Namespace, traffic::Host};
use lb_common::hash;
use quinn::{
    ClientConfig, Connection, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, ServerConfig,
    TokioRuntime, TransportConfig,
    rustls::{
        RootCertStore,
        pki_types::{CertificateDer, PrivatePkcs8KeyDer},
    },
};

/// The name in the servers' certificate.
const NAME: &str = "quic.example.net";
/// How long an answer may take before the connection counts as broken.
const ANSWER: Duration = Duration::from_secs(4);
/// The longest question, and answer.
const MOST: usize = 100_000;
/// Bytes of a nonce.
const NONCE: usize = 8;

/// The certificate that all servers share.
pub(crate) struct Certificate {
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Certificate {
    /// A new one.
    pub(crate) fn new() -> Result<Self> {
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
        Ok(Self { certificate: made.cert.der().clone(), key: made.signing_key.serialize_der() })
    }
}

/// Makes connection ids as QUIC-LB's plaintext algorithm has them.
struct Ids {
    rotation: u8,
    server: Vec<u8>,
    made: u64,
}

impl ConnectionIdGenerator for Ids {
    fn generate_cid(&mut self) -> ConnectionId {
        self.made += 1;
        // Nobody is to guess a nonce of a test's.
        let nonce = hash::mix(self.made).to_be_bytes();
        let first = [self.rotation << 5 | nonce[0] & 0x1f];
        ConnectionId::new(&[&first[..], &self.server, &nonce].concat())
    }

    fn cid_len(&self) -> usize {
        1 + self.server.len() + NONCE
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// A server that answers each question by its name and what was asked.
pub(crate) struct Server {
    open: Arc<AtomicUsize>,
    _host: Host,
}

impl Server {
    /// Starts it at `address`; its ids are of that configuration and name it as that server.
    pub(crate) fn start(
        namespace: &Namespace,
        name: &str,
        address: SocketAddr,
        (rotation, server): (u8, Vec<u8>),
        certificate: &Certificate,
    ) -> Result<Self> {
        let host = Host::start(namespace)?;
        let key = PrivatePkcs8KeyDer::from(certificate.key.clone());
        let mut config = ServerConfig::with_single_cert(vec![certificate.certificate.clone()], key.into())?;
        config.transport_config(transport()?);
        let open = Arc::new(AtomicUsize::new(0));
        let (name, counted) = (name.to_owned(), open.clone());
        let endpoint = host.call(async move {
            let mut ids = EndpointConfig::default();
            ids.cid_generator(move || Box::new(Ids { rotation, server: server.clone(), made: 0 }));
            Ok(Endpoint::new(ids, Some(config), UdpSocket::bind(address)?, Arc::new(TokioRuntime))?)
        })?;
        host.spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                let (name, counted) = (name.clone(), counted.clone());
                tokio::spawn(async move {
                    let Ok(connection) = incoming.await else { return };
                    counted.fetch_add(1, Ordering::Relaxed);
                    // It ends with the connection.
                    let _ = serve(&connection, &name).await;
                    counted.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        Ok(Self { open, _host: host })
    }

    /// Connections that are open.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

async fn serve(connection: &Connection, name: &str) -> Result<()> {
    loop {
        let (mut to, mut from) = connection.accept_bi().await?;
        let asked = from.read_to_end(MOST).await?;
        to.write_all(name.as_bytes()).await?;
        to.write_all(&asked).await?;
        to.finish()?;
    }
}

/// Connections that fall silent for longer than this are over.
fn transport() -> Result<Arc<TransportConfig>> {
    let mut transport = TransportConfig::default();
    transport.max_idle_timeout(Some(Duration::from_secs(30).try_into()?));
    Ok(Arc::new(transport))
}

/// The client's host.
pub(crate) struct Client {
    config: ClientConfig,
    host: Host,
}

/// One connection, on a socket of its own.
pub(crate) struct Talk {
    endpoint: Endpoint,
    connection: Connection,
}

impl Client {
    /// Starts it.
    pub(crate) fn start(namespace: &Namespace, certificate: &Certificate) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(certificate.certificate.clone())?;
        let mut config = ClientConfig::with_root_certificates(Arc::new(roots))?;
        config.transport_config(transport()?);
        Ok(Self { config, host: Host::start(namespace)? })
    }

    /// Connects to `to` from an own address.
    pub(crate) fn connect(&self, from: SocketAddr, to: SocketAddr) -> Result<Talk> {
        let config = self.config.clone();
        self.host.call(async move {
            let mut endpoint =
                Endpoint::new(EndpointConfig::default(), None, UdpSocket::bind(from)?, Arc::new(TokioRuntime))?;
            endpoint.set_default_client_config(config);
            let connection = tokio::time::timeout(ANSWER, endpoint.connect(to, NAME)?).await??;
            Ok(Talk { endpoint, connection })
        })
    }

    /// Asks, with a question of that many bytes, who serves the connection. An error means that it is broken.
    pub(crate) fn ask(&self, talk: &Talk, bytes: usize) -> Result<String> {
        let connection = talk.connection.clone();
        self.host.call(async move {
            let asking = async {
                let (mut to, mut from) = connection.open_bi().await?;
                let question = vec![b'?'; bytes];
                to.write_all(&question).await?;
                to.finish()?;
                let answer = from.read_to_end(MOST).await?;
                let name = answer.strip_suffix(&question[..]).context("the answer is not to the question")?;
                Ok(String::from_utf8(name.to_vec())?)
            };
            tokio::time::timeout(ANSWER, asking).await?
        })
    }

    /// Moves the connection to another own address, or to another port of the same.
    pub(crate) fn migrate(&self, talk: &Talk, from: SocketAddr) -> Result<()> {
        let endpoint = talk.endpoint.clone();
        self.host.call(async move { Ok(endpoint.rebind(UdpSocket::bind(from)?)?) })
    }

    /// Closes it.
    pub(crate) fn close(&self, talk: Talk) -> Result<()> {
        self.host.call(async move {
            talk.connection.close(0_u32.into(), b"done");
            talk.endpoint.wait_idle().await;
            Ok(())
        })
    }
}

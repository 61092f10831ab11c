//! The checks themselves.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use futures_util::future::BoxFuture;
use tokio::net::{TcpStream, UdpSocket};

use super::{Fault, Prober, http, vip};
use crate::{
    control::model::Check,
    daemon::{command, handle::CheckTarget},
};

/// The longest answer to a datagram that is looked at.
const DATAGRAM_LIMIT: usize = 65_536;

/// Checks backends at their own addresses.
#[derive(Clone, Copy, Debug, Default)]
pub struct NetworkProber;

impl Prober for NetworkProber {
    fn probe<'a>(&'a self, target: &'a CheckTarget) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(probe(target))
    }
}

async fn probe(target: &CheckTarget) -> Result<(), Fault> {
    let address = address(target);
    if let Some(way) = &target.way {
        vip::ask(target, way).await?;
    }
    match &target.health.check {
        Check::Tcp if target.way.is_some() => Ok(()),
        Check::Tcp => connect(address).await.map(drop),
        Check::Http { path, statuses, host } => {
            let stream = connect(address).await?;
            http::get(stream, address, path, host.as_deref(), statuses).await
        }
        Check::Udp { send, expect } => ask(address, send.as_bytes(), expect.as_deref()).await,
        Check::Command { argv } => command::run(argv, &environment(target, address), Vec::new()).await,
    }
}

/// Where a target is checked.
fn address(target: &CheckTarget) -> SocketAddr {
    let own = target.address.endpoint(target.vip);
    SocketAddr::new(own.ip(), target.health.port.unwrap_or(own.port()))
}

async fn connect(address: SocketAddr) -> Result<TcpStream, Fault> {
    TcpStream::connect(address).await.map_err(|error| fault(&address, &error))
}

async fn ask(address: SocketAddr, send: &[u8], expect: Option<&str>) -> Result<(), Fault> {
    let failed = |error: io::Error| fault(&address, &error);
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await.map_err(failed)?;
    // Answers from elsewhere do not count, and "port unreachable" is heard.
    socket.connect(address).await.map_err(failed)?;
    socket.send(send).await.map_err(failed)?;
    let mut answer = vec![0; DATAGRAM_LIMIT];
    let length = socket.recv(&mut answer).await.map_err(failed)?;
    match expect {
        Some(expect) if !answer[..length].starts_with(expect.as_bytes()) => {
            Err(Fault::Theirs(format!("{address}: the answer does not begin with {expect:?}")))
        }
        _ => Ok(()),
    }
}

fn environment(target: &CheckTarget, address: SocketAddr) -> Vec<(&'static str, String)> {
    vec![
        ("EBB_SERVICE", target.service.clone()),
        ("EBB_BACKEND", target.backend.clone()),
        ("EBB_ADDRESS", address.ip().to_string()),
        ("EBB_PORT", address.port().to_string()),
        ("EBB_VIP", target.vip.address.ip().to_string()),
        ("EBB_VIP_PORT", target.vip.address.port().to_string()),
        ("EBB_PROTOCOL", target.vip.protocol.to_string()),
    ]
}

/// What went wrong with an address.
pub(super) fn fault(address: &SocketAddr, error: &io::Error) -> Fault {
    Fault::of(error, format!("{address}: {}", words(error)))
}

/// What the system said, without its number.
fn words(error: &io::Error) -> String {
    let said = error.to_string();
    let said = said.split(" (os error").next().unwrap_or_default();
    let mut letters = said.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::daemon::health::tests::target_of;

    async fn seen(target: &CheckTarget) -> Result<(), String> {
        probe(target).await.map_err(|fault| fault.to_string())
    }

    fn at(address: SocketAddr, check: &serde_json::Value) -> CheckTarget {
        target_of(address.ip(), Some(address.port()), check)
    }

    async fn free_port() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        listener.local_addr().expect("an address")
    }

    #[tokio::test]
    async fn tcp_wants_a_connection() {
        let check = serde_json::json!({ "kind": "tcp" });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        assert_eq!(seen(&at(address, &check)).await, Ok(()));
        let closed = free_port().await;
        assert_eq!(seen(&at(closed, &check)).await, Err(format!("{closed}: connection refused")));
    }

    #[tokio::test]
    async fn udp_wants_the_right_answer() {
        let server = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let address = server.local_addr().expect("an address");
        tokio::spawn(async move {
            let mut buffer = [0; 64];
            while let Ok((length, from)) = server.recv_from(&mut buffer).await {
                let answer = if &buffer[..length] == b"ping" { "pong" } else { "what?" };
                server.send_to(answer.as_bytes(), from).await.expect("it can answer");
            }
        });
        let check =
            |send: &str, expect: Option<&str>| serde_json::json!({ "kind": "udp", "send": send, "expect": expect });
        assert_eq!(seen(&at(address, &check("ping", Some("po")))).await, Ok(()));
        assert_eq!(seen(&at(address, &check("", None))).await, Ok(()));
        let wrong = seen(&at(address, &check("pong", Some("po")))).await;
        assert_eq!(wrong, Err(format!("{address}: the answer does not begin with \"po\"")));
        let closed = free_port().await;
        let refused = seen(&at(closed, &check("ping", None))).await;
        assert_eq!(refused, Err(format!("{closed}: connection refused")));
    }

    #[tokio::test]
    async fn a_command_finds_its_target() {
        let script =
            "test \"$EBB_SERVICE $EBB_BACKEND $EBB_ADDRESS $EBB_PORT $EBB_PROTOCOL\" = 'web b 192.0.2.1 80 tcp'";
        let check = serde_json::json!({ "kind": "command", "argv": ["/bin/sh", "-c", script] });
        let target = target_of("192.0.2.1".parse().expect("an address"), None, &check);
        assert_eq!(seen(&target).await, Ok(()));
        let check = serde_json::json!({ "kind": "command", "argv": ["/bin/sh", "-c", "echo busy >&2; exit 3"] });
        let target = target_of("192.0.2.1".parse().expect("an address"), None, &check);
        assert_eq!(seen(&target).await, Err("/bin/sh exited with 3: busy".to_owned()));
    }

    #[tokio::test]
    async fn the_check_may_go_to_another_port() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut target = at(free_port().await, &serde_json::json!({ "kind": "tcp" }));
        assert!(seen(&target).await.is_err());
        target.health.port = Some(address.port());
        assert_eq!(seen(&target).await, Ok(()));
    }
}

//! One request over a connection, by HTTP/1.1: what checks ask for and what hooks send.

use std::net::SocketAddr;

use http_body_util::Full;
use hyper::{
    Request,
    body::{Bytes, Incoming},
    header,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::JoinSet};

use super::Fault;

/// Statuses that are good where none are named.
const GOOD: std::ops::RangeInclusive<u16> = 200..=399;

/// Asks for `path` and judges the answer's status.
pub(super) async fn get(
    stream: TcpStream,
    address: SocketAddr,
    path: &str,
    host: Option<&str>,
    statuses: &[u16],
) -> Result<(), Fault> {
    let failed = |error: &(dyn std::error::Error + 'static)| Fault::of(error, format!("{address}: {error}"));
    let host = host.map_or_else(|| address.to_string(), str::to_owned);
    let request = Request::get(path)
        .header(header::HOST, host)
        .header(header::USER_AGENT, concat!("ebb/", env!("CARGO_PKG_VERSION"), " health check"))
        .header(header::CONNECTION, "close")
        .body(Full::default())
        .map_err(|error| failed(&error))?;
    let status = exchange(stream, request).await.map_err(|error| failed(&error))?;
    let good = if statuses.is_empty() { GOOD.contains(&status) } else { statuses.contains(&status) };
    if good {
        return Ok(());
    }
    let wanted = if statuses.is_empty() {
        format!("{} to {}", GOOD.start(), GOOD.end())
    } else {
        statuses.iter().map(u16::to_string).collect::<Vec<_>>().join(" or ")
    };
    Err(Fault::Theirs(format!("{address}: {path} answered with status {status}, not {wanted}")))
}

/// Sends a request and returns the answer's status.
pub(in crate::daemon) async fn exchange(stream: TcpStream, request: Request<Full<Bytes>>) -> Result<u16, hyper::Error> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends with this future: nobody reads the answer's body.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let answer: hyper::Response<Incoming> = sender.send_request(request).await?;
    Ok(answer.status().as_u16())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    /// Answers one request with this and returns what was asked.
    async fn serve(answer: &'static str) -> (SocketAddr, Arc<Mutex<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let asked = Arc::new(Mutex::new(String::new()));
        let heard = asked.clone();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut text = Vec::new();
            while !text.ends_with(b"\r\n\r\n") {
                text.push(stream.read_u8().await.expect("a request has an end"));
            }
            *heard.lock().expect("not poisoned") = String::from_utf8_lossy(&text).into_owned();
            stream.write_all(answer.as_bytes()).await.expect("it can answer");
        });
        (address, asked)
    }

    async fn ask(
        answer: &'static str,
        host: Option<&str>,
        statuses: &[u16],
    ) -> (Result<(), String>, String, SocketAddr) {
        let (address, asked) = serve(answer).await;
        let stream = TcpStream::connect(address).await.expect("it listens");
        let result = get(stream, address, "/health?full=1", host, statuses).await.map_err(|fault| fault.to_string());
        let asked = asked.lock().expect("not poisoned").clone();
        (result, asked, address)
    }

    #[tokio::test]
    async fn a_good_status_passes() {
        let (result, asked, _) = ask("HTTP/1.1 204 No Content\r\n\r\n", Some("www.example.org"), &[]).await;
        assert_eq!(result, Ok(()));
        assert!(asked.starts_with("GET /health?full=1 HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains("host: www.example.org\r\n"), "{asked}");
        // A body that is announced and never comes does not matter.
        let (result, asked, address) = ask("HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n", None, &[]).await;
        assert_eq!(result, Ok(()));
        assert!(asked.contains(&format!("host: {address}\r\n")), "{asked}");
    }

    #[tokio::test]
    async fn another_status_is_named() {
        let unavailable = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";
        let (result, _, address) = ask(unavailable, None, &[]).await;
        let expected = format!("{address}: /health?full=1 answered with status 503, not 200 to 399");
        assert_eq!(result, Err(expected));
        assert_eq!(ask(unavailable, None, &[200, 503]).await.0, Ok(()));
        let (result, _, address) = ask("HTTP/1.1 200 OK\r\n\r\n", None, &[201, 204]).await;
        assert_eq!(result, Err(format!("{address}: /health?full=1 answered with status 200, not 201 or 204")));
    }

    #[tokio::test]
    async fn what_is_not_http_fails() {
        let (result, _, address) = ask("SSH-2.0-OpenSSH\r\n", None, &[]).await;
        let error = result.expect_err("that is no answer");
        assert!(error.starts_with(&format!("{address}: ")), "{error}");
    }
}

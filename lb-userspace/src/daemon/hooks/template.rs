//! URLs that name the backend: `http://{address}:9000/drain` tells the backend itself.

use std::net::IpAddr;

use serde::Deserialize;

use crate::control::vip::BackendAddress;

/// What a notification says of whom it concerns.
#[derive(Deserialize)]
struct Concerned {
    #[serde(default)]
    address: Option<BackendAddress>,
    #[serde(default)]
    service: Option<String>,
    #[serde(default)]
    backend: Option<String>,
}

/// Whether a URL can only be told of something that happened to a backend.
pub(super) fn needs_backend(url: &str) -> bool {
    url.contains("{address}") || url.contains("{backend}")
}

/// The URL for one notification.
pub(super) fn fill(url: &str, line: &str) -> Result<String, String> {
    if !url.contains('{') {
        return Ok(url.to_owned());
    }
    let concerned: Concerned =
        serde_json::from_str(line).map_err(|error| format!("'{line}' is no notification: {error}"))?;
    put(url, &concerned)
}

/// The URL for some backend: whether it can be filled does not depend on which.
pub(super) fn sample(url: &str) -> Result<String, String> {
    let address = Some(BackendAddress { ip: IpAddr::from([192, 0, 2, 1]), port: None });
    put(url, &Concerned { address, service: Some("service".to_owned()), backend: Some("backend".to_owned()) })
}

/// Names are of characters that need no escaping.
fn put(url: &str, concerned: &Concerned) -> Result<String, String> {
    let address = concerned.address.map(|address| match address.ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    });
    let words =
        [("{address}", address), ("{service}", concerned.service.clone()), ("{backend}", concerned.backend.clone())];
    let mut filled = url.to_owned();
    for (place, word) in words.into_iter().filter(|(place, _)| url.contains(place)) {
        let word = word.ok_or_else(|| format!("'{url}' needs {place}, which the notification does not have"))?;
        filled = filled.replace(place, &word);
    }
    if filled.contains(['{', '}']) {
        return Err(format!("'{url}' has braces around something else than address, service or backend"));
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backend_is_put_in() {
        let line = r#"{"hook":"h","service":"web","backend":"b1","address":"10.0.0.11:8080"}"#;
        let filled = fill("http://{address}:9000/{service}/{backend}?again={backend}", line);
        assert_eq!(filled, Ok("http://10.0.0.11:9000/web/b1?again=b1".to_owned()));
        let line = r#"{"service":"web","backend":"b1","address":"fd00::b"}"#;
        assert_eq!(fill("http://{address}:9000/", line), Ok("http://[fd00::b]:9000/".to_owned()));
        assert!(fill("http://{address}/", r#"{"service":"web"}"#).is_err());
        assert_eq!(fill("http://a/", "not even JSON"), Ok("http://a/".to_owned()));
    }

    #[test]
    fn unknown_places_are_refused() {
        for bad in ["http://{host}/", "http://{address/", "http://a/}"] {
            assert!(sample(bad).is_err(), "{bad}");
        }
        assert!(sample("http://{address}:80/").is_ok());
        assert!(needs_backend("http://{address}/") && !needs_backend("http://a/{service}"));
    }
}

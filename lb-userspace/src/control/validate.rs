//! Whether what is asked for makes sense.

use std::time::Duration;

use super::{
    Error,
    model::{BackendSpec, Check, Forward, HealthSpec, MAX_WEIGHT, MaxOut, Protocol, ServicePatch, ServiceSpec},
    quic,
    vip::check_name,
};

/// Checks a service.
pub fn service(spec: &ServiceSpec) -> Result<(), Error> {
    check_name("service", &spec.name)?;
    let invalid = |why: String| Err(Error::Invalid(format!("service {}: {why}", spec.name)));
    let longest = if spec.vip.address.is_ipv4() { 32 } else { 128 };
    let prefix = spec.affinity.and_then(|affinity| affinity.prefix);
    if prefix.is_some_and(|prefix| prefix == 0 || prefix > longest) {
        return invalid(format!("affinity is by source or source/PREFIX, with a prefix of 1 to {longest} bits"));
    }
    if spec.per_datagram && spec.vip.protocol != Protocol::Udp {
        return invalid("per_datagram is for UDP: a TCP connection cannot change its backend".to_owned());
    }
    if spec.quic_cid.is_some() && spec.vip.protocol != Protocol::Udp {
        return invalid("quic_cid is for UDP, which QUIC runs over".to_owned());
    }
    if spec.quic_cid.is_some() && spec.per_datagram {
        return invalid(
            "quic_cid and per_datagram exclude each other: a QUIC connection cannot change its backend".to_owned(),
        );
    }
    if spec.idle_timeout_s.is_some_and(|idle| idle.0 < Duration::from_secs(1)) {
        return invalid("the idle timeout is at least 1s".to_owned());
    }
    if spec.drain_idle_s.0.is_some_and(|idle| idle < Duration::from_secs(1)) {
        return invalid("drain_idle is at least 1s, or none".to_owned());
    }
    if spec.drain_hold_s.0.is_some_and(|hold| hold < Duration::from_secs(1)) {
        return invalid("drain_hold is at least 1s, or none".to_owned());
    }
    if matches!(spec.max_out, Some(MaxOut::Percent(percent)) if percent > 100) {
        return invalid("max_out is at most 100%".to_owned());
    }
    let Some(health) = &spec.health else { return Ok(()) };
    vip_check(&spec.name, spec.forward, health)?;
    self::health(&spec.name, health)
}

/// Checks that a health check of the VIP can be made.
pub fn vip_check(service: &str, forward: Forward, spec: &HealthSpec) -> Result<(), Error> {
    if spec.vip && forward == Forward::Nat {
        return Err(Error::Invalid(format!(
            "service {service}: health check: under nat backends do not hold the VIP: leave vip out"
        )));
    }
    Ok(())
}

/// Checks a health check.
pub fn health(service: &str, spec: &HealthSpec) -> Result<(), Error> {
    let invalid = |why: &str| Err(Error::Invalid(format!("service {service}: health check: {why}")));
    if spec.interval_s.0 < Duration::from_millis(100) {
        return invalid("the interval is at least 100ms");
    }
    if spec.timeout_s.0.is_zero() {
        return invalid("the timeout is more than 0");
    }
    if spec.rise == 0 || spec.fall == 0 {
        return invalid("rise and fall are at least 1");
    }
    if !(0.0..=1.0).contains(&spec.jitter) {
        return invalid("jitter is a share of the interval, 0 to 1");
    }
    if spec.port == Some(0) {
        return invalid("the port is 1 to 65535");
    }
    match &spec.check {
        Check::Command { argv } if argv.is_empty() => invalid("the command is missing"),
        Check::Http { path, .. } if !path.starts_with('/') => invalid("the path begins with /"),
        Check::Http { path, host, .. } if !(is_plain(path) && host.as_deref().is_none_or(is_plain)) => {
            invalid("the path and the host are visible ASCII characters, without spaces: write others as %20")
        }
        Check::Http { statuses, .. } if statuses.iter().any(|status| !(100..=599).contains(status)) => {
            invalid("statuses are 100 to 599")
        }
        _ => Ok(()),
    }
}

/// Whether this can stand in the head of a request.
fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#')
}

/// Checks a backend for this service.
pub fn backend(service: &ServiceSpec, spec: &BackendSpec) -> Result<(), Error> {
    check_name("backend", &spec.name)?;
    weight(spec.weight)?;
    let name = format!("{}/{}", service.name, spec.name);
    let vip = service.vip.address;
    let other_port = spec.address.port.is_some_and(|port| port != vip.port());
    if other_port && service.forward != Forward::Nat {
        return Err(Error::Invalid(format!(
            "backend {name}: only nat can change the port: leave :{} out, or make a service with --forward nat",
            spec.address.port.unwrap_or_default()
        )));
    }
    if spec.address.ip.is_ipv4() != vip.is_ipv4() && service.forward != Forward::Tunnel {
        return Err(Error::Invalid(format!(
            "backend {name}: {} and the VIP {} are of different families: only a service with --forward tunnel can join them",
            spec.address.ip, service.vip
        )));
    }
    if spec.address.ip == vip.ip() {
        return Err(Error::Invalid(format!(
            "backend {name}: {} is the VIP: give the backend's own address",
            spec.address.ip
        )));
    }
    quic::fits(service, spec)
}

/// Checks a weight.
pub fn weight(weight: u32) -> Result<(), Error> {
    if weight > MAX_WEIGHT {
        return Err(Error::Invalid(format!("{weight} is too large a weight: use 0 to {MAX_WEIGHT}")));
    }
    Ok(())
}

/// A service's settings after a patch.
pub fn patched(spec: &ServiceSpec, patch: ServicePatch) -> ServiceSpec {
    let ServicePatch {
        drain_timeout_s,
        on_drain_timeout,
        cut_window_s,
        drain_idle_s,
        drain_hold_s,
        on_hold_timeout,
        idle_timeout_s,
        fin_quiet_s,
        affinity,
        per_datagram,
        quic_cid,
        echo,
        announce,
        slow_start_s,
        max_out,
        when_unhealthy,
        unhealthy_drain_s,
        health,
    } = patch;
    ServiceSpec {
        name: spec.name.clone(),
        vip: spec.vip,
        forward: spec.forward,
        drain_timeout_s: drain_timeout_s.unwrap_or(spec.drain_timeout_s),
        on_drain_timeout: on_drain_timeout.unwrap_or(spec.on_drain_timeout),
        cut_window_s: cut_window_s.unwrap_or(spec.cut_window_s),
        drain_idle_s: drain_idle_s.unwrap_or(spec.drain_idle_s),
        drain_hold_s: drain_hold_s.unwrap_or(spec.drain_hold_s),
        on_hold_timeout: on_hold_timeout.unwrap_or(spec.on_hold_timeout),
        idle_timeout_s: idle_timeout_s.unwrap_or(spec.idle_timeout_s),
        fin_quiet_s: fin_quiet_s.unwrap_or(spec.fin_quiet_s),
        affinity: affinity.unwrap_or(spec.affinity),
        per_datagram: per_datagram.unwrap_or(spec.per_datagram),
        quic_cid: quic_cid.unwrap_or(spec.quic_cid),
        echo: echo.unwrap_or(spec.echo),
        announce: announce.unwrap_or(spec.announce),
        slow_start_s: slow_start_s.unwrap_or(spec.slow_start_s),
        max_out: max_out.unwrap_or(spec.max_out),
        when_unhealthy: when_unhealthy.unwrap_or(spec.when_unhealthy),
        unhealthy_drain_s: unhealthy_drain_s.unwrap_or(spec.unhealthy_drain_s),
        health: health.unwrap_or_else(|| spec.health.clone()),
    }
}

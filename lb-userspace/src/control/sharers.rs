//! Backend endpoints that several `nat` services share.

use std::{collections::HashMap, net::IpAddr};

use lb_common::service::SHARED_BY;

use super::{
    Error,
    model::{BackendSpec, ServiceSpec},
};
use crate::datapath::{Forward, Protocol};

/// Where a backend answers from.
pub type Endpoint = (IpAddr, u16, Protocol);

/// How many services have a backend at each endpoint.
#[derive(Clone, Debug, Default)]
pub struct Sharers(HashMap<Endpoint, u32>);

/// Where a service's backend answers from; `None` if its answers do not come this way.
pub fn endpoint(service: &ServiceSpec, backend: &BackendSpec) -> Option<Endpoint> {
    if service.forward != Forward::Nat {
        return None;
    }
    let endpoint = backend.address.endpoint(service.vip);
    Some((endpoint.ip(), endpoint.port(), service.vip.protocol))
}

impl Sharers {
    /// Counts a backend that is there.
    pub fn note(&mut self, endpoint: Endpoint) {
        *self.0.entry(endpoint).or_default() += 1;
    }

    /// Counts a backend that is to come; refuses one whose replies would be looked for in vain.
    pub fn admit(&mut self, service: &ServiceSpec, backend: &BackendSpec) -> Result<(), Error> {
        let Some(endpoint) = endpoint(service, backend) else { return Ok(()) };
        if self.0.get(&endpoint).is_some_and(|&count| count >= SHARED_BY) {
            return Err(Error::Conflict(format!(
                "backend {}/{}: {SHARED_BY} services reach {} port {} by nat already, which is the most: give it another port or address",
                service.name, backend.name, backend.address.ip, endpoint.1
            )));
        }
        self.note(endpoint);
        Ok(())
    }
}

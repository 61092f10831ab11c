//! What a caller may do. On the socket its mode and group decide who may connect, and whoever may connect may do everything;
//! over the network each caller has a right of its own.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use axum::{
    Router,
    extract::{FromRequestParts, MatchedPath, RawPathParams, Request, State},
    http::{Method, request::Parts},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{ApiError, Kind};
use crate::daemon::Handle;

/// What a remote caller may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Right {
    /// Everything.
    Admin,
    /// See everything, change nothing.
    Read,
    /// See, drain, activate and wait for the backends at its own address, and nothing else.
    OwnAddress,
}

impl Right {
    /// As it is written in the configuration file.
    pub fn word(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Read => "read",
            Self::OwnAddress => "own_address",
        }
    }
}

/// What an operation takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Need {
    /// [`Right::Read`] or [`Right::Admin`].
    pub(super) right: Right,
    /// Whether [`Right::OwnAddress`] is enough when it is about a backend or host at the caller's address.
    pub(super) own: bool,
}

impl Need {
    /// What an operation takes unless it says otherwise: looking is for readers, the rest is not.
    pub(super) fn of_method(method: &Method) -> Self {
        let right = if matches!(*method, Method::GET | Method::HEAD) { Right::Read } else { Right::Admin };
        Self { right, own: false }
    }
}

impl Need {
    /// The rights that are enough, as they are written.
    pub(super) fn words(self) -> Vec<&'static str> {
        let read = (self.right == Right::Read).then_some(Right::Read);
        let own = self.own.then_some(Right::OwnAddress);
        [Some(Right::Admin), read, own].into_iter().flatten().map(Right::word).collect()
    }
}

/// What operations take, by path as it is declared and method.
pub(super) type Needs = HashMap<(&'static str, Method), Need>;

/// Who asks, over the network. Requests on the socket have none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The name in the certificate by which it was found, or the first there is.
    pub name: String,
    /// What it may do: nothing when no entry names it.
    pub right: Option<Right>,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
}

impl Caller {
    fn refused(&self, what: &str, needed: Right) -> ApiError {
        let name = &self.name;
        let has = match self.right {
            Some(right) => format!("has the right \"{}\"", right.word()),
            None => "has none".to_owned(),
        };
        ApiError::new(
            Kind::Forbidden,
            format!(
                "{what} takes the right \"{}\", and the certificate of '{name}' {has}: [[daemon.remote.client]] in the \
                 balancer's configuration gives rights",
                needed.word()
            ),
        )
    }
}

/// The same operations, each for those who have the right to it. A request without a [`Caller`] is refused.
pub(super) fn guarded(router: Router, needs: Needs, engine: Handle) -> Router {
    router.layer(middleware::from_fn_with_state(Guard { needs: Arc::new(needs), engine }, guard))
}

#[derive(Clone)]
struct Guard {
    needs: Arc<Needs>,
    engine: Handle,
}

async fn guard(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let Some(caller) = parts.extensions.get::<Caller>().cloned() else {
        return ApiError::new(Kind::Forbidden, "nobody has been named as the caller").into_response();
    };
    let what = format!("{} {}", parts.method, parts.uri.path());
    if let Err(refusal) = guard.allows(&caller, &mut parts).await {
        tracing::info!("{} from {:?} was refused: {what}", caller.name, caller.addresses);
        return refusal.into_response();
    }
    let changes = !matches!(parts.method, Method::GET | Method::HEAD);
    let answer = next.run(Request::from_parts(parts, body)).await;
    if changes {
        tracing::info!("{} from {:?}: {what}: {}", caller.name, caller.addresses, answer.status());
    }
    answer
}

impl Guard {
    async fn allows(&self, caller: &Caller, parts: &mut Parts) -> Result<(), ApiError> {
        let path = parts.extensions.get::<MatchedPath>().map(MatchedPath::as_str).unwrap_or_default();
        let declared = self.needs.iter().find(|((known, method), _)| *known == path && *method == parts.method);
        let need = declared.map_or_else(|| Need::of_method(&parts.method), |(_, need)| *need);
        match caller.right {
            Some(Right::Admin) => Ok(()),
            Some(Right::Read) if need.right == Right::Read => Ok(()),
            Some(Right::OwnAddress) if need.own => self.is_own(caller, parts).await,
            _ => Err(caller.refused("this", need.right)),
        }
    }

    /// Whether the path is about a host or a backend at one of the caller's addresses.
    async fn is_own(&self, caller: &Caller, parts: &mut Parts) -> Result<(), ApiError> {
        let path = RawPathParams::from_request_parts(parts, &()).await;
        let path = path.map_err(|error| ApiError::invalid(format!("the path: {}", error.body_text())))?;
        let segment = |name| path.iter().find(|(key, _)| *key == name).map(|(_, value)| value);
        let (whose, own) = match (segment("address"), segment("service"), segment("backend")) {
            (Some(host), _, _) => {
                let parsed = host.parse::<IpAddr>();
                (host.to_owned(), parsed.is_ok_and(|host| caller.addresses.contains(&host.to_canonical())))
            }
            (None, Some(service), Some(backend)) => {
                // What is not there is refused like what is not the caller's: it may not ask who else there is.
                let backends = self.engine.backends(service).await.unwrap_or_default();
                let found = backends.iter().find(|candidate| candidate.name == backend);
                let own = found.is_some_and(|found| caller.addresses.contains(&found.address.ip.to_canonical()));
                (format!("{service}/{backend}"), own)
            }
            _ => (parts.uri.path().to_owned(), false),
        };
        if own {
            return Ok(());
        }
        let addresses: Vec<String> = caller.addresses.iter().map(ToString::to_string).collect();
        Err(ApiError::new(
            Kind::Forbidden,
            format!(
                "{whose} is not at your own address ({}), and the certificate of '{}' has the right \"own_address\": \
                 for others it takes \"admin\", or \"read\" to look",
                addresses.join(", "),
                caller.name
            ),
        ))
    }
}

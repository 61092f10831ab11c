//! Request parts, refused in the error format of [`super::error`] rather than the framework's.

use std::time::Duration;

use axum::{
    body::{Body, Bytes},
    extract::{FromRequest, FromRequestParts, Request},
    http::{StatusCode, header, request::Parts},
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use super::error::{ApiError, Kind};

/// What an operation takes of a body. Whoever may connect could otherwise fill the memory, or keep a place for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BodyLimit {
    /// The longest, in bytes.
    pub(super) size: usize,
    /// How long it may take to arrive.
    pub(super) time: Duration,
}

impl BodyLimit {
    /// One service, one backend or one drain.
    const ONE: Self = Self { size: 64 << 10, time: Duration::from_secs(10) };
    /// A configuration of all the backends that the maps have room for.
    pub(super) const ALL: Self = Self { size: 64 << 20, time: Duration::from_mins(1) };

    /// The limit of the operation at this path.
    pub(super) fn of(path: &str) -> Self {
        if path == "/v1/apply" { Self::ALL } else { Self::ONE }
    }
}

/// A JSON body. Unknown fields are refused by the types themselves; an empty body reads as `{}`, so that
/// `curl -X POST` works where every field is optional.
#[derive(Debug)]
pub(super) struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        require_json(&request)?;
        let limit = BodyLimit::of(request.uri().path());
        let bytes = receive(request.into_body(), limit).await?;
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        serde_json::from_slice(text)
            .map(Self)
            .map_err(|error| ApiError::invalid(format!("the body: {error}").replace('`', "\"")))
    }
}

async fn receive(body: Body, BodyLimit { size, time }: BodyLimit) -> Result<Bytes, ApiError> {
    let collected = tokio::time::timeout(time, Limited::new(body, size).collect());
    match collected.await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let refusal = ApiError::invalid(format!("the body is longer than {size} bytes"));
            Err(refusal.with_status(StatusCode::PAYLOAD_TOO_LARGE))
        }
        Ok(Err(error)) => Err(ApiError::invalid(format!("the body broke off: {error}"))),
        Err(_) => Err(ApiError::new(Kind::Timeout, format!("the body was not complete within {time:?}"))),
    }
}

/// A body that claims to be something else is refused rather than guessed at.
fn require_json(request: &Request) -> Result<(), ApiError> {
    let Some(value) = request.headers().get(header::CONTENT_TYPE) else {
        return Ok(());
    };
    let kind = value.to_str().unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(ApiError::invalid("the body must be JSON: send \"content-type: application/json\" (curl: --json)")
        .with_status(StatusCode::UNSUPPORTED_MEDIA_TYPE))
}

/// Path segments.
#[derive(Debug)]
pub(super) struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        axum::extract::Path::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Path(value)| Self(value))
            .map_err(|error| ApiError::invalid(format!("the path: {}", error.body_text())))
    }
}

/// Query parameters.
#[derive(Debug)]
pub(super) struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        axum::extract::Query::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Query(value)| Self(value))
            .map_err(|error| ApiError::invalid(format!("the query: {}", error.body_text()).replace('`', "\"")))
    }
}

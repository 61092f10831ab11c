//! Request parts, refused in the error format of [`super::error`] rather than the framework's.

use axum::{
    extract::{FromRequest, FromRequestParts, Request},
    http::{StatusCode, header, request::Parts},
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use super::error::ApiError;

/// The longest body any operation takes: a configuration of all the backends that the maps have room for.
pub(super) const BODY_LIMIT: usize = 64 << 20;

/// A JSON body. Unknown fields are refused by the types themselves; an empty body reads as `{}`, so that
/// `curl -X POST` works where every field is optional.
#[derive(Debug)]
pub(super) struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        require_json(&request)?;
        let bytes = Limited::new(request.into_body(), BODY_LIMIT)
            .collect()
            .await
            .map_err(|error| {
                if error.is::<LengthLimitError>() {
                    ApiError::invalid(format!("the body is longer than {BODY_LIMIT} bytes"))
                        .with_status(StatusCode::PAYLOAD_TOO_LARGE)
                } else {
                    ApiError::invalid(format!("the body broke off: {error}"))
                }
            })?
            .to_bytes();
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        serde_json::from_slice(text)
            .map(Self)
            .map_err(|error| ApiError::invalid(format!("the body: {error}").replace('`', "\"")))
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

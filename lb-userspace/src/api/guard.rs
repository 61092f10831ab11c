//! `ETag` and `If-Match`: changes that are made only if nothing has changed since the caller looked.

use axum::{
    Json as Answer,
    extract::{FromRequestParts, RawPathParams},
    http::{HeaderName, header, request::Parts},
};

use super::error::ApiError;
use crate::{control::revision::Scope, daemon::Handle};

/// The engine, for a change. With `If-Match` the change is refused when the revision is another by then: of the service that the
/// path names, or of everything.
#[derive(Debug)]
pub(super) struct Change(pub(super) Handle);

impl FromRequestParts<Handle> for Change {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, engine: &Handle) -> Result<Self, ApiError> {
        let Some(header) = parts.headers.get(header::IF_MATCH) else { return Ok(Self(engine.clone())) };
        let known = header.to_str().ok().and_then(revisions).ok_or_else(|| {
            ApiError::invalid("If-Match has revisions in quotes, as they stand in ETag: If-Match: \"0123456789abcdef\"")
        })?;
        if known.is_empty() {
            return Ok(Self(engine.clone()));
        }
        let path = RawPathParams::from_request_parts(parts, engine).await;
        let path = path.map_err(|error| ApiError::invalid(format!("the path: {}", error.body_text())))?;
        let service = path.iter().find(|(name, _)| *name == "service").map(|(_, value)| value.to_owned());
        Ok(Self(engine.clone().only_if(service.map_or(Scope::All, Scope::Service), known)))
    }
}

/// What a header lists; nothing for `*`, which is whatever there is.
fn revisions(header: &str) -> Option<Vec<String>> {
    if header.trim() == "*" {
        return Some(Vec::new());
    }
    header.split(',').map(|tag| Some(tag.trim().strip_prefix('"')?.strip_suffix('"')?.to_owned())).collect()
}

/// An answer with its revision.
pub(super) type Tagged<T> = ([(HeaderName, String); 1], Answer<T>);

/// Puts the revision on an answer. It must have been asked for before what is answered: an old one is refused in vain, one too
/// new would let a change overwrite what its maker has not seen.
pub(super) fn tagged<T>(revision: &str, answer: T) -> Tagged<T> {
    ([(header::ETAG, format!("\"{revision}\""))], Answer(answer))
}

//! The one shape every error takes on the socket: `{"error":{"kind":…,"message":…}}`.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::control::{Error, ErrorKind};

/// What sort of error it is, for programs; the message is for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The request itself is wrong: its JSON, a field, a value.
    Invalid,
    /// What it names is not there.
    NotFound,
    /// It is there already, or in the way of something that is.
    Conflict,
    /// Well formed, but refused as things stand: a guard, a mode that does not allow it.
    Refused,
    /// The caller, who is known, may not do that.
    Forbidden,
    /// It did not come about in the time given.
    Timeout,
    /// It changed since the caller last looked (`If-Match`).
    Changed,
    /// The daemon or the kernel failed.
    Internal,
    /// A kind this build does not know, from a newer daemon.
    #[serde(other)]
    Other,
}

impl Kind {
    fn status(self) -> StatusCode {
        match self {
            Self::Invalid => StatusCode::BAD_REQUEST,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Conflict | Self::Refused => StatusCode::CONFLICT,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::Timeout => StatusCode::REQUEST_TIMEOUT,
            Self::Changed => StatusCode::PRECONDITION_FAILED,
            Self::Internal | Self::Other => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorBody {
    /// For programs.
    pub kind: Kind,
    /// For people, one line: what is wrong and what to do.
    pub message: String,
}

/// The envelope on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorDocument {
    /// The only member.
    pub error: ErrorBody,
}

/// An error on its way to a caller, with its HTTP status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    status: StatusCode,
    body: ErrorBody,
}

impl ApiError {
    /// An error with the status that belongs to its kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { status: kind.status(), body: ErrorBody { kind, message: message.into() } }
    }

    /// The request is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, message)
    }

    /// The same error under a more telling HTTP status.
    #[must_use]
    pub fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    /// What the caller will read.
    pub fn body(&self) -> &ErrorBody {
        &self.body
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let kind = match error.kind() {
            ErrorKind::NotFound => Kind::NotFound,
            ErrorKind::Conflict => Kind::Conflict,
            ErrorKind::Invalid => Kind::Invalid,
            ErrorKind::Refused => Kind::Refused,
            ErrorKind::Changed => Kind::Changed,
            ErrorKind::Timeout => Kind::Timeout,
            ErrorKind::Internal => Kind::Internal,
        };
        Self::new(kind, error.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(ErrorDocument { error: self.body })).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_envelope_is_as_documented() {
        let document =
            ErrorDocument { error: ErrorBody { kind: Kind::NotFound, message: "no service \"web\"".to_owned() } };
        assert_eq!(
            serde_json::to_string(&document).expect("plain data"),
            r#"{"error":{"kind":"not_found","message":"no service \"web\""}}"#
        );
    }

    #[test]
    fn a_newer_kind_is_still_an_error() {
        let body: ErrorBody =
            serde_json::from_str(r#"{"kind":"teapot","message":"short and stout"}"#).expect("kinds may grow");
        assert_eq!(body.kind, Kind::Other);
    }
}

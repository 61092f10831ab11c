//! What can go wrong with a request, in words for the person who made it.

use serde::{Deserialize, Serialize};

use crate::datapath::DatapathError;

/// A request that was not carried out. Nothing was changed, except where the message says so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no such service or backend.
    #[error("{0}")]
    NotFound(String),
    /// It is there already, or in the way of something that is.
    #[error("{0}")]
    Conflict(String),
    /// The request makes no sense as it is.
    #[error("{0}")]
    Invalid(String),
    /// A guard refused; `force` overrides it.
    #[error("{0}")]
    Refused(String),
    /// It is not any more what the request was made for.
    #[error("{0}")]
    Changed(String),
    /// What was waited for has not happened in time.
    #[error("{0}")]
    Timeout(String),
    /// The datapath, the disk or the daemon failed.
    #[error("{0}")]
    Internal(String),
}

/// The kind of an [`Error`], for exit codes and HTTP statuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// See [`Error::NotFound`].
    NotFound,
    /// See [`Error::Conflict`].
    Conflict,
    /// See [`Error::Invalid`].
    Invalid,
    /// See [`Error::Refused`].
    Refused,
    /// See [`Error::Changed`].
    Changed,
    /// See [`Error::Timeout`].
    Timeout,
    /// See [`Error::Internal`].
    Internal,
}

impl Error {
    /// What kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound(_) => ErrorKind::NotFound,
            Self::Conflict(_) => ErrorKind::Conflict,
            Self::Invalid(_) => ErrorKind::Invalid,
            Self::Refused(_) => ErrorKind::Refused,
            Self::Changed(_) => ErrorKind::Changed,
            Self::Timeout(_) => ErrorKind::Timeout,
            Self::Internal(_) => ErrorKind::Internal,
        }
    }

    /// The error of this kind that says `message`: the way back from the wire.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let message = message.into();
        match kind {
            ErrorKind::NotFound => Self::NotFound(message),
            ErrorKind::Conflict => Self::Conflict(message),
            ErrorKind::Invalid => Self::Invalid(message),
            ErrorKind::Refused => Self::Refused(message),
            ErrorKind::Changed => Self::Changed(message),
            ErrorKind::Timeout => Self::Timeout(message),
            ErrorKind::Internal => Self::Internal(message),
        }
    }
}

impl From<DatapathError> for Error {
    fn from(error: DatapathError) -> Self {
        Self::Internal(format!("the datapath failed: {error}; the daemon keeps trying, see its log"))
    }
}

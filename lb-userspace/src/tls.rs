//! What both ends of a remote control connection need: certificates and keys from files, and the names in a certificate.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
};
use x509_cert::{
    Certificate,
    der::Decode,
    ext::pkix::{SubjectAltName, name::GeneralName},
};

/// One version, so that there is nothing to negotiate down to.
pub const VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// Why a file does not serve.
#[derive(Debug, thiserror::Error)]
pub enum TlsFileError {
    /// It cannot be read, or is not PEM.
    #[error("cannot read {}: {cause}", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// It is PEM, with something else in it.
    #[error("{} has no {what} in it; it must be PEM (\"-----BEGIN …\")", path.display())]
    Empty {
        /// Which file.
        path: PathBuf,
        /// What it should have.
        what: &'static str,
    },
    /// It has something in it that cannot be used.
    #[error("{}: {cause}", path.display())]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// Why.
        cause: String,
    },
}

/// The cryptography of both ends.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A certificate and those that vouch for it.
pub fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.map_err(|error| unreadable(path, &error))?;
    if certificates.is_empty() {
        return Err(TlsFileError::Empty { path: path.to_owned(), what: "certificate" });
    }
    Ok(certificates)
}

/// A private key.
pub fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsFileError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| match error {
        pem::Error::NoItemsFound => TlsFileError::Empty { path: path.to_owned(), what: "private key" },
        error => unreadable(path, &error),
    })
}

/// The authorities in a file.
pub fn authorities(path: &Path) -> Result<RootCertStore, TlsFileError> {
    let mut store = RootCertStore::empty();
    for certificate in chain(path)? {
        store
            .add(certificate)
            .map_err(|error| TlsFileError::Unusable { path: path.to_owned(), cause: error.to_string() })?;
    }
    Ok(store)
}

fn unreadable(path: &Path, error: &pem::Error) -> TlsFileError {
    let cause = match error {
        pem::Error::Io(error) => error.to_string(),
        error => format!("it is not PEM: {error}"),
    };
    TlsFileError::Unreadable { path: path.to_owned(), cause }
}

/// Who a certificate says it is of: its DNS and URI names, or, where it has neither, its subject's common name. Where there are
/// such names authorities answer for them, and the common name may be anything (RFC 9525, section 2).
pub fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok(certificate) = Certificate::from_der(certificate) else { return Vec::new() };
    let certificate = certificate.tbs_certificate();
    let alternative = certificate.get_extension::<SubjectAltName>().ok().flatten();
    let names = alternative.into_iter().flat_map(|(_, names)| names.0).filter_map(|name| match name {
        GeneralName::DnsName(name) | GeneralName::UniformResourceIdentifier(name) => Some(name.to_string()),
        _ => None,
    });
    let names: Vec<String> = names.collect();
    if !names.is_empty() {
        return names;
    }
    let common = certificate.subject().common_name().ok().flatten();
    common.map(|name| name.value().into_owned()).into_iter().collect()
}

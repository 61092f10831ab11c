//! Certificates for a test, as an operator's own authority would make them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};

/// A certificate authority, and a directory for what it makes.
pub(crate) struct Authority {
    directory: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate.
    pub(crate) certificate: PathBuf,
}

/// A certificate and its key, as files.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// The certificate.
    pub(crate) cert: PathBuf,
    /// The key.
    pub(crate) key: PathBuf,
}

impl Authority {
    /// A new one, called `name`.
    pub(crate) fn new(directory: &Path, name: &str) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate()?;
        let certificate = directory.join(format!("{name}.pem"));
        fs::write(&certificate, params.self_signed(&key)?.pem())?;
        Ok(Self { directory: directory.to_owned(), issuer: Issuer::new(params, key), certificate })
    }

    /// A certificate for a server at these addresses or names.
    pub(crate) fn server(&self, name: &str, at: &[&str]) -> Result<Identity> {
        let mut params = CertificateParams::new(at.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.write(name, &params)
    }

    /// A certificate for a caller, whose subject has `name` as its common name.
    pub(crate) fn client(&self, name: &str) -> Result<Identity> {
        self.write(name, &client(name)?)
    }

    /// The same, long expired.
    pub(crate) fn expired_client(&self, name: &str) -> Result<Identity> {
        let mut params = client(name)?;
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
        self.write(&format!("{name}-expired"), &params)
    }

    fn write(&self, file: &str, params: &CertificateParams) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let path = |kind| self.directory.join(format!("{file}.{kind}"));
        let identity = Identity { cert: path("pem"), key: path("key") };
        fs::write(&identity.cert, params.signed_by(&key, &self.issuer)?.pem())?;
        fs::write(&identity.key, key.serialize_pem())?;
        Ok(identity)
    }
}

fn client(name: &str) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

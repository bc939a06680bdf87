//! An authority, and certificates that it signs, in files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

/// Its files go with it.
pub struct Authority {
    directory: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate, and its key.
#[derive(Clone, Debug)]
pub struct Certificate {
    pub chain: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new() -> Result<Self> {
        let directory = tempfile::tempdir().context("making a directory for certificates")?;
        let (mut terms, key) = (CertificateParams::default(), KeyPair::generate()?);
        terms.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        fs::write(directory.path().join("ca"), terms.self_signed(&key)?.pem())?;
        Ok(Self { directory, issuer: Issuer::new(terms, key) })
    }

    /// Its own certificate.
    pub fn file(&self) -> PathBuf {
        self.directory.path().join("ca")
    }

    /// Signs a certificate of this common name, for these names and addresses. One that is there is replaced.
    pub fn issue(&self, common: &str, names: &[&str]) -> Result<Certificate> {
        let at = |end: &str| self.directory.path().join(format!("{common}.{end}"));
        let issued = Certificate { chain: at("pem"), key: at("key") };
        self.issue_to(&issued.chain, &issued.key, common, names)?;
        Ok(issued)
    }

    /// As [`Authority::issue`], into these files.
    pub fn issue_to(&self, chain: &Path, key: &Path, common: &str, names: &[&str]) -> Result<()> {
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        let (mut terms, pair) = (CertificateParams::new(names)?, KeyPair::generate()?);
        terms.distinguished_name.remove(DnType::CommonName);
        terms.distinguished_name.push(DnType::CommonName, common);
        fs::write(chain, terms.signed_by(&pair, &self.issuer)?.pem())?;
        fs::write(key, pair.serialize_pem())?;
        Ok(())
    }
}

//! TLS to an agent: whom a verb believes, and what it shows.

use std::{fs, path::PathBuf, sync::Arc};

use anyhow::{Context, Result};
use clap::Args;
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig,
        crypto::ring,
        pki_types::{PrivateKeyDer, pem::PemObject},
    },
};

use super::failure::Failure;
use crate::http::tls;

/// For a server of https.
#[derive(Clone, Debug, Default, Args)]
pub struct TlsOptions {
    /// Authorities that may vouch for the agent's certificate, in PEM form
    #[arg(long, global = true, env = "SLUICE_CA", hide_env_values = true, value_name = "PATH")]
    pub ca: Option<PathBuf>,
    /// Certificate to show to the agent
    #[arg(long, global = true, env = "SLUICE_CERT", hide_env_values = true, value_name = "PATH")]
    pub cert: Option<PathBuf>,
    /// Private key of that certificate
    #[arg(long, global = true, env = "SLUICE_KEY", hide_env_values = true, value_name = "PATH")]
    pub key: Option<PathBuf>,
}

impl TlsOptions {
    /// # Errors
    /// A file is missing or of no use.
    pub fn connector(&self) -> Result<TlsConnector, Failure> {
        let Some(ca) = &self.ca else {
            return Err(Failure::Usage(
                "https needs --ca: the file of the authority that signed the agent's certificate".into(),
            ));
        };
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .context("choosing versions of TLS")?
            .with_root_certificates(read(ca, tls::roots)?);
        let config = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => {
                let chain = read(cert, tls::certificates)?;
                let key = read(key, |text| Ok(PrivateKeyDer::from_pem_slice(text.as_bytes())?))?;
                config.with_client_auth_cert(chain, key).with_context(|| format!("showing {}", cert.display()))?
            }
            (None, None) => config.with_no_client_auth(),
            _ => return Err(Failure::Usage("--cert and --key go together".into())),
        };
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

fn read<T>(path: &PathBuf, make: impl FnOnce(&str) -> Result<T>) -> Result<T> {
    let text = fs::read_to_string(path).map_err(anyhow::Error::from);
    text.and_then(|text| make(&text)).with_context(|| format!("reading {}", path.display()))
}

//! TLS of the TCP address: the certificate that it shows, and the callers' certificates that it takes. The files are read
//! again when they change.

use std::{
    fmt, io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        client::verify_server_name,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
        server::{ParsedCertificate, WebPkiClientVerifier, danger::ClientCertVerifier},
    },
    server::TlsStream,
};
use x509_cert::{
    Certificate,
    der::{Decode, asn1::Ia5String},
    ext::pkix::{SubjectAltName, name::GeneralName},
};

use crate::{
    host::ownership::{self, Version},
    settings::TlsFiles,
};

/// What callers meet at the TCP address.
pub struct Tls {
    files: TlsFiles,
    held: Mutex<LoadedTls>,
}

struct LoadedTls {
    versions: Vec<Option<Version>>,
    terms: TlsMaterial,
}

/// What the files come to.
#[derive(Clone)]
struct TlsMaterial {
    config: Arc<ServerConfig>,
    own: Arc<OwnCertificate>,
    /// Who vouches for callers.
    clients: Option<Arc<dyn ClientCertVerifier>>,
}

/// The certificates that the two sides of a connection have shown.
#[derive(Clone, Debug)]
pub struct Shown {
    tls: Arc<Tls>,
    pub ours: Arc<OwnCertificate>,
    pub theirs: Option<Arc<ClientCertificate>>,
}

/// The certificate of this agent.
#[derive(Debug)]
pub struct OwnCertificate(CertificateDer<'static>);

/// The certificate that a caller has shown, signed by what was an authority of `--tls-client-ca` then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// As RFC 4514 writes it: `CN=ops,O=Example`.
    pub subject: String,
    /// Its common name, and the names that stand for it besides.
    names: Vec<String>,
    /// As it came, with what is between it and the authority.
    chain: Vec<CertificateDer<'static>>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// When one of them is of no use, or others may write it.
    pub fn open(files: &TlsFiles) -> Result<Self> {
        let versions = files.versions();
        let terms = configured(files)?;
        Ok(Self { files: files.clone(), held: Mutex::new(LoadedTls { versions, terms }) })
    }

    /// Makes a connection of a stream.
    ///
    /// # Errors
    /// When the caller does not speak TLS, or shows a certificate that nobody vouches for.
    pub async fn accept<S>(self: &Arc<Self>, stream: S) -> io::Result<(TlsStream<S>, Shown)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let TlsMaterial { config, own: ours, .. } = self.terms();
        let stream = TlsAcceptor::from(config).accept(stream).await?;
        let theirs = stream.get_ref().1.peer_certificates().map(ClientCertificate::read).transpose()?.flatten();
        Ok((stream, Shown { tls: self.clone(), ours, theirs: theirs.map(Arc::new) }))
    }

    /// Whether somebody vouches for this certificate now: authorities change, and certificates run out.
    fn vouches_for(&self, certificate: &ClientCertificate) -> bool {
        let (Some(clients), Some((leaf, between))) = (self.terms().clients, certificate.chain.split_first()) else {
            return false;
        };
        clients.verify_client_cert(leaf, between, UnixTime::now()).is_ok()
    }

    /// As the files have it now. What is of no use, such as a certificate whose key comes a moment later, leaves the former
    /// in force.
    fn terms(&self) -> TlsMaterial {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let versions = self.files.versions();
        if versions != held.versions {
            match configured(&self.files) {
                Ok(terms) => {
                    tracing::info!("the certificate {} was read again", self.files.certificate.display());
                    held.terms = terms;
                }
                Err(error) => tracing::error!("the former certificate and authorities stay in force: {error:#}"),
            }
            held.versions = versions;
        }
        held.terms.clone()
    }
}

impl Shown {
    /// The caller's certificate, if somebody vouches for it still.
    pub fn vouched(&self) -> Option<&ClientCertificate> {
        self.theirs.as_deref().filter(|certificate| self.tls.vouches_for(certificate))
    }
}

impl TlsFiles {
    fn versions(&self) -> Vec<Option<Version>> {
        let files = [Some(&self.certificate), Some(&self.key), self.client_ca.as_ref()];
        files.into_iter().flatten().map(|file| ownership::version(file)).collect()
    }
}

impl OwnCertificate {
    /// Whether it is for this name: then a caller that has checked it meant this agent.
    pub fn is_for(&self, name: &str) -> bool {
        let Ok(name) = ServerName::try_from(name) else { return false };
        ParsedCertificate::try_from(&self.0).is_ok_and(|parsed| verify_server_name(&parsed, &name).is_ok())
    }
}

impl ClientCertificate {
    /// `None` where there is none.
    fn read(chain: &[CertificateDer<'_>]) -> io::Result<Option<Self>> {
        let Some(der) = chain.first() else { return Ok(None) };
        let read = Certificate::from_der(der).map_err(io::Error::other)?;
        let body = read.tbs_certificate();
        let subject = body.subject().to_string();
        let common = body.subject().common_name().ok().flatten();
        let mut names: Vec<String> = common.into_iter().map(|name| name.value().into_owned()).collect();
        if let Some((_, SubjectAltName(others))) = body.get_extension().map_err(io::Error::other)? {
            names.extend(others.iter().filter_map(name).map(|name| name.as_str().to_owned()));
        }
        let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        Ok(Some(Self { subject, names, chain }))
    }

    /// Whether a list of `--tls-operators` has it: a whole subject, which has `=` in it, or one of its names. (Nobody
    /// gets in by a name that reads as the subject of another.)
    pub fn is_one_of(&self, listed: &[String]) -> bool {
        let is_listed = |listed: &String| match listed.contains('=') {
            true => *listed == self.subject,
            false => self.names.contains(listed),
        };
        listed.iter().any(is_listed)
    }
}

fn name(name: &GeneralName) -> Option<&Ia5String> {
    match name {
        GeneralName::DnsName(name) | GeneralName::Rfc822Name(name) | GeneralName::UniformResourceIdentifier(name) => {
            Some(name)
        }
        _ => None,
    }
}

fn configured(files: &TlsFiles) -> Result<TlsMaterial> {
    let provider = Arc::new(ring::default_provider());
    let chain = read(&files.certificate, certificates)?;
    let own = Arc::new(OwnCertificate(chain[0].clone()));
    let key = read(&files.key, |text| Ok(PrivateKeyDer::from_pem_slice(text.as_bytes())?))?;
    ownership::warn_if_open(&files.key, "the private key")?;
    let config = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let clients = match &files.client_ca {
        None => None,
        Some(path) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(read(path, roots)?), provider);
            // Health checks and monitors have none. What a caller without one may do is not said here.
            Some(verifier.allow_unauthenticated().build()?)
        }
    };
    let config = match &clients {
        None => config.with_no_client_auth(),
        Some(clients) => config.with_client_cert_verifier(clients.clone()),
    };
    let mut config = config.with_single_cert(chain, key).with_context(|| {
        format!(
            "the certificate {} and the key {} do not go together",
            files.certificate.display(),
            files.key.display()
        )
    })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsMaterial { config: Arc::new(config), own, clients })
}

/// The certificates in a text, one or more.
///
/// # Errors
/// There is none.
pub fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>> {
    let found = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    ensure!(!found.is_empty(), "there is no certificate in PEM form");
    Ok(found)
}

/// The authorities in a text.
///
/// # Errors
/// There is none that can be used.
pub fn roots(text: &str) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(text)? {
        roots.add(certificate)?;
    }
    Ok(roots)
}

/// Makes something of a file that others may not write.
fn read<T>(path: &Path, make: impl FnOnce(&str) -> Result<T>) -> Result<T> {
    let text = ownership::check(path).and_then(|()| Ok(ownership::read_text(path, LONGEST)?.0));
    text.and_then(|text| make(&text)).with_context(|| format!("reading {}", path.display()))
}

/// Longest file, in bytes.
const LONGEST: u64 = 1 << 20;

#[cfg(test)]
mod tests;

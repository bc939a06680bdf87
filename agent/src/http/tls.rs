//! TLS of the TCP address: the certificate that it shows, and the callers' certificates that it takes. The files are read
//! again when they change.

use std::{
    io,
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
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
        server::{ParsedCertificate, WebPkiClientVerifier},
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
    config: Arc<ServerConfig>,
    own: Arc<OwnCertificate>,
}

/// The certificates that the two sides of a connection have shown.
#[derive(Clone, Debug)]
pub struct Shown {
    pub ours: Arc<OwnCertificate>,
    pub theirs: Option<Arc<ClientCertificate>>,
}

/// The certificate of this agent.
#[derive(Debug)]
pub struct OwnCertificate(CertificateDer<'static>);

/// The certificate that a caller has shown, signed by an authority of `--tls-client-ca`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// As RFC 4514 writes it: `CN=ops,O=Example`.
    pub subject: String,
    /// Its common name, and the names that stand for it besides.
    names: Vec<String>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// When one of them is of no use, or others may write it.
    pub fn open(files: &TlsFiles) -> Result<Self> {
        let versions = files.versions();
        let (config, own) = configured(files)?;
        Ok(Self { files: files.clone(), held: Mutex::new(LoadedTls { versions, config, own }) })
    }

    /// Makes a connection of a stream.
    ///
    /// # Errors
    /// When the caller does not speak TLS, or shows a certificate that nobody vouches for.
    pub async fn accept<S>(&self, stream: S) -> io::Result<(TlsStream<S>, Shown)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let (config, ours) = self.config();
        let stream = TlsAcceptor::from(config).accept(stream).await?;
        let theirs = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let theirs = theirs.map(ClientCertificate::read).transpose()?.map(Arc::new);
        Ok((stream, Shown { ours, theirs }))
    }

    /// As the files have it now. What is of no use, such as a certificate whose key comes a moment later, leaves the former
    /// in force.
    fn config(&self) -> (Arc<ServerConfig>, Arc<OwnCertificate>) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let versions = self.files.versions();
        if versions != held.versions {
            match configured(&self.files) {
                Ok((config, own)) => {
                    tracing::info!("the certificate {} was read again", self.files.certificate.display());
                    (held.config, held.own) = (config, own);
                }
                Err(error) => tracing::error!("the former certificate and authorities stay in force: {error:#}"),
            }
            held.versions = versions;
        }
        (held.config.clone(), held.own.clone())
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
    fn read(der: &CertificateDer<'_>) -> io::Result<Self> {
        let read = Certificate::from_der(der).map_err(io::Error::other)?;
        let body = read.tbs_certificate();
        let subject = body.subject().to_string();
        let common = body.subject().common_name().ok().flatten();
        let mut names: Vec<String> = common.into_iter().map(|name| name.value().into_owned()).collect();
        if let Some((_, SubjectAltName(others))) = body.get_extension().map_err(io::Error::other)? {
            names.extend(others.iter().filter_map(name).map(|name| name.as_str().to_owned()));
        }
        Ok(Self { subject, names })
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

fn configured(files: &TlsFiles) -> Result<(Arc<ServerConfig>, Arc<OwnCertificate>)> {
    let provider = Arc::new(ring::default_provider());
    let chain = read(&files.certificate, certificates)?;
    let own = Arc::new(OwnCertificate(chain[0].clone()));
    let key = read(&files.key, |text| Ok(PrivateKeyDer::from_pem_slice(text.as_bytes())?))?;
    ownership::warn_if_open(&files.key, "the private key")?;
    let config = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let config = match &files.client_ca {
        None => config.with_no_client_auth(),
        Some(path) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(read(path, roots)?), provider);
            // Health checks and monitors have none. What a caller without one may do is not said here.
            config.with_client_cert_verifier(verifier.allow_unauthenticated().build()?)
        }
    };
    let mut config = config.with_single_cert(chain, key).with_context(|| {
        format!(
            "the certificate {} and the key {} do not go together",
            files.certificate.display(),
            files.key.display()
        )
    })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((Arc::new(config), own))
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
mod tests {
    use std::{fs, path::PathBuf};

    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio_rustls::{TlsConnector, rustls::ClientConfig};

    use super::*;

    struct Authority {
        pem: String,
        issuer: Issuer<'static, KeyPair>,
    }

    impl Authority {
        fn new() -> Self {
            let (mut terms, key) = (CertificateParams::default(), KeyPair::generate().unwrap());
            terms.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let pem = terms.self_signed(&key).unwrap().pem();
            Self { pem, issuer: Issuer::new(terms, key) }
        }

        /// A certificate and its key.
        fn issue(&self, common: &str, names: &[&str]) -> (String, String) {
            let names: Vec<_> = names.iter().map(ToString::to_string).collect();
            let (mut terms, key) = (CertificateParams::new(names).unwrap(), KeyPair::generate().unwrap());
            terms.distinguished_name.remove(DnType::CommonName);
            terms.distinguished_name.push(DnType::OrganizationName, "Example");
            terms.distinguished_name.push(DnType::CommonName, common);
            (terms.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
        }
    }

    struct Scene {
        authority: Authority,
        directory: tempfile::TempDir,
    }

    impl Scene {
        fn new() -> Self {
            let scene = Self { authority: Authority::new(), directory: tempfile::tempdir().unwrap() };
            scene.write("ca", &scene.authority.pem);
            scene.show("node-1", &["node-1.example", "10.0.0.1"]);
            scene
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.path(name), text).unwrap();
        }

        fn show(&self, common: &str, names: &[&str]) {
            let (certificate, key) = self.authority.issue(common, names);
            self.write("cert", &certificate);
            self.write("key", &key);
        }

        fn files(&self) -> TlsFiles {
            let client_ca = Some(self.path("ca"));
            TlsFiles { certificate: self.path("cert"), key: self.path("key"), client_ca }
        }

        /// What a caller that means `name` and shows `own` is met with.
        async fn meet(&self, tls: &Tls, name: &str, own: Option<(String, String)>) -> Result<Shown> {
            let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_safe_default_protocol_versions()?
                .with_root_certificates(roots(&self.authority.pem)?);
            let config = match own {
                None => config.with_no_client_auth(),
                Some((chain, key)) => {
                    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())?;
                    config.with_client_auth_cert(certificates(&chain)?, key)?
                }
            };
            let (near, far) = duplex(4096);
            let connector = TlsConnector::from(Arc::new(config));
            let caller = async {
                let mut stream = connector.connect(ServerName::try_from(name.to_owned())?, near).await?;
                stream.write_all(b"x").await?;
                anyhow::Ok(stream)
            };
            let agent = async {
                let (mut stream, shown) = tls.accept(far).await?;
                stream.read_u8().await?;
                anyhow::Ok(shown)
            };
            let (called, shown) = tokio::join!(caller, agent);
            called?;
            shown
        }
    }

    #[tokio::test]
    async fn each_side_sees_what_the_other_shows() {
        let scene = Scene::new();
        let tls = Tls::open(&scene.files()).unwrap();
        let shown = scene.meet(&tls, "node-1.example", None).await.unwrap();
        assert_eq!(shown.theirs, None);
        assert!(shown.ours.is_for("node-1.example") && shown.ours.is_for("10.0.0.1"));
        assert!(!shown.ours.is_for("node-1") && !shown.ours.is_for("evil.example") && !shown.ours.is_for("10.0.0.2"));
        assert!(scene.meet(&tls, "evil.example", None).await.is_err());
        let own = scene.authority.issue("ops", &["ops.example"]);
        let theirs = scene.meet(&tls, "10.0.0.1", Some(own)).await.unwrap().theirs.unwrap();
        assert_eq!(theirs.subject, "CN=ops,O=Example");
        let is_one_of = |listed: &str| theirs.is_one_of(&["other".into(), listed.into()]);
        assert!(is_one_of("ops") && is_one_of("ops.example") && is_one_of("CN=ops,O=Example"));
        assert!(!is_one_of("CN=ops") && !is_one_of("Example") && !is_one_of("O=Example,CN=ops"));
        let sly = scene.authority.issue("CN=ops,O=Example", &[]);
        let sly = scene.meet(&tls, "10.0.0.1", Some(sly)).await.unwrap().theirs.unwrap();
        assert!(!sly.is_one_of(&["CN=ops,O=Example".into()]), "{}", sly.subject);
        let strange = Authority::new().issue("ops", &[]);
        assert!(scene.meet(&tls, "10.0.0.1", Some(strange)).await.is_err());
    }

    #[tokio::test]
    async fn changed_files_hold_from_the_next_connection_on() {
        let scene = Scene::new();
        let tls = Tls::open(&scene.files()).unwrap();
        scene.show("node-2", &["node-2.example"]);
        scene.meet(&tls, "node-2.example", None).await.unwrap();
        // A certificate whose key has not come yet.
        let (certificate, key) = scene.authority.issue("node-3", &["node-3.example"]);
        scene.write("cert", &certificate);
        scene.meet(&tls, "node-2.example", None).await.unwrap();
        scene.write("key", &key);
        scene.meet(&tls, "node-3.example", None).await.unwrap();
        let own = || scene.authority.issue("ops", &[]);
        scene.meet(&tls, "node-3.example", Some(own())).await.unwrap();
        scene.write("ca", &Authority::new().pem);
        assert!(scene.meet(&tls, "node-3.example", Some(own())).await.is_err(), "another authority");
    }

    #[test]
    fn files_of_no_use_are_named() {
        let scene = Scene::new();
        let said = |files: TlsFiles| format!("{:#}", Tls::open(&files).err().unwrap());
        let none = TlsFiles { key: scene.path("none"), ..scene.files() };
        assert!(said(none).contains("none"));
        scene.write("empty", "");
        let empty = TlsFiles { certificate: scene.path("empty"), ..scene.files() };
        assert!(said(empty).contains("no certificate in PEM form"));
        scene.write("other", &scene.authority.issue("x", &[]).1);
        let other = TlsFiles { key: scene.path("other"), ..scene.files() };
        assert!(said(other).contains("do not go together"));
    }
}

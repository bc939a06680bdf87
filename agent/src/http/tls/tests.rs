use std::{fs, path::PathBuf};

use axum::{body::Body, http::Request};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio_rustls::{TlsConnector, rustls::ClientConfig};
use tower::ServiceExt;

use super::*;
use crate::http::{
    Access, Gate,
    requester::{Remote, RequestPeer},
    testing::Agent,
};

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
    async fn meet(&self, tls: &Arc<Tls>, name: &str, own: Option<(String, String)>) -> Result<Shown> {
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
    let tls = Arc::new(Tls::open(&scene.files()).unwrap());
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
    let tls = Arc::new(Tls::open(&scene.files()).unwrap());
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

#[tokio::test]
async fn a_certificate_counts_for_as_long_as_somebody_vouches_for_it() {
    let scene = Scene::new();
    let tls = Arc::new(Tls::open(&scene.files()).unwrap());
    let own = scene.authority.issue("ops", &[]);
    let shown = scene.meet(&tls, "node-1.example", Some(own)).await.unwrap();
    assert_eq!(shown.vouched().unwrap().subject, "CN=ops,O=Example");
    // The agent's own certificate is another matter.
    scene.show("node-1", &["node-1.example"]);
    assert!(shown.vouched().is_some());
    scene.write("ca", &Authority::new().pem);
    assert!(shown.vouched().is_none() && shown.theirs.is_some());
    // Whoever has lost the role is answered so, and comes again with what it has now.
    let gate = Gate { certificates: true, operators: vec!["ops".into()], ..Gate::default() };
    let agent = Agent::new();
    let router = agent.router(Access::Guarded(gate.into()));
    let peer = RequestPeer::Remote(Remote {
        here: [10, 0, 0, 1].into(),
        there: [10, 0, 0, 2].into(),
        shown: Some(shown.clone()),
    });
    let delete = async || {
        let request = Request::delete("/v1/services/none").extension(peer.clone()).body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        (response.status().as_u16(), response.headers().get("connection").is_some_and(|value| value == "close"))
    };
    assert_eq!(delete().await, (401, true));
    // A file of no use changes nothing.
    scene.write("ca", "");
    assert!(shown.vouched().is_none());
    scene.write("ca", &scene.authority.pem);
    assert!(shown.vouched().is_some());
    assert_eq!(delete().await, (404, false));
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

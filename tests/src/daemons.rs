//! Real servers from Debian's packages, each in a namespace, ready when the function returns. They run on the host only.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::{Namespace, Program, program, system::eventually};

/// How long a server may take to listen.
const READY: Duration = Duration::from_secs(30);

/// Where the web server writes a line for each request.
const ACCESSES: &str = "access.log";

/// A running server. Dropping it ends it and removes its files.
#[derive(Debug)]
pub struct Daemon {
    pub program: Program,
    /// Removed with the program.
    directory: Option<TempDir>,
}

impl Daemon {
    /// A server that has no files.
    pub fn bare(program: Program) -> Self {
        Self { program, directory: None }
    }

    /// Requests to a web server that writes them down.
    pub fn accesses(&self) -> Result<u64> {
        let directory = self.directory.as_ref().context("a server without files")?;
        let log = directory.path().join(ACCESSES);
        let text = fs::read_to_string(&log).with_context(|| format!("reading {}", log.display()))?;
        Ok(text.lines().count() as u64)
    }
}

/// Where programs that drop their rights can write.
pub fn open_directory() -> Result<TempDir> {
    let directory = tempfile::tempdir()?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777))?;
    Ok(directory)
}

/// Waits until a TCP connection to the address is accepted.
pub fn is_up(namespace: &Namespace, address: SocketAddr, program: &mut Program) -> Result<()> {
    let up = eventually("the server listens", READY, || namespace.run(|| TcpStream::connect(address)).ok().map(drop));
    up.with_context(|| format!("{:?}: {}", program.ended(), program.log()))
}

/// The words that begin every configuration of nginx with these servers.
pub fn nginx_config(directory: &TempDir, servers: &str) -> String {
    let root = directory.path().display();
    format!(
        "daemon off; master_process off; pid {root}/pid; error_log stderr; events {{}}\n\
         http {{ access_log off; client_body_temp_path {root}/b; proxy_temp_path {root}/p; fastcgi_temp_path {root}/f;\n\
         uwsgi_temp_path {root}/u; scgi_temp_path {root}/s;\n{servers} }}\n"
    )
}

/// A key and the certificate that it has signed itself, as files in PEM.
#[derive(Debug)]
pub struct Certificate {
    pub key: String,
    pub certificate: String,
}

impl Certificate {
    /// Makes both in the directory.
    pub fn new(directory: &Path) -> Result<Self> {
        let file = |name: &str| directory.join(name).to_string_lossy().into_owned();
        let made = Self { key: file("key.pem"), certificate: file("certificate.pem") };
        let elliptic = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"];
        let files = ["-keyout", &made.key, "-out", &made.certificate, "-subj", "/CN=matrix", "-days", "2"];
        program::output(None, None, &[&["openssl", "req", "-x509"], &elliptic[..], &files].concat())?;
        Ok(made)
    }
}

/// A web server that answers every path with its name, /quick with {"server": name}, and names itself in a header. With
/// a certificate it speaks TLS.
pub fn nginx(
    namespace: &Namespace,
    name: &str,
    address: SocketAddr,
    certificate: Option<&Certificate>,
) -> Result<Daemon> {
    let directory = open_directory()?;
    let config = directory.path().join("nginx.conf");
    let root = directory.path().display();
    let tls = certificate.map_or_else(String::new, |Certificate { key, certificate }| {
        format!(" ssl; ssl_certificate {certificate}; ssl_certificate_key {key}")
    });
    let server = format!(
        "server {{ listen {address}{tls}; keepalive_timeout 600s; keepalive_requests 1000000;\n\
         access_log {root}/{ACCESSES};\n\
         location = /quick {{ add_header X-Server {name}; default_type application/json;\n\
         return 200 '{{\"server\":\"{name}\"}}\n'; }}\n\
         location / {{ add_header X-Server {name}; return 200 \"{name}\\n\"; }} }}"
    );
    fs::write(&config, nginx_config(&directory, &server))?;
    let config = config.to_string_lossy().into_owned();
    let mut program = Program::start(None, Some(namespace), &["nginx", "-c", &config, "-e", "stderr"])?;
    is_up(namespace, address, &mut program)?;
    Ok(Daemon { program, directory: Some(directory) })
}

/// A Redis that keeps nothing.
pub fn redis(namespace: &Namespace, address: SocketAddr) -> Result<Daemon> {
    let (ip, port) = (address.ip().to_string(), address.port().to_string());
    let words = ["redis-server", "--bind", &ip, "--port", &port, "--protected-mode", "no"];
    let nowhere = ["--save", "", "--appendonly", "no", "--dir", "/tmp"];
    let mut program = Program::start(None, Some(namespace), &[&words[..], &nowhere].concat())?;
    is_up(namespace, address, &mut program)?;
    Ok(Daemon::bare(program))
}

/// A new PostgreSQL with the user `postgres` and no password; `cluster_name` is its name.
pub fn postgres(namespace: &Namespace, name: &str, address: SocketAddr) -> Result<Daemon> {
    let (directory, bin) = (open_directory()?, postgres_programs()?);
    let data = directory.path().join("data");
    let data = data.to_string_lossy();
    // It refuses to run as root, and so does initdb.
    let as_postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--inh-caps=-all"];
    let (initdb, server) = (bin.join("initdb"), bin.join("postgres"));
    let (initdb, server) = (initdb.to_string_lossy(), server.to_string_lossy());
    let make = ["-D", &data, "-U", "postgres", "--auth=trust", "--no-sync", "--locale=C", "--encoding=UTF8"];
    program::output(None, None, &[&as_postgres[..], &[&initdb], &make].concat())?;
    let access = format!("{data}/pg_hba.conf");
    let local = fs::read_to_string(&access)?;
    fs::write(&access, format!("{local}\nhost all all 0.0.0.0/0 trust\n"))?;
    let port = address.port().to_string();
    let (listen, sockets) = (format!("listen_addresses={}", address.ip()), format!("unix_socket_directories={data}"));
    let cluster = format!("cluster_name={name}");
    let serve = ["-D", &data, "-p", &port, "-c", &listen, "-c", &sockets, "-c", &cluster];
    let small = ["-c", "fsync=off", "-c", "shared_buffers=16MB"];
    let words = [&as_postgres[..], &[&server], &serve, &small].concat();
    let mut program = Program::start(None, Some(namespace), &words)?;
    is_up(namespace, address, &mut program)?;
    Ok(Daemon { program, directory: Some(directory) })
}

/// Where the server programs of PostgreSQL are.
fn postgres_programs() -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").context("looking for PostgreSQL")?;
    let mut found: Vec<PathBuf> = versions
        .flatten()
        .map(|version| version.path().join("bin"))
        .filter(|bin| bin.join("initdb").exists())
        .collect();
    found.sort();
    found.pop().context("PostgreSQL is not installed; run `cargo xtask setup`")
}

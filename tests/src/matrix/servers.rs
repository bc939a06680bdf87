//! The two servers of a cell, and what they know of requests.

use std::{env, net::SocketAddr, path::PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::cell::ServerKind;
use crate::{
    Namespace, Program,
    daemons::{Certificate, Daemon, is_up, nginx, postgres, redis},
    program,
};

/// Names and addresses.
pub const BACKENDS: [(&str, &str); 2] = [("b1", "10.0.0.1:18000"), ("b2", "10.0.0.2:18000")];

/// The clients' programs, and the server that some of them need: here, or where the environment variable says.
const PROGRAMS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/matrix");
const VARIABLE: &str = "SLUICE_TEST_MATRIX";

/// Running servers.
#[derive(Debug)]
pub struct Servers {
    kind: ServerKind,
    daemons: Vec<Daemon>,
}

impl Servers {
    /// Both; `files` is a directory for theirs.
    pub fn start(namespace: &Namespace, kind: ServerKind, files: &TempDir) -> Result<Self> {
        let certificate = match kind {
            ServerKind::NodeTls | ServerKind::NginxTls => Some(Certificate::new(files.path())?),
            ServerKind::Node | ServerKind::Nginx | ServerKind::Redis | ServerKind::Postgres => None,
        };
        let start =
            |(name, address): &(&str, &str)| serve(namespace, kind, name, address.parse()?, certificate.as_ref());
        Ok(Self { kind, daemons: BACKENDS.iter().map(start).collect::<Result<_>>()? })
    }

    /// The requests that have reached them, answered or not, if they count.
    pub fn requests(&self, namespace: &Namespace) -> Result<Option<u64>> {
        let ask = |words: &[&str]| program::output(None, Some(namespace), words);
        let each = self.daemons.iter().zip(BACKENDS).map(|(daemon, (_, address))| -> Result<Option<u64>> {
            let (ip, port) = address.split_once(':').context("an address and a port")?;
            Ok(match self.kind {
                ServerKind::Node | ServerKind::NodeTls => {
                    let count = ask(&["curl", "-sk", &format!("{}://{address}/count", scheme(self.kind))])?;
                    Some(count.trim().parse().with_context(|| format!("a count is {count}"))?)
                }
                ServerKind::Nginx | ServerKind::NginxTls => Some(daemon.accesses()?),
                ServerKind::Redis => {
                    let statistics = ask(&["redis-cli", "-h", ip, "-p", port, "info", "commandstats"])?;
                    Some(["get", "incr", "blpop"].iter().map(|command| calls(&statistics, command)).sum())
                }
                ServerKind::Postgres => None,
            })
        });
        let each: Vec<Option<u64>> = each.collect::<Result<_>>()?;
        Ok(each.into_iter().sum())
    }
}

/// A file of the matrix's directory.
pub fn file(name: &str) -> String {
    let directory = env::var_os(VARIABLE).map_or_else(|| PathBuf::from(PROGRAMS), PathBuf::from);
    directory.join(name).to_string_lossy().into_owned()
}

/// Of a server that speaks HTTP.
fn scheme(kind: ServerKind) -> &'static str {
    match kind {
        ServerKind::NodeTls | ServerKind::NginxTls => "https",
        ServerKind::Node | ServerKind::Nginx | ServerKind::Redis | ServerKind::Postgres => "http",
    }
}

/// Of a command, in lines like "cmdstat_get:calls=3,usec=9,...".
fn calls(statistics: &str, command: &str) -> u64 {
    let name = format!("cmdstat_{command}:calls=");
    let count = statistics.lines().find_map(|line| line.strip_prefix(&name)?.split(',').next()?.parse().ok());
    count.unwrap_or(0)
}

fn serve(
    namespace: &Namespace,
    kind: ServerKind,
    name: &str,
    address: SocketAddr,
    certificate: Option<&Certificate>,
) -> Result<Daemon> {
    namespace.address(address.ip())?;
    match kind {
        ServerKind::Nginx | ServerKind::NginxTls => nginx(namespace, name, address, certificate),
        ServerKind::Postgres => postgres(namespace, name, address),
        ServerKind::Redis => {
            let server = redis(namespace, address)?;
            let (ip, port) = (address.ip().to_string(), address.port().to_string());
            program::output(None, Some(namespace), &["redis-cli", "-h", &ip, "-p", &port, "set", "server", name])?;
            Ok(server)
        }
        ServerKind::Node | ServerKind::NodeTls => {
            let script = file("server.mjs");
            let (ip, port) = (address.ip().to_string(), address.port().to_string());
            let mut words = vec!["node", &script, "--name", name, "--address", &ip, "--port", &port];
            if let Some(Certificate { key, certificate }) = certificate {
                words.extend(["--key", key, "--certificate", certificate]);
            }
            let mut program = Program::start(None, Some(namespace), &words)?;
            is_up(namespace, address, &mut program)?;
            // Its first answer takes an emulated machine ten seconds.
            program::output(None, Some(namespace), &["curl", "-sk", &format!("{}://{address}/count", scheme(kind))])?;
            Ok(Daemon::bare(program))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_redis_says() {
        let statistics = "# Commandstats\r\ncmdstat_getex:calls=9,usec=1\r\ncmdstat_get:calls=3,usec=9\r\n";
        assert_eq!((calls(statistics, "get"), calls(statistics, "incr")), (3, 0));
    }
}

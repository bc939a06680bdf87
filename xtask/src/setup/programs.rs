//! The programs that are needed, the Debian package of each, and why.

use std::process::Command;

use super::Needs;
use crate::toolchain::in_path;

/// A program that must be there.
#[derive(Debug)]
pub struct Requirement {
    /// Its name, as found in PATH; of a library, its path.
    pub program: &'static str,
    /// The Debian package that brings it.
    pub package: &'static str,
    /// What it is for.
    pub why: &'static str,
    look: Look,
}

/// How it is told whether a program is there.
#[derive(Debug)]
enum Look {
    InPath,
    /// In PATH, and linked statically.
    Static,
    /// Some programs of PostgreSQL stay outside PATH.
    Postgres,
    /// A library: its path.
    Path,
}

impl Requirement {
    const fn new(program: &'static str, package: &'static str, why: &'static str) -> Self {
        Self { program, package, why, look: Look::InPath }
    }

    const fn look(self, look: Look) -> Self {
        Self { look, ..self }
    }

    /// Whether it is there.
    pub fn is_there(&self) -> bool {
        match self.look {
            Look::InPath => in_path(self.program).is_some(),
            Look::Static => in_path(self.program).is_some_and(|file| {
                // ldd fails on what is not dynamic.
                Command::new("ldd").arg(file).output().is_ok_and(|output| !output.status.success())
            }),
            Look::Path => std::path::Path::new(self.program).exists(),
            Look::Postgres => {
                let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
                in_path(self.program).is_some()
                    || versions.map(|entry| entry.path().join("bin").join(self.program)).any(|file| file.exists())
            }
        }
    }
}

/// Whatever is done.
const ALWAYS: [Requirement; 1] = [Requirement::new("cc", "gcc", "the linker of the agent")];

/// Namespaces here.
const NAMESPACES: [Requirement; 1] =
    [Requirement::new("ip", "iproute2", "namespaces get devices, addresses and routes by it")];

/// Black-box tests here.
const PROGRAMS: [Requirement; 25] = [
    Requirement::new("tc", "iproute2", "tests look at what is attached to devices"),
    Requirement::new("nft", "nftables", "tests put packet filters in the way"),
    Requirement::new("ps", "procps", "tests look at processes"),
    Requirement::new("curl", "curl", "a real HTTP client to steer"),
    Requirement::new("python3", "python3", "a real run-time to steer: its HTTP client and its connection pools"),
    Requirement::new("node", "nodejs", "a real run-time to steer: its event loop and its keep-alive agent"),
    Requirement::new("nginx", "nginx-light", "a real server and a real proxy to steer"),
    Requirement::new("redis-server", "redis-server", "a real server with long-lived connections"),
    Requirement::new("redis-cli", "redis-tools", "its client"),
    Requirement::new("redis-benchmark", "redis-tools", "a real client whose connections never rest"),
    Requirement::new("postgres", "postgresql", "a real server with sessions that must not be cut").look(Look::Postgres),
    Requirement::new("psql", "postgresql-client", "its client"),
    Requirement::new("pgbench", "postgresql", "a real client with sessions that it keeps").look(Look::Postgres),
    Requirement::new("openssl", "openssl", "makes the certificates of servers that speak TLS"),
    library("/usr/lib/python3/dist-packages/requests", "python3-requests"),
    library("/usr/lib/python3/dist-packages/httpx", "python3-httpx"),
    library("/usr/lib/python3/dist-packages/aiohttp", "python3-aiohttp"),
    library("/usr/lib/python3/dist-packages/redis", "python3-redis"),
    library("/usr/lib/python3/dist-packages/psycopg", "python3-psycopg"),
    library("/usr/lib/python3/dist-packages/psycopg_pool", "python3-psycopg-pool"),
    library("/usr/share/nodejs/undici", "node-undici"),
    Requirement::new("javac", "default-jdk-headless", "a real client with a pool of connections, in Java"),
    Requirement::new("promtool", "prometheus", "checks the rules of the metrics and the dashboard"),
    Requirement::new("prometheus", "prometheus", "a real server that scrapes the agent"),
    Requirement::new("setpriv", "util-linux", "starts servers that refuse to run as root"),
];

/// What Sluice is compared with, and the tools for it.
const PEERS: [Requirement; 7] = [
    Requirement::new("haproxy", "haproxy", "a proxy to compare with"),
    Requirement::new("nginx", "nginx-light", "a proxy to compare with, and the servers behind"),
    Requirement::new("/usr/lib/nginx/modules/ngx_stream_module.so", "libnginx-mod-stream", "its module for TCP")
        .look(Look::Path),
    Requirement::new("nft", "nftables", "balances as kube-proxy does, to compare with"),
    Requirement::new("ipvsadm", "ipvsadm", "drives IPVS, to compare with"),
    Requirement::new("wrk", "wrk", "sends requests and times them"),
    Requirement::new("iperf3", "iperf3", "measures throughput"),
];

const fn library(path: &'static str, package: &'static str) -> Requirement {
    Requirement::new(path, package, "a real client with a pool of connections").look(Look::Path)
}

/// Virtual machines.
const MACHINES: [Requirement; 7] = [
    Requirement::new("qemu-system-x86_64", "qemu-system-x86", "runs the tests under other kernels"),
    Requirement::new("busybox", "busybox-static", "the shell inside the virtual machines").look(Look::Static),
    Requirement::new("cpio", "cpio", "packs the file system of the virtual machines"),
    Requirement::new("depmod", "kmod", "finds the order in which kernel modules are loaded"),
    Requirement::new("xz", "xz-utils", "unpacks kernel modules"),
    Requirement::new("ip", "iproute2", "goes into the virtual machines"),
    Requirement::new("dpkg-deb", "dpkg", "unpacks kernels"),
];

/// What is needed for this.
pub fn needed(needs: Needs) -> impl Iterator<Item = &'static Requirement> {
    let programs = needs.programs.then_some(&PROGRAMS).into_iter().flatten();
    let namespaces = needs.namespaces.then_some(&NAMESPACES).into_iter().flatten();
    let peers = needs.peers.then_some(&PEERS).into_iter().flatten();
    let machines = needs.machines.then_some(&MACHINES).into_iter().flatten();
    ALWAYS.iter().chain(programs).chain(namespaces).chain(machines).chain(peers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_where_programs_are() {
        assert!(Requirement::new("sh", "dash", "").is_there());
        assert!(!Requirement::new("no-such-program", "x", "").is_there());
        // The shell is there and dynamic.
        assert!(!Requirement::new("sh", "dash", "").look(Look::Static).is_there());
    }

    #[test]
    fn building_needs_little() {
        assert_eq!(needed(Needs::default()).count(), 1);
    }
}

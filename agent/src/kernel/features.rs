//! What this kernel offers: the real programs are given to the verifier and thrown away, nothing is attached.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use anyhow::{Result, ensure};
use aya::Btf;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use sluice_common::verdict::Program;

use super::{
    attach::{Hook, hook},
    facts::Facts,
    object::{self, Object, STEERED},
    segment, sock_diag, sys,
};
use crate::host::{
    cgroups,
    namespaces::{Namespace, processes},
};

/// One thing that was looked for.
#[derive(Clone, Debug)]
pub struct FeatureCheck {
    pub feature: String,
    /// What it is for.
    pub enables: String,
    pub status: Status,
    /// What was found, or what to do.
    pub detail: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Ok,
    /// Works, with less.
    Degraded,
    /// The agent cannot start.
    Missing,
}

/// Looks at everything that the agent needs or can use. `bpffs`: where the pins would go.
pub fn report(bpffs: &Path) -> Vec<FeatureCheck> {
    let facts = object::kernel_types().and_then(|types| Ok((Facts::find(&types)?, types)));
    let mut checks = vec![kernel(), rights(), file_system(bpffs), cgroup(), members(facts.as_ref().err())];
    let can_destroy = facts.as_ref().is_ok_and(|(facts, _)| facts.can_destroy());
    if let Ok((facts, types)) = facts {
        checks.extend(programs(facts, types));
    }
    checks.extend([observed(), readers(), destroy(can_destroy), diagnosis(), raw_sockets(), namespaces()]);
    checks
}

fn check(feature: &str, enables: &str, result: Result<String, String>, otherwise: Status) -> FeatureCheck {
    let (status, detail) = match result {
        Ok(detail) => (Status::Ok, detail),
        Err(detail) => (otherwise, detail),
    };
    FeatureCheck { feature: feature.into(), enables: enables.into(), status, detail }
}

fn kernel() -> FeatureCheck {
    let release = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    let release = release.unwrap_or_default();
    let mut parts = release.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    let version: (u32, u32) = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    let result = if version >= (6, 1) {
        Ok(release)
    } else {
        Err(format!("{release}: tested from 6.1 on, and bpf_set_retval needs 5.18"))
    };
    check("Linux 6.1", "everything", result, Status::Degraded)
}

/// # Errors
/// When this process may not load programs: before anything else is tried, and in words that say what to do.
pub fn require_rights() -> Result<()> {
    let missing = missing_rights();
    ensure!(
        missing.is_empty(),
        "the agent may not load eBPF programs, it lacks {}: run it as root (`sudo sluice agent`), or as a privileged \
         container",
        missing.join(", ")
    );
    Ok(())
}

fn missing_rights() -> Vec<&'static str> {
    const NEEDED: [(u32, &str); 4] =
        [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN"), (38, "CAP_PERFMON"), (39, "CAP_BPF")];
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    NEEDED.iter().filter(|(bit, _)| mask >> bit & 1 == 0).map(|(_, name)| *name).collect()
}

fn rights() -> FeatureCheck {
    let missing = missing_rights();
    let result = if missing.is_empty() {
        Ok("all there".into())
    } else {
        Err(format!("missing {}: run as root", missing.join(", ")))
    };
    check("capabilities", "loading and attaching programs", result, Status::Missing)
}

fn file_system(bpffs: &Path) -> FeatureCheck {
    let existing = bpffs.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let result = match statfs(existing) {
        Ok(found) if found.filesystem_type() == BPF_FS_MAGIC => Ok(format!("{}", bpffs.display())),
        _ => Err(format!("{} is on none: `mount -t bpf bpf /sys/fs/bpf`", bpffs.display())),
    };
    check("bpf file system", "steering that outlives the agent", result, Status::Missing)
}

fn cgroup() -> FeatureCheck {
    let result = match cgroups::root() {
        Ok(path) => Ok(path.display().to_string()),
        Err(_) => Err("not mounted: `mount -t cgroup2 cgroup2 /sys/fs/cgroup`".into()),
    };
    check("cgroup v2", "seeing connect() of all processes", result, Status::Missing)
}

fn members(missing: Option<&anyhow::Error>) -> FeatureCheck {
    let result = missing.map_or(Ok("all members found".into()), |error| Err(format!("{error:#}")));
    check("BTF of the kernel", "reasons of failures, connection lists", result, Status::Missing)
}

fn programs(facts: Facts, types: Btf) -> Vec<FeatureCheck> {
    let mut object = match Object::on_trial(types, facts) {
        Ok(object) => object,
        Err(error) => return vec![check("tables", "everything", Err(format!("{error:#}")), Status::Missing)],
    };
    let mut checks = vec![check("tables", "everything", Ok("made and thrown away".into()), Status::Missing)];
    let (hooks, others): (Vec<_>, Vec<_>) =
        Program::ALL.iter().copied().partition(|program| matches!(hook(*program), Hook::Cgroup(_)));
    checks.extend(hooks.into_iter().map(|program| attached(&mut object, program)));
    for (name, purpose) in
        [("census", "connection lists"), ("tally", "healing of gauges"), ("survey", "drains: what is left")]
    {
        checks.push(walk(&mut object, name, purpose));
    }
    let iterators = [
        ("visit_tcp", "tcp", "drains: closing connections, what a node has accepted"),
        ("visit_udp", "udp", "drains: closing connected datagram sockets"),
    ];
    for (name, over, purpose) in iterators {
        let result = object.iterator(name, over).map(|_| "accepted".into()).map_err(last_words);
        checks.push(check(&format!("iter/{over}: {name}"), purpose, result, Status::Missing));
    }
    checks.extend(others.into_iter().map(|program| attached(&mut object, program)));
    checks
}

/// A program that is attached; the agent cannot start without those of the cgroup.
fn attached(object: &mut Object, program: Program) -> FeatureCheck {
    let (feature, otherwise) = match hook(program) {
        Hook::Cgroup(_) => (program.name().to_owned(), Status::Missing),
        Hook::Tracepoint(tracepoint) => (format!("tp_btf/{tracepoint}: {}", program.name()), Status::Degraded),
        Hook::Function(function) => (format!("fentry/{function}: {}", program.name()), Status::Degraded),
    };
    let result = object.program(program).map(|_| "accepted".into()).map_err(last_words);
    check(&feature, purpose(program), result, otherwise)
}

/// The programs that stand in for those that choose while somebody watches.
fn observed() -> FeatureCheck {
    let load = |mut object: Object| Program::CHOOSING.iter().try_for_each(|one| object.program(*one).map(drop));
    let result = Object::observed_on_trial().and_then(load).map(|()| "accepted".into()).map_err(last_words);
    check("observed programs", "sluice monitor", result, Status::Degraded)
}

/// One of the walks over all steered sockets, which can be done in two ways.
fn walk(object: &mut Object, name: &str, purpose: &str) -> FeatureCheck {
    let feature = format!("iter/{STEERED}: {name}");
    let refusal = match object.iterator(name, STEERED) {
        Ok(_) => return check(&feature, purpose, Ok("accepted".into()), Status::Missing),
        Err(error) => last_words(error),
    };
    let mut accepts = |over: &str| object.iterator(&format!("{name}_{over}"), over).is_ok();
    if accepts("tcp") && accepts("udp") {
        let detail = format!("refused; namespace by namespace instead, through all sockets of the host: {refusal}");
        return check(&feature, purpose, Err(detail), Status::Degraded);
    }
    check(&feature, purpose, Err(refusal), Status::Missing)
}

/// The verifier's log is long; why it refused stands at its end.
fn last_words(error: anyhow::Error) -> String {
    let text = format!("{error:#}");
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(3)..].join("; ")
}

fn purpose(program: Program) -> &'static str {
    match program {
        Program::Connect4 => "steering of IPv4 connections",
        Program::Connect6 => "steering of IPv6 connections",
        Program::Sendmsg4 => "steering of IPv4 datagrams",
        Program::Sendmsg6 => "steering of IPv6 datagrams",
        Program::Recvmsg4 => "the frontend as source of IPv4 answers",
        Program::Recvmsg6 => "the frontend as source of IPv6 answers",
        Program::Getpeername4 => "the frontend as IPv4 peer",
        Program::Getpeername6 => "the frontend as IPv6 peer",
        Program::SockOps => "tracking from SYN to close",
        Program::SockRelease => "the end of datagram sockets",
        Program::Turn => "turn time, where a service asks for it",
        Program::Keepalive => "drains: telling idle from in flight under keep-alive probes",
    }
}

fn readers() -> FeatureCheck {
    let result = sys::membarrier_global()
        .map(|()| "there".into())
        .map_err(|error| format!("{error}: retired tables wait a second instead"));
    check("membarrier", "early reuse of retired tables", result, Status::Degraded)
}

fn destroy(can_destroy: bool) -> FeatureCheck {
    let result = if can_destroy {
        Ok("there".into())
    } else {
        Err("needs 6.5: drains look and close in two steps, by netlink".into())
    };
    check("bpf_sock_destroy", "closing idle connections under the socket's lock", result, Status::Degraded)
}

/// Needed to end connections, and to close them where `bpf_sock_destroy` is missing.
fn diagnosis() -> FeatureCheck {
    let result = sock_diag::probe().map(|()| "there".into()).map_err(|error| format!("{error:#}"));
    let purpose = "ending idle connections, and closing them where bpf_sock_destroy is missing";
    check("inet_diag", purpose, result, Status::Degraded)
}

fn raw_sockets() -> FeatureCheck {
    let result = segment::probe().map(|()| "there".into()).map_err(|error| format!("{error} (CAP_NET_RAW)"));
    check(
        "raw sockets",
        "ending idle connections so that both ends read the end of the stream",
        result,
        Status::Degraded,
    )
}

fn namespaces() -> FeatureCheck {
    /// `PROC_PID_INIT_INO` of linux/proc_ns.h: the initial namespace of process ids.
    const INITIAL: u64 = 0xEFFF_FFFC;
    let own = fs::metadata("/proc/self/ns/pid").map(|file| file.ino());
    let result = if own.is_ok_and(|own| own != INITIAL) {
        Err("this is not the host's process ids: a container needs `hostPID: true` to see every process".into())
    } else {
        match Namespace::of_tasks(processes()) {
            (found, 0) => Ok(format!("{} found", found.len())),
            (_, hidden) => Err(format!("{hidden} processes hide theirs: run as root, with CAP_SYS_PTRACE")),
        }
    };
    check("network namespaces", "drains: connections of every process", result, Status::Degraded)
}

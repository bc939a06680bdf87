//! What the kernel's refusals mean, in words that say what to do.

use std::{error::Error, io};

/// Adds to an error of aya what its cause usually is.
pub fn explain<E: Error + Send + Sync + 'static>(error: E) -> anyhow::Error {
    let code = errno(&error);
    let advice = match code {
        Some(libc::EPERM | libc::EACCES) => {
            "the kernel refused: run as root, or with CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON and CAP_SYS_ADMIN"
        }
        Some(libc::ENOMEM) => "the kernel has no memory for the tables: ask for smaller ones with the --max-* flags",
        Some(libc::ENOSYS) => "this kernel has no bpf() system call (CONFIG_BPF_SYSCALL)",
        _ => "`sluice check` says what this kernel offers",
    };
    let verifier = code == Some(libc::EACCES) || code == Some(libc::EINVAL);
    let context = if verifier {
        "the kernel did not accept an eBPF program or table; `sluice check` says what it offers"
    } else {
        advice
    };
    anyhow::Error::new(error).context(context)
}

/// The innermost operating system error.
fn errno(error: &(dyn Error + 'static)) -> Option<i32> {
    let mut at = Some(error);
    let mut code = None;
    while let Some(error) = at {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            code = io.raw_os_error().or(code);
        }
        at = error.source();
    }
    code
}

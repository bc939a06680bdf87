//! What this user may do here.

use std::fs;

/// What this process lacks to run the tests; nothing if it may.
pub fn missing_rights() -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    if let Some(capability) = missing_capability(&status) {
        return Some(format!("no {capability}"));
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let Some(cgroup2) = cgroup2(&mounts) else {
        return Some("no cgroup2 file system is mounted".to_owned());
    };
    // Capabilities do not tell whether a container's cgroups are read-only.
    let probe = format!("{cgroup2}/sluice-probe-{}", std::process::id());
    match fs::create_dir(&probe).and_then(|()| fs::remove_dir(&probe)) {
        Ok(()) => None,
        Err(error) => Some(format!("no cgroup can be made in {cgroup2}: {error}")),
    }
}

/// The first capability that the effective set of /proc/self/status does not hold.
fn missing_capability(status: &str) -> Option<&'static str> {
    const NEEDED: [(&str, u32); 3] = [("CAP_SYS_ADMIN", 21), ("CAP_NET_ADMIN", 12), ("CAP_BPF", 39)];
    let held = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let held = held.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
    NEEDED.into_iter().find(|(_, bit)| held >> bit & 1 == 0).map(|(name, _)| name)
}

fn cgroup2(mounts: &str) -> Option<&str> {
    mounts.lines().find(|line| line.contains(" - cgroup2 ")).and_then(|line| line.split(' ').nth(4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_which_capability_is_missing() {
        assert_eq!(missing_capability("Name:\tx\nCapEff:\t000001ffffffffff\n"), None);
        assert_eq!(missing_capability("CapEff:\t0000000000000000\n"), Some("CAP_SYS_ADMIN"));
        // The default set of a container.
        assert_eq!(missing_capability("CapEff:\t00000000a80425fb\n"), Some("CAP_SYS_ADMIN"));
        assert_eq!(missing_capability(""), Some("CAP_SYS_ADMIN"));
    }
}

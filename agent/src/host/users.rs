//! Users and groups of this host, as its files list them. (Name services of other kinds need shared libraries, which a
//! static program cannot load.)

use std::fs;

use anyhow::{Context, Result};

/// The name of a user.
pub fn name(uid: u32) -> Option<String> {
    fs::read_to_string("/etc/passwd").ok().and_then(|text| name_in(&text, uid).map(str::to_owned))
}

/// The number of a group that is named, or given as a number.
///
/// # Errors
/// There is no such group in /etc/group.
pub fn group(group: &str) -> Result<u32> {
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    let text = fs::read_to_string("/etc/group").context("looking for a group in /etc/group")?;
    number_in(&text, group)
        .with_context(|| format!("there is no group {group:?} in /etc/group: make it, or give a number"))
}

/// Lines of passwd(5): name, password, number.
fn name_in(text: &str, uid: u32) -> Option<&str> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    })
}

/// Lines of group(5): name, password, number.
fn number_in(text: &str, group: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == group).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_found() {
        let users = "root:x:0:0:root:/root:/bin/bash\n\nbroken\nops:x:1000:1000::/home/ops:/bin/sh\n";
        assert_eq!((name_in(users, 0), name_in(users, 1000), name_in(users, 7)), (Some("root"), Some("ops"), None));
        let groups = "root:x:0:\nadm:x:4:syslog,ops\nodd:x:many:\n";
        assert_eq!(
            (number_in(groups, "adm"), number_in(groups, "odd"), number_in(groups, "ops")),
            (Some(4), None, None)
        );
        assert_eq!(group("12").unwrap(), 12);
        assert!(group("no such group").unwrap_err().to_string().contains("no such group"));
    }
}

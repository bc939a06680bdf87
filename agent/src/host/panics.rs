//! Panics end the process: the data plane goes on, a supervisor restarts the rest, and no half agent is left behind. Only
//! those that a library is known for, and that leave nothing of the agent's own behind, are caught where they come.

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook},
    process::abort,
};

thread_local! {
    static CATCHES: Cell<bool> = const { Cell::new(false) };
}

/// Ends the process when a thread panics, but for what is [`caught`].
pub fn abort_on_panic() {
    let report = take_hook();
    set_hook(Box::new(move |panic| {
        if !CATCHES.get() {
            report(panic);
            abort();
        }
    }));
}

/// What `work` returns, or `None` when it panicked.
pub fn caught<T>(work: impl FnOnce() -> T) -> Option<T> {
    let before = CATCHES.replace(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    CATCHES.set(before);
    done.ok()
}

#[cfg(test)]
mod tests {
    use std::{
        env::{current_exe, var_os},
        os::unix::process::ExitStatusExt,
        process::Command,
    };

    use super::*;

    const CHILD: &str = "SLUICE_TEST_PANICS_CHILD";

    #[test]
    #[ignore = "the child of the next test"]
    fn child_that_panics() {
        if var_os(CHILD).is_none() {
            return;
        }
        abort_on_panic();
        assert_eq!(caught(|| -> u8 { panic!("of a library") }), None);
        assert_eq!(caught(|| 7), Some(7));
        println!("it went on");
        let _ = std::panic::catch_unwind(|| panic!("of ours"));
        println!("it went on too far");
    }

    #[test]
    fn a_panic_ends_the_process_unless_it_is_caught() {
        let name = "host::panics::tests::child_that_panics";
        let mut child = Command::new(current_exe().unwrap());
        let child = child.args(["--ignored", "--exact", "--nocapture", name]).env(CHILD, "1").output().unwrap();
        let said = String::from_utf8_lossy(&child.stdout).into_owned() + &String::from_utf8_lossy(&child.stderr);
        assert!(said.contains("it went on") && !said.contains("too far"), "{said}");
        assert_eq!(child.status.signal(), Some(libc::SIGABRT), "{said}");
    }
}

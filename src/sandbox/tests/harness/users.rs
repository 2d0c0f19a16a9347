//! The users that make sandboxes, and those of the jobs.

use std::os::unix::process::CommandExt;
use std::process::Command;

use super::build::{BUILT, program};
use crate::sandbox::mounts::Ids;

/// The user of the jobs, if the tests run as root.
pub const NOBODY: u32 = 65534;

/// Which user makes the sandbox, and which one the job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum As {
    /// An ordinary user has a job in a sandbox.
    Ordinary,
    /// Root has a job of another user in a sandbox.
    RootForAnother,
}

/// Returns the cases that can be tested here. Tests that run as root run once more as an ordinary user, see
/// [`again_as_an_ordinary_user`].
pub fn users() -> Vec<As> {
    if is_root() { vec![As::RootForAnother] } else { vec![As::Ordinary] }
}

/// A process that was root once could not have user namespaces of its own: the kernel gives its files in /proc to root.
#[test]
fn again_as_an_ordinary_user() {
    if !is_root() {
        return;
    }
    for name in ["files", "kernel", "privileges", "processes", "sockets"] {
        program(name);
    }
    let mut tests = Command::new(std::env::current_exe().unwrap());
    tests.args(["sandbox::", "--nocapture"]).uid(NOBODY).gid(NOBODY).current_dir("/").env(BUILT, "1");
    let done = tests.output().unwrap();
    let output = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{output}");
    assert!(output.contains("test result: ok"), "{output}");
    eprintln!("{output}");
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Returns the ids of the job.
pub fn job_ids() -> Ids {
    match is_root() {
        true => Ids { uid: NOBODY, gid: NOBODY },
        false => Ids { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() },
    }
}

//! The users of the supervisor and of the job in the tests.

use std::os::unix::process::CommandExt;
use std::process::Command;

use super::build::{BUILT, program};
use crate::sandbox::mounts::Ids;

/// The user of the jobs, if the tests run as root.
pub const NOBODY: u32 = 65534;

/// The user that prepares the sandbox, and the user of the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum As {
    /// Both are the same ordinary user.
    Ordinary,
    /// Root prepares the sandbox, and the job has another user.
    RootForAnother,
}

/// Returns the cases that this process can test. If it is root, [`again_as_an_ordinary_user`] runs the tests again
/// for the other case.
pub fn users() -> Vec<As> {
    if is_root() { vec![As::RootForAnother] } else { vec![As::Ordinary] }
}

/// Runs all tests of the sandbox again in a new process of an ordinary user. The exec of a program is necessary: if a
/// process only changes its user, its files in /proc still belong to root, and it can't make user namespaces.
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

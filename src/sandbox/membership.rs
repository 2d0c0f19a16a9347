//! What another process needs to run a command in the sandbox of a running job (`pinfold exec`), and the steps with
//! which it enters that sandbox.
//!
//! The supervisor keeps a [`Membership`] of each job that has a sandbox, and sends it together with the job's own
//! Landlock ruleset and a pidfd of its main process. pinfold does not make the sandbox a second time, and opens no path
//! again. If a path of the policy now leads to another file, the command gets no access to that file.

#![allow(unsafe_code)]

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;

use rustix::io::{Errno, Result};
use serde::{Deserialize, Serialize};

use super::apply::{Confinement, drop_privileges, empty_bounding_set};
use super::mounts::Action;
use super::policy::Sandbox;
use crate::kernel::landlock;
use crate::kernel::seccomp::Program;
use crate::kernel::syscall::checked;

/// The sandbox of a running job, without its descriptors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The job's filters, without a listener. They refuse every system call that a listener would refuse.
    filters: Vec<Program>,
    /// The namespaces that belong only to the job, as flags of unshare(2).
    namespaces: u32,
    /// The job has mounts of its own, so a command must enter its working directory by the absolute path.
    pub has_mounts: bool,
    /// Whether a Landlock ruleset belongs to it.
    pub has_ruleset: bool,
    /// The user, the group and the supplementary groups of the job.
    pub user: (u32, u32, Vec<u32>),
    /// The names of the environment variables that the policy passes on, besides the usual ones.
    variables: Vec<String>,
    /// The directory for temporary files, if the job has its own.
    pub tmp: Option<PathBuf>,
    /// Resource limits: the kernel's number, soft, hard.
    pub rlimits: Vec<(u32, u64, u64)>,
}

impl Membership {
    /// Returns the membership of a job with this policy. `filters` are all filters of the job, and `confinement` is what
    /// its first process applies.
    pub fn new(sandbox: &Sandbox, confinement: &Confinement, filters: Vec<Program>, has_ruleset: bool) -> Self {
        let namespaces = confinement.actions.iter().fold(0, |flags, action| match action {
            Action::Unshare(more) => flags | more,
            _ => flags,
        });
        Self {
            filters,
            namespaces,
            has_mounts: confinement.actions.contains(&Action::Private),
            has_ruleset,
            user: (0, 0, Vec::new()),
            variables: sandbox.variables().to_vec(),
            tmp: None,
            rlimits: Vec::new(),
        }
    }

    /// Returns whether the sandbox passes this environment variable of the caller on to the command.
    pub fn passes(&self, key: &OsStr) -> bool {
        let mut sandbox = Sandbox::new();
        for name in &self.variables {
            sandbox.env(name);
        }
        sandbox.passes(key)
    }

    /// Returns whether the job has a user namespace: only a process of the job's own user has the capabilities to enter
    /// it.
    pub fn has_user_namespace(&self) -> bool {
        self.namespaces & libc::CLONE_NEWUSER as u32 != 0
    }

    /// Enters the namespaces of the job, and empties the capability bounding set. `main` is a pidfd of the job's main
    /// process (setns(2) with a pidfd, Linux 5.8).
    ///
    /// # Errors
    /// `ESRCH` if the main process has ended; `EPERM` if the kernel does not permit it; `EINVAL` before Linux 5.8.
    ///
    /// # Safety
    /// The changes are permanent, so this is only for a process that is about to execute a command.
    pub unsafe fn enter(&self, main: BorrowedFd<'_>) -> Result<()> {
        if self.namespaces != 0 {
            // SAFETY: the call takes numbers and changes only this process.
            unsafe { checked(libc::SYS_setns, [main.as_raw_fd() as usize, self.namespaces as usize]) }
                .map_err(Errno::from_raw_os_error)?;
        }
        // SAFETY: the caller's obligation.
        unsafe { empty_bounding_set() }.map_err(Errno::from_raw_os_error)
    }

    /// Gives up all privileges and applies the ruleset.
    ///
    /// # Errors
    /// The errno of the call that failed.
    ///
    /// # Safety
    /// The same as for [`enter`](Self::enter).
    pub unsafe fn restrict(&self, ruleset: Option<BorrowedFd<'_>>) -> Result<()> {
        // SAFETY: the caller's obligation; the ruleset is open.
        unsafe {
            let restricted = drop_privileges()
                .and_then(|()| ruleset.map_or(Ok(()), |ruleset| landlock::restrict_self(ruleset.as_raw_fd())));
            restricted.map_err(Errno::from_raw_os_error)
        }
    }

    /// Installs the filters. This comes last, because they forbid system calls of the earlier steps.
    ///
    /// # Errors
    /// The errno of seccomp(2).
    ///
    /// # Safety
    /// The same as for [`enter`](Self::enter), after [`restrict`](Self::restrict).
    pub unsafe fn filter(&self) -> Result<()> {
        // SAFETY: `restrict` has set `no_new_privs`; the caller's obligation.
        self.filters.iter().try_for_each(|filter| unsafe { filter.install() }).map_err(Errno::from_raw_os_error)
    }
}

/// The first byte of a supervisor's answer to the request for a job's sandbox. The request is the inode number of the
/// job's leaf, as 8 bytes in network byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The supervisor has no job with a sandbox in this leaf.
    NoSandbox = 0,
    /// The [`Membership`] follows. Descriptors: a pidfd of the main process, and the ruleset if there is one.
    Sandbox = 1,
    /// A text follows that says why the supervisor does not send the sandbox.
    Refused = 2,
}

/// Returns the name of the abstract socket of the supervisor that has this base.
pub fn socket_name(base: &str) -> String {
    format!("{base}/sandboxes")
}

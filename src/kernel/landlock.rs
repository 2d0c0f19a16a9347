//! Landlock (landlock(7), `Documentation/userspace-api/landlock.rst`): rulesets as descriptors, and the call that
//! applies one.
//!
//! pinfold uses the ABI version only for the report: some vendors' kernels have backports, so their version does not
//! show which rights they support. To find out whether the kernel supports a right, pinfold creates a ruleset with it:
//! the kernel refuses bits that it does not know (`EINVAL`, landlock_create_ruleset(2)).

#![allow(unsafe_code)]

use std::os::fd::{OwnedFd, RawFd};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, RulesetAttr, RulesetCreated, RulesetError,
    Scope,
};
use rustix::io::{Errno, Result};

use super::syscall::{checked, last_errno};

/// The system call `landlock_create_ruleset`. The crate `libc` defines its number only for some targets.
const CREATE_RULESET: libc::c_long = 444;
/// `landlock_add_rule`.
const ADD_RULE: libc::c_long = 445;
/// `landlock_restrict_self`.
const RESTRICT_SELF: libc::c_long = 446;

/// `LANDLOCK_CREATE_RULESET_VERSION` (include/uapi/linux/landlock.h).
const VERSION: u32 = 1;

/// `LANDLOCK_RULE_PATH_BENEATH`.
const PATH_BENEATH: usize = 1;

/// The rights that a ruleset takes away, except where a rule grants them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Handled {
    pub files: BitFlags<AccessFs>,
    pub ports: BitFlags<AccessNet>,
    pub scopes: BitFlags<Scope>,
}

impl Handled {
    /// Rights on files and directories in Linux 6.2 (ABI 3, the first version with `truncate`).
    pub fn files() -> Self {
        Self { files: AccessFs::from_all(ABI::V3), ..Self::default() }
    }

    /// The same without `truncate` (ABI 2, Linux 5.19).
    pub fn files_but_truncate() -> Self {
        Self { files: AccessFs::from_all(ABI::V2), ..Self::default() }
    }

    /// ioctl(2) on devices (ABI 5, Linux 6.10).
    pub fn devices() -> Self {
        Self { files: AccessFs::IoctlDev.into(), ..Self::default() }
    }

    /// Connections to sockets at a path, if a process outside of the sandbox made the socket (ABI 9, Linux 7.1).
    pub fn unix_paths() -> Self {
        Self { files: AccessFs::ResolveUnix.into(), ..Self::default() }
    }

    /// TCP ports for bind(2) and connect(2) (ABI 4, Linux 6.7).
    pub fn ports() -> Self {
        Self { ports: AccessNet::BindTcp | AccessNet::ConnectTcp, ..Self::default() }
    }

    /// Signals to processes outside of the sandbox (ABI 6, Linux 6.12).
    pub fn signals() -> Self {
        Self { scopes: Scope::Signal.into(), ..Self::default() }
    }

    /// Connections to abstract sockets, if a process outside of the sandbox made the socket (ABI 6, Linux 6.12).
    pub fn abstract_sockets() -> Self {
        Self { scopes: Scope::AbstractUnixSocket.into(), ..Self::default() }
    }

    pub fn and(self, other: Self) -> Self {
        Self { files: self.files | other.files, ports: self.ports | other.ports, scopes: self.scopes | other.scopes }
    }

    /// Creates a ruleset without rules.
    ///
    /// # Errors
    /// If the kernel lacks one of the rights, or refuses the call.
    pub fn create(self) -> std::result::Result<RulesetCreated, RulesetError> {
        let mut ruleset = landlock::Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
        if !self.files.is_empty() {
            ruleset = ruleset.handle_access(self.files)?;
        }
        if !self.ports.is_empty() {
            ruleset = ruleset.handle_access(self.ports)?;
        }
        if !self.scopes.is_empty() {
            ruleset = ruleset.scope(self.scopes)?;
        }
        ruleset.create()
    }
}

/// Returns the version of Landlock's ABI that the kernel reports, for the report.
///
/// # Errors
/// `ENOSYS` if the kernel has no Landlock, or a seccomp filter refuses the call; `EOPNOTSUPP` if Landlock is not among
/// the security modules that are on (the kernel's parameter `lsm=`).
pub fn reported_abi() -> Result<i32> {
    // SAFETY: with this flag and no attributes the call only returns a number (landlock_create_ruleset(2)).
    let version = unsafe { libc::syscall(CREATE_RULESET, std::ptr::null::<u8>(), 0_usize, VERSION) };
    if version < 0 { Err(last_errno()) } else { Ok(version as i32) }
}

/// Returns the descriptor of a ruleset.
///
/// # Errors
/// `EINVAL` if the ruleset has no descriptor. A ruleset that [`Handled::create`] returned always has one.
pub fn descriptor(ruleset: RulesetCreated) -> Result<OwnedFd> {
    Option::<OwnedFd>::from(ruleset).ok_or(Errno::INVAL)
}

/// Restricts the calling thread permanently by a ruleset. May be called between clone and exec, because it only makes
/// one system call.
///
/// # Safety
/// The restriction cannot be removed again, so it must be wanted for the rest of the thread's life. The thread must
/// have `no_new_privs`, or CAP_SYS_ADMIN.
pub unsafe fn restrict_self(ruleset: RawFd) -> std::result::Result<(), i32> {
    // SAFETY: the call changes only the credentials of this thread (landlock_restrict_self(2)).
    unsafe { checked(RESTRICT_SELF, [ruleset as usize, 0]) }.map(drop)
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    parent: i32,
}

/// Grants rights below the directory `parent` in a ruleset. May be called between clone and exec, because it only makes
/// one system call.
///
/// # Safety
/// `ruleset` and `parent` must be descriptors that are open in the calling process.
pub unsafe fn allow_beneath(ruleset: RawFd, parent: RawFd, allowed: u64) -> std::result::Result<(), i32> {
    let rule = PathBeneath { allowed, parent };
    // SAFETY: the structure has the kernel's layout (include/uapi/linux/landlock.h) and outlives the call.
    unsafe { checked(ADD_RULE, [ruleset as usize, PATH_BENEATH, &raw const rule as usize, 0]) }.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ruleset_is_created_or_the_reason_is_named() {
        let all = [Handled::files(), Handled::devices(), Handled::ports(), Handled::signals()];
        let all = all.into_iter().fold(Handled::unix_paths(), Handled::and);
        for one in [Handled::files(), Handled::devices(), Handled::unix_paths(), Handled::ports(), all] {
            match one.create() {
                Ok(ruleset) => assert!(descriptor(ruleset).is_ok()),
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
    }
}

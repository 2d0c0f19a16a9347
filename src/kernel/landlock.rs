//! Landlock (landlock(7), `Documentation/userspace-api/landlock.rst`): rulesets as descriptors, and the call that
//! applies one.
//!
//! pinfold uses the ABI version only for the report: some vendors' kernels have backports, so their version does not
//! show which rights they support. To find out whether the kernel supports a right, pinfold creates a ruleset with it:
//! the kernel refuses bits that it does not know (`EINVAL`, landlock_create_ruleset(2)).
//!
//! The crate `landlock` gives the names and numbers of the rights. The rulesets are made here, because the crate decides
//! by the ABI version which rights the kernel supports.

#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use landlock::{ABI, Access, AccessFs, AccessNet, BitFlags, Scope};
use rustix::io::{Errno, Result};

use super::syscall::{check, checked, last_errno};

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
/// `LANDLOCK_RULE_NET_PORT`.
const NET_PORT: usize = 2;

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
    /// `EINVAL` or `E2BIG` if the kernel lacks one of the rights; `ENOSYS` and `EOPNOTSUPP` as for [`reported_abi`]. If a
    /// seccomp filter refuses the call: the errno of that filter.
    pub fn create(self) -> Result<OwnedFd> {
        let attributes =
            RulesetAttributes { files: self.files.bits(), ports: self.ports.bits(), scopes: self.scopes.bits() };
        let size = size_of::<RulesetAttributes>();
        // SAFETY: the structure has the kernel's layout and outlives the call. A kernel that knows only the first fields
        // accepts it if the others are 0 (landlock_create_ruleset(2), `copy_struct_from_user`).
        let created = check(unsafe { libc::syscall(CREATE_RULESET, &raw const attributes, size, 0) })?;
        // SAFETY: the call has returned a new descriptor, which this value owns. The kernel sets its close-on-exec flag.
        Ok(unsafe { OwnedFd::from_raw_fd(created as RawFd) })
    }

    /// Returns whether all these rights are among those of `other`.
    pub fn is_within(self, other: Self) -> bool {
        other.files.contains(self.files) && other.ports.contains(self.ports) && other.scopes.contains(self.scopes)
    }
}

/// `struct landlock_ruleset_attr`, as it is since ABI 6.
#[repr(C)]
struct RulesetAttributes {
    files: u64,
    ports: u64,
    scopes: u64,
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

/// `struct landlock_net_port_attr`.
#[repr(C)]
struct NetPort {
    allowed: u64,
    port: u64,
}

/// Grants rights on a TCP port in a ruleset.
///
/// # Errors
/// `EINVAL` if the ruleset does not take these rights away.
pub fn allow_port(ruleset: BorrowedFd<'_>, port: u16, allowed: BitFlags<AccessNet>) -> Result<()> {
    let rule = NetPort { allowed: allowed.bits(), port: port.into() };
    let arguments = [ruleset.as_raw_fd() as usize, NET_PORT, &raw const rule as usize, 0];
    // SAFETY: the structure has the kernel's layout (include/uapi/linux/landlock.h) and outlives the call.
    unsafe { checked(ADD_RULE, arguments) }.map(drop).map_err(Errno::from_raw_os_error)
}

/// Grants rights on a file, or on all files below a directory, in a ruleset.
///
/// # Errors
/// `EINVAL` if the ruleset does not take these rights away, or if a right is only for directories and the descriptor is
/// of a file; `EBADFD` if it is of a pipe, a socket or the like.
pub fn allow_path(ruleset: BorrowedFd<'_>, path: BorrowedFd<'_>, allowed: BitFlags<AccessFs>) -> Result<()> {
    // SAFETY: one system call that reads memory of that function.
    unsafe { allow_beneath(ruleset.as_raw_fd(), path.as_raw_fd(), allowed.bits()) }.map_err(Errno::from_raw_os_error)
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
    use std::os::fd::AsFd;

    use rustix::fs::{Mode, OFlags};

    use super::*;

    #[test]
    fn a_ruleset_is_created_or_the_reason_is_named() {
        let all = [Handled::files(), Handled::devices(), Handled::ports(), Handled::signals()];
        let all = all.into_iter().fold(Handled::unix_paths(), Handled::and);
        for one in [Handled::files(), Handled::devices(), Handled::unix_paths(), Handled::ports(), all] {
            match one.create() {
                Ok(ruleset) => {
                    let root = rustix::fs::open(c"/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
                    let allowed = allow_path(ruleset.as_fd(), root.as_fd(), one.files);
                    assert_eq!(allowed.is_ok(), !one.files.is_empty());
                    let allowed = allow_port(ruleset.as_fd(), 443, one.ports);
                    assert_eq!(allowed.is_ok(), !one.ports.is_empty());
                }
                Err(errno) => assert!([Errno::INVAL, Errno::TOOBIG, Errno::NOSYS, Errno::OPNOTSUPP].contains(&errno)),
            }
        }
    }
}

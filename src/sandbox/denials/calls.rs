//! The system calls that pinfold inspects to find denials, and the effect of each one.

use libc::c_long;

/// The arguments of a call that name a path. Arguments are numbered from 0 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathArguments {
    /// The argument with the descriptor of the directory at which a relative path begins; `None` if the call has no
    /// such argument, and a relative path begins at the working directory.
    pub directory: Option<u8>,
    /// The argument with the path.
    pub path: u8,
}

/// The path argument of a call such as open(2), which has no directory argument.
const fn path(path: u8) -> PathArguments {
    PathArguments { directory: None, path }
}

/// The path arguments of a call such as openat(2): the directory, and the path directly after it.
const fn at(directory: u8) -> PathArguments {
    PathArguments { directory: Some(directory), path: directory + 1 }
}

/// Where a call that opens a file has its flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenFlags {
    /// In this argument.
    Argument(u8),
    /// In the `struct open_how` to which this argument points (openat2(2)).
    How(u8),
    /// The call is creat(2).
    Creat,
}

/// The effect of a call. A `u8` is the position of an argument, from 0 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Open(PathArguments, OpenFlags),
    Execute(PathArguments),
    Truncate(PathArguments),
    MakeDirectory(PathArguments),
    /// The path and the mode. The upper bits of the mode are the kind of file (mknod(2)).
    MakeNode(PathArguments, u8),
    MakeSymlink(PathArguments),
    /// The path, and the flags if the call has flags (unlinkat(2)).
    Remove(PathArguments, Option<u8>),
    RemoveDirectory(PathArguments),
    /// The old path, the new path, and the flags if the call has flags (renameat2(2)).
    Rename(PathArguments, PathArguments, Option<u8>),
    /// The existing path and the new path (linkat(2)).
    Link(PathArguments, PathArguments),
    /// Changes mode, owner, times or extended attributes.
    Attributes(PathArguments),
    Connect,
    Bind,
    /// Sends a signal to the process or thread with this id.
    Signal(u8),
    /// Sends a signal to the process of this pidfd.
    SignalPidfd(u8),
    /// ptrace(2).
    Trace,
    /// Uses the memory or the descriptors of the process with this id.
    Inspect(u8),
    /// Uses the memory or the descriptors of the process of this pidfd.
    InspectPidfd(u8),
}

/// Returns the calls that pinfold inspects, with their names and effects. `strict` adds those that only the promise
/// `metadata` restricts.
pub fn watched(strict: bool) -> impl Iterator<Item = (c_long, &'static str, Operation)> {
    let attributes: &[_] = if strict { &ATTRIBUTES } else { &[] };
    let attributes_here: &[_] = if strict { ATTRIBUTES_HERE } else { &[] };
    WATCHED.iter().chain(WATCHED_HERE).chain(attributes).chain(attributes_here).copied()
}

type Entry = (c_long, &'static str, Operation);

const WATCHED: [Entry; 28] = [
    (libc::SYS_openat, "openat", Operation::Open(at(0), OpenFlags::Argument(2))),
    (libc::SYS_openat2, "openat2", Operation::Open(at(0), OpenFlags::How(2))),
    (libc::SYS_execve, "execve", Operation::Execute(path(0))),
    (libc::SYS_execveat, "execveat", Operation::Execute(at(0))),
    (libc::SYS_truncate, "truncate", Operation::Truncate(path(0))),
    (libc::SYS_mkdirat, "mkdirat", Operation::MakeDirectory(at(0))),
    (libc::SYS_mknodat, "mknodat", Operation::MakeNode(at(0), 2)),
    (libc::SYS_symlinkat, "symlinkat", Operation::MakeSymlink(at(1))),
    (libc::SYS_unlinkat, "unlinkat", Operation::Remove(at(0), Some(2))),
    (libc::SYS_renameat, "renameat", Operation::Rename(at(0), at(2), None)),
    (libc::SYS_renameat2, "renameat2", Operation::Rename(at(0), at(2), Some(4))),
    (libc::SYS_linkat, "linkat", Operation::Link(at(0), at(2))),
    (libc::SYS_connect, "connect", Operation::Connect),
    (libc::SYS_bind, "bind", Operation::Bind),
    (libc::SYS_kill, "kill", Operation::Signal(0)),
    (libc::SYS_tkill, "tkill", Operation::Signal(0)),
    (libc::SYS_tgkill, "tgkill", Operation::Signal(1)),
    (libc::SYS_rt_sigqueueinfo, "rt_sigqueueinfo", Operation::Signal(0)),
    (libc::SYS_rt_tgsigqueueinfo, "rt_tgsigqueueinfo", Operation::Signal(1)),
    (libc::SYS_pidfd_send_signal, "pidfd_send_signal", Operation::SignalPidfd(0)),
    (libc::SYS_ptrace, "ptrace", Operation::Trace),
    (libc::SYS_process_vm_readv, "process_vm_readv", Operation::Inspect(0)),
    (libc::SYS_process_vm_writev, "process_vm_writev", Operation::Inspect(0)),
    (libc::SYS_kcmp, "kcmp", Operation::Inspect(1)),
    (libc::SYS_pidfd_getfd, "pidfd_getfd", Operation::InspectPidfd(0)),
    (libc::SYS_process_madvise, "process_madvise", Operation::InspectPidfd(0)),
    (libc::SYS_get_robust_list, "get_robust_list", Operation::Inspect(0)),
    (libc::SYS_move_pages, "move_pages", Operation::Inspect(0)),
];

/// Calls that only x86-64 has.
#[cfg(target_arch = "x86_64")]
const WATCHED_HERE: &[Entry] = &[
    (libc::SYS_open, "open", Operation::Open(path(0), OpenFlags::Argument(1))),
    (libc::SYS_creat, "creat", Operation::Open(path(0), OpenFlags::Creat)),
    (libc::SYS_mkdir, "mkdir", Operation::MakeDirectory(path(0))),
    (libc::SYS_mknod, "mknod", Operation::MakeNode(path(0), 1)),
    (libc::SYS_symlink, "symlink", Operation::MakeSymlink(path(1))),
    (libc::SYS_unlink, "unlink", Operation::Remove(path(0), None)),
    (libc::SYS_rmdir, "rmdir", Operation::RemoveDirectory(path(0))),
    (libc::SYS_rename, "rename", Operation::Rename(path(0), path(1), None)),
    (libc::SYS_link, "link", Operation::Link(path(0), path(1))),
];
#[cfg(not(target_arch = "x86_64"))]
const WATCHED_HERE: &[Entry] = &[];

/// `fchmodat2` (Linux 6.6), which libc does not name on all targets.
const FCHMODAT2: c_long = 452;

/// Calls that only the promise `metadata` restricts.
const ATTRIBUTES: [Entry; 8] = [
    (libc::SYS_fchmodat, "fchmodat", Operation::Attributes(at(0))),
    (FCHMODAT2, "fchmodat2", Operation::Attributes(at(0))),
    (libc::SYS_fchownat, "fchownat", Operation::Attributes(at(0))),
    (libc::SYS_utimensat, "utimensat", Operation::Attributes(at(0))),
    (libc::SYS_setxattr, "setxattr", Operation::Attributes(path(0))),
    (libc::SYS_lsetxattr, "lsetxattr", Operation::Attributes(path(0))),
    (libc::SYS_removexattr, "removexattr", Operation::Attributes(path(0))),
    (libc::SYS_lremovexattr, "lremovexattr", Operation::Attributes(path(0))),
];

/// Calls that only the promise `metadata` restricts, and that only x86-64 has.
#[cfg(target_arch = "x86_64")]
const ATTRIBUTES_HERE: &[Entry] = &[
    (libc::SYS_chmod, "chmod", Operation::Attributes(path(0))),
    (libc::SYS_chown, "chown", Operation::Attributes(path(0))),
    (libc::SYS_lchown, "lchown", Operation::Attributes(path(0))),
    (libc::SYS_utime, "utime", Operation::Attributes(path(0))),
    (libc::SYS_utimes, "utimes", Operation::Attributes(path(0))),
    (libc::SYS_futimesat, "futimesat", Operation::Attributes(at(0))),
];
#[cfg(not(target_arch = "x86_64"))]
const ATTRIBUTES_HERE: &[Entry] = &[];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_is_watched_once() {
        let mut all: Vec<c_long> = watched(true).map(|(number, ..)| number).collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        assert!(watched(false).count() < count);
    }
}

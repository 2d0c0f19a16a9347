//! The system calls that pinfold looks at to explain refusals, and what each one does.

use libc::c_long;

/// Where a call has a path: the argument with the descriptor of a directory, if it has one, and the argument with the
/// path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    pub directory: Option<u8>,
    pub path: u8,
}

/// A path that begins at the working directory.
const fn path(path: u8) -> At {
    At { directory: None, path }
}

/// A path that begins at a directory.
const fn at(directory: u8) -> At {
    At { directory: Some(directory), path: directory + 1 }
}

/// Where the flags of an open are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenFlags {
    Argument(u8),
    /// In the structure that this argument points to (openat2(2)).
    How(u8),
    /// The call is creat(2).
    Creat,
}

/// The effect of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Open(At, OpenFlags),
    Execute(At),
    Truncate(At),
    MakeDirectory(At),
    /// The argument with the mode, whose upper bits are the kind of file (mknod(2)).
    MakeNode(At, u8),
    MakeSymlink(At),
    /// The argument with the flags, if there is one (unlinkat(2)).
    Remove(At, Option<u8>),
    RemoveDirectory(At),
    /// The argument with the flags, if there is one (renameat2(2)).
    Rename(At, At, Option<u8>),
    Link(At, At),
    /// Changes mode, owner, times or extended attributes.
    Attributes(At),
    Connect,
    Bind,
    /// The argument with the process, and the one with the signal.
    Signal(u8, u8),
    /// The argument with the descriptor of a process.
    SignalDescriptor(u8),
    /// ptrace(2).
    Trace,
    /// The argument with the process whose memory or descriptors the call uses.
    Inspect(u8),
    /// The argument with the descriptor of a process.
    InspectDescriptor(u8),
}

/// Returns the calls, each with its name.
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
    (libc::SYS_kill, "kill", Operation::Signal(0, 1)),
    (libc::SYS_tkill, "tkill", Operation::Signal(0, 1)),
    (libc::SYS_tgkill, "tgkill", Operation::Signal(1, 2)),
    (libc::SYS_rt_sigqueueinfo, "rt_sigqueueinfo", Operation::Signal(0, 1)),
    (libc::SYS_rt_tgsigqueueinfo, "rt_tgsigqueueinfo", Operation::Signal(1, 2)),
    (libc::SYS_pidfd_send_signal, "pidfd_send_signal", Operation::SignalDescriptor(0)),
    (libc::SYS_ptrace, "ptrace", Operation::Trace),
    (libc::SYS_process_vm_readv, "process_vm_readv", Operation::Inspect(0)),
    (libc::SYS_process_vm_writev, "process_vm_writev", Operation::Inspect(0)),
    (libc::SYS_kcmp, "kcmp", Operation::Inspect(1)),
    (libc::SYS_pidfd_getfd, "pidfd_getfd", Operation::InspectDescriptor(0)),
    (libc::SYS_process_madvise, "process_madvise", Operation::InspectDescriptor(0)),
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

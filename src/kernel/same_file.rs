//! Finds out whether two descriptors are one output: all writes to both arrive in the same place, in the order of the
//! writes.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{FileType, OFlags, Stat, fcntl_getfl, fstat};
use rustix::io::Errno;

use crate::kernel::descriptor;

/// Returns whether writes to `one` and to `other` arrive in the same place, in the order of the writes. This is so in
/// three cases:
///
/// - both refer to the same open file description (`>f 2>&1`; kcmp(2), `KCMP_FILE`),
/// - both are the same pipe, socket or terminal, even if it was opened twice: these have no offset,
/// - both append to the same regular file (`>>f 2>>f`): the kernel moves each write to the end (open(2), `O_APPEND`).
///
/// If a file was opened twice without appending (`>f 2>f`), each descriptor has its own offset, and they overwrite each
/// other's data. These are two outputs.
///
/// A program that forwards the output of a job to its own standard streams calls this function before it calls
/// [`Command::stderr_to_stdout`](crate::Command::stderr_to_stdout). The function does not block and changes nothing. It
/// returns `false` if it cannot find out.
pub fn are_one_output(one: impl AsFd, other: impl AsFd) -> bool {
    let (one, other) = (one.as_fd(), other.as_fd());
    if one.as_raw_fd() == other.as_raw_fd() {
        return true;
    }
    let (Ok(stat), Ok(other_stat)) = (fstat(one), fstat(other)) else { return false };
    if (stat.st_dev, stat.st_ino) != (other_stat.st_dev, other_stat.st_ino) {
        // /dev/tty is the controlling terminal under another name, and a process has only one (tty(4)).
        return is_controlling_terminal(one, &stat) && is_controlling_terminal(other, &other_stat);
    }
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo | FileType::Socket | FileType::CharacterDevice => true,
        _ => appends(one) && appends(other) || share_open_file_description(one, other),
    }
}

fn appends(fd: BorrowedFd<'_>) -> bool {
    fcntl_getfl(fd).is_ok_and(|flags| flags.contains(OFlags::APPEND))
}

/// Returns whether `fd` is the controlling terminal. The master side of a pseudoterminal is excluded by its device
/// number: the kernel reports a session for it too (tty_io.c, `tiocgsid`), but it is not the terminal itself.
fn is_controlling_terminal(fd: BorrowedFd<'_>, stat: &Stat) -> bool {
    /// `/dev/ptmx` (the kernel's Documentation/admin-guide/devices.txt).
    const MULTIPLEXER: (u32, u32) = (5, 2);
    let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && device != MULTIPLEXER && sys::has_session(fd)
}

/// Returns whether both descriptors refer to the same open file description. This process must own both.
fn share_open_file_description(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> bool {
    // Containers refuse kcmp(2) without CAP_SYS_PTRACE, and a kernel may be built without it.
    descriptor::share_open_file_description(one.as_raw_fd(), other.as_raw_fd())
        .or_else(|_| share_an_owner(one, other))
        .unwrap_or(false)
}

/// Does the same as [`share_open_file_description`] without kcmp(2). Each open file description has one process that
/// receives its signal SIGIO, the owner (fcntl(2), `F_SETOWN_EX`): an owner that is set through one descriptor is
/// visible through the other. The kernel never sends this signal for a regular file, and this function restores the
/// previous owner.
fn share_an_owner(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> Result<bool, Errno> {
    let own = sys::Owner::this_thread();
    let before = sys::owner(one)?;
    if sys::owner(other)? != before || before == own {
        return Ok(false);
    }
    sys::set_owner(one, own)?;
    let seen = sys::owner(other);
    sys::set_owner(one, before)?;
    Ok(seen? == own)
}

#[allow(unsafe_code)]
mod sys {
    use std::os::fd::{AsRawFd, BorrowedFd};

    use rustix::io::Errno;

    use crate::kernel::syscall::last_errno;

    /// `struct f_owner_ex` (include/uapi/asm-generic/fcntl.h).
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Owner {
        kind: libc::c_int,
        pid: libc::pid_t,
    }

    const F_OWNER_TID: libc::c_int = 0;
    const F_SETOWN_EX: libc::c_int = 15;
    const F_GETOWN_EX: libc::c_int = 16;

    impl Owner {
        pub fn this_thread() -> Self {
            // SAFETY: gettid(2) has no obligations.
            Self { kind: F_OWNER_TID, pid: unsafe { libc::gettid() } }
        }
    }

    pub fn owner(fd: BorrowedFd<'_>) -> Result<Owner, Errno> {
        let mut owner = Owner::default();
        // SAFETY: `owner` has the kernel's layout and outlives the call.
        let done = unsafe { libc::fcntl(fd.as_raw_fd(), F_GETOWN_EX, &raw mut owner) };
        if done == 0 { Ok(owner) } else { Err(last_errno()) }
    }

    pub fn set_owner(fd: BorrowedFd<'_>, owner: Owner) -> Result<(), Errno> {
        // SAFETY: `owner` has the kernel's layout, is only read, and outlives the call.
        let done = unsafe { libc::fcntl(fd.as_raw_fd(), F_SETOWN_EX, &raw const owner) };
        if done == 0 { Ok(()) } else { Err(last_errno()) }
    }

    /// Returns whether `fd` is the controlling terminal of this process, or the master side of a pseudoterminal. For
    /// any other terminal the kernel reports no session (tcgetsid(3), `ENOTTY`).
    pub fn has_session(fd: BorrowedFd<'_>) -> bool {
        // SAFETY: tcgetsid(3) touches no memory of this process; the descriptor is borrowed for the call.
        unsafe { libc::tcgetsid(fd.as_raw_fd()) >= 0 }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn scratch(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("pinfold-same-{name}-{}", std::process::id()))
    }

    #[test]
    fn two_descriptors_of_one_open_file_are_one_output() {
        let path = scratch("two");
        let one = File::create(&path).unwrap();
        let (twin, other) = (one.try_clone().unwrap(), File::options().write(true).open(&path).unwrap());
        let appending = || File::options().append(true).open(&path).unwrap();
        let (first, second) = (appending(), appending());
        std::fs::remove_file(&path).unwrap();
        assert!(are_one_output(&one, &twin));
        assert!(!are_one_output(&one, &other), "each has its own offset");
        assert!(are_one_output(&first, &second));
        assert!(!are_one_output(&first, &other), "only one of them appends");
    }

    /// The method for systems that refuse kcmp(2) gives the same answers, and leaves the open files as they were.
    #[test]
    fn the_owner_of_sigio_distinguishes_one_open_file_from_two() {
        let path = scratch("owner");
        let one = File::create(&path).unwrap();
        let (twin, other) = (one.try_clone().unwrap(), File::options().write(true).open(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        assert_eq!(share_an_owner(one.as_fd(), twin.as_fd()), Ok(true));
        assert_eq!(share_an_owner(one.as_fd(), other.as_fd()), Ok(false));
        assert_eq!(sys::owner(one.as_fd()), Ok(sys::Owner::default()));
        if let Ok(same) = descriptor::share_open_file_description(one.as_raw_fd(), twin.as_raw_fd()) {
            assert!(same && descriptor::share_open_file_description(one.as_raw_fd(), other.as_raw_fd()) == Ok(false));
        }
    }

    #[test]
    fn a_pipe_that_was_opened_twice_is_one_output() {
        let (_reader, writer) = std::io::pipe().unwrap();
        let again = File::options().write(true).open(format!("/proc/self/fd/{}", writer.as_raw_fd())).unwrap();
        let (_reader, other) = std::io::pipe().unwrap();
        assert!(are_one_output(&writer, &again) && !are_one_output(&writer, &other));
    }
}

//! Opens and removes a directory whose name and mode a job chose: one level of the path, no symbolic link, no other file
//! system.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags, chmodat, fchmod, fstat, openat, openat2,
    statx, unlinkat,
};
use rustix::io::{Errno, Result};

use crate::kernel::syscall::check;

/// Removes an empty directory. A directory that is gone already counts as removed.
pub(super) fn remove_directory(dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    match unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(()),
        done => done,
    }
}

/// Opens the directory `name` in `dir`, and restores its mode so that its entries can be removed.
///
/// # Errors
/// `XDEV` if a file system is mounted on it; `NOTDIR` or `LOOP` if it is no directory.
pub(super) fn open_directory(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
    let opened = match open_one_level(dir, name, OFlags::RDONLY) {
        Err(Errno::ACCESS) => {
            restore_mode(open_one_level(dir, name, OFlags::PATH)?.as_fd())?;
            open_one_level(dir, name, OFlags::RDONLY)?
        }
        opened => opened?,
    };
    if fstat(&opened)?.st_mode & Mode::RWXU.bits() != Mode::RWXU.bits() {
        fchmod(&opened, Mode::RWXU)?;
    }
    Ok(opened)
}

fn open_one_level(dir: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> Result<OwnedFd> {
    let flags = flags | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    match openat2(dir, name, flags, Mode::empty(), resolve) {
        // A container's old seccomp profile does not know the call.
        Err(Errno::NOSYS | Errno::PERM) => {}
        opened => return opened,
    }
    let opened = openat(dir, name, flags, Mode::empty())?;
    // Replaces NO_XDEV (`MOUNT_ROOT` in statx(2), Linux 5.8). The other flags in `resolve` are not needed, because the
    // name has only one part.
    let stat = statx(&opened, c"", AtFlags::EMPTY_PATH, StatxFlags::empty())?;
    if stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) { Err(Errno::XDEV) } else { Ok(opened) }
}

/// Gives the owner all rights on a directory that was opened with O_PATH. fchmod(2) refuses such a descriptor.
fn restore_mode(dir: BorrowedFd<'_>) -> Result<()> {
    /// The same number on all architectures (Linux 6.6). The crate `libc` does not define it for all targets.
    const FCHMODAT2: libc::c_long = 452;
    // The link in /proc leads to the open directory itself, not to a path.
    let link = format!("/proc/self/fd/{}", dir.as_raw_fd());
    match chmodat(CWD, link, Mode::RWXU, AtFlags::empty()) {
        // /proc is not mounted.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => {
            let (mode, flags) = (Mode::RWXU.bits(), libc::AT_EMPTY_PATH);
            // SAFETY: the string ends with NUL, and the descriptor is open; the call changes no memory.
            check(unsafe { libc::syscall(FCHMODAT2, dir.as_raw_fd(), c"".as_ptr(), mode, flags) }).map(drop)
        }
        done => done,
    }
}

//! Restores the modes of a cgroup that its own job has changed. `chmod 000` on the directory or on a file in it
//! prevents a supervisor that is not root from listing, killing and removing the cgroup. The directory belongs to the
//! supervisor's user, so the supervisor can restore the modes.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, Stat, chmodat, fchmod, fstat, openat, statat};
use rustix::io::{Errno, Result};

use super::directory::{Cgroup, children, open_in};

/// The files of a cgroup that pinfold must be able to open.
const FILES: [&CStr; 5] = [c"cgroup.procs", c"cgroup.events", c"cgroup.kill", c"cgroup.freeze", c"cgroup.controllers"];

impl Cgroup {
    /// Calls `work`. If it fails because of a mode, and pinfold made the cgroup, restores the modes and calls `work`
    /// again.
    pub(super) fn despite_modes<T>(&self, mut work: impl FnMut() -> Result<T>) -> Result<T> {
        match work() {
            Err(Errno::ACCESS) if self.is_ours && restore(self.as_fd()).is_ok() => work(),
            done => done,
        }
    }

    /// Restores the modes of the cgroup `name` below this one, and the mode of this one if pinfold made it.
    pub(super) fn restore_modes_of(&self, name: &CStr) -> Result<()> {
        if self.is_ours {
            restore_directory(self.as_fd())?;
        }
        restore_entry(self.as_fd(), name, Mode::RWXU)?;
        restore(open_in(self.as_fd(), name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC)?.as_fd())
    }
}

/// Restores the modes of a directory, of the files in it and of the directories below it. Only one descriptor is open
/// at a time: `..` leads up again.
///
/// # Errors
/// `EPERM` if the directory belongs to another user.
fn restore(top: BorrowedFd<'_>) -> Result<()> {
    let mut above = Vec::new();
    let mut below: Option<OwnedFd> = None;
    let mut names = restore_one(top)?.into_iter();
    loop {
        let dir = below.as_ref().map_or(top, OwnedFd::as_fd);
        if let Some(name) = names.next() {
            let opened = restore_entry(dir, &name, Mode::RWXU)
                .and_then(|()| open_in(dir, &name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC))
                .and_then(|child| Ok((restore_one(child.as_fd())?, child)));
            // If a directory is gone or belongs to another user, it is skipped here. The work that follows fails there
            // and returns the error.
            if let Ok((children, child)) = opened {
                above.push(std::mem::replace(&mut names, children.into_iter()));
                below = Some(child);
            }
            continue;
        }
        let Some(siblings) = above.pop() else { return Ok(()) };
        below = if above.is_empty() {
            None
        } else {
            Some(openat(dir, c"..", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
        };
        names = siblings;
    }
}

/// Restores the modes of one directory and of the files in it. Returns the names of the directories below it.
fn restore_one(dir: BorrowedFd<'_>) -> Result<Vec<std::ffi::CString>> {
    restore_directory(dir)?;
    for file in FILES {
        match restore_entry(dir, file, Mode::RUSR | Mode::WUSR) {
            // An older kernel does not have all of these files.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    children(dir)
}

fn restore_directory(dir: BorrowedFd<'_>) -> Result<()> {
    match with(&fstat(dir)?, Mode::RWXU) {
        Some(mode) => fchmod(dir, mode),
        None => Ok(()),
    }
}

fn restore_entry(dir: BorrowedFd<'_>, name: &CStr, wanted: Mode) -> Result<()> {
    // No entry of a cgroup's directory is a symbolic link.
    match with(&statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?, wanted) {
        Some(mode) => chmodat(dir, name, mode, AtFlags::empty()),
        None => Ok(()),
    }
}

/// Returns the mode with the bits of `wanted` added; `None` if the mode already has all of these bits.
fn with(stat: &Stat, wanted: Mode) -> Option<Mode> {
    let mode = Mode::from_raw_mode(stat.st_mode);
    (!mode.contains(wanted)).then(|| mode | wanted)
}

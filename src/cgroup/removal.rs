//! The removal of a cgroup and of all cgroups that its job has made below it: in linear time, and in steps, so that
//! other work can be done between two steps.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Instant;

use rustix::fs::{AtFlags, unlinkat};
use rustix::io::{Errno, Result};

use super::directory::{Cgroup, DIRECTORY, children, open_in};

/// The path of the cgroup that could not be removed, and the reason.
pub(crate) type NotRemoved = (PathBuf, Errno);

/// The highest number of times that one directory is listed. Without a limit, the removal might never end while another
/// program makes cgroups in the directory.
const MAX_LISTINGS: u32 = 3;

/// The removal of one cgroup. Each cgroup below it is listed once. A cgroup with no other cgroup below it is removed by
/// one call.
#[derive(Debug)]
pub(crate) struct Removal {
    name: CString,
    /// The directory of the last level, whose cgroups are now being removed. Only this one descriptor is open, however
    /// deep the job has nested its cgroups.
    dir: Option<OwnedFd>,
    levels: Vec<Level>,
}

/// A directory on the way down.
#[derive(Debug)]
struct Level {
    name: CString,
    /// The cgroups directly below that the removal has not removed yet.
    rest: Vec<CString>,
    listings: u32,
}

impl Cgroup {
    /// Begins the removal of the cgroup `name` below this one. No process may run in it.
    pub fn removal(&self, name: &str) -> std::result::Result<Removal, NotRemoved> {
        let name = CString::new(name).map_err(|_| (self.path().join(name), Errno::INVAL))?;
        Ok(Removal { name, dir: None, levels: Vec::new() })
    }

    /// Removes the cgroup `name` below this one and all cgroups below it, deepest first. They must contain no process.
    ///
    /// # Errors
    /// `BUSY` if a process is still in one of them; from Linux 6.19 on also for a moment after the last process has
    /// ended. `XDEV` if a file system is mounted on one of the cgroups; the path in the error names that cgroup.
    pub fn remove(&self, name: &str) -> std::result::Result<(), NotRemoved> {
        self.removal(name)?.step(self, None).map(drop)
    }
}

impl Removal {
    /// Continues the removal from `parent`, up to the time `until` if it is given. Returns whether the removal is
    /// complete. After an error the caller can begin a new removal. A cgroup that is already gone counts as removed,
    /// because the guard and the supervisor can both remove the same cgroups at the end.
    pub fn step(&mut self, parent: &Cgroup, until: Option<Instant>) -> std::result::Result<bool, NotRemoved> {
        match self.go_on(parent, until) {
            // The job may have changed the modes of its cgroups.
            Err(Errno::ACCESS) if parent.restore_modes_of(&self.name).is_ok() => {
                (self.dir, self.levels) = (None, Vec::new());
                self.go_on(parent, until)
            }
            done => done,
        }
        .map_err(|errno| (self.path(parent), errno))
    }

    fn go_on(&mut self, parent: &Cgroup, until: Option<Instant>) -> Result<bool> {
        if self.levels.is_empty() {
            match rmdir(parent.as_fd(), &self.name) {
                Ok(()) | Err(Errno::NOENT) => return Ok(true),
                Err(Errno::BUSY | Errno::NOTEMPTY) => {}
                Err(errno) => return Err(errno),
            }
            let name = self.name.clone();
            if !self.enter(parent.as_fd(), name)? {
                return Ok(true);
            }
        }
        while let (Some(dir), Some(level)) = (&self.dir, self.levels.last_mut()) {
            if until.is_some_and(|until| Instant::now() >= until) {
                return Ok(false);
            }
            if let Some(name) = level.rest.pop() {
                match rmdir(dir.as_fd(), &name) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(Errno::BUSY | Errno::NOTEMPTY) => {
                        let dir = dir.try_clone().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
                        self.enter(dir.as_fd(), name)?;
                    }
                    Err(errno) => {
                        level.rest.push(name);
                        return Err(errno);
                    }
                }
                continue;
            }
            // `..` still works in a directory that has been removed.
            let up = open_in(dir.as_fd(), c"..", DIRECTORY)?;
            match rmdir(up.as_fd(), &level.name) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno @ (Errno::BUSY | Errno::NOTEMPTY)) => {
                    level.rest = list(dir.as_fd())?;
                    level.listings += 1;
                    if level.rest.is_empty() || level.listings > MAX_LISTINGS {
                        return Err(errno);
                    }
                    continue;
                }
                Err(errno) => return Err(errno),
            }
            self.levels.pop();
            self.dir = Some(up);
        }
        Ok(true)
    }

    /// Goes down to `name` in `dir`. Returns `false` if it is gone.
    fn enter(&mut self, dir: BorrowedFd<'_>, name: CString) -> Result<bool> {
        let opened = open_in(dir, &name, DIRECTORY);
        self.levels.push(Level { name, rest: Vec::new(), listings: 1 });
        let child = match opened {
            Ok(child) => child,
            Err(Errno::NOENT | Errno::NODEV) => {
                self.levels.pop();
                return Ok(false);
            }
            Err(errno) => return Err(errno),
        };
        let rest = list(child.as_fd())?;
        if let Some(level) = self.levels.last_mut() {
            level.rest = rest;
        }
        self.dir = Some(child);
        Ok(true)
    }

    /// Returns the path of the cgroup that the removal has reached.
    fn path(&self, parent: &Cgroup) -> PathBuf {
        let below = self.levels.iter().map(|level| &level.name).chain(self.levels.is_empty().then_some(&self.name));
        below.fold(parent.path().to_owned(), |path, name| path.join(&*name.to_string_lossy()))
    }
}

/// Returns the names of the cgroups directly below `dir`; an empty list if the directory is gone.
fn list(dir: BorrowedFd<'_>) -> Result<Vec<CString>> {
    match children(dir) {
        Err(Errno::NOENT | Errno::NODEV) => Ok(Vec::new()),
        done => done,
    }
}

fn rmdir(dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    unlinkat(dir, name, AtFlags::REMOVEDIR)
}

//! The removal of a cgroup and of all that its job has made below it: in linear time, and in steps between which other work goes on.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Instant;

use rustix::fs::{AtFlags, unlinkat};
use rustix::io::{Errno, Result};

use super::directory::{Cgroup, DIRECTORY, children, open_in};

/// The path of the cgroup that could not be removed, and why.
pub(crate) type NotRemoved = (PathBuf, Errno);

/// A directory is listed so often at most: something else may make cgroups in it meanwhile.
const LISTINGS: u32 = 3;

/// The removal of one cgroup. Each cgroup below it is listed once, and removed by one call where nothing is below that.
#[derive(Debug)]
pub(crate) struct Removal {
    name: CString,
    /// The directory that is being emptied, that of the last level. One descriptor, however deep the job has nested.
    dir: Option<OwnedFd>,
    levels: Vec<Level>,
}

/// A directory on the way down.
#[derive(Debug)]
struct Level {
    name: CString,
    /// What is still to be removed right below it.
    rest: Vec<CString>,
    listings: u32,
}

impl Cgroup {
    /// Begins the removal of the cgroup `name` below this one. Nothing may run in it.
    pub fn removal(&self, name: &str) -> std::result::Result<Removal, NotRemoved> {
        let name = CString::new(name).map_err(|_| (self.path().join(name), Errno::INVAL))?;
        Ok(Removal { name, dir: None, levels: Vec::new() })
    }

    /// Removes the cgroup `name` below this one and all below it, deepest first. It must be empty.
    ///
    /// # Errors
    /// `BUSY` where a process is left in it; from 6.19 on also for a moment after the last one has ended. `XDEV` where something
    /// is mounted on one of them, which its path names.
    pub fn remove(&self, name: &str) -> std::result::Result<(), NotRemoved> {
        self.removal(name)?.step(self, None).map(drop)
    }
}

impl Removal {
    /// Goes on with the removal from `parent`, until the time if one is given; whether it is over. After an error a new one can be
    /// begun. Another process may be removing the same (guard and supervisor both do at the end): what is gone is done.
    pub fn step(&mut self, parent: &Cgroup, until: Option<Instant>) -> std::result::Result<bool, NotRemoved> {
        match self.go_on(parent, until) {
            // The job may have changed modes.
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
            // A removed directory still knows the one above it.
            let up = open_in(dir.as_fd(), c"..", DIRECTORY)?;
            match rmdir(up.as_fd(), &level.name) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno @ (Errno::BUSY | Errno::NOTEMPTY)) => {
                    level.rest = list(dir.as_fd())?;
                    level.listings += 1;
                    if level.rest.is_empty() || level.listings > LISTINGS {
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

    /// Goes down to `name` in `dir`; `false` where it is gone.
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

    /// Of the cgroup that it is at.
    fn path(&self, parent: &Cgroup) -> PathBuf {
        let below = self.levels.iter().map(|level| &level.name).chain(self.levels.is_empty().then_some(&self.name));
        below.fold(parent.path().to_owned(), |path, name| path.join(&*name.to_string_lossy()))
    }
}

/// The cgroups right below; none where the directory is gone.
fn list(dir: BorrowedFd<'_>) -> Result<Vec<CString>> {
    match children(dir) {
        Err(Errno::NOENT | Errno::NODEV) => Ok(Vec::new()),
        done => done,
    }
}

fn rmdir(dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    unlinkat(dir, name, AtFlags::REMOVEDIR)
}

//! The private tmp of a job where it has no mount namespace: a directory in the file system of the host.
//!
//! The directory `pinfold-<pid>-<random>` below `$TMPDIR` or `/tmp` contains the private tmps of all jobs of one guard.
//! Supervisor and guard each hold a shared lock on it, as on a base ([`crate::cgroup::base`]). No job can make files in
//! it. The supervisor removes it, or the guard if the supervisor was killed. If both are killed, the next supervisor
//! that makes such a directory in the same place removes it, or `pinfold sweep` does.

mod directory;
mod removal;

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{
    AtFlags, Dir, FlockOperation, Gid, Mode, OFlags, Stat, Uid, fchmod, fchown, flock, fstat, mkdirat, open, openat,
    statat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::mounts::Ids;
use crate::cgroup::base::{PREFIX, fresh_name, is_name};
use crate::error::{Error, Result, short_of_descriptors};
use crate::kernel::creator::Creator;
pub(crate) use removal::Removal;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The mode of the directory that contains the private tmps.
const MODE: Mode = Mode::RWXU;

/// The same if the jobs have other users, which must reach their private tmps.
const MODE_FOR_OTHERS: Mode = Mode::RWXU.union(Mode::XGRP).union(Mode::XOTH);

/// The directory that contains the private tmps of the jobs of one guard.
#[derive(Debug)]
pub(crate) struct TmpBase {
    creator: Creator,
    parent: Parent,
    name: String,
    dir: OwnedFd,
    next: AtomicU64,
}

/// The directory for temporary files of this machine.
#[derive(Debug)]
pub(crate) struct Parent {
    dir: OwnedFd,
    path: PathBuf,
}

impl Parent {
    /// Opens `$TMPDIR`, or `/tmp` if the variable is not set to an absolute path, or if the job has another user:
    /// `$TMPDIR` belongs to the caller.
    pub fn open(job_has_another_user: bool) -> Result<Self> {
        let variable = std::env::var_os("TMPDIR").map(PathBuf::from).filter(|path| path.is_absolute());
        let path = variable.filter(|_| !job_has_another_user).unwrap_or_else(|| "/tmp".into());
        let resolved = path.canonicalize().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO));
        let opened = resolved.and_then(|path| {
            let dir = open(&path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            Ok(Self { dir, path })
        });
        opened.map_err(|errno| refused(&path, errno))
    }

    /// The parents in which private tmps of this user can be.
    pub fn all() -> Vec<Self> {
        let mut all: Vec<Self> = [false, true].into_iter().filter_map(|other| Self::open(other).ok()).collect();
        all.dedup_by(|one, other| one.path == other.path);
        all
    }

    /// Returns the names in this directory that could be those of abandoned directories.
    pub fn candidates(&self) -> Result<impl Iterator<Item = Option<String>> + use<>> {
        let entries = openat(&self.dir, c".", DIRECTORY, Mode::empty()).and_then(Dir::new);
        let mut entries = entries.map_err(|errno| refused(&self.path, errno))?;
        Ok(std::iter::from_fn(move || {
            let entry = entries.read()?.ok()?;
            Some(entry.file_name().to_str().ok().filter(|name| is_name(name)).map(str::to_owned))
        }))
    }

    /// Opens and locks the directory `name` if it is abandoned: if neither supervisor nor guard holds its lock.
    pub fn claim(&self, name: &str) -> Option<Abandoned> {
        let dir = openat(&self.dir, name, DIRECTORY, Mode::empty()).ok()?;
        // Every user can make directories of this name in /tmp.
        let is_ours = fstat(&dir).is_ok_and(|stat| is_ours(&stat));
        let free = is_ours && flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok();
        free.then_some(Abandoned { dir, name: name.to_owned() })
    }
}

impl AsFd for Parent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

/// A directory whose supervisor and guard are gone. The lock on it is held as long as this value lives.
pub(crate) struct Abandoned {
    dir: OwnedFd,
    name: String,
}

impl Abandoned {
    pub fn path(&self, parent: &Parent) -> PathBuf {
        parent.path.join(&self.name)
    }

    /// Begins the removal of everything in the directory. Then [`remove_empty`](Self::remove_empty) removes the directory
    /// itself.
    pub fn removal(&self) -> rustix::io::Result<Removal> {
        removal_of(self.dir.as_fd())
    }

    /// Removes the directory with everything in it.
    pub fn remove(&self, parent: &Parent) -> rustix::io::Result<()> {
        let mut removal = self.removal()?;
        removal.step(None);
        removal.result().map_err(|(_, errno)| errno)?;
        self.remove_empty(parent)
    }

    pub fn remove_empty(&self, parent: &Parent) -> rustix::io::Result<()> {
        unlinkat(&parent.dir, &self.name, AtFlags::REMOVEDIR)
    }
}

impl TmpBase {
    /// Makes a directory in `parent`. `announce` is called with its name before the directory exists.
    ///
    /// # Errors
    /// [`Error::System`] if it can't be made, and the errors of `announce`.
    pub async fn make<F>(parent: Parent, for_others: bool, announce: impl Fn(String) -> F) -> Result<Self>
    where
        F: Future<Output = Result<()>>,
    {
        // A sweep may take the new directory for an abandoned one before it is locked. Then the next iteration tries
        // another name.
        for _ in 0..16 {
            let name = fresh_name(PREFIX)?;
            announce(name.clone()).await?;
            let mode = if for_others { MODE_FOR_OTHERS } else { MODE };
            let made = mkdirat(&parent.dir, &name, mode)
                .and_then(|()| openat(&parent.dir, &name, DIRECTORY, Mode::empty()))
                // The umask may have removed some of the rights.
                .and_then(|dir| fchmod(&dir, mode).map(|()| dir));
            let dir = match made {
                Ok(dir) => dir,
                Err(Errno::EXIST | Errno::NOENT) => continue,
                Err(errno) => {
                    let _ = unlinkat(&parent.dir, &name, AtFlags::REMOVEDIR);
                    return Err(refused(&parent.path, errno));
                }
            };
            let locked = flock(&dir, FlockOperation::NonBlockingLockShared).is_ok();
            if locked && is_same(&parent, &name, &dir) {
                return Ok(Self { creator: Creator::current_process(), parent, name, dir, next: 1.into() });
            }
        }
        Err(refused(&parent.path, Errno::AGAIN))
    }

    pub fn path(&self) -> PathBuf {
        self.parent.path.join(&self.name)
    }

    /// Makes the private tmp of a job.
    ///
    /// # Errors
    /// [`Error::System`] with the errno.
    pub fn make_private_tmp(self: &Arc<Self>, owner: Ids) -> Result<PrivateTmpDir> {
        let number = self.next.fetch_add(1, Ordering::Relaxed).to_string();
        let path = self.path().join(&number);
        let made = mkdirat(&self.dir, &number, MODE).and_then(|()| {
            let dir = openat(&self.dir, &number, DIRECTORY, Mode::empty())?;
            let stat = fstat(&dir)?;
            if (stat.st_uid, stat.st_gid) != (owner.uid, owner.gid) {
                fchown(&dir, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))?;
            }
            Ok(dir)
        });
        match made {
            Ok(dir) => Ok(PrivateTmpDir { base: self.clone(), name: number, dir, path }),
            Err(errno) => {
                let _ = unlinkat(&self.dir, &number, AtFlags::REMOVEDIR);
                Err(refused(&path, errno))
            }
        }
    }

    /// Removes the directory with everything in it.
    pub fn remove(&self) -> rustix::io::Result<()> {
        remove(self.parent.dir.as_fd(), &self.name)
    }
}

impl AsFd for TmpBase {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

impl Drop for TmpBase {
    fn drop(&mut self) {
        if !self.creator.is_another_process() {
            // If this fails, the guard tries again. If that fails too, the next sweep does.
            let _ = self.remove();
        }
    }
}

/// The private tmp of one job. The drop of this value removes the directory, with all files in it.
#[derive(Debug)]
pub(crate) struct PrivateTmpDir {
    base: Arc<TmpBase>,
    name: String,
    dir: OwnedFd,
    path: PathBuf,
}

impl PrivateTmpDir {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the private tmp if it is empty. Returns whether it is gone.
    pub fn is_removed_if_empty(&self) -> bool {
        matches!(unlinkat(&self.base.dir, &self.name, AtFlags::REMOVEDIR), Ok(()) | Err(Errno::NOENT))
    }

    /// Begins the removal of the private tmp.
    ///
    /// # Errors
    /// The errno of fcntl(2), for example `EMFILE`.
    pub fn removal(&self) -> rustix::io::Result<Removal> {
        let place = rustix::io::fcntl_dupfd_cloexec(&self.base.dir, 0)?;
        // The prefix contains the pid and the number of the job, so that no other removal uses the same names. A
        // private tmp itself has only a number as its name.
        let prefix = format!("{}-{}-", std::process::id(), self.name);
        Ok(Removal::new(place, CString::new(self.name.as_str()), prefix))
    }

    /// Returns the path of a directory that [`Removal::result`] names.
    pub fn path_of(&self, name: &std::ffi::CStr) -> PathBuf {
        self.base.path().join(&*name.to_string_lossy())
    }
}

impl AsFd for PrivateTmpDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

impl Drop for PrivateTmpDir {
    fn drop(&mut self) {
        if !self.base.creator.is_another_process()
            && !self.is_removed_if_empty()
            && let Ok(mut removal) = self.removal()
        {
            removal.step(None);
        }
    }
}

/// Removes the directory `name` in `parent` with everything in it, if it belongs to this user.
///
/// # Errors
/// The errno of the first entry that could not be removed.
pub(crate) fn remove(parent: BorrowedFd<'_>, name: &str) -> rustix::io::Result<()> {
    match unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    let dir = openat(parent, name, DIRECTORY, Mode::empty())?;
    if !is_ours(&fstat(&dir)?) {
        return Err(Errno::PERM);
    }
    let mut removal = removal_of(dir.as_fd())?;
    removal.step(None);
    removal.result().map_err(|(_, errno)| errno)?;
    unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// Begins the removal of everything in a directory that contains private tmps.
fn removal_of(dir: BorrowedFd<'_>) -> rustix::io::Result<Removal> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    // The prefix contains the pid, because another process may remove the same directories at the same time, and may
    // move directories here too.
    let prefix = format!("{}-all-", std::process::id());
    Ok(Removal::new(rustix::io::fcntl_dupfd_cloexec(dir, 0)?, names, prefix))
}

/// Returns whether this user has made the directory as one that contains private tmps.
fn is_ours(stat: &Stat) -> bool {
    let mode = Mode::from_raw_mode(stat.st_mode) & (Mode::RWXU | Mode::RWXG | Mode::RWXO);
    stat.st_uid == geteuid().as_raw() && [MODE, MODE_FOR_OTHERS].contains(&mode)
}

fn is_same(parent: &Parent, name: &str, dir: &OwnedFd) -> bool {
    let named = statat(&parent.dir, name, AtFlags::SYMLINK_NOFOLLOW);
    matches!((named, fstat(dir)), (Ok(named), Ok(opened)) if (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino))
}

fn refused(path: &Path, errno: Errno) -> Error {
    let advice = match errno {
        Errno::ACCESS | Errno::PERM | Errno::NOENT | Errno::NOTDIR | Errno::ROFS => {
            "set TMPDIR to a directory that this user can write to"
        }
        Errno::NOSPC | Errno::DQUOT => "the file system is full: set TMPDIR to a directory on another one",
        errno => short_of_descriptors(errno),
    };
    Error::system("make a private tmp in", path.to_string_lossy(), errno, advice)
}

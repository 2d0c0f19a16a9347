//! The base: the directory under which a supervisor makes its leaves, `pinfold-<pid>-<random>` in its own cgroup.
//!
//! The supervisor and the guard each hold a shared lock on the base, so a process that gets the exclusive lock knows
//! that both are gone. A flock(2) lock works on cgroup2 and across PID namespaces, and the kernel releases it when the
//! process that holds it ends.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use rustix::fs::{AtFlags, FlockOperation, Mode, fchmod, flock, statat};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::process::Pid;

use crate::cgroup::directory::Cgroup;
use crate::cgroup::leaf::Leaf;
use crate::cgroup::limits::Controller;
use crate::cgroup::removal::{NotRemoved, Removal};
use crate::error::{Error, Result, short_of_descriptors};
use crate::kernel::creator::Creator;

/// The process name of a guard, which `ps` shows. From this name, pinfold recognizes a guard among the processes that
/// have a base open.
pub(crate) const GUARD_NAME: &str = "pinfold-guard";

/// The first part of a base's name. The supervisor's pid, a hyphen and 16 hexadecimal digits follow.
pub(crate) const PREFIX: &str = "pinfold-";

/// The mode of a base. No other user may open a base, because an open base can be locked, and a locked base counts as
/// in use.
const MODE: u32 = 0o700;

/// The mode of a base that has a job of another user. That user can then reach the leaf and read its limits, but cannot
/// open the base.
const MODE_WITH_OTHER_USERS: u32 = 0o711;

/// The number of descriptors that are kept in reserve: one each for a cgroup below the leaf, its list of processes, one
/// of these processes, and a file in `/proc` about it.
const RESERVE: usize = 4;

/// The directory of one supervisor's leaves.
#[derive(Debug)]
pub(crate) struct Base {
    creator: Creator,
    cgroup: Cgroup,
    parent: Arc<Cgroup>,
    name: String,
    next_leaf: AtomicU64,
    /// The next leaf, if it was made in advance, so that the next job does not wait for it.
    spare: Mutex<Option<Spare>>,
    removed: AtomicBool,
    /// The controllers that were delegated to its leaves.
    delegated: Mutex<Vec<Controller>>,
    /// Whether a job of another user has been started in it.
    has_other_users: AtomicBool,
    /// The controllers that its leaves have. They are read from the kernel once.
    controllers: OnceLock<String>,
    /// Descriptors that are closed when the end of a job needs some, so that this work does not fail if the limit on
    /// open files has been reached meanwhile.
    reserve: Mutex<Vec<OwnedFd>>,
}

/// A leaf that has no job yet.
#[derive(Debug)]
struct Spare {
    cgroup: Cgroup,
    events: OwnedFd,
    name: String,
}

impl Base {
    /// Makes a base in `parent`. `announce` sends each name to the guard before a directory of that name exists. So the
    /// guard can remove the directory even if the supervisor is killed at any moment.
    pub async fn make<F>(parent: Arc<Cgroup>, announce: impl Fn(String) -> F) -> Result<Arc<Self>>
    where
        F: Future<Output = Result<()>>,
    {
        // A sweep may take the new directory for an abandoned base before it is locked. Then the next iteration tries
        // another name.
        for _ in 0..16 {
            let name = fresh_name(PREFIX)?;
            announce(name.clone()).await?;
            let cgroup = match parent.make_with(&name, MODE) {
                Ok(cgroup) => cgroup,
                Err(Errno::EXIST | Errno::NOENT) => continue,
                Err(errno) => {
                    let _ = parent.remove(&name);
                    return Err(refused(&parent, &name, errno));
                }
            };
            let reserve = match reserve(&cgroup) {
                Ok(reserve) => reserve,
                Err(errno) => {
                    let _ = parent.remove(&name);
                    return Err(refused(&parent, &name, errno));
                }
            };
            let base = Self {
                creator: Creator::current_process(),
                cgroup,
                parent: parent.clone(),
                name,
                next_leaf: 1.into(),
                spare: Mutex::default(),
                removed: false.into(),
                delegated: Mutex::default(),
                has_other_users: AtomicBool::new(false),
                controllers: OnceLock::new(),
                reserve: Mutex::new(reserve),
            };
            let locked = flock(&base, FlockOperation::NonBlockingLockShared).is_ok();
            let same = statat(&*parent, base.name.as_str(), AtFlags::SYMLINK_NOFOLLOW).ok().map(|stat| stat.st_ino)
                == base.cgroup.id().ok();
            if locked && same {
                return Ok(Arc::new(base));
            }
        }
        Err(Error::system(
            "lock a new cgroup in",
            parent.path().display().to_string(),
            Errno::AGAIN,
            "another program removes it again and again",
        ))
    }

    /// Returns the base itself as a leaf, for a supervisor that only ever has one job. This saves making and removing
    /// one directory.
    pub fn as_leaf(self: &Arc<Self>) -> Result<Leaf> {
        let leaf = self.cgroup.reopen().and_then(|cgroup| Ok(Leaf::new(cgroup.events()?, cgroup, self.clone(), None)));
        leaf.map_err(|errno| refused(&self.parent, &self.name, errno))
    }

    /// Makes a leaf, or takes the one that was made in advance.
    pub fn make_leaf(self: &Arc<Self>) -> Result<Leaf> {
        // A program that removes empty directories may have removed the spare leaf.
        let spare = self.lock_spare().take().filter(|spare| !spare.cgroup.is_gone());
        let spare = spare.map_or_else(|| self.make_spare(), Ok)?;
        Ok(Leaf::new(spare.events, spare.cgroup, self.clone(), Some(spare.name)))
    }

    /// Makes the next leaf, so that the next job need not wait for it. An error is ignored here: [`Self::make_leaf`]
    /// tries again and returns its error.
    pub fn prepare_next_leaf(&self) {
        let mut spare = self.lock_spare();
        if spare.is_none() {
            *spare = self.make_spare().ok();
        }
    }

    /// Makes a cgroup for a leaf. Each leaf has a new name, because some kernels kill every process that is cloned into
    /// a cgroup that was killed before (Linux 6.14 to 7.2).
    fn make_spare(&self) -> Result<Spare> {
        let number = self.next_leaf.fetch_add(1, Ordering::Relaxed);
        let name = format!("job-{number}");
        let made = self.cgroup.make(&name).and_then(|cgroup| Ok((cgroup.events()?, cgroup)));
        let (events, cgroup) = made.map_err(|errno| {
            // The directory may have been made although it could not be opened.
            let _ = self.cgroup.remove(&name);
            refused(&self.cgroup, &name, errno)
        })?;
        Ok(Spare { cgroup, events, name })
    }

    fn lock_spare(&self) -> MutexGuard<'_, Option<Spare>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the controllers of `leaf`. All leaves of a base have the same ones.
    pub fn controllers_of(&self, leaf: &Cgroup) -> &str {
        self.controllers.get_or_init(|| leaf.read(c"cgroup.controllers").unwrap_or_default())
    }

    /// Releases [`RESERVE`] descriptors, then calls `work`, which can use them. Other threads of this process may take
    /// some of these descriptors.
    pub fn with_reserve<T>(&self, work: impl FnOnce() -> T) -> T {
        // The lock is not held during the work, because the work may take long.
        drop(std::mem::take(&mut *self.lock_reserve()));
        let done = work();
        let mut reserve = self.lock_reserve();
        // If not all descriptors can be opened again, the reserve is smaller from now on.
        while reserve.len() < RESERVE
            && let Ok(copy) = fcntl_dupfd_cloexec(&self.cgroup, 0)
        {
            reserve.push(copy);
        }
        done
    }

    fn lock_reserve(&self) -> MutexGuard<'_, Vec<OwnedFd>> {
        self.reserve.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the controllers of its leaves, or, if the base itself is the leaf, those of the base.
    pub fn controllers(&self, is_the_leaf: bool) -> Vec<Controller> {
        let file = if is_the_leaf { c"cgroup.controllers" } else { c"cgroup.subtree_control" };
        let list = self.cgroup.read(file).unwrap_or_default();
        Controller::ALL
            .into_iter()
            .filter(|controller| list.split_ascii_whitespace().any(|name| name == controller.name()))
            .collect()
    }

    /// Delegates these controllers to its leaves. No process may run in the base itself.
    pub fn delegate(&self, controllers: &[Controller]) -> Result<()> {
        self.delegated.lock().unwrap_or_else(PoisonError::into_inner).extend(controllers);
        for controller in controllers {
            self.cgroup.write(c"cgroup.subtree_control", format!("+{controller}").as_bytes()).map_err(|errno| {
                Error::system(
                    "delegate a controller to the jobs of",
                    self.cgroup.path().display().to_string(),
                    errno,
                    format!("the controller is {controller}"),
                )
            })?;
        }
        Ok(())
    }

    /// Returns whether this process is a forked copy of the one that made the base.
    pub fn is_forked_copy(&self) -> bool {
        self.creator.is_another_process()
    }

    /// Returns the controllers that were delegated to its leaves.
    pub fn delegated(&self) -> Vec<Controller> {
        self.delegated.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets a job of another user reach its own leaf below this base.
    pub fn allow_other_users(&self) {
        if !self.has_other_users.swap(true, Ordering::Relaxed) {
            // An error is ignored: the job then cannot read its limits, but its containment does not depend on this.
            let _ = fchmod(&self.cgroup, Mode::from_raw_mode(MODE_WITH_OTHER_USERS));
        }
    }

    /// Returns the cgroup in which the base was made.
    pub fn parent(&self) -> &Arc<Cgroup> {
        &self.parent
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Removes the base and the cgroups below it, which must contain no process.
    pub fn remove(&self) -> std::result::Result<(), NotRemoved> {
        self.remove_until(&mut None, None).map(drop)
    }

    /// Does the same as [`Self::remove`] in steps, as [`Removal::step`] does. `removal` keeps the state between two
    /// steps.
    pub fn remove_until(
        &self,
        removal: &mut Option<Removal>,
        until: Option<Instant>,
    ) -> std::result::Result<bool, NotRemoved> {
        if self.removed.load(Ordering::Relaxed) {
            return Ok(true);
        }
        let done = step(&self.parent, &self.name, removal, until)?;
        self.removed.store(done, Ordering::Relaxed);
        Ok(done)
    }
}

/// Continues a removal, or begins it.
pub(crate) fn step(
    parent: &Cgroup,
    name: &str,
    removal: &mut Option<Removal>,
    until: Option<Instant>,
) -> std::result::Result<bool, NotRemoved> {
    let mut under_way = match removal.take() {
        Some(removal) => removal,
        None => parent.removal(name)?,
    };
    let done = under_way.step(parent, until)?;
    *removal = (!done).then_some(under_way);
    Ok(done)
}

impl Drop for Base {
    fn drop(&mut self) {
        if !*self.removed.get_mut() && !self.is_forked_copy() {
            // If a process still runs in the base, the guard ends that process; if the guard has been killed, the next
            // sweep does.
            let _ = self.remove();
        }
    }
}

impl AsFd for Base {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.cgroup.as_fd()
    }
}

fn reserve(cgroup: &Cgroup) -> rustix::io::Result<Vec<OwnedFd>> {
    (0..RESERVE).map(|_| fcntl_dupfd_cloexec(cgroup, 0)).collect()
}

/// Returns whether a directory of this name is a base.
pub(crate) fn is_name(name: &str) -> bool {
    name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')).is_some_and(|(pid, random)| {
        !pid.is_empty()
            && pid.bytes().all(|byte| byte.is_ascii_digit())
            && random.len() == 16
            && random.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

/// Returns the pid of the supervisor of the base `name`, in the supervisor's PID namespace.
pub(crate) fn supervisor_of(name: &str) -> Option<Pid> {
    Pid::from_raw(name.strip_prefix(PREFIX)?.split_once('-')?.0.parse().ok()?)
}

/// Returns a new name with this prefix that no other base has.
pub(crate) fn fresh_name(prefix: &str) -> Result<String> {
    let mut random = [0_u8; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| Error::system("getrandom", "a name", errno, ""))?;
    let pid = rustix::process::getpid().as_raw_nonzero();
    Ok(format!("{prefix}{pid}-{:016x}", u64::from_ne_bytes(random)))
}

fn refused(parent: &Cgroup, name: &str, errno: Errno) -> Error {
    Error::system("make the cgroup", parent.path().join(name).display().to_string(), errno, advice(errno))
}

/// Returns what to do if a cgroup could not be made.
pub(crate) fn advice(errno: Errno) -> &'static str {
    match errno {
        Errno::ACCESS | Errno::PERM => {
            "this user may not write there: use --cgroup with a directory that was delegated to it"
        }
        Errno::ROFS => {
            "the cgroup file system is mounted read-only: ask for a writable one (a private cgroup namespace)"
        }
        Errno::AGAIN => "the limit cgroup.max.descendants or cgroup.max.depth of a directory above is reached",
        Errno::NOENT => "the directory is gone",
        errno => short_of_descriptors(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_the_right_form_are_bases() {
        assert!(is_name(&fresh_name(PREFIX).unwrap()));
        for name in [
            "pinfold",
            "pinfold-1",
            "pinfold-1-",
            "pinfold-own-1-0123456789abcdef",
            "pinfold-x-0123456789abcdef",
            "pinfold-1-0123456789abcdeg",
            "a-pinfold-1-0123456789abcdef",
            "pinfold--0123456789abcdef",
        ] {
            assert!(!is_name(name), "{name}");
        }
    }
}

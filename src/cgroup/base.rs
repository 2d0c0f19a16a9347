//! The base: the directory under which a supervisor makes its leaves, `pinfold-<pid>-<random>` in its own cgroup.
//!
//! Supervisor and guard hold a shared lock on it, so that whoever gets the exclusive one knows that both are gone
//! (flock(2) works on cgroup2, across PID namespaces, and ends with its holder).

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
use crate::kernel::maker::Maker;

/// The name that a guard is started under, and shows in `ps`. It holds the lock of its base.
pub(crate) const GUARD_NAME: &str = "pinfold-guard";

/// Bases are called this, then the supervisor's pid, a hyphen and 16 hexadecimal digits.
pub(crate) const PREFIX: &str = "pinfold-";

/// No other user may open a base, and hold a lock on it: a base that is locked counts as one that is alive.
const MODE: u32 = 0o700;

/// The mode of a base that has a job of another user: that job can read its own limits in its leaf, but not open the base.
const MODE_FOR_OTHERS: u32 = 0o711;

/// So many descriptors are kept: for a cgroup below the leaf, its list of processes, one of these, and what `/proc` says
/// of it.
const RESERVE: usize = 4;

/// The directory of one supervisor's leaves.
#[derive(Debug)]
pub(crate) struct Base {
    maker: Maker,
    cgroup: Cgroup,
    parent: Arc<Cgroup>,
    name: String,
    next_leaf: AtomicU64,
    /// Made while nobody waited for it.
    spare: Mutex<Option<Spare>>,
    removed: AtomicBool,
    /// The controllers that were given to its leaves.
    given: Mutex<Vec<Controller>>,
    /// A job of another user has been started in it.
    for_others: AtomicBool,
    /// The controllers that its leaves have; asked for once.
    controllers: OnceLock<String>,
    /// Given up for the work that the end of a job takes, which no limit that is reached meanwhile can hinder.
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
    /// Makes a base in `parent`. `announce` tells the guard each name before a directory of that name exists, so that
    /// there is no instant at which a dead supervisor leaves a directory that nobody knows.
    pub async fn make<F>(parent: Arc<Cgroup>, announce: impl Fn(String) -> F) -> Result<Arc<Self>>
    where
        F: Future<Output = Result<()>>,
    {
        // Another name is tried where a sweeper took the new directory for an abandoned one before it was locked.
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
                maker: Maker::here(),
                cgroup,
                parent: parent.clone(),
                name,
                next_leaf: 1.into(),
                spare: Mutex::default(),
                removed: false.into(),
                given: Mutex::default(),
                for_others: AtomicBool::new(false),
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
            "lock a cgroup below",
            parent.path().display().to_string(),
            Errno::AGAIN,
            "something removes it again and again",
        ))
    }

    /// The base itself as the leaf of the one job that its supervisor will ever have: a directory less to make and to remove.
    pub fn as_leaf(self: &Arc<Self>) -> Result<Leaf> {
        let leaf = self.cgroup.again().and_then(|cgroup| Ok(Leaf::new(cgroup.events()?, cgroup, self.clone(), None)));
        leaf.map_err(|errno| refused(&self.parent, &self.name, errno))
    }

    /// Makes a leaf, or takes the one that was made ahead.
    pub fn make_leaf(self: &Arc<Self>) -> Result<Leaf> {
        // Something that removes empty directories may have removed it.
        let spare = self.lock_spare().take().filter(|spare| !spare.cgroup.is_gone());
        let spare = spare.map_or_else(|| self.make_spare(), Ok)?;
        Ok(Leaf::new(spare.events, spare.cgroup, self.clone(), Some(spare.name)))
    }

    /// Makes the next leaf, so that it need not be waited for. Where that fails, whoever needs it is told why.
    pub fn make_leaf_ahead(&self) {
        let mut spare = self.lock_spare();
        if spare.is_none() {
            *spare = self.make_spare().ok();
        }
    }

    /// Each has a new name: a cgroup that was killed once kills what is cloned into it on some kernels.
    fn make_spare(&self) -> Result<Spare> {
        let number = self.next_leaf.fetch_add(1, Ordering::Relaxed);
        let name = format!("job-{number}");
        let made = self.cgroup.make(&name).and_then(|cgroup| Ok((cgroup.events()?, cgroup)));
        let (events, cgroup) = made.map_err(|errno| {
            // Where it was made, and could not be opened.
            let _ = self.cgroup.remove(&name);
            refused(&self.cgroup, &name, errno)
        })?;
        Ok(Spare { cgroup, events, name })
    }

    fn lock_spare(&self) -> MutexGuard<'_, Option<Spare>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The controllers of `leaf`, which are those of every other one.
    pub fn controllers_of(&self, leaf: &Cgroup) -> &str {
        self.controllers.get_or_init(|| leaf.read(c"cgroup.controllers").unwrap_or_default())
    }

    /// Does `work` with [`RESERVE`] descriptors more than are free otherwise, as far as this process's other threads do not
    /// take them.
    pub fn with_reserve<T>(&self, work: impl FnOnce() -> T) -> T {
        // Closed before, and made again after: locked only in between, since work may take long.
        drop(std::mem::take(&mut *self.lock_reserve()));
        let done = work();
        let mut reserve = self.lock_reserve();
        // As many as there are again: some are better than none.
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

    /// Gives these controllers to its leaves. Nothing may run in it itself.
    pub fn give(&self, controllers: &[Controller]) -> Result<()> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner).extend(controllers);
        for controller in controllers {
            self.cgroup.write(c"cgroup.subtree_control", format!("+{controller}").as_bytes()).map_err(|errno| {
                Error::system(
                    "give a controller to the jobs of",
                    self.cgroup.path().display().to_string(),
                    errno,
                    format!("it was the {controller} controller"),
                )
            })?;
        }
        Ok(())
    }

    /// Whether this is a forked copy.
    pub fn is_elsewhere(&self) -> bool {
        self.maker.is_elsewhere()
    }

    /// The controllers that were given to its leaves.
    pub fn given(&self) -> Vec<Controller> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets a job of another user reach its own leaf below.
    pub fn let_others_through(&self) {
        if !self.for_others.swap(true, Ordering::Relaxed) {
            // Where that is refused, the job can't read its limits, and is held as well as before.
            let _ = fchmod(&self.cgroup, Mode::from_raw_mode(MODE_FOR_OTHERS));
        }
    }

    /// The cgroup that it was made in.
    pub fn parent(&self) -> &Arc<Cgroup> {
        &self.parent
    }

    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Removes it, with whatever is empty below it.
    pub fn remove(&self) -> std::result::Result<(), NotRemoved> {
        self.remove_until(&mut None, None).map(drop)
    }

    /// The same in steps, as [`Removal::step`]; `removal` keeps what the next step needs.
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

/// Goes on with a removal, or begins it.
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
        if !*self.removed.get_mut() && !self.is_elsewhere() {
            // Where something runs in it, the guard ends that, or has been killed and the next sweep does.
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

/// Whether a directory of this name is a base.
pub(crate) fn is_name(name: &str) -> bool {
    name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')).is_some_and(|(pid, random)| {
        !pid.is_empty()
            && pid.bytes().all(|byte| byte.is_ascii_digit())
            && random.len() == 16
            && random.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

/// The pid of the supervisor of the base `name`, in the supervisor's PID namespace.
pub(crate) fn supervisor_of(name: &str) -> Option<Pid> {
    Pid::from_raw(name.strip_prefix(PREFIX)?.split_once('-')?.0.parse().ok()?)
}

/// A name that no other base has, with this prefix.
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

/// What to do where a cgroup could not be made.
pub(crate) fn advice(errno: Errno) -> &'static str {
    match errno {
        Errno::ACCESS | Errno::PERM => {
            "this user may not write there: use --cgroup with a directory that was delegated to it"
        }
        Errno::ROFS => {
            "the cgroup file system is mounted read-only: ask for a writable one (a private cgroup namespace)"
        }
        Errno::AGAIN => "cgroup.max.descendants or cgroup.max.depth of a directory above is reached",
        Errno::NOENT => "the directory is gone",
        errno => short_of_descriptors(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_are_bases() {
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

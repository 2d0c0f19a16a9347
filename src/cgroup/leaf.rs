//! The leaf: the cgroup of one job, from before its first instruction until it is empty.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::{Errno, Result};

use super::base::{self, Base};
use super::directory::{Cgroup, populated};
use super::removal::{NotRemoved, Removal};

/// How long one step of a removal may delay other work.
pub(crate) const STEP: Duration = Duration::from_millis(2);

/// The cgroup of one job. The files that pinfold watches are open from the start, and a descriptor is reserved for the
/// kill. So the kill works even if the limit on open files is reached later. If a leaf is dropped before it is removed,
/// its processes are killed; the guard removes the leaf if that is not possible at once.
#[derive(Debug)]
pub(crate) struct Leaf {
    cgroup: Cgroup,
    events: Arc<OwnedFd>,
    base: Arc<Base>,
    /// `None` if the base itself is the leaf.
    name: Option<String>,
    removed: bool,
    /// The removal that is in progress.
    removal: Option<Removal>,
}

impl Leaf {
    /// Returns the leaf of a job. `events` is its open `cgroup.events`.
    pub fn new(events: OwnedFd, cgroup: Cgroup, base: Arc<Base>, name: Option<String>) -> Self {
        Self { events: Arc::new(events), cgroup, base, name, removed: false, removal: None }
    }

    /// Makes the leaf of the next job in advance.
    pub fn prepare_next(&self) {
        // If the base itself is the leaf, there is no next job.
        if self.name.is_some() {
            self.base.prepare_next_leaf();
        }
    }

    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Returns the name of the base that it belongs to.
    pub fn base_name(&self) -> &str {
        self.base.name()
    }

    /// Sends SIGKILL to all processes in it.
    pub fn kill(&self) -> Result<()> {
        match self.cgroup.kill() {
            Err(Errno::MFILE | Errno::NFILE) => self.with_reserve(|| self.cgroup.kill()),
            done => done,
        }
    }

    /// Sends SIGKILL to each process that is left in it. Call this at the time that [`Cgroup::kill_again_at`] returns.
    pub fn kill_again(&self) -> Result<()> {
        match self.cgroup.kill_again() {
            Err(Errno::MFILE | Errno::NFILE) => self.with_reserve(|| self.cgroup.kill_again()),
            done => done,
        }
    }

    /// Calls `work` after releasing the descriptors that are reserved for the end of a job.
    pub fn with_reserve<T>(&self, work: impl FnOnce() -> T) -> T {
        self.base.with_reserve(work)
    }

    /// Returns the controllers that it has, as `cgroup.controllers` lists them.
    pub fn controllers(&self) -> &str {
        self.base.controllers_of(&self.cgroup)
    }

    /// Returns whether it has this controller.
    pub fn has_controller(&self, name: &str) -> bool {
        self.controllers().split_ascii_whitespace().any(|known| known == name)
    }

    /// Lets a job of another user reach this leaf.
    pub fn allow_other_users(&self) {
        self.base.allow_other_users();
    }

    /// Returns whether any process runs in it.
    pub fn populated(&self) -> Result<bool> {
        if self.removed { Ok(false) } else { populated(&self.events) }
    }

    /// Returns its `cgroup.events`, which is ready for EPOLLPRI when it has changed since it was read.
    pub fn events(&self) -> Arc<OwnedFd> {
        self.events.clone()
    }

    /// Returns the last part of its path, from the base on. No other cgroup of the machine has a path that ends like
    /// this.
    pub fn tail(&self) -> String {
        let base = self.base.cgroup().path().file_name().unwrap_or_default().to_string_lossy();
        match &self.name {
            Some(name) => format!("/{base}/{name}"),
            None => format!("/{base}"),
        }
    }

    /// Removes the leaf and the cgroups that the job made below it, for at most [`STEP`]. Returns whether the leaf is
    /// gone. If it is not, call this again after other work.
    ///
    /// # Errors
    /// The same as for [`Cgroup::remove`].
    pub fn remove(&mut self) -> std::result::Result<bool, NotRemoved> {
        self.remove_until(Some(Instant::now() + STEP))
    }

    fn remove_until(&mut self, until: Option<Instant>) -> std::result::Result<bool, NotRemoved> {
        if self.removed {
            return Ok(true);
        }
        let Self { base, name, removal, .. } = self;
        let mut remove = || match name {
            Some(name) => base::step(base.cgroup(), name, removal, until),
            None => base.remove_until(removal, until),
        };
        self.removed = remove().or_else(|_| base.with_reserve(remove))?;
        Ok(self.removed)
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        if !self.removed && !self.base.is_forked_copy() {
            // If this kill fails, the guard ends the processes after the end of the supervisor.
            let _ = self.kill();
            let _ = self.remove_until(None);
        }
    }
}

//! The leaf: the cgroup of one job, from before its first instruction until it is empty.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::{Errno, Result};

use super::base::{self, Base};
use super::directory::{Cgroup, populated};
use super::removal::{NotRemoved, Removal};

/// How long a removal may keep other work waiting.
pub(crate) const STEP: Duration = Duration::from_millis(2);

/// The cgroup of one job. What is needed to watch it is open from the start, and a descriptor is kept to kill it: no limit
/// that is reached later can keep it alive. Dropped while it stands, it is killed: the guard removes it then.
#[derive(Debug)]
pub(crate) struct Leaf {
    cgroup: Cgroup,
    events: Arc<OwnedFd>,
    base: Arc<Base>,
    /// None where the base itself is the leaf.
    name: Option<String>,
    removed: bool,
    /// Under way.
    removal: Option<Removal>,
}

impl Leaf {
    /// `events`: its open `cgroup.events`.
    pub fn new(events: OwnedFd, cgroup: Cgroup, base: Arc<Base>, name: Option<String>) -> Self {
        Self { events: Arc::new(events), cgroup, base, name, removed: false, removal: None }
    }

    /// Makes the leaf of the next job ahead.
    pub fn make_next(&self) {
        // There is no next one where the base is the leaf.
        if self.name.is_some() {
            self.base.make_leaf_ahead();
        }
    }

    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// SIGKILL to everything in it.
    pub fn kill(&self) -> Result<()> {
        match self.cgroup.kill() {
            Err(Errno::MFILE | Errno::NFILE) => self.with_reserve(|| self.cgroup.kill()),
            done => done,
        }
    }

    /// SIGKILL to each process that is left in it, when [`Cgroup::kill_again_at`] says so.
    pub fn kill_again(&self) -> Result<()> {
        match self.cgroup.kill_again() {
            Err(Errno::MFILE | Errno::NFILE) => self.with_reserve(|| self.cgroup.kill_again()),
            done => done,
        }
    }

    /// Does `work` with the descriptors that are kept for the end of a job.
    pub fn with_reserve<T>(&self, work: impl FnOnce() -> T) -> T {
        self.base.with_reserve(work)
    }

    /// The controllers that it has, as `cgroup.controllers` lists them.
    pub fn controllers(&self) -> &str {
        self.base.controllers_of(&self.cgroup)
    }

    /// Whether it has this one.
    pub fn has_controller(&self, name: &str) -> bool {
        self.controllers().split_ascii_whitespace().any(|known| known == name)
    }

    /// Lets a job of another user reach it.
    pub fn let_others_through(&self) {
        self.base.let_others_through();
    }

    /// Whether anything runs in it.
    pub fn populated(&self) -> Result<bool> {
        if self.removed { Ok(false) } else { populated(&self.events) }
    }

    /// Its `cgroup.events`, ready for EPOLLPRI when it has changed since it was read.
    pub fn events(&self) -> Arc<OwnedFd> {
        self.events.clone()
    }

    /// Its path from the base on, which no other cgroup of the machine ends with.
    pub fn tail(&self) -> String {
        let base = self.base.cgroup().path().file_name().unwrap_or_default().to_string_lossy();
        match &self.name {
            Some(name) => format!("/{base}/{name}"),
            None => format!("/{base}"),
        }
    }

    /// Removes it and the cgroups that the job made below it, for [`STEP`] at most; whether it is gone. `false`: call it again when
    /// other work has had its turn.
    ///
    /// # Errors
    /// As [`Cgroup::remove`].
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
        if !self.removed && !self.base.is_elsewhere() {
            // What can't be killed from here is the guard's to end, when the supervisor is gone.
            let _ = self.kill();
            let _ = self.remove_until(None);
        }
    }
}

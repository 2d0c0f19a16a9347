//! The supervisor, which runs in the host's process: it chooses the containment, starts the guard, and starts jobs.

pub(crate) mod backend;
mod builder;
pub(crate) mod containment;
pub(crate) mod delegation;
pub(crate) mod driver;
pub mod events;
mod guard_start;
pub(crate) mod link;
pub(crate) mod memberships;
mod orphans;
pub(crate) mod queue;
mod scope;
mod socket;
pub(crate) mod start_sweep;
pub mod sweep;
#[cfg(feature = "cli")]
mod terminal;
pub(crate) mod tmp_base;
pub(crate) mod watch;
pub(crate) mod watchdog;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::getpid;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::cgroup;
use crate::cgroup::limits::Controller;
use crate::error::{Error, Result};
use crate::guard::Program;
use crate::kernel::creator::Creator;
use crate::report::{ContainmentKind, Refusal, SupervisorKind};
use crate::sandbox::cache::Cache;
use crate::supervisor::backend::{Backend, NextContainment, SubreaperBackend};
use crate::supervisor::driver::Driver;
use crate::supervisor::events::{Hub, JobEvents};
use crate::supervisor::memberships::Memberships;
pub use builder::SupervisorBuilder;

/// The highest number of jobs that are started at the same time.
const MAX_STARTS: usize = 32;

/// Starts jobs and ensures that they end: if the supervisor's process ends, for whatever reason, its jobs are ended
/// too.
///
/// A supervisor belongs to the tokio runtime in which it was started. If it was started outside of any runtime, it runs
/// its own runtime in a thread. Clones refer to the same supervisor, with the same jobs; only the
/// [`close`](Self::close) of the last clone ends it. A runtime of the flavor `current_thread` must be driven
/// (`block_on`) while you wait for its jobs. While no thread drives it, only the guard works: it ends the jobs if this
/// process ends. A supervisor belongs to one process. In a forked copy of the process (fork(2)) it starts no jobs, and
/// dropping or closing it does nothing.
///
/// ```
/// fn is_for_any_thread<T: Clone + Send + Sync + 'static>() {}
/// is_for_any_thread::<pinfold::Supervisor>();
/// ```
#[derive(Clone, Debug)]
pub struct Supervisor {
    pub(crate) inner: Arc<Inner>,
    /// Counts the clones that callers have. `None` in clones that pinfold makes for itself, so that `close` does not
    /// wait for these.
    clones: Option<Arc<()>>,
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.inner.creator.leak_in_forked_copy(&self.inner);
    }
}

#[derive(Debug)]
pub(crate) struct Inner {
    creator: Creator,
    backend: Mutex<Arc<Backend>>,
    pub runtime: Driver,
    pub(crate) next_job: AtomicU64,
    pub hub: Arc<Hub>,
    /// Limits concurrent starts. A start needs memory, above all for the environment, and thousands of starts should
    /// not hold that at the same time. The guard starts jobs one after another anyway.
    pub(crate) start_permits: Semaphore,
    /// The supervisor starts only one job.
    one_job: bool,
    pub(crate) kind: SupervisorKind,
    had_its_job: AtomicBool,
    /// The task that removes abandoned bases of other supervisors. The first job starts it.
    pub(crate) sweeping: Mutex<JoinSet<()>>,
    /// Only a cgroup is accepted as containment.
    cgroup_only: bool,
    guard_program: Option<Program>,
    /// What the sandboxes of equal policies share.
    pub(crate) sandboxes: Cache,
    /// The sandboxes of the running jobs, for `pinfold exec`.
    pub(crate) memberships: Memberships,
}

/// The highest number of times that a job is started again because another program removed its empty cgroup.
pub(crate) const MAX_RESTARTS_AFTER_REMOVAL: u32 = 16;

impl Inner {
    /// Returns an error in a forked copy of the process: the original still uses the socket to the guard, and the copy
    /// has none of the runtime's threads.
    pub(crate) fn check_process(&self) -> Result<()> {
        if self.creator.is_another_process() {
            let advice = "a forked copy of this process has to start a supervisor of its own";
            return Err(Error::invalid("process", getpid().as_raw_nonzero().to_string(), advice));
        }
        Ok(())
    }

    pub(crate) fn backend(&self) -> Arc<Backend> {
        self.backend.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the containment for a new job, from this backend.
    pub async fn next_containment(&self, backend: &Backend) -> Result<NextContainment> {
        if self.one_job && self.had_its_job.swap(true, Ordering::Relaxed) {
            return Err(Error::invalid(
                "spawn",
                "a second job",
                "this supervisor was started for one job: do not call one_job()",
            ));
        }
        backend.next_containment(self.one_job, self.guard_program.as_ref()).await
    }

    /// Returns whether another program has removed the job's cgroup while it was still empty. If so, the caller starts
    /// the job in another cgroup.
    pub(crate) fn is_removed(&self, error: &Error) -> bool {
        let Error::Spawn(error) = error else { return false };
        let is_removed = error.is_about_a_removed_cgroup();
        if is_removed {
            self.had_its_job.store(false, Ordering::Relaxed);
        }
        is_removed
    }

    /// Switches to containment without a cgroup, if the base could be made, but no process can be put into it. Returns
    /// whether the backend is no longer `used`: the start of another job may already have switched.
    pub(crate) fn fall_back_to_subreaper(&self, used: &Arc<Backend>, error: &Error) -> bool {
        if !Arc::ptr_eq(used, &self.backend()) {
            return true;
        }
        let Error::Spawn(error) = error else { return false };
        if self.cgroup_only || !error.is_about_the_cgroup() || cgroup::subreaper().is_err() {
            return false;
        }
        let mut backend = self.backend.lock().unwrap_or_else(PoisonError::into_inner);
        let Backend::Cgroup { link, base, jobs, .. } = &**backend else { return false };
        let base = base.now();
        let refusal = Refusal::new(base.parent().path().display().to_string(), error.to_string(), "see pinfold doctor");
        // A guard that holds a job without a cgroup must have no other job, so a new guard is needed.
        let alone = jobs.load(Ordering::Relaxed) == 1;
        if alone {
            let _ = base.remove();
        }
        let link = (alone && link.is_inherited_by_us()).then(|| link.clone());
        *backend = Arc::new(Backend::Subreaper(SubreaperBackend::new(link, vec![refusal])));
        self.had_its_job.store(false, Ordering::Relaxed);
        true
    }
}

impl Supervisor {
    /// Starts a supervisor with the defaults: in this process's own cgroup, with a guard program found as described on [the
    /// front page](crate#the-guard).
    ///
    /// Dropping this future has the same effect as for [`SupervisorBuilder::start`].
    ///
    /// # Errors
    /// The same as for [`SupervisorBuilder::start`].
    pub async fn start() -> Result<Self> {
        Self::builder().start().await
    }

    /// Returns a builder, to start a supervisor with other settings than the defaults.
    pub fn builder() -> SupervisorBuilder {
        SupervisorBuilder::default()
    }

    /// Returns what holds the jobs that are started from now on. It changes at most once, from a cgroup to the guard,
    /// if the kernel lets no process into the cgroups that pinfold makes. The report of a job says what held this job,
    /// and why pinfold did not use a stronger containment ([`report::Containment`](crate::report::Containment)).
    ///
    /// ```
    /// # async fn example() -> pinfold::Result<()> {
    /// # use pinfold::{Supervisor, report::ContainmentKind};
    /// let supervisor = Supervisor::start().await?;
    /// if supervisor.containment() != ContainmentKind::Cgroup {
    ///     eprintln!("no cgroup: see pinfold doctor");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn containment(&self) -> ContainmentKind {
        match &*self.inner.backend() {
            Backend::Cgroup { .. } => ContainmentKind::Cgroup,
            Backend::Subreaper(_) => ContainmentKind::Subreaper,
        }
    }

    /// Returns the controllers that the cgroups of the jobs have: those that were requested with
    /// [`SupervisorBuilder::controllers`], and those that were already enabled. They enforce [`Limits`](crate::Limits)
    /// and measure [`Usage`](crate::report::Usage). Empty without a cgroup.
    #[must_use]
    pub fn controllers(&self) -> Vec<Controller> {
        match &*self.inner.backend() {
            Backend::Cgroup { base, .. } => base.now().controllers(self.inner.one_job),
            Backend::Subreaper(_) => Vec::new(),
        }
    }

    /// Returns a clone for a task of pinfold: [`close`](Self::close) does not wait for it to be dropped.
    pub(crate) fn uncounted(&self) -> Self {
        Self { inner: self.inner.clone(), clones: None }
    }

    /// Returns the events of all jobs from now on, including those that a pool starts. Events that are not read take
    /// memory: a few hundred bytes each.
    ///
    /// ```rust,standalone_crate
    /// use pinfold::events::EventKind;
    /// use pinfold::{Command, Supervisor};
    ///
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    ///     runtime.block_on(async {
    ///         let Ok(supervisor) = Supervisor::start().await else { return Ok(()) }; // No cgroup here.
    ///         let mut events = supervisor.events();
    ///         let jobs = [supervisor.spawn(&Command::new("true")).await?, supervisor.spawn(&Command::new("false")).await?];
    ///         let mut gone = 0;
    ///         while gone < jobs.len() {
    ///             let happened = events.next_event().await.ok_or("the supervisor is there")?;
    ///             println!("job {}, {}: {:?}", happened.job, happened.name, happened.event.kind);
    ///             gone += usize::from(happened.event.kind == EventKind::Gone);
    ///         }
    ///         supervisor.close().await;
    ///         Ok(())
    ///     })
    /// }
    /// ```
    #[must_use]
    pub fn events(&self) -> JobEvents {
        self.inner.hub.listen()
    }

    /// Gives up this clone. When the last clone is closed, this method ends all jobs and pools of the supervisor, waits
    /// until no process of them and no guard is left, and removes the base. While another clone exists, this method
    /// returns at once and ends no job, not even those that were started through this clone.
    ///
    /// [`Job`](crate::Job), [`JobHandle`](crate::JobHandle) and [`Pool`](crate::Pool) are not clones of the supervisor:
    /// the last close ends their jobs. Dropping a clone without closing it ends no job. If no clone is left, the
    /// supervisor ends when its last job ends.
    ///
    /// If this future is dropped, the guard does the rest: it ends the processes that still run and removes the base.
    ///
    /// ```
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let supervisor = pinfold::Supervisor::start().await?;
    /// supervisor.close().await; // No guard, no directory is left.
    /// # Ok(())
    /// # }
    /// ```
    pub async fn close(mut self) {
        // `Arc::into_inner` finds exactly one last clone, even if several are closed at the same time.
        let is_last = self.clones.take().is_none_or(|clones| Arc::into_inner(clones).is_some());
        if !is_last || self.inner.creator.is_another_process() {
            return;
        }
        let backend = self.inner.backend();
        backend.disconnect();
        let mut sweeping = std::mem::take(&mut *self.inner.sweeping.lock().unwrap_or_else(PoisonError::into_inner));
        let mut listening = self.inner.memberships.close();
        // If the runtime belongs to the caller, it is possible that no thread drives it now, so another one is started.
        // If that fails, the caller's runtime is used nevertheless.
        let other = if self.inner.runtime.may_be_undriven() { Driver::start().ok() } else { None };
        if other.is_none() {
            // The sweep has a time limit. It ends earlier only if its runtime is shut down.
            while sweeping.join_next().await.is_some() {}
            while listening.join_next().await.is_some() {}
        }
        let runtime = other.unwrap_or_else(|| self.inner.runtime.clone());
        // If the runtime was shut down, this method does not wait, and the guard does the rest.
        let _ = runtime.run(async move { backend.close().await }).await;
    }

    /// Does the same as [`close`](Self::close), for a process that ends now. If no job is left, it closes no descriptor:
    /// the kernel closes all of them at once, which is faster.
    #[cfg(feature = "cli")]
    pub(crate) async fn close_at_exit(self) {
        let backend = self.inner.backend();
        // A job that has not ended keeps the supervisor, and needs the runtime.
        if Arc::strong_count(&self.inner) == 1 {
            backend.disconnect();
            let mut sweeping = std::mem::take(&mut *self.inner.sweeping.lock().unwrap_or_else(PoisonError::into_inner));
            while sweeping.join_next().await.is_some() {}
            if backend.close_at_once().await {
                return std::mem::forget((self, backend));
            }
        }
        self.close().await;
    }
}

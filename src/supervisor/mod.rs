//! The host's side: chooses the containment, starts the guard, starts jobs.

pub(crate) mod abort_on_drop;
pub(crate) mod backend;
mod builder;
pub(crate) mod containment;
pub(crate) mod delegation;
pub(crate) mod driver;
pub mod events;
pub(crate) mod link;
mod orphans;
pub(crate) mod queue;
mod scope;
mod signals;
pub(crate) mod start_sweep;
pub mod sweep;
pub(crate) mod watch;
pub(crate) mod watchdog;

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::getpid;
use tokio::sync::Semaphore;

use crate::cgroup;
use crate::error::{Error, Result};
use crate::guard::Program;
use crate::guard::protocol::ToGuard;
use crate::guard::terminal::Settings;
use crate::kernel::maker::Maker;
use crate::report::Refusal;
use crate::supervisor::abort_on_drop::AbortOnDrop;
use crate::supervisor::backend::{Backend, NextContainment, SubreaperBackend};
use crate::supervisor::driver::Driver;
use crate::supervisor::events::{Hub, JobEvents};
pub use builder::Builder;
pub use signals::SignalStream;

/// How many jobs are being started at a time.
const STARTS: usize = 32;

/// Starts jobs and answers for them: when it is gone, by whatever end of its process, its jobs are ended.
///
/// It belongs to the tokio runtime that it was started in; where there was none, to one of its own, in a thread. Clones are the same
/// supervisor. A runtime of the flavor `current_thread` has to be driven (`block_on`) while its jobs are waited for: else
/// nothing but the guard acts for them. It belongs to one process: a forked copy (fork(2)) starts no jobs, and to drop or close it there does nothing.
///
/// ```
/// fn is_for_any_thread<T: Clone + Send + Sync + 'static>() {}
/// is_for_any_thread::<pinfold::Supervisor>();
/// ```
#[derive(Clone, Debug)]
pub struct Supervisor {
    pub(crate) inner: Arc<Inner>,
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.inner.maker.keep_elsewhere(&self.inner);
    }
}

#[derive(Debug)]
pub(crate) struct Inner {
    maker: Maker,
    backend: Mutex<Arc<Backend>>,
    pub runtime: Driver,
    pub(crate) next_job: AtomicU64,
    pub hub: Arc<Hub>,
    /// What a start takes, its environment above all, is not to be there for thousands at once: the guard starts one after
    /// another anyway.
    pub(crate) turns: Semaphore,
    /// There will be one job only.
    one_job: bool,
    had_its_job: AtomicBool,
    /// The removal of what others have left, which the first job starts.
    pub(crate) sweeping: Mutex<Option<AbortOnDrop<()>>>,
    /// Nothing else than a cgroup will do.
    cgroup_only: bool,
    guard_program: Option<Program>,
}

/// How often a job is started anew whose empty cgroup something has removed.
pub(crate) const REMOVED_AGAIN: u32 = 16;

impl Inner {
    /// Refuses a forked copy: the socket to the guard is the original's too, and the runtime's threads are not there.
    pub(crate) fn check_process(&self) -> Result<()> {
        if self.maker.is_elsewhere() {
            let advice = "a forked copy of this process has to start a supervisor of its own";
            return Err(Error::invalid("process", getpid().as_raw_nonzero().to_string(), advice));
        }
        Ok(())
    }

    pub(crate) fn backend(&self) -> Arc<Backend> {
        self.backend.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What holds a new job, by these means.
    pub async fn next_containment(&self, backend: &Backend) -> Result<NextContainment> {
        if self.one_job && self.had_its_job.swap(true, Ordering::Relaxed) {
            return Err(Error::invalid(
                "spawn",
                "a second job",
                "this supervisor was started for one: leave one_job() out",
            ));
        }
        backend.next_containment(self.one_job, self.guard_program.as_ref()).await
    }

    /// Whether something has removed the job's empty cgroup before the job was in it: there will be another one.
    pub(crate) fn is_removed(&self, error: &Error) -> bool {
        let Error::Spawn(error) = error else { return false };
        let is_removed = error.is_about_a_removed_cgroup();
        if is_removed {
            self.had_its_job.store(false, Ordering::Relaxed);
        }
        is_removed
    }

    /// Goes on without a cgroup: the base could be made, and no process can be put into it. Whether there are other means now than
    /// those that were `used`; another job's start may have met the same before.
    pub(crate) fn give_cgroup_up(&self, used: &Arc<Backend>, error: &Error) -> bool {
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
        // A guard that holds a job without a cgroup has no other job.
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
    /// Starts with what this process offers: its own cgroup, and a guard program found as [`Guard::execute`] says.
    ///
    /// Dropping this future is as with [`Builder::start`].
    ///
    /// # Errors
    /// As [`Builder::start`].
    pub async fn start() -> Result<Self> {
        Self::builder().start().await
    }

    /// Starts with something else than the defaults.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// What happens to all of its jobs from now on, also to those that a pool starts. A listener who does not listen costs
    /// memory: some hundred bytes an event.
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
    ///             let told = events.next_event().await.ok_or("the supervisor is there")?;
    ///             println!("job {}, {}: {:?}", told.job, told.name, told.event.kind);
    ///             gone += usize::from(told.event.kind == EventKind::Gone);
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

    /// Has the guards that run now give this terminal the settings that it has now, when this process is gone by whatever end.
    /// Call it before they are changed. Where another process group has become the terminal's foreground one by then, a
    /// shell with job control say, they are left alone.
    ///
    /// Cancel-safe: each guard has been told, or has not.
    ///
    /// # Errors
    /// `ENOTTY` where it is no terminal; [`Error::GuardLost`].
    pub async fn keep_terminal(&self, terminal: impl AsFd) -> Result<()> {
        let failed = |errno| Error::system("read", "the settings of the terminal", errno, "");
        let settings = Settings::of(&terminal).map_err(failed)?;
        self.inner.check_process()?;
        for link in self.inner.backend().links() {
            let message = ToGuard::Terminal { settings: settings.clone() };
            self.inner.runtime.inside(link.send(&message, &[terminal.as_fd()])).await?;
        }
        Ok(())
    }

    /// Ends whatever still runs, waits until the guard is gone, and removes the base.
    ///
    /// Dropping this future leaves the rest to the guard, which ends what still runs and removes the base.
    ///
    /// ```
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let supervisor = pinfold::Supervisor::start().await?;
    /// supervisor.close().await; // No guard, no directory is left.
    /// # Ok(())
    /// # }
    /// ```
    pub async fn close(self) {
        if self.inner.maker.is_elsewhere() {
            return;
        }
        let backend = self.inner.backend();
        backend.hang_up();
        let sweeping = self.inner.sweeping.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Nothing may drive a runtime that is elsewhere; where no other thread can be started, that one has to do.
        let other = if self.inner.runtime.may_stand_still() { Driver::start().ok() } else { None };
        if let Some(sweeping) = sweeping.filter(|_| other.is_none()) {
            // It is bounded, and ends early only with its runtime.
            let _ = sweeping.await;
        }
        let runtime = other.unwrap_or_else(|| self.inner.runtime.clone());
        let closing = runtime.handle.spawn(async move { backend.close().await });
        // A runtime that was shut down waits for nothing: the guard does the rest.
        let _ = AbortOnDrop::new(closing).await;
    }
}

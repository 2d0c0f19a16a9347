//! The host's side: chooses the containment, starts the guard, starts jobs.

mod builder;

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::getpid;
use tokio::sync::Semaphore;

use crate::attached::Attached;
use crate::caller::Caller;
use crate::command::Command;
use crate::containment::{self, Refusal};
use crate::driver::Driver;
use crate::error::{Error, Result};
use crate::events::{Hub, JobEvents};
use crate::guard::Program;
use crate::guard::protocol::ToGuard;
use crate::guard::terminal::Settings;
use crate::job::{self, Job};
use crate::maker::Maker;
use crate::means::{Means, NextHolder, WithoutCgroup};
pub use builder::Builder;

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
    means: Mutex<Arc<Means>>,
    /// Where its jobs' actors run: the runtime of the caller that spawns one may end before the job does.
    pub runtime: Driver,
    next_job: AtomicU64,
    pub hub: Arc<Hub>,
    /// What a start takes, its environment above all, is not to be there for thousands at once: the guard starts one after
    /// another anyway.
    turns: Semaphore,
    /// There will be one job only.
    one_job: bool,
    had_its_job: AtomicBool,
    /// The removal of what others have left, which the first job starts.
    sweeping: Mutex<Option<Attached<()>>>,
    /// Nothing else than a cgroup will do.
    cgroup_only: bool,
    guard_program: Option<Program>,
}

/// How often a job is started anew whose empty cgroup something has removed.
const REMOVED_AGAIN: u32 = 16;

impl Inner {
    /// Refuses a forked copy: the socket to the guard is the original's too, and the runtime's threads are not there.
    fn check_process(&self) -> Result<()> {
        if self.maker.is_elsewhere() {
            let advice = "a forked copy of this process has to start a supervisor of its own";
            return Err(Error::invalid("process", getpid().as_raw_nonzero().to_string(), advice));
        }
        Ok(())
    }

    fn means(&self) -> Arc<Means> {
        self.means.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What holds a new job, by these means.
    pub async fn next_holder(&self, means: &Means) -> Result<NextHolder> {
        if self.one_job && self.had_its_job.swap(true, Ordering::Relaxed) {
            return Err(Error::invalid(
                "spawn",
                "a second job",
                "this supervisor was started for one: leave one_job() out",
            ));
        }
        means.next_holder(self.one_job, self.guard_program.as_ref()).await
    }

    /// Whether something has removed the job's empty cgroup before the job was in it: there will be another one.
    fn is_removed(&self, error: &Error) -> bool {
        let Error::Spawn(error) = error else { return false };
        let is_removed = error.is_about_a_removed_cgroup();
        if is_removed {
            self.had_its_job.store(false, Ordering::Relaxed);
        }
        is_removed
    }

    /// Goes on without a cgroup: the base could be made, and no process can be put into it. Whether there are other means now than
    /// those that were `used`; another job's start may have met the same before.
    fn give_cgroup_up(&self, used: &Arc<Means>, error: &Error) -> bool {
        if !Arc::ptr_eq(used, &self.means()) {
            return true;
        }
        let Error::Spawn(error) = error else { return false };
        if self.cgroup_only || !error.is_about_the_cgroup() || containment::subreaper().is_err() {
            return false;
        }
        let mut means = self.means.lock().unwrap_or_else(PoisonError::into_inner);
        let Means::Cgroup { link, base, jobs, .. } = &**means else { return false };
        let base = base.now();
        let refusal = Refusal::new(base.parent().path().display().to_string(), error.to_string(), "see pinfold doctor");
        // A guard that holds a job without a cgroup has no other job.
        let alone = jobs.load(Ordering::Relaxed) == 1;
        if alone {
            let _ = base.remove();
        }
        let link = (alone && link.is_inherited_by_us()).then(|| link.clone());
        *means = Arc::new(Means::Subreaper(WithoutCgroup::new(link, vec![refusal])));
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

    /// Starts a job; comes back when the command has been executed. Dropping this future ends it.
    ///
    /// The call itself decides what the job inherits of the caller, and not the moment in which the future is polled first; see
    /// [the front page](crate#what-a-job-inherits).
    ///
    /// It may be called from any thread and any runtime. The job goes on in the runtime that the supervisor was started in,
    /// whatever becomes of the caller's. A few dozen are started at a time, the others wait for their turn; a future that is held and
    /// not polled takes no turn from others.
    ///
    /// ```
    /// # async fn example(supervisor: &pinfold::Supervisor) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut command = pinfold::Command::new("make");
    /// command.arg("check").timeout(std::time::Duration::from_secs(600));
    /// let job = supervisor.spawn(&command).await?;
    /// println!("process {} runs", job.pid());
    /// assert!(job.wait().await?.is_gone());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Nothing is left of the job then. [`Error::Spawn`] where the command can't be executed, with the errno;
    /// [`Error::Invalid`] where an argument is invalid; [`Error::HostChanged`] where the caller has other rights than the guard;
    /// [`Error::GuardLost`] where the guard is gone; or the errno of
    /// a refused call.
    pub fn spawn(&self, command: &Command) -> impl Future<Output = Result<Job>> + Send + use<> {
        let (supervisor, command) = (self.clone(), command.clone());
        // Now, and not when the future is polled.
        let caller = self.inner.check_process().and_then(|()| Caller::of(&command));
        async move {
            let caller = caller?;
            let runtime = supervisor.inner.runtime.handle.clone();
            // In a task of its own: a future that is held and not polled would keep its turn from others.
            let starting = runtime.spawn(async move { supervisor.spawn_here(&command, caller).await });
            match Attached::new(starting).await {
                Ok(started) => started,
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => Err(Error::GuardLost),
            }
        }
    }

    /// The same, for a task of the supervisor's runtime, which is polled whenever it is ready.
    pub(crate) async fn spawn_here(&self, command: &Command, caller: Caller) -> Result<Job> {
        // It is never closed.
        let turn = self.inner.turns.acquire().await;
        let started = Box::pin(self.start_job(command, caller)).await;
        drop(turn);
        started
    }

    async fn start_job(&self, command: &Command, caller: Caller) -> Result<Job> {
        let mut id = self.inner.next_job.fetch_add(1, Ordering::Relaxed);
        let first = id == 1;
        let means = self.inner.means();
        let mut started = job::start(self.inner.clone(), &means, id, command, &caller).await;
        for _ in 0..REMOVED_AGAIN {
            if !started.as_ref().is_err_and(|error| self.inner.is_removed(error)) {
                break;
            }
            id = self.inner.next_job.fetch_add(1, Ordering::Relaxed);
            started = job::start(self.inner.clone(), &means, id, command, &caller).await;
        }
        if let Err(error) = &started
            && self.inner.give_cgroup_up(&means, error)
        {
            id = self.inner.next_job.fetch_add(1, Ordering::Relaxed);
            started = job::start(self.inner.clone(), &self.inner.means(), id, command, &caller).await;
        }
        if first && let Means::Cgroup { base, .. } = &*self.inner.means() {
            // When the command runs already, so that it does not wait for what others have left; and beside it.
            let sweeping =
                Attached::new(self.inner.runtime.handle.spawn(containment::sweep::sweep(base.now().parent().clone())));
            *self.inner.sweeping.lock().unwrap_or_else(PoisonError::into_inner) = Some(sweeping);
        }
        started
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
        for link in self.inner.means().links() {
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
        let means = self.inner.means();
        means.hang_up();
        let sweeping = self.inner.sweeping.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Nothing may drive a runtime that is elsewhere; where no other thread can be started, that one has to do.
        let other = if self.inner.runtime.may_stand_still() { Driver::start().ok() } else { None };
        if let Some(sweeping) = sweeping.filter(|_| other.is_none()) {
            // It is bounded, and ends early only with its runtime.
            let _ = sweeping.await;
        }
        let runtime = other.unwrap_or_else(|| self.inner.runtime.clone());
        let closing = runtime.handle.spawn(async move { means.close().await });
        // A runtime that was shut down waits for nothing: the guard does the rest.
        let _ = Attached::new(closing).await;
    }
}

//! The host's side: chooses the containment, starts the guard, starts jobs.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::attached::Attached;
use crate::command::Command;
use crate::containment::base::Base;
use crate::containment::{self, Refusal, delegation};
use crate::error::{Error, Result};
use crate::events::{Hub, JobEvents};
use crate::guard::link::Link;
use crate::guard::protocol::ToGuard;
use crate::guard::terminal::Settings;
use crate::guard::{self, Guard};
use crate::job::{self, Job};
use crate::limits::Controller;
use crate::means::{Means, NextHolder, WithoutCgroup};
use crate::report::ContainmentKind;

/// How many jobs are being started at a time.
const STARTS: usize = 32;

/// Starts jobs and answers for them: when it is gone, by whatever end of its process, its jobs are ended.
///
/// It belongs to the tokio runtime that it was started in. Clones are the same supervisor.
///
/// ```
/// fn is_for_any_thread<T: Clone + Send + Sync + 'static>() {}
/// is_for_any_thread::<pinfold::Supervisor>();
/// ```
#[derive(Clone, Debug)]
pub struct Supervisor {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    means: Mutex<Arc<Means>>,
    /// Where its jobs' actors run: the runtime of whoever spawns one may end before the job does.
    pub runtime: Handle,
    next_job: AtomicU64,
    pub hub: Arc<Hub>,
    /// What a start takes, its environment above all, is not to be there for thousands at once: the guard starts one after
    /// another anyway.
    turns: Semaphore,
    /// There will be one job only.
    one_job: bool,
    had_its_job: AtomicBool,
    /// Nothing else than a cgroup will do.
    cgroup_only: bool,
    guard_program: Option<PathBuf>,
}

/// How to start a [`Supervisor`].
#[derive(Debug, Default)]
#[must_use]
pub struct Builder {
    containment: Option<ContainmentKind>,
    cgroup: Option<PathBuf>,
    guard: Option<Guard>,
    guard_program: Option<PathBuf>,
    one_job: bool,
    controllers: Vec<Controller>,
}

impl Builder {
    /// Holds jobs in this way and no other. Without this, a cgroup where one can be had, and else the guard as subreaper;
    /// the report says which, and why nothing stronger ([`report::Containment`](crate::report::Containment)).
    pub fn containment(mut self, kind: ContainmentKind) -> Self {
        self.containment = Some(kind);
        self
    }

    /// Makes the jobs' cgroups in this cgroup v2 directory, instead of the supervisor's own cgroup, and accepts no weaker
    /// containment. Of no account with [`ContainmentKind::Subreaper`].
    pub fn cgroup(mut self, directory: impl Into<PathBuf>) -> Self {
        self.cgroup = Some(directory.into());
        self
    }

    /// Uses a guard that has been started already.
    pub fn guard(mut self, guard: Guard) -> Self {
        self.guard = Some(guard);
        self
    }

    /// Executes this program as the guard: `pinfold`, or one whose `main` calls [`init`](crate::init).
    pub fn guard_program(mut self, program: impl Into<PathBuf>) -> Self {
        self.guard_program = Some(program.into());
        self
    }

    /// The supervisor will start one job and no second one (an error), as the `pinfold` command does. That job is held by
    /// the base itself, which saves a directory.
    pub fn one_job(mut self) -> Self {
        self.one_job = true;
        self
    }

    /// Makes ready what jobs' limits need ([`Limits::controllers`](crate::Limits::controllers)), and what a report can tell of
    /// their usage only with a controller. Nothing but a cgroup will do then.
    ///
    /// Where the supervisor's own cgroup does not give a controller to those below, and holds nobody but this process and
    /// its guard, both move to a cgroup of their own below it ("no internal processes"), until
    /// [`Supervisor::close`]. Otherwise systemd is asked for a scope (feature `systemd`), which only the guard enters.
    pub fn controllers(mut self, controllers: impl IntoIterator<Item = Controller>) -> Self {
        self.controllers.extend(controllers);
        self.controllers.sort_unstable();
        self.controllers.dedup();
        self
    }

    /// Chooses the containment; starts the guard and makes the base where that is a cgroup.
    ///
    /// ```
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use pinfold::Supervisor;
    /// use pinfold::report::ContainmentKind;
    ///
    /// let supervisor = Supervisor::builder().containment(ContainmentKind::Cgroup).start().await?;
    /// supervisor.close().await;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Dropping this future ends the guard, and leaves no directory.
    ///
    /// # Errors
    /// [`Error::GuardStart`]; [`Error::NoCgroup`] where a cgroup was asked for, [`Error::NoControllers`] where none of
    /// those that can be had has the controllers, and [`Error::NoContainment`] where nothing can hold a job, with every
    /// reason; or the errno of a refused call.
    pub async fn start(mut self) -> Result<Supervisor> {
        let limited = !self.controllers.is_empty();
        let cgroup_only = self.containment == Some(ContainmentKind::Cgroup) || self.cgroup.is_some() || limited;
        let means = match self.containment {
            Some(ContainmentKind::Subreaper) => self.without_cgroup(Vec::new(), None).await?,
            _ => match self.in_cgroup().await? {
                Ok(means) => means,
                Err((refusals, _)) if limited => {
                    return Err(Error::NoControllers { controllers: delegation::names(&self.controllers), refusals });
                }
                Err((refused, _)) if cgroup_only => return Err(Error::NoCgroup(refused)),
                Err((refused, link)) => self.without_cgroup(refused, link).await?,
            },
        };
        Ok(Supervisor {
            inner: Arc::new(Inner {
                means: Mutex::new(Arc::new(means)),
                runtime: Handle::current(),
                next_job: AtomicU64::new(1),
                hub: Arc::default(),
                turns: Semaphore::new(STARTS),
                one_job: self.one_job,
                had_its_job: AtomicBool::new(false),
                cgroup_only: cgroup_only && self.containment != Some(ContainmentKind::Subreaper),
                guard_program: self.guard_program,
            }),
        })
    }

    /// A base and its guard, or why there can't be one; with the guard, where it was started.
    async fn in_cgroup(&mut self) -> Result<std::result::Result<Means, (Vec<Refusal>, Option<Arc<Link>>)>> {
        // Found first: where there is no cgroup, and none to be asked for, no process needs to be started.
        let found = match containment::place(self.cgroup.as_deref()) {
            Err(refused) if self.cgroup.is_some() => return Err(Error::NoCgroup(refused)),
            found => found,
        };
        let guard = match self.guard.take() {
            Some(guard) => guard,
            None => Guard::execute(self.guard_program.as_deref())?,
        };
        let link = Arc::new(Link::connect(guard).await?);
        let named = self.cgroup.is_some();
        let (place, grant) = match delegation::settle(found, named, &self.controllers, &link).await? {
            Ok(settled) => settled,
            Err(refused) => return Ok(Err((refused, Some(link)))),
        };
        let announce = async |name| link.send(&ToGuard::Base { name }, &[place.as_fd()]).await;
        match Base::make(place.clone(), announce).await {
            Ok(base) => {
                link.send(&ToGuard::BaseMade, &[base.as_fd()]).await?;
                if !self.one_job {
                    base.give(&self.controllers)?;
                }
                Ok(Ok(Means::Cgroup { link, base, grant, jobs: 0.into() }))
            }
            Err(Error::System { operation, object, errno, advice }) if self.cgroup.is_none() => {
                Ok(Err((vec![Refusal::new(object, format!("{operation}: {errno}"), advice)], Some(link))))
            }
            Err(error) => Err(error),
        }
    }

    async fn without_cgroup(&mut self, mut refused: Vec<Refusal>, link: Option<Arc<Link>>) -> Result<Means> {
        if let Err(refusal) = containment::subreaper() {
            refused.push(refusal);
            return Err(Error::NoContainment(refused));
        }
        let link = match self.guard.take() {
            Some(guard) => Some(Arc::new(Link::connect(guard).await?)),
            None => link,
        };
        // One whose orphans would come to us; else each job has a guard with another one around it.
        let link = link.filter(|link| link.is_inherited_by_us());
        if link.is_none() {
            // Told now, and not at the first job.
            guard::find_program(self.guard_program.as_deref())?;
        }
        Ok(Means::Subreaper(WithoutCgroup::new(link, refused)))
    }
}

impl Inner {
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
        means.next_holder(self.one_job, self.guard_program.as_deref()).await
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
    /// [`Error::Invalid`] where an argument can't be meant; [`Error::GuardLost`] where the guard is gone; or the errno of
    /// a refused call.
    pub async fn spawn(&self, command: &Command) -> Result<Job> {
        // In a task of its own: a future that is held and not polled would keep its turn from others.
        let (supervisor, command) = (self.clone(), command.clone());
        let starting = self.inner.runtime.spawn(async move { supervisor.spawn_here(&command).await });
        match Attached::new(starting).await {
            Ok(started) => started,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(Error::GuardLost),
        }
    }

    /// The same, for a task of the supervisor's runtime, which is polled whenever it is ready.
    pub(crate) async fn spawn_here(&self, command: &Command) -> Result<Job> {
        // It is never closed.
        let turn = self.inner.turns.acquire().await;
        let started = Box::pin(self.start_job(command)).await;
        drop(turn);
        started
    }

    async fn start_job(&self, command: &Command) -> Result<Job> {
        let mut id = self.inner.next_job.fetch_add(1, Ordering::Relaxed);
        let means = self.inner.means();
        let mut started = job::start(self.inner.clone(), &means, id, command).await;
        if let Err(error) = &started
            && self.inner.give_cgroup_up(&means, error)
        {
            id = self.inner.next_job.fetch_add(1, Ordering::Relaxed);
            started = job::start(self.inner.clone(), &self.inner.means(), id, command).await;
        }
        if id == 1
            && let Means::Cgroup { base, .. } = &*self.inner.means()
        {
            // When the command runs already, so that it does not wait for what others have left.
            containment::sweep::sweep(base.parent());
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
    ///     pinfold::init();
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
        for link in self.inner.means().links() {
            link.send(&ToGuard::Terminal { settings: settings.clone() }, &[terminal.as_fd()]).await?;
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
        self.inner.means().close().await;
    }
}

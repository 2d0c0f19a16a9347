//! The host's side: starts the guard, makes the base, starts jobs.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use std::os::fd::AsFd;

use tokio::runtime::Handle;

use crate::command::Command;
use crate::containment::base::Base;
use crate::containment::leaf::Leaf;
use crate::containment::{self};
use crate::error::{Error, Result};
use crate::guard::Guard;
use crate::guard::link::Link;
use crate::guard::protocol::ToGuard;
use crate::job::{self, Job};

/// Starts jobs and answers for them: when it is gone, by whatever end of its process, its jobs are ended.
///
/// It belongs to the tokio runtime that it was started in. Clones are the same supervisor.
#[derive(Clone, Debug)]
pub struct Supervisor {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub link: Link,
    pub base: Arc<Base>,
    /// Where its jobs' actors run: the runtime of whoever spawns one may end before the job does.
    pub runtime: Handle,
    next_job: AtomicU64,
    /// There will be one job only.
    one_job: bool,
    had_its_job: AtomicBool,
}

/// How to start a [`Supervisor`].
#[derive(Debug, Default)]
#[must_use]
pub struct Builder {
    cgroup: Option<PathBuf>,
    guard: Option<Guard>,
    guard_program: Option<PathBuf>,
    one_job: bool,
}

impl Builder {
    /// Makes the jobs' cgroups in this cgroup v2 directory, instead of the supervisor's own cgroup.
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

    /// Starts the guard, then makes the base.
    ///
    /// # Errors
    /// [`Error::GuardStart`], [`Error::NoCgroup`] with every reason, or the errno of a refused call.
    pub async fn start(self) -> Result<Supervisor> {
        // Found first: where there is no cgroup, no process needs to be started.
        let place = Arc::new(containment::place(self.cgroup.as_deref()).map_err(Error::NoCgroup)?);
        let guard = match self.guard {
            Some(guard) => guard,
            None => Guard::execute(self.guard_program.as_deref())?,
        };
        let link = Link::connect(guard).await?;
        let base =
            Base::make(place.clone(), async |name| link.send(&ToGuard::Base { name }, &[place.as_fd()]).await).await?;
        link.send(&ToGuard::BaseMade, &[base.as_fd()]).await?;
        Ok(Supervisor {
            inner: Arc::new(Inner {
                link,
                base,
                runtime: Handle::current(),
                next_job: AtomicU64::new(1),
                one_job: self.one_job,
                had_its_job: AtomicBool::new(false),
            }),
        })
    }
}

impl Inner {
    /// The leaf of a new job.
    pub fn make_leaf(&self) -> Result<Leaf> {
        if !self.one_job {
            return self.base.make_leaf();
        }
        if self.had_its_job.swap(true, Ordering::Relaxed) {
            return Err(Error::invalid(
                "spawn",
                "a second job",
                "this supervisor was started for one: leave one_job() out",
            ));
        }
        self.base.as_leaf()
    }
}

impl Supervisor {
    /// Starts with what this process offers: its own cgroup, and a guard program found as [`Guard::execute`] says.
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
    /// whatever becomes of the caller's.
    ///
    /// # Errors
    /// Nothing is left of the job then. [`Error::Spawn`] where the command can't be executed, with the errno;
    /// [`Error::Invalid`] where an argument can't be meant; [`Error::GuardLost`] where the guard is gone; or the errno of
    /// a refused call.
    pub async fn spawn(&self, command: &Command) -> Result<Job> {
        let id = self.inner.next_job.fetch_add(1, Ordering::Relaxed);
        let started = job::start(self.inner.clone(), id, command).await;
        if id == 1 {
            // When the command runs already, so that it does not wait for what others have left.
            containment::sweep::sweep(self.inner.base.parent());
        }
        started
    }

    /// Ends whatever still runs, waits until the guard is gone, and removes the base.
    pub async fn close(self) {
        // Both remove the base, whoever comes first: the guard's end need not wait for us, nor we for it. Where jobs are
        // left, the guard ends them first.
        self.inner.link.hang_up();
        let _ = self.inner.base.remove();
        if !self.inner.link.gone().await {
            // A guard that does not end, stopped perhaps, is ended; its work is ours then.
            let _ = self.inner.base.cgroup().kill();
        }
        let _ = self.inner.base.remove();
    }
}

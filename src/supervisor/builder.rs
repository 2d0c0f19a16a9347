//! How a supervisor is started: its settings, the choice of the containment, the guard.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};

use tokio::sync::Semaphore;

use super::{Inner, STARTS, Supervisor};
use crate::cgroup;
use crate::cgroup::base::Base;
use crate::cgroup::limits::Controller;
use crate::error::{Error, Result};
use crate::guard::protocol::ToGuard;
use crate::guard::{self, Embedded, Guard, Program};
use crate::kernel::maker::Maker;
use crate::report::ContainmentKind;
use crate::report::Refusal;
use crate::supervisor::abort_on_drop::AbortOnDrop;
use crate::supervisor::backend::Remade;
use crate::supervisor::backend::{Backend, SubreaperBackend};
use crate::supervisor::delegation;
use crate::supervisor::driver::Driver;
use crate::supervisor::link::Link;

/// How to start a [`Supervisor`].
#[derive(Debug, Default)]
#[must_use]
pub struct Builder {
    containment: Option<ContainmentKind>,
    cgroup: Option<PathBuf>,
    guard: Option<Guard>,
    guard_program: Option<Program>,
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

    /// Executes this program as the guard: the `pinfold` command of this version, or another program that has this library in
    /// it. The host's own program needs no mention.
    pub fn guard_program(mut self, program: impl Into<PathBuf>) -> Self {
        self.guard_program = Some(Program::Path(program.into()));
        self
    }

    /// Executes the program that these bytes are, from memory: a guard that an extension module carries along. Link it
    /// statically, so that it works in each root directory. Needs `/proc`.
    ///
    /// ```no_run
    /// # #[cfg(any())]
    /// static GUARD: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pinfold"));
    /// # static GUARD: &[u8] = b"";
    /// let supervisor = pinfold::blocking::Supervisor::start_with(pinfold::Supervisor::builder().guard_program_bytes(GUARD))?;
    /// # Ok::<(), pinfold::Error>(())
    /// ```
    pub fn guard_program_bytes(mut self, program: &'static [u8]) -> Self {
        self.guard_program = Some(Program::Embedded(Embedded::new(program)));
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
    /// Inside of a tokio runtime, the supervisor runs there; else in a runtime of its own, in a thread that it starts. With that,
    /// everything here works in any executor.
    ///
    /// Dropping this future ends the guard, and leaves no directory.
    ///
    /// # Errors
    /// [`Error::GuardStart`]; [`Error::NoCgroup`] where a cgroup was asked for, [`Error::NoControllers`] where none of
    /// those that can be had has the controllers, and [`Error::NoContainment`] where nothing can hold a job, with every
    /// reason; or the errno of a refused call.
    pub async fn start(self) -> Result<Supervisor> {
        match Driver::current() {
            Some(runtime) => self.start_in(runtime).await,
            None => {
                let own = Driver::start()?;
                let starting = own.handle.spawn(self.start_in(own.clone()));
                match AbortOnDrop::new(starting).await {
                    Ok(started) => started,
                    Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                    Err(_) => Err(Error::GuardLost),
                }
            }
        }
    }

    async fn start_in(mut self, runtime: Driver) -> Result<Supervisor> {
        let limited = !self.controllers.is_empty();
        let cgroup_only = self.containment == Some(ContainmentKind::Cgroup) || self.cgroup.is_some() || limited;
        let backend = match self.containment {
            Some(ContainmentKind::Subreaper) => self.without_cgroup(Vec::new(), None).await?,
            _ => match self.in_cgroup().await? {
                Ok(backend) => backend,
                Err((refusals, _)) if limited => {
                    return Err(Error::NoControllers {
                        controllers: crate::cgroup::delegation::names(&self.controllers),
                        refusals,
                    });
                }
                Err((refused, _)) if cgroup_only => return Err(Error::NoCgroup(refused)),
                Err((refused, link)) => self.without_cgroup(refused, link).await?,
            },
        };
        Ok(Supervisor {
            inner: Arc::new(Inner {
                maker: Maker::here(),
                backend: Mutex::new(Arc::new(backend)),
                runtime,
                next_job: AtomicU64::new(1),
                hub: Arc::default(),
                turns: Semaphore::new(STARTS),
                one_job: self.one_job,
                had_its_job: AtomicBool::new(false),
                sweeping: Mutex::default(),
                cgroup_only: cgroup_only && self.containment != Some(ContainmentKind::Subreaper),
                guard_program: self.guard_program,
            }),
        })
    }

    /// A base and its guard, or why there can't be one; with the guard, where it was started.
    async fn in_cgroup(&mut self) -> Result<std::result::Result<Backend, (Vec<Refusal>, Option<Arc<Link>>)>> {
        // Found first: where there is no cgroup, and none to be asked for, no process needs to be started.
        let found = match cgroup::place(self.cgroup.as_deref()) {
            Err(refused) if self.cgroup.is_some() => return Err(Error::NoCgroup(refused)),
            found => found,
        };
        let guard = match self.guard.take() {
            Some(guard) => guard,
            None => Guard::execute_program(self.guard_program.as_ref())?,
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
                Ok(Ok(Backend::Cgroup { link, base: Remade::new(base), grant, jobs: 0.into() }))
            }
            Err(Error::System { operation, object, errno, advice }) if self.cgroup.is_none() => {
                Ok(Err((vec![Refusal::new(object, format!("{operation}: {errno}"), advice)], Some(link))))
            }
            Err(error) => Err(error),
        }
    }

    async fn without_cgroup(&mut self, mut refused: Vec<Refusal>, link: Option<Arc<Link>>) -> Result<Backend> {
        if let Err(refusal) = cgroup::subreaper() {
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
            // Completion now, and not at the first job.
            guard::assure_program(self.guard_program.as_ref())?;
        }
        Ok(Backend::Subreaper(SubreaperBackend::new(link, refused)))
    }
}

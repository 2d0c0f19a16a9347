//! Starts a supervisor: its settings, the choice of the containment, and the guard.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};

use tokio::sync::Semaphore;

use super::memberships::Memberships;
use super::{Inner, MAX_STARTS, Supervisor};
use crate::cgroup;
use crate::cgroup::base::Base;
use crate::cgroup::limits::Controller;
use crate::error::{ContainmentErrorKind, Error, Result};
use crate::guard::protocol::ToGuard;
use crate::guard::{self, Embedded, Guard, Program};
use crate::kernel::creator::Creator;
use crate::report::ContainmentKind;
use crate::report::{Refusal, SupervisorKind};
use crate::sandbox::cache::Cache;
use crate::supervisor::backend::RecreatedBase;
use crate::supervisor::backend::{Backend, SubreaperBackend};
use crate::supervisor::delegation;
use crate::supervisor::driver::Driver;
use crate::supervisor::link::Link;

/// The settings for the start of a [`Supervisor`].
#[derive(Debug, Default)]
#[must_use]
pub struct SupervisorBuilder {
    containment: Option<ContainmentKind>,
    cgroup: Option<PathBuf>,
    guard: Option<Guard>,
    guard_program: Option<Program>,
    one_job: bool,
    kind: SupervisorKind,
    controllers: Vec<Controller>,
}

impl SupervisorBuilder {
    /// Uses this kind of containment and no other. By default, pinfold uses a cgroup if one is available, else the
    /// guard as subreaper. The report says which kind was used, and why no stronger one
    /// ([`report::Containment`](crate::report::Containment)).
    pub fn containment(mut self, kind: ContainmentKind) -> Self {
        self.containment = Some(kind);
        self
    }

    /// Makes the jobs' cgroups in this cgroup v2 directory, instead of in the supervisor's own cgroup, and accepts no
    /// weaker containment. Has no effect with [`ContainmentKind::Subreaper`].
    pub fn cgroup(mut self, directory: impl Into<PathBuf>) -> Self {
        self.cgroup = Some(directory.into());
        self
    }

    /// Uses a guard that is already running.
    pub fn guard(mut self, guard: Guard) -> Self {
        self.guard = Some(guard);
        self
    }

    /// Executes this program as the guard: the `pinfold` command of this version, or another program that contains this
    /// library. You do not need this setting to use your own program as the guard.
    pub fn guard_program(mut self, program: impl Into<PathBuf>) -> Self {
        self.guard_program = Some(Program::Path(program.into()));
        self
    }

    /// Executes a guard program that is embedded in your program, for example in an extension module: `program` is the
    /// content of its file. Link it statically, so that it works in every root directory. Needs `/proc`.
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

    /// The supervisor starts only one job, as the `pinfold` command does; a second one is an error. The base itself
    /// holds that job, which saves a directory.
    #[cfg(feature = "cli")]
    pub(crate) fn one_job(mut self) -> Self {
        self.one_job = true;
        self
    }

    /// Records which command of pinfold the supervisor belongs to.
    #[cfg(feature = "cli")]
    pub(crate) fn kind(mut self, kind: SupervisorKind) -> Self {
        self.kind = kind;
        self
    }

    /// Makes these controllers available for the jobs: those that their limits need
    /// ([`Limits::controllers`](crate::Limits::controllers)), and those that a report needs to show all of their usage.
    /// With this setting, pinfold accepts only a cgroup as containment.
    ///
    /// If the supervisor's own cgroup has not enabled a controller for its children, and only this process and its
    /// guard are in it, both move to a new cgroup below it until [`Supervisor::close`]. (The kernel's rule is "no
    /// internal processes".) Otherwise pinfold asks systemd for a scope (feature `systemd`), which only the guard
    /// enters.
    pub fn controllers(mut self, controllers: impl IntoIterator<Item = Controller>) -> Self {
        self.controllers.extend(controllers);
        self.controllers.sort_unstable();
        self.controllers.dedup();
        self
    }

    /// Chooses the containment and starts the guard. If the containment is a cgroup, also makes the base.
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
    /// Inside of a tokio runtime, the supervisor runs there. Otherwise it runs in a runtime of its own, in a thread
    /// that it starts; then everything here works in any executor.
    ///
    /// If this future is dropped, the guard ends and no directory is left.
    ///
    /// # Errors
    /// - [`Error::GuardStart`];
    /// - [`Error::Containment`] if a cgroup was requested and none is available, if no available cgroup has the
    ///   controllers, or if nothing can hold a job, with every reason;
    /// - [`Error::System`] if the kernel refuses a call.
    pub async fn start(self) -> Result<Supervisor> {
        match Driver::current() {
            Some(runtime) => self.start_in(runtime).await,
            None => self.start_in_own(Driver::start()?).await,
        }
    }

    /// Starts the supervisor in a runtime of pinfold's own. The future is on the heap, so that [`Self::start`] does not
    /// need room for it on the stack inside of the caller's runtime.
    #[inline(never)]
    fn start_in_own(self, own: Driver) -> Pin<Box<dyn Future<Output = Result<Supervisor>> + Send>> {
        Box::pin(async move { own.clone().run(self.start_in(own)).await.unwrap_or(Err(Error::GuardLost)) })
    }

    async fn start_in(mut self, runtime: Driver) -> Result<Supervisor> {
        let limited = !self.controllers.is_empty();
        let cgroup_only = self.containment == Some(ContainmentKind::Cgroup) || self.cgroup.is_some() || limited;
        let backend = match self.containment {
            Some(ContainmentKind::Subreaper) => self.without_cgroup(Vec::new(), None).await?,
            _ => match self.in_cgroup().await? {
                Ok(backend) => backend,
                Err((refusals, _)) if limited => {
                    let names = crate::cgroup::delegation::names(&self.controllers);
                    return Err(Error::containment(ContainmentErrorKind::NoControllers(names), refusals));
                }
                Err((refused, _)) if cgroup_only => {
                    return Err(Error::containment(ContainmentErrorKind::NoCgroup, refused));
                }
                Err((refused, link)) => self.without_cgroup(refused, link).await?,
            },
        };
        Ok(Supervisor {
            inner: Arc::new(Inner {
                creator: Creator::current_process(),
                backend: Mutex::new(Arc::new(backend)),
                runtime,
                next_job: AtomicU64::new(1),
                hub: Arc::default(),
                start_permits: Semaphore::new(MAX_STARTS),
                one_job: self.one_job,
                kind: self.kind,
                had_its_job: AtomicBool::new(false),
                sweeping: Mutex::default(),
                cgroup_only: cgroup_only && self.containment != Some(ContainmentKind::Subreaper),
                guard_program: self.guard_program,
                sandboxes: Cache::default(),
                memberships: Memberships::default(),
            }),
            clones: Some(Arc::default()),
        })
    }

    /// Starts a guard and makes a base. If no base is possible, returns the reasons, and the guard if it was started.
    async fn in_cgroup(&mut self) -> Result<std::result::Result<Backend, (Vec<Refusal>, Option<Arc<Link>>)>> {
        // pinfold looks for a cgroup first. If no cgroup is available, it does not start a guard in vain.
        let found = match cgroup::place(self.cgroup.as_deref()) {
            Err(refused) if self.cgroup.is_some() => {
                return Err(Error::containment(ContainmentErrorKind::NoCgroup, refused));
            }
            found => found,
        };
        let guard = match self.guard.take() {
            Some(guard) => guard,
            None => Guard::execute_program(self.guard_program.as_ref())?,
        };
        let link = Arc::new(Link::connect(guard).await?);
        let named = self.cgroup.is_some();
        let (place, grant) = match delegation::choose_place(found, named, &self.controllers, &link).await? {
            Ok(chosen) => chosen,
            Err(refused) => return Ok(Err((refused, Some(link)))),
        };
        let announce = async |name| link.send(&ToGuard::Base { name }, &[place.as_fd()]).await;
        match Base::make(place.clone(), announce).await {
            Ok(base) => {
                // A supervisor with a single job sends this with the job, so that the guard wakes up once for both.
                if !self.one_job {
                    link.send(&ToGuard::BaseMade, &[base.as_fd()]).await?;
                    base.delegate(&self.controllers)?;
                }
                Ok(Ok(Backend::Cgroup { link, base: RecreatedBase::new(base), grant, jobs: 0.into() }))
            }
            Err(Error::System { operation, object, source, advice }) if self.cgroup.is_none() => {
                Ok(Err((vec![Refusal::new(object, format!("{operation}: {source}"), advice)], Some(link))))
            }
            Err(error) => Err(error),
        }
    }

    async fn without_cgroup(&mut self, mut refused: Vec<Refusal>, link: Option<Arc<Link>>) -> Result<Backend> {
        if let Err(refusal) = cgroup::subreaper() {
            refused.push(refusal);
            return Err(Error::containment(ContainmentErrorKind::NoContainment, refused));
        }
        let link = match self.guard.take() {
            Some(guard) => Some(Arc::new(Link::connect(guard).await?)),
            None => link,
        };
        // A guard that the caller has forked is used only if this process inherits its orphans. Otherwise each job gets
        // a guard with an outer guard around it.
        let link = link.filter(|link| link.is_inherited_by_us());
        if link.is_none() {
            // If no guard program can be found, the start fails now, and not at the first job.
            guard::check_program(self.guard_program.as_ref())?;
        }
        Ok(Backend::Subreaper(SubreaperBackend::new(link, refused)))
    }
}

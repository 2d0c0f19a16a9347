//! How a supervisor holds its jobs: in a base, with one guard for all jobs, or without a cgroup, with one guard for
//! each job.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::cgroup::base::Base;
use crate::cgroup::sweep;
use crate::error::Result;
use crate::guard::protocol::ToGuard;
use crate::guard::{Guard, Program};
use crate::kernel::host::{ChangedSettings, HostState};
use crate::report::Refusal;
use crate::supervisor::containment::JobContainment;
use crate::supervisor::delegation::Grant;
use crate::supervisor::link::Link;
use rustix::io::Errno;

#[derive(Debug)]
pub(crate) enum Backend {
    Cgroup {
        link: Arc<Link>,
        base: RecreatedBase,
        /// The controllers that were delegated for the jobs' limits. At the end, pinfold disables them last.
        grant: Option<Grant>,
        /// How many jobs the caller has requested so far.
        jobs: AtomicU64,
    },
    Subreaper(SubreaperBackend),
}

/// The containment of one job, and the guard that starts it.
pub(crate) struct NextContainment {
    pub link: Arc<Link>,
    pub containment: JobContainment,
    /// Why no stronger containment holds the job.
    pub refused: Vec<Refusal>,
}

/// The highest number of times that a leaf is made again because another program removed it at once.
const MAX_TRIES: u32 = 16;

/// A base that is made again if another program has removed it: some programs remove empty cgroups.
#[derive(Debug)]
pub(crate) struct RecreatedBase {
    now: Mutex<Arc<Base>>,
    recreating: tokio::sync::Mutex<()>,
}

impl RecreatedBase {
    pub fn new(base: Arc<Base>) -> Self {
        Self { now: Mutex::new(base), recreating: tokio::sync::Mutex::default() }
    }

    pub fn now(&self) -> Arc<Base> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes another base in place of `used`, unless the start of another job has already done this.
    async fn recreate(&self, used: &Arc<Base>, link: &Link) -> Result<()> {
        let _recreating = self.recreating.lock().await;
        if !Arc::ptr_eq(used, &self.now()) {
            return Ok(());
        }
        let place = used.parent().clone();
        let announce = async |name| link.send(&ToGuard::Base { name }, &[place.as_fd()]).await;
        let base = Base::make(place.clone(), announce).await?;
        link.send(&ToGuard::BaseMade, &[base.as_fd()]).await?;
        base.delegate(&used.delegated())?;
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = base;
        Ok(())
    }
}

/// Guards that each hold one job.
#[derive(Debug)]
pub(crate) struct SubreaperBackend {
    /// A guard that has no job yet.
    ready: Mutex<Option<Arc<Link>>>,
    /// Guards that may still have a job.
    links: Mutex<Vec<Weak<Link>>>,
    refused: Vec<Refusal>,
}

impl SubreaperBackend {
    pub fn new(ready: Option<Arc<Link>>, refused: Vec<Refusal>) -> Self {
        Self { ready: Mutex::new(ready), links: Mutex::default(), refused }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.release();
    }
}

impl Backend {
    /// Returns the guards that run now.
    pub fn links(&self) -> Vec<Arc<Link>> {
        match self {
            Self::Cgroup { link, .. } => vec![link.clone()],
            Self::Subreaper(guards) => {
                let ready = guards.ready.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let links = guards.links.lock().unwrap_or_else(PoisonError::into_inner);
                ready.into_iter().chain(links.iter().filter_map(Weak::upgrade)).collect()
            }
        }
    }

    /// Returns the settings that the host has changed since the start of the guard that starts the next job. Returns no
    /// changes if the job gets a new guard of its own, because that guard has the current settings.
    pub fn changed(&self, caller: &HostState) -> ChangedSettings {
        match self {
            Self::Cgroup { link, .. } => link.host.changed(caller),
            Self::Subreaper(guards) => {
                let ready = guards.ready.lock().unwrap_or_else(PoisonError::into_inner);
                ready.as_ref().map(|link| link.host.changed(caller)).unwrap_or_default()
            }
        }
    }

    /// Allows the guard to disable the controllers again.
    fn release(&self) {
        if let Self::Cgroup { grant: Some(grant), .. } = self {
            grant.release();
        }
    }

    /// Returns the containment for a new job. With `one_job`, this is the base itself.
    pub async fn next_containment(&self, one_job: bool, guard_program: Option<&Program>) -> Result<NextContainment> {
        match self {
            Self::Cgroup { link, base, jobs, .. } => {
                jobs.fetch_add(1, Ordering::Relaxed);
                let mut tries = MAX_TRIES;
                let leaf = loop {
                    let used = base.now();
                    match if one_job { used.as_leaf() } else { used.make_leaf() } {
                        Err(error)
                            if tries > 0 && matches!(error.system_errno(), Some(Errno::NOENT | Errno::NODEV)) =>
                        {
                            tries -= 1
                        }
                        made => break made?,
                    }
                    if used.cgroup().is_gone() {
                        base.recreate(&used, link).await?;
                    }
                };
                if one_job {
                    link.send(&ToGuard::BaseMade, &[base.now().as_fd()]).await?;
                }
                Ok(NextContainment { link: link.clone(), containment: JobContainment::Leaf(leaf), refused: Vec::new() })
            }
            Self::Subreaper(guards) => {
                let ready = guards.ready.lock().unwrap_or_else(PoisonError::into_inner).take();
                let link = match ready {
                    Some(link) => link,
                    None => Arc::new(Link::connect(Guard::execute_nested(guard_program)?).await?),
                };
                let mut links = guards.links.lock().unwrap_or_else(PoisonError::into_inner);
                links.retain(|link| link.strong_count() > 0);
                links.push(Arc::downgrade(&link));
                Ok(NextContainment {
                    containment: JobContainment::Guard(link.clone()),
                    link,
                    refused: guards.refused.clone(),
                })
            }
        }
    }

    /// Makes the guards end all processes that still run.
    pub fn disconnect(&self) {
        self.release();
        self.links().iter().for_each(|link| link.disconnect());
    }

    /// Does the same as [`Self::close`] if there is no job, but blocks this thread, and leaves all descriptors open.
    /// Returns `false` if this is not possible (a grant has to be dropped), or takes longer than usual.
    #[cfg(feature = "cli")]
    pub async fn close_at_once(&self) -> bool {
        let Self::Cgroup { link, base, grant: None, .. } = self else { return false };
        link.disconnect();
        let _ = base.now().remove();
        if !link.gone_at_once() || base.now().remove().is_err() {
            return false;
        }
        link.remove_private_tmps().await;
        true
    }

    /// Ends all processes that still run, waits until the guards are gone, and removes the base.
    pub async fn close(&self) {
        match self {
            Self::Cgroup { link, base, .. } => {
                self.release();
                // Supervisor and guard both remove the base. The order does not matter, so neither waits for the other.
                // If jobs are left, the guard ends them first.
                link.disconnect();
                let base = base.now();
                let _ = base.remove();
                if !link.gone().await {
                    // The guard did not end, perhaps because a job had stopped it, and was killed. So this process does
                    // the guard's work.
                    let _ = sweep::kill_and_wait(base.cgroup(), sweep::BOUND);
                }
                let _ = base.remove();
                link.remove_private_tmps().await;
            }
            Self::Subreaper(guards) => {
                let ready = guards.ready.lock().unwrap_or_else(PoisonError::into_inner).take();
                let links = std::mem::take(&mut *guards.links.lock().unwrap_or_else(PoisonError::into_inner));
                let links: Vec<_> = links.iter().filter_map(Weak::upgrade).chain(ready).collect();
                links.iter().for_each(|link| link.disconnect());
                for link in links {
                    link.gone().await;
                    link.remove_private_tmps().await;
                }
            }
        }
    }
}

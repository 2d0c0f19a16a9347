//! The private tmps of jobs without a mount namespace, and the removal of those that other supervisors left.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;
use tokio::sync::{Mutex, oneshot};

use super::link::Link;
use super::start_sweep::REMOVAL_TIME;
use crate::cgroup::leaf::STEP;
use crate::error::{Error, Result, short_of_descriptors};
use crate::guard::protocol::ToGuard;
use crate::sandbox::prepare::Users;
use crate::sandbox::private_tmp::{Parent, PrivateTmpDir, TmpBase};

/// The directory for the private tmps of one guard's jobs. It is made for the first of these jobs.
#[derive(Debug, Default)]
pub(crate) struct OnceTmpBase(Mutex<Option<Arc<TmpBase>>>);

impl Link {
    /// Makes the private tmp of a job. Returns it, and whether it is the first one.
    ///
    /// # Errors
    /// [`Error::System`] if it can't be made; [`Error::GuardLost`].
    pub async fn make_private_tmp(&self, users: Users) -> Result<(PrivateTmpDir, bool)> {
        let mut base = self.tmp_base.0.lock().await;
        if let Some(base) = &*base {
            match base.make_private_tmp(users.job) {
                // Another program has removed the directory: some programs remove old files from /tmp.
                Err(error) if error.system_errno() == Some(Errno::NOENT) => {}
                made => return made.map(|tmp| (tmp, false)),
            }
        }
        let parent = Parent::open(users.are_different())?;
        let place = rustix::io::fcntl_dupfd_cloexec(&parent, 0)
            .map_err(|errno| Error::system("duplicate", "a descriptor", errno, short_of_descriptors(errno)))?;
        let announce = async |name| self.send(&ToGuard::TmpBase { name }, &[place.as_fd()]).await;
        let made = Arc::new(TmpBase::make(parent, users.are_different(), announce).await?);
        self.send(&ToGuard::TmpBaseMade, &[made.as_fd()]).await?;
        let tmp = made.make_private_tmp(users.job)?;
        *base = Some(made);
        Ok((tmp, true))
    }

    /// Removes the private tmps of all its jobs. The guard, which does the same, must be gone.
    pub async fn remove_private_tmps(&self) {
        if let Some(base) = self.tmp_base.0.lock().await.take() {
            on_thread(move || {
                // An error is ignored: the report of each job names what could not be removed.
                let _ = base.remove();
            })
            .await;
        }
    }
}

/// Does blocking work in a thread of its own, and waits for its end. If no thread can be started, does it here.
pub(crate) async fn on_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, done) = oneshot::channel();
    let work = Arc::new(std::sync::Mutex::new(Some(work)));
    let take = |work: &std::sync::Mutex<Option<_>>| work.lock().ok().and_then(|mut work| work.take());
    let theirs = work.clone();
    let thread = std::thread::Builder::new().name("pinfold-remove".into()).spawn(move || {
        if let Some(work) = take(&theirs) {
            // The caller may have stopped waiting.
            let _ = sender.send(work());
        }
    });
    match thread {
        Ok(_) => done.await.ok(),
        Err(_) => take(&work).map(|work: _| work()),
    }
}

/// Removes the private tmps whose supervisor and guard are both gone, where this user's private tmps are made. It
/// yields to other tasks every few milliseconds, and ends after a time limit. If the future is dropped, the next sweep
/// does the rest.
pub(crate) async fn sweep() {
    let bound = Instant::now() + REMOVAL_TIME;
    for parent in Parent::all() {
        let Ok(candidates) = parent.candidates() else { continue };
        let mut until = Instant::now() + STEP;
        for name in candidates {
            if Instant::now() >= until {
                tokio::task::yield_now().await;
                until = Instant::now() + STEP;
            }
            // The lock is held until the directory is gone.
            let Some(abandoned) = name.and_then(|name| parent.claim(&name)) else { continue };
            let Ok(mut removal) = abandoned.removal() else { continue };
            while !removal.step(Some(Instant::now() + STEP)) {
                if Instant::now() >= bound {
                    return;
                }
                tokio::task::yield_now().await;
            }
            let _ = abandoned.remove_empty(&parent);
        }
    }
}

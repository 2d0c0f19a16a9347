//! The supervisor's end of the socket to its guard.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

#[cfg(feature = "cli")]
use rustix::event::{PollFd, PollFlags};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::net::{Shutdown, shutdown};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::guard_start::wait_until_ready;
use super::{orphans, socket};
use crate::error::{Error, Result, short_of_descriptors};
use crate::guard::protocol::{FromGuard, JobId, ToGuard};
use crate::guard::{Guard, Origin, protocol};
use crate::kernel::creator::Creator;
use crate::kernel::host::HostState;
#[cfg(feature = "cli")]
use crate::kernel::poll;
use crate::kernel::{pidfd, reap};
use crate::supervisor::delegation::NO_JOB;
use crate::supervisor::queue::{Receiver, Sender, queue};
use crate::supervisor::tmp_base::OnceTmpBase;
use crate::supervisor::watchdog;
use crate::supervisor::watchdog::{ExpectedAnswer, Watchdog};

/// pinfold waits this long for the end of a guard. Then it sends SIGCONT, because a job may have stopped the guard.
const RESUME_AFTER: Duration = Duration::from_secs(1);

/// A message from the guard to a job. The end of the channel means that the guard is lost.
pub(crate) type Answer = (FromGuard, Option<OwnedFd>);

type Routes = Arc<Mutex<Option<HashMap<JobId, Sender<Answer>>>>>;

/// Which process inherits the orphans of a killed guard.
#[derive(Debug)]
enum Inheritor {
    /// This process.
    Us,
    /// The outer guard, which ends the orphans and then exits.
    Outer(AsyncFd<OwnedFd>),
    /// A process that pinfold does not control.
    Other,
}

/// The connection to a guard that is ready.
#[derive(Debug)]
pub(crate) struct Link {
    socket: Arc<AsyncFd<OwnedFd>>,
    /// `None` once the guard is lost.
    routes: Routes,
    pidfd: Arc<AsyncFd<OwnedFd>>,
    watchdog: Arc<Watchdog>,
    /// The pid of the guard itself.
    pub pid: Pid,
    /// The process that inherits the orphans if the guard is killed.
    inheritor: Inheritor,
    origin: Mutex<Option<Origin>>,
    /// The attributes of this process when the guard was started.
    pub host: HostState,
    creator: Creator,
    /// The guard's processes, which belong to no job.
    _registered: orphans::RegisteredGuards,
    reader: Mutex<Option<tokio::task::JoinHandle<()>>>,
    pub(super) tmp_base: OnceTmpBase,
}

impl Link {
    /// Watches the guard. If the guard was executed, waits until it is ready.
    pub async fn connect(guard: Guard) -> Result<Self> {
        let Guard { socket, mut origin, host, creator } = guard;
        let io = |error: std::io::Error| Error::GuardStart(format!("cannot watch its socket: {error}"));
        let socket = Arc::new(crate::supervisor::watch::watched(socket, Interest::READABLE).map_err(io)?);
        let is_forked = matches!(origin, Origin::Forked { .. });
        let mut buffer = Vec::new();
        let mut known = Vec::new();
        let (pid, pidfd, inheritor) = match &mut origin {
            Origin::Forked { pid, inherits } => {
                let pidfd = pidfd_open(*pid, PidfdFlags::empty())
                    .map_err(|errno| Error::system("pidfd_open", "the guard", errno, protocol::pidfd_advice(errno)))?;
                (*pid, pidfd, if *inherits { Inheritor::Us } else { Inheritor::Other })
            }
            Origin::Executed { starter, program } => {
                let (pid, pidfd, outer_pid, outer) = wait_until_ready(&socket, &mut buffer, starter, program).await?;
                known.extend(outer_pid);
                let inheritor = match outer {
                    Some(outer) => {
                        Inheritor::Outer(crate::supervisor::watch::watched(outer, Interest::READABLE).map_err(io)?)
                    }
                    None => Inheritor::Other,
                };
                (pid, pidfd, inheritor)
            }
        };
        let pidfd = Arc::new(crate::supervisor::watch::watched(pidfd, Interest::READABLE).map_err(io)?);
        known.push(pid);
        let watchdog = Arc::new(Watchdog::new(pidfd.clone())?);
        if is_forked {
            // As late as possible: more messages follow soon, and the guard then wakes up once for all of them.
            protocol::greet(&*socket, false)?;
        }
        let routes: Routes = Arc::new(Mutex::new(Some(HashMap::new())));
        let reader = tokio::spawn(read(socket.clone(), pidfd.clone(), routes.clone(), buffer));
        Ok(Self {
            socket,
            routes,
            pidfd,
            watchdog,
            pid,
            inheritor,
            origin: Mutex::new(Some(origin)),
            host,
            creator,
            _registered: orphans::RegisteredGuards::new(known),
            reader: Mutex::new(Some(reader)),
            tmp_base: OnceTmpBase::default(),
        })
    }

    /// Checks that this process has room for a descriptor that the guard sends.
    pub fn check_free_descriptor(&self) -> Result<()> {
        fcntl_dupfd_cloexec(&*self.pidfd, 0).map(drop).map_err(|errno| {
            Error::system("keep a descriptor free", "for the main process", errno, short_of_descriptors(errno))
        })
    }

    /// Sends one message.
    pub async fn send(&self, message: &ToGuard, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
        socket::send(&self.socket, message, descriptors).await
    }

    /// Returns a queue of the guard's messages about `job` from now on.
    pub fn listen(&self, job: JobId) -> Result<Receiver<Answer>> {
        let (sender, receiver) = queue();
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        routes.as_mut().ok_or(Error::GuardLost)?.insert(job, sender);
        Ok(receiver)
    }

    /// Stops delivering messages about `job`.
    pub fn forget(&self, job: JobId) {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(routes) = routes.as_mut() {
            routes.remove(&job);
        }
    }

    /// Records that an answer of the guard is expected, until the returned value is dropped. If the answer is late, the
    /// watchdog sends SIGCONT to the guard.
    pub fn expect_answer(&self) -> ExpectedAnswer {
        self.watchdog.expect_answer()
    }

    /// Continues a guard that the job may have stopped.
    pub fn resume(&self) {
        watchdog::resume(&*self.pidfd);
    }

    /// Closes the connection to the guard, which then ends the remaining processes.
    pub fn disconnect(&self) {
        // shutdown(2) also works if a forked copy of this process holds the socket open.
        let _ = shutdown(self.socket.get_ref(), Shutdown::Both);
    }

    /// Waits until the guard is gone, after [`Self::disconnect`]. If the guard does not end within the time that it may
    /// take for its own work, kills the guard and returns `false`.
    pub async fn gone(&self) -> bool {
        let by_itself = self.ended().await;
        // The reader task has not yet read the end of the socket. Until then, it keeps the socket open, and the jobs do
        // not know of the end.
        let reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner).take();
        let ended = async {
            if let Some(reader) = reader {
                let _ = reader.await;
            }
            self.watchdog.end().await;
        };
        // This wait is bounded, because it is possible that no thread drives the link's runtime now.
        let _ = tokio::time::timeout(RESUME_AFTER, ended).await;
        by_itself
    }

    /// Waits until the guard is gone, as [`Self::gone`] does, but blocks this thread, and leaves every descriptor open.
    /// Returns `false` if the guard was not forked from this process, or does not end soon.
    #[cfg(feature = "cli")]
    pub fn gone_at_once(&self) -> bool {
        let mut origin = self.origin.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*origin, Some(Origin::Forked { .. })) {
            return false;
        }
        let mut pidfd = [PollFd::new(self.pidfd.get_ref(), PollFlags::IN)];
        let has_ended = poll::wait(&mut pidfd, Some(RESUME_AFTER)).unwrap_or(false);
        if has_ended {
            drop(origin.take());
        }
        has_ended
    }

    async fn ended(&self) -> bool {
        let bound = crate::guard::KILL_BOUND + Duration::from_secs(1);
        let copy = watched_here(&self.pidfd);
        let pidfd = copy.as_ref().unwrap_or(&self.pidfd);
        if tokio::time::timeout(RESUME_AFTER, pidfd.readable()).await.is_err() {
            watchdog::resume(pidfd);
        }
        let by_itself = tokio::time::timeout(bound, pidfd.readable()).await.is_ok();
        if !by_itself {
            let _ = pidfd::send_signal(self.pidfd.as_fd(), libc::SIGKILL);
            if tokio::time::timeout(Duration::from_secs(1), pidfd.readable()).await.is_err() {
                // SIGKILL has not ended the guard (state D), so a wait for its end might never return.
                std::mem::forget(self.origin.lock().unwrap_or_else(PoisonError::into_inner).take());
                return false;
            }
        }
        drop(self.origin.lock().unwrap_or_else(PoisonError::into_inner).take());
        reap::reap_by_pidfd(self.pidfd.as_fd());
        if let Inheritor::Outer(outer) = &self.inheritor {
            let copy = watched_here(outer);
            let _ = tokio::time::timeout(bound, copy.as_ref().unwrap_or(outer).readable()).await;
            reap::reap_by_pidfd(outer.as_fd());
        }
        by_itself
    }

    /// Returns whether this process inherits the orphans of a killed guard.
    pub fn is_inherited_by_us(&self) -> bool {
        matches!(self.inheritor, Inheritor::Us)
    }

    /// Waits until all orphans of a killed guard have ended. `found` receives those that become children of this
    /// process. Returns the processes that are left, or an error if these cannot be determined.
    pub async fn wait_for_orphans(
        &self,
        bound: Instant,
        found: impl FnMut(Pid),
    ) -> std::result::Result<Vec<Pid>, &'static str> {
        // After `disconnect` the guard may still run, and then it ends its descendants itself.
        let _ = tokio::time::timeout_at(bound.into(), self.pidfd.readable()).await;
        match &self.inheritor {
            Inheritor::Us => {
                let ended = orphans::end(bound, found).await;
                ended
                    .map_err(|_| "the guard was killed, and /proc does not show whether any of its descendants is left")
            }
            Inheritor::Outer(outer) => {
                // The outer guard has this time to end the orphans, and one second more to exit.
                let bound = bound.checked_add(Duration::from_secs(1)).unwrap_or(bound);
                match tokio::time::timeout_at(bound.into(), outer.readable()).await {
                    Ok(_) => Ok(Vec::new()),
                    Err(_) => Err("the guard was killed, and the outer guard did not end in time"),
                }
            }
            Inheritor::Other => Err("the guard was killed, and its descendants have another parent now"),
        }
    }
}

/// Returns a copy of the pidfd that the current runtime watches, because the link may belong to another runtime.
/// Returns `None` if no descriptor is available.
fn watched_here(pidfd: &AsyncFd<OwnedFd>) -> Option<AsyncFd<OwnedFd>> {
    crate::supervisor::watch::watched(fcntl_dupfd_cloexec(pidfd, 0).ok()?, Interest::READABLE).ok()
}

impl Drop for Link {
    fn drop(&mut self) {
        if self.creator.is_another_process() {
            self.creator.leak_in_forked_copy(&self.socket);
            self.creator.leak_in_forked_copy(&self.pidfd);
            self.creator.leak_in_forked_copy(&self.watchdog);
            std::mem::forget(std::mem::replace(&mut self.inheritor, Inheritor::Other));
            std::mem::forget(self.origin.get_mut().unwrap_or_else(PoisonError::into_inner).take());
            return;
        }
        self.disconnect();
        if let Some(reader) = self.reader.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            reader.abort();
        }
    }
}

/// Routes the guard's messages to the jobs, until the guard is gone: its socket ends, or its pidfd reports its end (a
/// forked copy of the guard would keep the socket open).
async fn read(socket: Arc<AsyncFd<OwnedFd>>, pidfd: Arc<AsyncFd<OwnedFd>>, routes: Routes, mut buffer: Vec<u8>) {
    loop {
        let received = tokio::select! {
            biased;
            received = socket::receive(&socket, &mut buffer) => received,
            _ = pidfd.readable() => Ok(None),
        };
        let mut routes = routes.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(Some((message, mut descriptors))) = received else {
            // If a message cannot be decoded, the connection ends too. The shutdown then makes the guard end all jobs.
            let _ = shutdown(socket.get_ref(), Shutdown::Both);
            *routes = None;
            return;
        };
        let job = match &message {
            FromGuard::Ready { .. } => continue,
            FromGuard::Moved { .. } => NO_JOB,
            FromGuard::Spawned { job, .. }
            | FromGuard::NotStarted { job }
            | FromGuard::SpawnFailed { job, .. }
            | FromGuard::Hangs { job, .. }
            | FromGuard::Stopped { job, .. }
            | FromGuard::Exited { job, .. }
            | FromGuard::Childless { job, .. }
            | FromGuard::Swept { job, .. } => *job,
        };
        if let Some(route) = routes.as_ref().and_then(|routes| routes.get(&job)) {
            // If the job no longer listens, it has ended, so the error is ignored.
            let _ = route.send((message, descriptors.pop()));
        }
    }
}

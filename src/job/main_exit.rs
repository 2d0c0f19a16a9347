//! The exit of the main process. The supervisor sees it at the same time as the guard, and does the work that follows
//! any exit while the guard reaps the process and reports its exit status.

use std::future::pending;
use std::sync::Arc;

use tokio::io::unix::AsyncFd;

use super::actor::Actor;
use crate::guard::protocol::ToGuard;
use crate::kernel::pidfd::Pidfd;
use crate::supervisor::containment::JobContainment;
use crate::supervisor::watch::SharedPidfd;

pub(super) struct MainExit(AsyncFd<SharedPidfd>);

impl MainExit {
    /// Watches the process. Returns `None` if it can't be watched: the guard reports the exit in any case.
    pub fn of(main: &Arc<Pidfd>) -> Option<Self> {
        crate::supervisor::watch::watched_pidfd(main.clone()).ok().map(Self)
    }

    /// Waits until the process has ended, whether or not it has been reaped (pidfd_open(2): from then on its descriptor
    /// is readable).
    pub async fn seen(&self) {
        if self.0.readable().await.is_err() {
            // The runtime is being shut down.
            pending().await
        }
    }
}

pub(super) async fn seen(main_exit: Option<&MainExit>) {
    match main_exit {
        Some(main_exit) => Box::pin(main_exit.seen()).await,
        None => pending().await,
    }
}

impl Actor {
    /// Reads the final usage of the job and removes its leaf, if no process is left in the leaf.
    pub(super) async fn look_ahead(&mut self) {
        self.main_exit = None;
        if self.containment.leaf().is_some_and(|leaf| leaf.populated() == Ok(false)) {
            self.clear_up();
            // The guard has usually reported the exit status by now.
            tokio::task::yield_now().await;
        }
        if self.answers.is_empty() {
            self.expect_answer();
        }
    }

    fn clear_up(&mut self) {
        self.usage = Some(Box::new(self.usage(self.config.measure_pressure)));
        if let JobContainment::Leaf(leaf) = &mut self.containment
            // The memory controller's files are still needed: only the exit status shows whether the OOM killer killed
            // the main process.
            && !leaf.has_controller("memory")
        {
            // If the leaf can't be removed yet, the actor tries again when the job is over.
            let _ = leaf.remove();
        }
    }

    /// Asks the guard to reap the main process now. No process is left in the leaf, so the guard need not wait for
    /// others first.
    pub(super) async fn request_reap(&mut self) {
        self.reap_requested = true;
        if self.main.is_some() {
            // If the message can't be sent, the guard is lost, and an event reports that.
            let _ = self.link.send(&ToGuard::Reap, &[]).await;
        }
    }

    /// Starts to expect an answer from the guard.
    pub(super) fn expect_answer(&mut self) {
        self.expected.get_or_insert_with(|| self.link.expect_answer());
    }
}

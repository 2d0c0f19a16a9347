//! The end of the main process, seen as soon as the guard sees it: what is to be done then anyway is done while the guard
//! reaps the process and tells how it ended.

use std::future::pending;
use std::sync::Arc;

use tokio::io::unix::AsyncFd;

use super::actor::Actor;
use crate::guard::protocol::{End, ToGuard};
use crate::kernel::pidfd::Pidfd;
use crate::kernel::signal::Signal;
use crate::report::MainEnd;
use crate::supervisor::containment::JobContainment;
use crate::supervisor::watch::SharedPidfd;

pub(super) struct MainExit(AsyncFd<SharedPidfd>);

impl MainExit {
    /// None where it can't be watched: the guard tells it all the same.
    pub fn of(main: &Arc<Pidfd>) -> Option<Self> {
        crate::supervisor::watch::watched_pidfd(main.clone()).ok().map(Self)
    }

    /// Waits until the process has ended, reaped or not (pidfd_open(2): its descriptor is readable from then on).
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
    /// Where nothing is left in the leaf, what the job has used is final, and nothing needs the leaf any more.
    pub(super) async fn look_ahead(&mut self) {
        self.main_exit = None;
        if self.containment.leaf().is_some_and(|leaf| leaf.populated() == Ok(false)) {
            self.clear_up();
            // By now the guard has told how it ended, as a rule.
            tokio::task::yield_now().await;
        }
        if self.answers.is_empty() {
            self.expect_answer();
        }
    }

    fn clear_up(&mut self) {
        self.usage = Some(Box::new(self.usage(self.config.measure_pressure)));
        if let JobContainment::Leaf(leaf) = &mut self.containment
            // Whether the main process was a victim is told by its end.
            && !leaf.has_controller("memory")
        {
            // Where it is not to be removed yet, that is tried again when the job is over.
            let _ = leaf.remove();
        }
    }

    /// Nothing runs in the leaf any more: the guard need not wait for others before it reaps the main process.
    pub(super) async fn request_reap(&mut self) {
        self.reap_requested = true;
        if self.main.is_some() {
            // A guard that can't be told is lost, which comes as an event.
            let _ = self.link.send(&ToGuard::Reap, &[]).await;
        }
    }

    /// The guard owes one.
    pub(super) fn expect_answer(&mut self) {
        self.expected.get_or_insert_with(|| self.link.expect_answer());
    }
}

/// As a report has it.
pub(super) fn main_end(end: End) -> MainEnd {
    match end {
        End::Exited { code } => MainEnd::Exited(code),
        End::Signalled { signal, core_dumped } => MainEnd::Signalled {
            signal,
            name: Signal::from_number(signal).map_or_else(|| signal.to_string(), |signal| signal.to_string()),
            core_dumped,
        },
    }
}

//! The exit of the main process. The supervisor notices it through the pidfd, before the guard has reaped the process
//! and reported its exit status.

use std::future::pending;
use std::sync::Arc;

use tokio::io::unix::AsyncFd;

use crate::kernel::pidfd::Pidfd;
use crate::supervisor::watch::SharedPidfd;

pub(super) struct MainExit(AsyncFd<SharedPidfd>);

impl MainExit {
    /// Watches the process. Returns `None` if it can't be watched: the guard reports the exit in any case.
    pub fn of(main: &Arc<Pidfd>) -> Option<Self> {
        crate::supervisor::watch::watched_pidfd(main.clone()).ok().map(Self)
    }

    /// Waits until the process has ended: from then on its pidfd is readable, whether or not the process has been
    /// reaped (pidfd_open(2)).
    pub async fn wait(&self) {
        if self.0.readable().await.is_err() {
            // The runtime is being shut down.
            pending().await
        }
    }
}

pub(super) async fn wait_for_exit(main_exit: Option<&MainExit>) {
    match main_exit {
        Some(main_exit) => Box::pin(main_exit.wait()).await,
        None => pending().await,
    }
}

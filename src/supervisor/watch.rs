//! Descriptors that a tokio runtime waits for.

#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::kernel::pidfd::Pidfd;

/// Makes tokio's current runtime watch this descriptor.
///
/// # Panics
/// Panics outside of a tokio runtime.
pub fn watched(fd: OwnedFd, interest: Interest) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd keeps its one descriptor open for as long as the AsyncFd owns it.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(Into::into)
}

/// Makes tokio's current runtime watch a descriptor that has other users too.
///
/// # Panics
/// Panics outside of a tokio runtime.
pub fn watched_shared(fd: Arc<OwnedFd>, interest: Interest) -> std::io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: the Arc keeps its one descriptor open for as long as the AsyncFd owns it.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(Into::into)
}

/// A pidfd that has other users too.
pub struct SharedPidfd(Arc<Pidfd>);

impl AsRawFd for SharedPidfd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Makes tokio's current runtime watch a shared pidfd.
///
/// # Panics
/// Panics outside of a tokio runtime.
pub fn watched_pidfd(pidfd: Arc<Pidfd>) -> std::io::Result<AsyncFd<SharedPidfd>> {
    // SAFETY: the Arc keeps the pidfd open as long as the AsyncFd owns it, and its descriptor never changes.
    unsafe { AsyncFd::register_with_interest(SharedPidfd(pidfd), Interest::READABLE) }.map_err(Into::into)
}

impl Pidfd {
    /// Waits until the process has ended, reaped or not.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// The error of epoll_ctl(2), if the runtime cannot watch the pidfd.
    ///
    /// # Panics
    /// Panics outside of a tokio runtime.
    pub async fn ended(self: Arc<Self>) -> std::io::Result<()> {
        watched_pidfd(self)?.readable().await.map(drop)
    }
}

//! The process that started `pinfold serve`. Its end is the end of all jobs: other processes, its workers for instance, may keep the
//! pipe open that is our standard input.

use std::pin::Pin;
use std::sync::Arc;

use anyhow::{Context, Result};
use pinfold::pidfd::Pidfd;
use rustix::io::Errno;
use rustix::process::getppid;

/// The parent process, held by a pidfd. Not by PR_SET_PDEATHSIG, which is sent when the *thread* that started us ends
/// (PR_SET_PDEATHSIG(2const)).
pub enum Parent {
    /// It has a process outside of our PID namespace as parent, or none: only the end of the input is seen.
    Unknown,
    Known(Pidfd),
    Ended,
}

impl Parent {
    /// Opens the parent. Call it first: a parent that has ended before is seen as the process that has adopted us.
    ///
    /// # Errors
    /// The errno of pidfd_open(2).
    pub fn open() -> Result<Self> {
        // 0 where it is not in our PID namespace (getppid(2)).
        let Some(pid) = getppid() else { return Ok(Self::Unknown) };
        match Pidfd::open(pid) {
            // Only while it is still our parent is the pid not another process's by now.
            Ok(parent) if getppid() == Some(pid) => Ok(Self::Known(parent)),
            Ok(_) | Err(Errno::SRCH) => Ok(Self::Ended),
            Err(errno) => {
                Err(errno).with_context(|| format!("cannot open a pidfd of the parent process {pid}, to see its end"))
            }
        }
    }

    /// Waits for its end from now on. In the context of a runtime.
    pub fn watch(self) -> WatchedParent {
        match self {
            Self::Unknown => WatchedParent::Unknown,
            Self::Ended => WatchedParent::Ended,
            Self::Known(pidfd) => {
                let parent = Arc::new(pidfd);
                WatchedParent::Known(Box::pin(async move {
                    if parent.ended().await.is_err() {
                        // The end of the input is still seen.
                        std::future::pending().await
                    }
                }))
            }
        }
    }
}

/// The same, as the runtime waits for it.
pub enum WatchedParent {
    Unknown,
    Known(Pin<Box<dyn Future<Output = ()>>>),
    Ended,
}

impl WatchedParent {
    /// Waits for its end, once. Cancel-safe.
    pub async fn end(&mut self) {
        if let Self::Known(end) = self {
            end.await;
            *self = Self::Ended;
            return;
        }
        std::future::pending().await
    }
}

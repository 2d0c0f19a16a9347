//! The process that started `pinfold serve`. When it ends, pinfold ends all jobs. Watching standard input is not
//! enough: other processes, such as the workers of that process, may keep the pipe open that is pinfold's standard
//! input.

use std::pin::Pin;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::process::getppid;

use crate::kernel::pidfd::Pidfd;

/// The parent process, watched through a pidfd. PR_SET_PDEATHSIG is not usable: the kernel sends that signal when the
/// *thread* that started pinfold ends (PR_SET_PDEATHSIG(2const)).
pub enum Parent {
    /// The parent is outside of pinfold's PID namespace, or there is no parent. pinfold notices only the end of the
    /// input.
    Unknown,
    Known(Pidfd),
    Ended,
}

impl Parent {
    /// Opens a pidfd of the parent. Call it first: if the parent has ended before this call, another process has become
    /// pinfold's parent, and pinfold would mistake it for the one that started pinfold.
    ///
    /// # Errors
    /// The errno of pidfd_open(2).
    pub fn open() -> Result<Self> {
        // `None` stands for 0: the parent is not in pinfold's PID namespace (getppid(2)).
        let Some(pid) = getppid() else { return Ok(Self::Unknown) };
        match Pidfd::open(pid) {
            // The pidfd is that of the parent only if the parent is still the same: otherwise its pid may have been
            // reused.
            Ok(parent) if getppid() == Some(pid) => Ok(Self::Known(parent)),
            Ok(_) | Err(Errno::SRCH) => Ok(Self::Ended),
            Err(errno) => Err(errno)
                .with_context(|| format!("cannot open a pidfd of the parent process {pid}, to be notified of its end")),
        }
    }

    /// Starts to watch the parent. Call it in the context of a runtime.
    pub fn watch(self) -> WatchedParent {
        match self {
            Self::Unknown => WatchedParent::Unknown,
            Self::Ended => WatchedParent::Ended,
            Self::Known(pidfd) => {
                let parent = Arc::new(pidfd);
                WatchedParent::Known(Box::pin(async move {
                    if parent.ended().await.is_err() {
                        // pinfold still notices the end of the input.
                        std::future::pending().await
                    }
                }))
            }
        }
    }
}

/// The parent process, as the runtime watches it.
pub enum WatchedParent {
    Unknown,
    Known(Pin<Box<dyn Future<Output = ()>>>),
    Ended,
}

impl WatchedParent {
    /// Waits for the end of the parent. The second call waits forever. Cancel-safe.
    pub async fn end(&mut self) {
        if let Self::Known(end) = self {
            end.await;
            *self = Self::Ended;
            return;
        }
        std::future::pending().await
    }
}

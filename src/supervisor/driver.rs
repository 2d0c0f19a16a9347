//! The tokio runtime that a supervisor runs in: the caller's, or one of pinfold's own, in a thread.

use std::io;
use std::sync::Arc;

use rustix::io::Errno;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::error::{Error, Result};
use crate::kernel::creator::Creator;

/// A runtime. If it is pinfold's own, its thread ends with the last clone.
#[derive(Clone, Debug)]
pub(crate) struct Driver {
    pub handle: Handle,
    alive: Option<Arc<Alive>>,
}

#[derive(Debug)]
struct Alive {
    end: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    creator: Creator,
}

impl Drop for Alive {
    fn drop(&mut self) {
        let (end, thread) = (self.end.take(), self.thread.take());
        if self.creator.is_another_process() {
            // A forked copy does not have this thread (fork(2)).
            return std::mem::forget((end, thread));
        }
        drop(end);
        // The thread itself may drop this value, because the runtime may hold a closure that contains it. The thread
        // must not wait for itself.
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != std::thread::current().id()) {
            // Nothing keeps the thread running any more, so this wait is short.
            let _ = thread.join();
        }
    }
}

impl Driver {
    /// Returns the caller's runtime; `None` outside of a runtime.
    pub fn current() -> Option<Self> {
        Handle::try_current().ok().map(|handle| Self { handle, alive: None })
    }

    /// Starts a runtime of pinfold's own.
    pub fn start() -> Result<Self> {
        let failed = |error: io::Error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            Error::system("start", "the thread that drives pinfold", errno, "see ulimit -u and ulimit -n")
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let handle = runtime.handle().clone();
        let (alive, over) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new()
            .name("pinfold".into())
            .spawn(move || drop(runtime.block_on(over)))
            .map_err(failed)?;
        let alive = Alive { end: Some(alive), thread: Some(thread), creator: Creator::current_process() };
        Ok(Self { handle, alive: Some(Arc::new(alive)) })
    }

    /// Returns whether it is possible that no thread drives the runtime now: it has no threads of its own, and the
    /// caller is not in a runtime.
    pub fn may_be_undriven(&self) -> bool {
        let no_threads = self.handle.runtime_flavor() == RuntimeFlavor::CurrentThread && self.alive.is_none();
        no_threads && Handle::try_current().is_err()
    }

    /// Runs the future in a task of the runtime, and waits for it in any executor. Dropping the returned future ends
    /// the task, and drops its result. Returns `None` if the runtime has been shut down.
    pub async fn run<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> Option<T> {
        let mut task = JoinSet::new();
        task.spawn_on(future, &self.handle);
        match task.join_next().await? {
            Ok(done) => Some(done),
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => None,
        }
    }

    /// Waits for the future in this thread.
    pub fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.handle.block_on(future)
    }

    /// Waits for the future in the current task, in any executor. This runtime drives the timers and descriptors that
    /// the future waits for.
    #[cfg(feature = "cli")]
    pub async fn inside<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = std::pin::pin!(future);
        std::future::poll_fn(|context| {
            let _entered = self.handle.enter();
            future.as_mut().poll(context)
        })
        .await
    }
}

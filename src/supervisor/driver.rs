//! The runtime of tokio's that something runs in: that of the caller, or one of our own, in a thread.

use std::io;
use std::pin::pin;
use std::sync::Arc;

use rustix::io::Errno;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::oneshot;

use crate::error::{Error, Result};
use crate::kernel::maker::Maker;

/// A runtime. Its thread, where it is one of our own, ends with the last clone.
#[derive(Clone, Debug)]
pub(crate) struct Driver {
    pub handle: Handle,
    alive: Option<Arc<Alive>>,
}

#[derive(Debug)]
struct Alive {
    end: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    maker: Maker,
}

impl Drop for Alive {
    fn drop(&mut self) {
        let (end, thread) = (self.end.take(), self.thread.take());
        if self.maker.is_elsewhere() {
            // A forked copy has no such thread (fork(2)).
            return std::mem::forget((end, thread));
        }
        drop(end);
        // That thread itself may drop it, with a closure that the runtime held, and is not to wait for itself.
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != std::thread::current().id()) {
            // It has nothing left to wait for.
            let _ = thread.join();
        }
    }
}

impl Driver {
    /// The caller's runtime; `None` outside of any.
    pub fn current() -> Option<Self> {
        Handle::try_current().ok().map(|handle| Self { handle, alive: None })
    }

    /// A runtime of our own.
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
        let alive = Alive { end: Some(alive), thread: Some(thread), maker: Maker::here() };
        Ok(Self { handle, alive: Some(Arc::new(alive)) })
    }

    /// Whether nothing may drive it now: it has no threads, and the caller is in no runtime.
    pub fn may_stand_still(&self) -> bool {
        let no_threads = self.handle.runtime_flavor() == RuntimeFlavor::CurrentThread && self.alive.is_none();
        no_threads && Handle::try_current().is_err()
    }

    /// Waits for it in this thread.
    pub fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.handle.block_on(future)
    }

    /// Waits for it in this task, of whatever executor: what it waits for is the runtime's to report.
    pub async fn inside<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        std::future::poll_fn(|context| {
            let _entered = self.handle.enter();
            future.as_mut().poll(context)
        })
        .await
    }
}

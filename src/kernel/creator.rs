//! Records which process made a value, for values whose drop has effects outside of this process: it ends processes,
//! removes directories, or changes the epoll instance of a runtime.
//!
//! A forked process has copies of all such values and of their descriptors (fork(2)). If it dropped a copy, it would
//! shut down the socket to the guard, or remove descriptors from the runtime's epoll instance, which both processes
//! share. Therefore a drop in another process does nothing.

use rustix::process::{Pid, getpid};

/// The process that made a value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Creator(Pid);

impl Creator {
    /// Returns this process as the creator.
    pub fn current_process() -> Self {
        Self(getpid())
    }

    /// Returns whether the creator is another process. This process is then a forked copy of it.
    pub fn is_another_process(self) -> bool {
        self.0 != getpid()
    }

    /// In a forked copy of the process, leaks one clone of `shared`, so that its value is never dropped there.
    pub fn leak_in_forked_copy<T: Clone>(self, shared: &T) {
        if self.is_another_process() {
            std::mem::forget(shared.clone());
        }
    }
}

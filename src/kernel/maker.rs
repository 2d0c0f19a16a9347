//! Records which process made a value, for values whose drop has effects outside of this process: it ends processes,
//! removes directories, or changes the epoll instance of a runtime.
//!
//! A forked process has copies of all such values and of their descriptors (fork(2)). If it dropped a copy, it would
//! shut down the socket to the guard, or remove descriptors from the runtime's epoll instance, which both processes
//! share. Therefore a drop in another process does nothing.

use rustix::process::{Pid, getpid};

/// The process that made a value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Maker(Pid);

impl Maker {
    /// Returns this process as the maker.
    pub fn here() -> Self {
        Self(getpid())
    }

    /// Returns whether this process is a forked copy of the maker.
    pub fn is_elsewhere(self) -> bool {
        self.0 != getpid()
    }

    /// In a forked copy of the process, leaks one clone of `shared`, so that its value is never dropped there.
    pub fn keep_elsewhere<T: Clone>(self, shared: &T) {
        if self.is_elsewhere() {
            std::mem::forget(shared.clone());
        }
    }
}

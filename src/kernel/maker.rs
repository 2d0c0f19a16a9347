//! Records which process made a value that has effects outside of the process when it is dropped: it ends processes,
//! removes directories or takes part in a runtime.
//!
//! A forked process has copies of all such values, and of the descriptors (fork(2)). A copy that shuts down the socket
//! to the guard, or leaves the epoll instance of the runtime, would affect the original. Therefore a drop in another
//! process does nothing.

use rustix::process::{Pid, getpid};

/// The process that made a value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Maker(Pid);

impl Maker {
    /// Returns this process.
    pub fn here() -> Self {
        Self(getpid())
    }

    /// Returns whether this process is a forked copy of the maker.
    pub fn is_elsewhere(self) -> bool {
        self.0 != getpid()
    }

    /// In a forked copy, prevents `shared` from ever being dropped, whatever the number of its clones.
    pub fn keep_elsewhere<T: Clone>(self, shared: &T) {
        if self.is_elsewhere() {
            std::mem::forget(shared.clone());
        }
    }
}

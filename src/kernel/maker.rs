//! Which process has made something that ends processes, removes directories or takes part in a runtime when it is dropped.
//!
//! A process that is forked has copies of all of it, and of the descriptors (fork(2)): a copy that shut the socket to the guard
//! down, or left the epoll instance of the runtime, would do that to the original. So in another process a drop does nothing.

use rustix::process::{Pid, getpid};

/// The process that has made something.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Maker(Pid);

impl Maker {
    /// This process.
    pub fn here() -> Self {
        Self(getpid())
    }

    /// Whether this process is a forked copy of the maker.
    pub fn is_elsewhere(self) -> bool {
        self.0 != getpid()
    }

    /// In a forked copy, keeps `shared` from ever being dropped, however many clones of it are.
    pub fn keep_elsewhere<T: Clone>(self, shared: &T) {
        if self.is_elsewhere() {
            std::mem::forget(shared.clone());
        }
    }
}

//! Explains what a sandbox refuses: which path, port, process or system call, and which option would grant it.
//!
//! The kernel asks pinfold about each call that Landlock or a filter can refuse (see `program`). A thread of pinfold
//! (`listener`) looks at the arguments and works out what the kernel will do; for most calls it lets the kernel go on,
//! with all of the kernel's own checks. A call that would fail without a sandbox too, such as an open of a file that does
//! not exist, is no refusal.

mod caller;
mod calls;
mod explainer;
mod files;
mod listener;
mod lookup;
mod processes;
mod program;
mod programs;
mod record;
mod refusals;
mod sockets;
mod text;

pub use explainer::Explainer;
pub use listener::{Explanation, channel};
pub use processes::Members;
#[cfg(test)]
pub use record::Record;

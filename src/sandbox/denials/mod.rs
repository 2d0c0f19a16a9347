//! Explains what a sandbox refuses: which path, port, process or system call, and which option would grant it.
//!
//! A *denial* is a system call that fails only because of the sandbox. A call that would also fail without a sandbox,
//! such as an open of a file that does not exist, is no denial.
//!
//! The kernel notifies pinfold of each call that Landlock or a filter can refuse (`notify_filter`). A thread of pinfold
//! (`listener`) reads the arguments of the call and predicts whether the kernel will refuse it. It then lets the kernel
//! continue the call, with all of the kernel's own checks. Only a call that pinfold's own filter forbids gets its error
//! from this thread.

mod caller;
mod calls;
mod executables;
mod explainer;
mod files;
mod filter_denials;
mod listener;
mod lookup;
mod notify_filter;
mod processes;
mod record;
mod sockets;
mod text;

pub use explainer::Explainer;
pub use listener::{DenialListener, channel};
pub use processes::Members;
#[cfg(test)]
pub use record::Record;

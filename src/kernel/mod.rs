//! One file for each kernel concept, with safe wrappers of its calls. No policy, no runtime.

pub(crate) mod descriptor;
pub(crate) mod fork;
pub(crate) mod host;
pub(crate) mod inherited;
pub(crate) mod maker;
pub mod mount;
pub(crate) mod oom_score;
pub mod pidfd;
pub(crate) mod poll;
pub(crate) mod process;
pub(crate) mod pty;
pub(crate) mod reap;
pub(crate) mod rlimit;
pub(crate) mod same_file;
pub(crate) mod scan;
pub mod signal;
pub(crate) mod signal_set;
pub(crate) mod size;
pub(crate) mod socket;
pub(crate) mod syscall;
pub(crate) mod user;
pub(crate) mod wake;

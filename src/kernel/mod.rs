//! One file for each kernel concept, with safe wrappers of its calls. No policy, no runtime.

pub(crate) mod host;
pub(crate) mod inherited;
pub(crate) mod landlock;
pub(crate) mod maker;
pub mod mount;
pub(crate) mod oom_score;
pub mod pidfd;
pub(crate) mod process;
pub(crate) mod pty;
pub(crate) mod raw;
pub(crate) mod reap;
pub(crate) mod rlimit;
pub(crate) mod same_file;
pub(crate) mod scan;
pub(crate) mod seccomp;
pub(crate) mod short_child;
pub mod signal;
pub(crate) mod size;
pub(crate) mod sys;
pub(crate) mod user;
pub(crate) mod wake;

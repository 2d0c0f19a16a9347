//! Services: jobs that are kept running, with readiness, dependencies and restarts.

#[allow(dead_code)]
mod env_file;
mod listen;
#[allow(dead_code)]
mod log;
#[allow(dead_code)]
mod notify;
#[allow(dead_code)]
mod ready;

pub use listen::Listen;

//! Services: jobs that are kept running, with readiness, dependencies and restarts.

mod env_file;
mod listen;
mod log;
mod notify;
mod ready;

pub use listen::Listen;

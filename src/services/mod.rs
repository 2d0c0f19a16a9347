//! Services: jobs that are kept running, with readiness, dependencies and restarts.

#[allow(dead_code, unused_imports)]
mod env_file;
#[allow(dead_code, unused_imports)]
mod listen;
#[allow(dead_code, unused_imports)]
mod log;
#[allow(dead_code, unused_imports)]
mod notify;
#[allow(dead_code, unused_imports)]
mod ready;

pub use listen::Listen;

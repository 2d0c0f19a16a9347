//! Services: jobs that are kept running, with readiness, dependencies and restarts.
//!
//! [`Services`] runs them. A [`Service`] says what to run and when; a [`ServiceFile`] reads services from `pinfold.toml` or
//! from a Procfile. `pinfold up` uses nothing else.
//!
//! - A new instance of a service starts only after proof that no process of the old one is left.
//! - A service that becomes a daemon stays in its job, and is stopped with it.
//! - When the program that runs the services is killed, its guard ends all of them.

mod config;
mod env_file;
mod events;
mod file;
mod graph;
mod listen;
mod log;
mod machine;
mod notices;
mod notify;
mod output;
mod procfile;
mod ready;
mod ready_by;
mod run;
mod state;
mod supervise;

pub use config::{Condition, Restart, RestartPolicy, Service};
pub use events::{ServiceEvent, ServiceEventKind, ServiceEvents, ServiceStatus};
pub use file::ServiceFile;
pub use listen::Listen;
pub use log::{FollowedLog, LogFile, LogFollower};
pub use machine::{Failure, State};
pub use output::{Follow, OutputLine, OutputLines};
pub use ready_by::Ready;
pub use supervise::{Services, ServicesBuilder};

//! Runs attempts of programs in prepared sandboxes, each as the users that a job can have.

mod build;
mod launch;
mod run;
mod scratch;
mod table;
mod users;
mod victim;

pub use build::program;
pub use run::Run;
pub use scratch::Scratch;
pub use table::{Nothing, Outside, Table};
pub use users::{As, is_root, users};
pub use victim::Victim;

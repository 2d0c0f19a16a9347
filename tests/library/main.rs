//! Programs that use the library.

#[path = "../support/mod.rs"]
mod support;

mod embedding;
mod guard_start;
mod host;
mod host_changes;
mod output;
mod process_names;

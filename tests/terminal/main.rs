//! Terminals and signals.

#[path = "../support/mod.rs"]
mod support;

mod job_control;
mod keys;
mod pty;
mod received_signals;
mod signals;

//! Pools: of the library and of `pinfold pool`.

#[path = "../support/mod.rs"]
mod support;

mod cli;
mod ends;
mod input;
mod output;
mod results;
mod tasks;

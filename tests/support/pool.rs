//! `pinfold pool` in tests.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use super::{PINFOLD, Ran, Run, Running};

/// Starts `pinfold pool ARGS` under the warden, with these jobs.
pub fn start(args: &[&str], jobs: &str) -> Running {
    let mut run = Run::bare([PINFOLD, "pool"].iter().chain(args));
    run.command().stdin(Stdio::piped());
    let mut running = run.start();
    let mut stdin = running.child.stdin.take().unwrap();
    // A pool that has refused its options reads nothing.
    let _ = stdin.write_all(jobs.as_bytes());
    running
}

pub fn pool(args: &[&str], jobs: &str) -> Ran {
    start(args, jobs).finish()
}

/// Returns the values of a JSON file with one value in a line.
pub fn lines(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

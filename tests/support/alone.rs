//! Runs a test in a process of its own, which may change itself: its rights, its environment, its descriptors.

use std::process::Command;

use super::harness::{ONE, running};

/// The case for which this process was started again.
const CASE: &str = "PINFOLD_TEST_CASE";

/// Returns the case in its own process, and `None` in the process that runs all tests.
pub fn case() -> Option<String> {
    std::env::var(CASE).ok()
}

/// Runs this test again for a case, with no guard program but its own, and returns what it printed.
pub fn alone(case: &str, prepare: impl FnOnce(&mut Command)) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([ONE, running()]).env(CASE, case);
    command.env("PATH", "/usr/bin:/bin").env_remove("PINFOLD_GUARD");
    prepare(&mut command);
    let output = command.output().unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

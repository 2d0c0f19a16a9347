//! A process that a job must not reach.

#![allow(unsafe_code)]

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use super::users::{NOBODY, is_root};

/// A process of the job's user, outside of any sandbox. It ends when this value is dropped.
pub struct Victim(Child);

impl Victim {
    pub fn new() -> Self {
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0);
        if is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        Self(command.spawn().unwrap())
    }

    pub fn pid(&self) -> String {
        self.0.id().to_string()
    }

    /// Stops the process with SIGSTOP, and waits until it has stopped.
    pub fn stop(&self) {
        let pid = self.0.id() as libc::pid_t;
        // SAFETY: signals and waits for our own child, which stays a child.
        unsafe {
            assert_eq!(libc::kill(pid, libc::SIGSTOP), 0);
            assert_eq!(libc::waitpid(pid, std::ptr::null_mut(), libc::WUNTRACED), pid);
        }
    }

    /// Returns the letter of the process's state (proc_pid_stat(5)).
    pub fn state(&self) -> char {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        stat.rsplit(')').next().unwrap().trim_start().chars().next().unwrap()
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

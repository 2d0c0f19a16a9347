//! `pinfold watch` under a warden, and the lines that it and its command print.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use super::{PINFOLD, Ran, Run, Running};

/// How long an expected line may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// The debounce time after a burst of changes. It is long, so that a machine that pauses for a moment does not split
/// one burst into two.
pub const DEBOUNCE: &str = "400ms";
/// Within this time a further restart would have happened.
const QUIET: Duration = Duration::from_millis(700);

/// A part of the message about a command that writes what it watches. The functions here skip that message: some tests
/// change one file three times in a second, as such a command does. Another test covers the message.
pub const REPEATS: &str = "never end";

/// `pinfold watch` on a directory, and what it and its command print.
pub struct Watched {
    pub running: Running,
    pub stdout: Receiver<String>,
    pub stderr: Receiver<String>,
}

fn lines(stream: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    lines
}

impl Watched {
    pub fn start(directory: &Path, options: &[&str], command: &[&str]) -> Self {
        Self::start_in("auto", directory, options, command)
    }

    pub fn start_in(containment: &str, directory: &Path, options: &[&str], command: &[&str]) -> Self {
        let mut run = Run::bare([&[PINFOLD, "watch"], options, &["--"], command].concat());
        run.command().current_dir(directory).env("PINFOLD_CONTAINMENT", containment);
        Self::of(run)
    }

    /// Starts any call of `pinfold watch`.
    pub fn of(mut run: Run) -> Self {
        run.command().stdin(Stdio::piped());
        let mut running = run.start();
        let stdout = lines(running.child.stdout.take().unwrap());
        let stderr = lines(running.child.stderr.take().unwrap());
        Self { running, stdout, stderr }
    }

    pub fn out(&self) -> String {
        self.stdout.recv_timeout(PATIENCE).expect("a line on standard output")
    }

    /// Returns what pinfold prints, without its name.
    pub fn said(&self) -> String {
        let mut line = String::from(REPEATS);
        while line.contains(REPEATS) {
            line = self.stderr.recv_timeout(PATIENCE).expect("a line on standard error");
        }
        line.strip_prefix("pinfold: ").expect(&line).to_owned()
    }

    /// Asserts that no more output comes, within the time in which it would come.
    pub fn assert_quiet(&self) {
        assert_eq!(self.stdout.recv_timeout(QUIET), Err(RecvTimeoutError::Timeout));
        assert_eq!(self.stderr.try_iter().find(|line| !line.contains(REPEATS)), None);
    }

    /// Asserts that the command runs again, whatever pinfold prints.
    pub fn assert_restart(&self, action: &str) {
        assert_eq!(self.stdout.recv_timeout(PATIENCE).as_deref(), Ok("up"), "{action}");
        while self.stderr.try_recv().is_ok() {}
    }

    /// Skips the further restarts that one action caused. No event shows which of them is the last one.
    pub fn skip_restarts(&self, action: &str) {
        while let Ok(line) = self.stdout.recv_timeout(QUIET) {
            assert_eq!(line, "up", "{action}");
        }
        while self.stderr.try_recv().is_ok() {}
    }

    /// Runs a script while pinfold is stopped (SIGSTOP), so that pinfold sees all changes at once: on a busy machine, more
    /// than the debounce time can pass between two of them.
    pub fn change_at_once(&self, directory: &Path, script: &str) {
        let pid = self.running.pinfold_pid();
        shell(directory, &format!("kill -STOP {pid}; {script}; kill -CONT {pid}"));
    }

    pub fn assert_one_restart(&self, action: &str) -> String {
        assert_eq!(self.out(), "up", "{action}");
        let said = self.said();
        assert!(said.contains("changed") && said.ends_with("; starting again"), "{action}: {said}");
        self.assert_quiet();
        said
    }

    pub fn keys(&mut self, keys: &str) {
        self.running.child.stdin.as_mut().unwrap().write_all(keys.as_bytes()).unwrap();
    }

    /// Ends it with SIGTERM.
    pub fn end(self) -> Ran {
        self.running.signal(libc::SIGTERM);
        self.running.finish().assert_code(143)
    }
}

pub fn shell(directory: &Path, script: &str) {
    let done = Command::new("bash").args(["-ec", script]).current_dir(directory).output().unwrap();
    assert!(done.status.success(), "{script}: {done:?}");
}

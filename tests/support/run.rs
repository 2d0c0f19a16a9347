//! Runs pinfold under a warden that counts survivors: how it is started, its input, and its result.

use std::fmt::Write as _;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{PINFOLD, Scratch, program, wait_for};

/// A `pinfold run` that will run under a warden.
pub struct Run {
    command: Command,
    survivors: Scratch,
    report: Scratch,
}

/// The result of a run.
#[derive(Debug)]
pub struct Ran {
    /// The exit code, or 128 plus the signal that ended pinfold itself.
    pub code: i32,
    /// The signal that ended pinfold itself.
    pub signal: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    /// `Null` if there is no report.
    pub report: serde_json::Value,
    /// The processes that still lived when pinfold had returned. If this is not empty, promise 1 is broken.
    pub survivors: String,
    pub elapsed: std::time::Duration,
}

impl Run {
    /// `pinfold run --report … OPTIONS -- COMMAND`; everything after the options is passed unchanged.
    pub fn new<I: IntoIterator<Item: AsRef<std::ffi::OsStr>>>(args: I) -> Self {
        let mut run = Self::bare([PINFOLD, "run", "--report"]);
        run.command.arg(run.report.path()).args(args);
        run
    }

    /// The same from a shell script, which can prepare the environment of pinfold. `"$@"` in it is the call of pinfold.
    pub fn in_shell<I: IntoIterator<Item: AsRef<std::ffi::OsStr>>>(script: &str, args: I) -> Self {
        let mut run = Self::bare(["bash", "-c", script, "bash", PINFOLD, "run", "--report"]);
        run.command.arg(run.report.path()).args(args);
        run
    }

    /// Any command under the warden, without a report.
    pub fn bare<I: IntoIterator<Item: AsRef<std::ffi::OsStr>>>(words: I) -> Self {
        let survivors = Scratch::new("survivors");
        let mut command = Command::new(program("warden"));
        command.arg(survivors.path()).args(words);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { command, survivors, report: Scratch::new("report") }
    }

    /// Returns the command, to change its environment, streams, user…
    pub fn command(&mut self) -> &mut Command {
        &mut self.command
    }

    pub fn start(mut self) -> Running {
        let begun = std::time::Instant::now();
        let child = self.command.spawn().unwrap();
        Running { child, survivors: self.survivors, report: self.report, begun }
    }

    /// Runs it, and asserts that nothing is left.
    pub fn run(self) -> Ran {
        self.start().finish()
    }
}

/// A running pinfold.
pub struct Running {
    pub child: Child,
    survivors: Scratch,
    report: Scratch,
    begun: std::time::Instant,
}

impl Running {
    /// Sends a signal to the warden, which forwards TERM, INT, HUP and QUIT to pinfold.
    pub fn signal(&self, signal: i32) {
        // SAFETY: signals our own child, not reaped yet.
        #[allow(unsafe_code)]
        let done = unsafe { libc::kill(self.child.id() as i32, signal) };
        assert_eq!(done, 0);
    }

    /// Returns the next line of standard output, without its newline, or an empty string at the end. Tests wait for the
    /// lines of the job.
    pub fn line(&mut self) -> String {
        next_line(self.child.stdout.as_mut().expect("standard output is piped"))
    }

    /// Returns the next line of standard error.
    pub fn error_line(&mut self) -> String {
        next_line(self.child.stderr.as_mut().expect("standard error is piped"))
    }

    /// Returns the pid of pinfold itself: at first it is the warden's only child.
    pub fn pinfold_pid(&self) -> i32 {
        wait_for(|| {
            let id = self.child.id();
            let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
            children.split_whitespace().find_map(|pid| {
                let exe = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
                (exe == Path::new(PINFOLD)).then(|| pid.parse().unwrap())
            })
        })
    }

    /// Waits until it ends, but not longer than this.
    pub fn ends_within(&self, time: Duration) -> bool {
        let pid = Pid::from_raw(self.child.id() as i32).unwrap();
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let time = Timespec::try_from(time).unwrap();
        poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&time)).unwrap() == 1
    }

    /// Waits until it ends, and asserts that nothing is left: no process, no directory.
    pub fn finish(mut self) -> Ran {
        let (out, err) = (self.child.stdout.take(), self.child.stderr.take());
        let drain = |stream: Option<Box<dyn Read + Send>>| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                if let Some(mut stream) = stream {
                    let _ = stream.read_to_end(&mut bytes);
                }
                String::from_utf8_lossy(&bytes).into_owned()
            })
        };
        let out = drain(out.map(|stream| Box::new(stream) as _));
        let err = drain(err.map(|stream| Box::new(stream) as _));
        let status = self.child.wait().unwrap();
        let elapsed = self.begun.elapsed();
        let ran = Ran {
            code: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            signal: status.signal(),
            stdout: out.join().unwrap(),
            stderr: err.join().unwrap(),
            report: serde_json::from_str(&self.report.text()).unwrap_or(serde_json::Value::Null),
            survivors: self.survivors.text(),
            elapsed,
        };
        ran.assert_nothing_left();
        ran
    }
}

/// A failed test leaves nothing either: its warden ends all its descendants.
impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.signal(libc::SIGUSR1);
            let _ = self.child.wait();
        }
    }
}

impl Ran {
    fn assert_nothing_left(&self) {
        assert_eq!(self.survivors, "", "survivors of {self:#?}");
        if let Some(leaf) = self.report["containment"]["cgroup"].as_str() {
            assert!(!Path::new(leaf).exists(), "{leaf} is left, of {self:#?}");
        }
    }

    pub fn assert_code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:#?}");
        self
    }

    /// Asserts that the messages name this: a path, an option, a number, a signal, an error of the kernel. The sentences
    /// around it are the subject of snapshots only ([`super::messages`]).
    #[track_caller]
    pub fn assert_names(&self, what: impl AsRef<str>) {
        let what = what.as_ref();
        assert!(self.stderr.contains(what), "{what:?} is not named in {self:#?}");
    }

    /// Returns the error in the report, and asserts that pinfold has printed it as well.
    #[track_caller]
    pub fn reported_error(&self) -> &str {
        let error = self.report["error"].as_str().unwrap_or_else(|| panic!("no error is reported: {self:#?}"));
        self.assert_names(error);
        error
    }

    /// Asserts these numbers in the last line of `pinfold pool`.
    #[track_caller]
    pub fn assert_counts(&self, succeeded: usize, failed: usize) {
        self.assert_names(format!("{succeeded} succeeded, {failed} failed"));
    }

    /// Returns the command lines of one of the report's process lists, one in a line.
    pub fn listed(&self, list: &str) -> String {
        let mut lines = String::new();
        for process in self.report[list]["processes"].as_array().into_iter().flatten() {
            let _ = writeln!(lines, "{}", process["command_line"].as_str().unwrap_or_default());
        }
        lines
    }
}

/// Reads byte by byte, so that the following data stays in the stream for the next reader.
fn next_line(stream: &mut impl Read) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
        line.push(byte[0]);
    }
    String::from_utf8_lossy(&line).into_owned()
}

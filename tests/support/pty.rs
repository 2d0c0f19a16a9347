//! A real pseudoterminal with a program that has it as its controlling terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How long an expected output may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Pty {
    master: File,
    child: Child,
    output: Receiver<Vec<u8>>,
    /// What has been read, and not yet matched.
    unmatched: String,
    /// All of it, for messages.
    all: String,
}

impl Pty {
    /// Starts `command` as the leader of a new session on a new terminal.
    pub fn start(mut command: Command) -> Self {
        let (mut master, mut slave) = (-1, -1);
        // SAFETY: two integers to fill in; no name, no settings.
        let done =
            unsafe { libc::openpty(&mut master, &mut slave, std::ptr::null_mut(), std::ptr::null(), std::ptr::null()) };
        assert_eq!(done, 0);
        // SAFETY: both have just been made.
        let (master, slave) = unsafe { (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
        // SAFETY: only sets a flag.
        unsafe { libc::fcntl(master.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
        let stream = || Stdio::from(slave.try_clone().unwrap());
        command.stdin(stream()).stdout(stream()).stderr(stream()).env("TERM", "xterm");
        // SAFETY: system calls only between fork and exec.
        unsafe {
            command.pre_exec(|| {
                // Whoever runs the tests may ignore some, as a shell's background does.
                for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP, libc::SIGTERM] {
                    libc::signal(signal, libc::SIG_DFL);
                }
                libc::setsid();
                libc::ioctl(0, libc::TIOCSCTTY, 0);
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        drop(command);
        drop(slave);
        let (sender, output) = channel();
        let mut reader = master.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // EIO when the last process has closed its side.
            while let Ok(length @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..length].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { master, child, output, unmatched: String::new(), all: String::new() }
    }

    /// An interactive shell with a prompt of its own, `$PINFOLD` being the program under test.
    pub fn shell() -> Self {
        let mut command = Command::new("bash");
        command
            .args(["--norc", "--noprofile", "--noediting", "-i"])
            .env("PS1", "ready> ")
            .env("PINFOLD", super::PINFOLD);
        command.env_remove("PROMPT_COMMAND");
        let mut pty = Self::start(command);
        pty.expect("ready> ");
        pty
    }

    /// The program's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Types it.
    pub fn send(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    /// Changes its size, as a window's.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the call only reads the structure.
        let done = unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        assert_eq!(done, 0);
    }

    /// Types a line, and waits for its echo.
    pub fn line(&mut self, line: &str) {
        self.send(&format!("{line}\n"));
        // The echo is broken into lines at the width of the terminal: its end is enough.
        let end: String = line.chars().rev().take(20).collect::<Vec<_>>().into_iter().rev().collect();
        self.expect(&end);
    }

    /// Waits until this is printed, and tells what came before it.
    pub fn expect(&mut self, text: &str) -> String {
        let begun = Instant::now();
        loop {
            if let Some(at) = self.unmatched.find(text) {
                let before = self.unmatched[..at].to_owned();
                self.unmatched.drain(..at + text.len());
                return before;
            }
            match self.output.recv_timeout(PATIENCE.saturating_sub(begun.elapsed())) {
                Ok(bytes) => {
                    let text = String::from_utf8_lossy(&bytes);
                    self.unmatched.push_str(&text);
                    self.all.push_str(&text);
                }
                Err(RecvTimeoutError::Timeout) => panic!("{text:?} did not come in {}", self.all),
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("the terminal was closed before {text:?} in {}", self.all)
                }
            }
        }
    }

    /// Whether this is printed within a moment; then it is as if it had been expected.
    pub fn has_come(&mut self, text: &str) -> bool {
        while let Ok(bytes) = self.output.recv_timeout(Duration::from_millis(100)) {
            let text = String::from_utf8_lossy(&bytes);
            self.unmatched.push_str(&text);
            self.all.push_str(&text);
        }
        let found = self.unmatched.find(text);
        if let Some(at) = found {
            self.unmatched.drain(..at + text.len());
        }
        found.is_some()
    }

    /// Waits for the end of the program.
    pub fn wait(mut self) -> std::process::ExitStatus {
        self.child.wait().unwrap()
    }

    /// Leaves a shell, and waits for its end.
    pub fn exit(mut self) {
        self.line("exit 0");
        assert!(self.wait().success());
    }
}

impl Pty {
    /// Takes the terminal away, and waits for the end of the program.
    pub fn hang_up(self) -> std::process::ExitStatus {
        let Self { master, mut child, output, .. } = self;
        // The reader has a copy of the master: only a hang-up by name takes it away from both.
        // SAFETY: an ioctl without an argument on an open terminal.
        unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCVHANGUP, 0) };
        drop(master);
        drop(output);
        child.wait().unwrap()
    }
}

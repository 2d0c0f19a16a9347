//! A real pseudoterminal, and a program that has it as its controlling terminal.

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
    /// The output that has been read and not yet matched.
    unmatched: String,
    /// The whole output, for messages.
    all: String,
}

impl Pty {
    /// Starts `command` as the leader of a new session on a new terminal.
    pub fn start(mut command: Command) -> Self {
        let (mut master, mut slave) = (-1, -1);
        // SAFETY: fills in two integers; the name and the settings are null.
        let done =
            unsafe { libc::openpty(&mut master, &mut slave, std::ptr::null_mut(), std::ptr::null(), std::ptr::null()) };
        assert_eq!(done, 0);
        // SAFETY: both descriptors have just been made.
        let (master, slave) = unsafe { (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
        // SAFETY: only sets a flag.
        unsafe { libc::fcntl(master.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
        let stream = || Stdio::from(slave.try_clone().unwrap());
        command.stdin(stream()).stdout(stream()).stderr(stream()).env("TERM", "xterm");
        // SAFETY: only makes system calls between fork and exec.
        unsafe {
            command.pre_exec(|| {
                // The caller of the tests may ignore some of them, as a shell does for its background jobs.
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
            // The read fails with EIO when the last process has closed its side.
            while let Ok(length @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..length].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { master, child, output, unmatched: String::new(), all: String::new() }
    }

    /// Starts an interactive shell with its own prompt, in which `$PINFOLD` is the program under test.
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

    /// Returns the pid of the program.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Types these keys.
    pub fn send(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    /// Types Ctrl-Z where it stops nothing, and waits for its echo. The terminal discards its output when it handles this
    /// key (NOFLSH in termios(3)), and writes the echo afterwards. Output that is printed before the echo can be lost.
    pub fn suspend_key(&mut self) {
        self.send("\x1a");
        self.expect("^Z");
    }

    /// Changes the terminal's size, as a window does.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the call only reads the structure.
        let done = unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        assert_eq!(done, 0);
    }

    /// Types a line, and waits for its echo.
    pub fn line(&mut self, line: &str) {
        self.send(&format!("{line}\n"));
        // The terminal breaks the echo into lines at its width, so only the end of the echo is compared.
        let end: String = line.chars().rev().take(20).collect::<Vec<_>>().into_iter().rev().collect();
        self.expect(&end);
    }

    /// Waits until this text is printed, and returns the output before it.
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
                Err(RecvTimeoutError::Timeout) => panic!("{text:?} was not printed in time: {}", self.all),
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("the terminal was closed before {text:?} in {}", self.all)
                }
            }
        }
    }

    /// Returns whether this text is printed within a moment. If it is, it is consumed as by `expect`. This is for keys
    /// that have to be typed again until they take effect: no event shows that one had none.
    pub fn is_printed_soon(&mut self, text: &str) -> bool {
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

    /// Exits the shell, and waits for its end.
    pub fn exit(mut self) {
        self.line("exit 0");
        assert!(self.wait().success());
    }
}

impl Pty {
    /// Hangs up the terminal, and waits for the end of the program.
    pub fn hang_up(self) -> std::process::ExitStatus {
        let Self { master, mut child, output, .. } = self;
        // The reader has a copy of the master, so closing this one is not enough: only an explicit hang-up affects
        // both.
        // SAFETY: makes an ioctl without an argument on an open terminal.
        unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCVHANGUP, 0) };
        drop(master);
        drop(output);
        child.wait().unwrap()
    }
}

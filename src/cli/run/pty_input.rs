//! The terminal on which pinfold was started, while the command has a terminal of its own. pinfold forwards the typed
//! input and the terminal's size to the command's terminal.

use std::fs::File;
use std::sync::mpsc as std_mpsc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::cli::signals::{self, Response, Rules};
use crate::cli::terminal::Terminal;
use crate::cli::thread;
use crate::kernel::own_signals::Received;
use crate::output::InputStream;
use crate::{Job, Signal, Supervisor};

/// The largest number of bytes in one read.
const PIECE: usize = 4096;

/// How often pinfold checks whether it is in the foreground again. A shell's `fg` sends SIGCONT only to a stopped
/// program, and pinfold keeps running in the background.
const FOREGROUND_POLL_INTERVAL: Duration = Duration::from_millis(500);

/// The number of pieces of input that may wait for the command.
const MAX_WAITING: usize = 4;

pub struct PtyInput {
    /// The controlling terminal, where there is one.
    tty: Option<File>,
    /// The controlling terminal is standard input, so the user types on it.
    is_stdin: bool,
    /// The terminal's settings before pinfold made it raw.
    settings: Option<Termios>,
    rules: Rules,
    typed: mpsc::UnboundedReceiver<Vec<u8>>,
    resumed: std_mpsc::Sender<()>,
    /// The task that feeds the command's input. When it is aborted, the command's input is at its end.
    pub feeding: Option<AbortHandle>,
}

impl PtyInput {
    /// Forwards standard input to the job's terminal, and makes pinfold's own terminal raw, so that all keys reach the
    /// job's terminal.
    pub async fn start(
        job: &mut Job,
        supervisor: &Supervisor,
        terminal: Option<&Terminal>,
        Input { pieces, resumed }: Input,
    ) -> crate::Result<Self> {
        let (sender, typed) = mpsc::unbounded_channel();
        let is_stdin = terminal.is_some_and(|terminal| terminal.is_stdin);
        let mut pty_input = Self {
            tty: terminal.and_then(|terminal| terminal.tty.try_clone().ok()),
            is_stdin,
            settings: None,
            rules: Rules::new(signals::Keys::ReachJob),
            typed,
            resumed,
            feeding: None,
        };
        if let Some(tty) = pty_input.tty.as_ref().filter(|_| is_stdin) {
            // The guard restores the settings if pinfold is killed.
            supervisor.restore_terminal_at_exit(tty).await?;
        }
        pty_input.enter_raw_mode();
        pty_input.resize(job);
        if let Some(input) = job.stdin.take() {
            let typed = is_stdin.then_some(sender);
            // This starts the thread that reads.
            let _ = pty_input.resumed.send(());
            pty_input.feeding = Some(tokio::spawn(feed(input, pieces, typed)).abort_handle());
        }
        Ok(pty_input)
    }

    /// Returns the terminal if pinfold is in its foreground process group now. Otherwise the terminal belongs to a
    /// shell.
    fn own(&self) -> Option<&File> {
        self.tty.as_ref().filter(|tty| self.is_stdin && Terminal::is_ours(tty))
    }

    fn enter_raw_mode(&mut self) {
        let Some(tty) = self.own() else { return };
        let Some(settings) = self.settings.clone().or_else(|| tcgetattr(tty).ok()) else { return };
        let mut raw = settings.clone();
        raw.make_raw();
        // An error is ignored: a terminal that has hung up sends a signal.
        let _ = tcsetattr(tty, OptionalActions::Now, &raw);
        self.settings = Some(settings);
    }

    /// Restores the terminal's earlier settings.
    pub fn leave_raw_mode(&mut self) {
        if let (Some(tty), Some(settings)) = (self.own(), &self.settings) {
            let _ = tcsetattr(tty, OptionalActions::Now, settings);
        }
        self.settings = None;
    }

    pub fn resize(&self, job: &Job) {
        if let Some(size) = self.tty.as_ref().and_then(|tty| tcgetwinsize(tty).ok()) {
            // A job that is over has no terminal, so an error is ignored.
            let _ = job.resize_pty(size.ws_row, size.ws_col);
        }
    }

    pub fn resume(&mut self, job: &Job) {
        self.enter_raw_mode();
        self.resize(job);
        let _ = self.resumed.send(());
    }

    /// Waits until the typed input requests a kill: three interrupts within two seconds. The job has received that input
    /// already.
    pub async fn typed_kill(&mut self, job: &Job) -> Signal {
        while let Some(piece) = self.typed.recv().await {
            if piece.is_empty() {
                self.resume(job);
                continue;
            }
            let Ok([interrupt, quit]) = job.pty_signal_keys() else { break };
            for key in piece {
                let signal = match Some(key) {
                    key if key == interrupt => Signal::INT,
                    key if key == quit => Signal::QUIT,
                    _ => continue,
                };
                if self.rules.respond(Received::new(signal, true, 0), Instant::now()) == Response::Kill {
                    return signal;
                }
            }
        }
        std::future::pending().await
    }
}

async fn feed(
    mut input: InputStream,
    mut pieces: mpsc::Receiver<Vec<u8>>,
    typed: Option<mpsc::UnboundedSender<Vec<u8>>>,
) {
    while let Some(piece) = pieces.recv().await {
        let written = if piece.is_empty() { Ok(()) } else { input.write_all(&piece).await };
        if let Some(typed) = &typed {
            // The receiver may be gone: it ends with the job.
            let _ = typed.send(piece);
        }
        if written.is_err() {
            return;
        }
    }
    let _ = input.shutdown().await;
    // The terminal stays open for the output of the job.
}

/// Standard input. A thread reads it, and starts with the first message on `resumed`.
pub struct Input {
    pieces: mpsc::Receiver<Vec<u8>>,
    resumed: std_mpsc::Sender<()>,
}

impl Input {
    pub fn new() -> crate::Result<Self> {
        let (resumed, resumptions) = std_mpsc::channel();
        let (sender, pieces) = mpsc::channel(MAX_WAITING);
        thread::start("to read standard input", move || {
            // If no job was started, the sender is dropped, and the thread reads nothing.
            if resumptions.recv().is_ok() {
                read(&sender, &resumptions);
            }
        })?;
        Ok(Self { pieces, resumed })
    }
}

/// Reads standard input, in a separate thread, because a read may block. While pinfold is in the background of its
/// terminal, a read fails with `EIO`, because SIGTTIN is blocked. The thread then waits until pinfold is in the
/// foreground, sends an empty piece to report that, and reads again.
fn read(sender: &mpsc::Sender<Vec<u8>>, resumptions: &std_mpsc::Receiver<()>) {
    let stdin = std::io::stdin();
    let mut piece = vec![0; PIECE];
    loop {
        match rustix::io::read(&stdin, &mut *piece) {
            Ok(0) => return,
            Ok(length) => {
                if sender.blocking_send(piece[..length].to_vec()).is_err() {
                    return;
                }
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => drop(poll(&mut [PollFd::new(&stdin, PollFlags::IN)], None)),
            Err(Errno::IO) => {
                if resumptions.recv_timeout(FOREGROUND_POLL_INTERVAL) == Err(std_mpsc::RecvTimeoutError::Disconnected) {
                    return;
                }
                if Terminal::is_ours(&stdin) && sender.blocking_send(Vec::new()).is_err() {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}

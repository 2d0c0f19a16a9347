//! The terminal that pinfold was started on, while the command has one of its own: what is typed goes through, and so does
//! its size.

use std::fs::File;
use std::sync::mpsc as nudge;
use std::time::{Duration, Instant};

use pinfold::output::InputStream;
use pinfold::signal::Received;
use pinfold::{Job, Signal, Supervisor};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::cli::signals::{self, Response, Rules};
use crate::cli::terminal::Terminal;
use crate::cli::thread;

const PIECE: usize = 4096;

/// How often we look whether we are in the foreground again. A shell's `fg` tells a stopped program only, and we go on.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Pieces of input that may wait for the command.
const WAITING: usize = 4;

pub struct PtyInput {
    /// The controlling terminal, where there is one.
    tty: Option<File>,
    /// It is standard input: a person types on it.
    is_stdin: bool,
    /// As it was before it was made raw.
    settings: Option<Termios>,
    rules: Rules,
    typed: mpsc::UnboundedReceiver<Vec<u8>>,
    resumed: nudge::Sender<()>,
    /// Dropped, the command's input is at its end.
    pub feeding: Option<AbortHandle>,
}

impl PtyInput {
    /// Passes standard input on to the job's terminal, and makes our own raw: what is typed means that of the job.
    pub async fn start(
        job: &Job,
        supervisor: &Supervisor,
        terminal: Option<&Terminal>,
        Input { pieces, resumed }: Input,
    ) -> pinfold::Result<Self> {
        let (sender, typed) = mpsc::unbounded_channel();
        let is_stdin = terminal.is_some_and(|terminal| terminal.is_stdin);
        let mut pty_input = Self {
            tty: terminal.and_then(|terminal| terminal.tty.try_clone().ok()),
            is_stdin,
            settings: None,
            rules: Rules::new(signals::Keys::ReachTheJob),
            typed,
            resumed,
            feeding: None,
        };
        if let Some(tty) = pty_input.tty.as_ref().filter(|_| is_stdin) {
            // Should we be killed.
            supervisor.keep_terminal(tty).await?;
        }
        pty_input.enter();
        pty_input.resize(job);
        if let Some(input) = job.take_stdin() {
            let typed = is_stdin.then_some(sender);
            // To begin with.
            let _ = pty_input.resumed.send(());
            pty_input.feeding = Some(tokio::spawn(feed(input, pieces, typed)).abort_handle());
        }
        Ok(pty_input)
    }

    /// Where it is ours now: in the background it is a shell's.
    fn own(&self) -> Option<&File> {
        self.tty.as_ref().filter(|tty| self.is_stdin && Terminal::is_ours(tty))
    }

    fn enter(&mut self) {
        let Some(tty) = self.own() else { return };
        let Some(settings) = self.settings.clone().or_else(|| tcgetattr(tty).ok()) else { return };
        let mut raw = settings.clone();
        raw.make_raw();
        // A terminal that has hung up tells so by a signal.
        let _ = tcsetattr(tty, OptionalActions::Now, &raw);
        self.settings = Some(settings);
    }

    /// Gives it back.
    pub fn leave(&mut self) {
        if let (Some(tty), Some(settings)) = (self.own(), &self.settings) {
            let _ = tcsetattr(tty, OptionalActions::Now, settings);
        }
        self.settings = None;
    }

    pub fn resize(&self, job: &Job) {
        if let Some(size) = self.tty.as_ref().and_then(|tty| tcgetwinsize(tty).ok()) {
            // A job that is over has no terminal.
            let _ = job.resize_pty(size.ws_row, size.ws_col);
        }
    }

    pub fn resume(&mut self, job: &Job) {
        self.enter();
        self.resize(job);
        let _ = self.resumed.send(());
    }

    /// The job has what was typed; this comes back where it means us too: three interrupts within two seconds.
    pub async fn response(&mut self, job: &Job) -> (Response, Signal) {
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
                let response = self.rules.respond(Received::new(signal, true, 0), Instant::now());
                if response == Response::Kill {
                    return (response, signal);
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
            // Whoever listened is gone with the job.
            let _ = typed.send(piece);
        }
        if written.is_err() {
            return;
        }
    }
    let _ = input.shutdown().await;
    // The terminal stays open for what the job writes.
}

/// What is read of standard input, from the first nudge on.
pub struct Input {
    pieces: mpsc::Receiver<Vec<u8>>,
    resumed: nudge::Sender<()>,
}

impl Input {
    pub fn new() -> pinfold::Result<Self> {
        let (resumed, nudged) = nudge::channel();
        let (sender, pieces) = mpsc::channel(WAITING);
        thread::start("to read standard input", move || {
            // None where there is no job to read it for.
            if nudged.recv().is_ok() {
                read(&sender, &nudged);
            }
        })?;
        Ok(Self { pieces, resumed })
    }
}

/// Reads standard input, in a thread of its own: it may block. Where we are in the background of its terminal (SIGTTIN is
/// blocked, hence the errno), when we are in the foreground; an empty piece tells of that.
fn read(sender: &mpsc::Sender<Vec<u8>>, nudged: &nudge::Receiver<()>) {
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
                if nudged.recv_timeout(LOOK_EVERY) == Err(nudge::RecvTimeoutError::Disconnected) {
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

//! Forwards the output of the command, where an option makes pinfold read it.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};

use crate::cli::signal_stream::SignalStream;
use crate::cli::signals::{Response, Rules};
use crate::cli::terminal::Terminal;
use crate::kernel::own_signals;
use crate::output::{CaptureLimit, Captured, OutputStream};
use crate::{Job, Signal, Supervisor};

use super::args::Args;
use super::outlet::{Outlet, Refused, Trouble};
use super::pty_input::{Input, PtyInput};
use super::ready::Ready;

const PIECE: usize = 16 * 1024;

/// The capacity of a pipe (pipe(7)).
const PIPE_HOLDS: usize = 64 * 1024;

/// How long pinfold waits for a reader that takes nothing, after a job that a time limit ended.
const PATIENCE: Duration = Duration::from_secs(1);

/// Forwards data between the command and pinfold's standard streams.
pub struct Forwarder {
    /// The destinations of the command's streams, until the job exists.
    outlets: Vec<(i32, Outlet)>,
    /// The reader of pinfold's standard input, for `--pty`, until the job exists.
    input: Option<Input>,
    copies: Vec<JoinHandle<()>>,
    pty_input: Option<PtyInput>,
    /// When a reader of pinfold's output last took something.
    taken: watch::Receiver<Instant>,
    seen: watch::Sender<bool>,
    /// Whether the output has contained the line for which `--ready` waits.
    pub line_seen: watch::Receiver<bool>,
    trouble: Trouble,
}

impl Forwarder {
    /// Allocates everything that can fail, before the job exists.
    pub fn new(args: &Args) -> crate::Result<Self> {
        let (taken_now, taken) = watch::channel(Instant::now());
        let seen = watch::Sender::new(false);
        let mut forwarder = Self {
            outlets: Vec::new(),
            input: None,
            copies: Vec::new(),
            pty_input: None,
            taken,
            line_seen: seen.subscribe(),
            seen,
            trouble: Trouble::none(),
        };
        if !args.streams.relays() {
            return Ok(forwarder);
        }
        let (out, err) = (io::stdout(), io::stderr());
        let outer = [(1, out.as_fd()), (2, err.as_fd())];
        for (number, outer) in outer.into_iter().take(if args.streams.has_one_output() { 1 } else { 2 }) {
            forwarder.outlets.push((number, Outlet::new(number, outer, taken_now.clone())?));
        }
        if args.streams.pty {
            forwarder.input = Some(Input::new()?);
        }
        Ok(forwarder)
    }

    /// Starts to forward the job's streams and, with `--pty`, the input of the terminal.
    pub async fn start(
        &mut self,
        args: &Args,
        job: &Job,
        supervisor: &Supervisor,
        terminal: Option<&Terminal>,
    ) -> crate::Result<()> {
        if let Some(input) = self.input.take() {
            self.pty_input = Some(PtyInput::start(job, supervisor, terminal, input).await?);
        }
        let feeding = self.pty_input.as_ref().and_then(|pty_input| pty_input.feeding.clone());
        let streams = [job.take_stdout(), job.take_stderr()].into_iter().flatten();
        let is_copied = args.streams.tee.is_some();
        for (stream, (number, outlet)) in streams.zip(std::mem::take(&mut self.outlets)) {
            let finder = match &args.streams.ready {
                Some(Ready::Line(part)) => {
                    Some(Finder { part: part.clone(), end: Vec::new(), found: false, seen: self.seen.clone() })
                }
                _ => None,
            };
            let (trouble, feeding, limit) = (self.trouble.clone(), feeding.clone(), args.streams.max_output);
            let copy = Copy { number, outlet: Some(outlet), is_copied, limit, finder, trouble, feeding };
            self.copies.push(tokio::spawn(copy.run(stream)));
        }
        Ok(())
    }

    /// Reports a problem with a destination of the output.
    pub fn report_trouble(&self, what: String) {
        self.trouble.report(what);
    }

    /// Handles a signal that is about pinfold's own terminal and not for the job. Returns whether it was such a signal.
    pub fn takes(&mut self, job: &Job, signal: Signal) -> bool {
        let Some(pty_input) = &mut self.pty_input else { return false };
        match signal {
            Signal::WINCH => pty_input.resize(job),
            // pinfold was stopped, and the shell has changed the terminal's settings meanwhile.
            Signal::CONT => pty_input.resume(job),
            _ => return false,
        }
        true
    }

    /// Waits until keys were typed on which pinfold itself has to act. Without `--pty` it waits forever.
    pub async fn response(&mut self, job: &Job) -> (Response, Signal) {
        match &mut self.pty_input {
            Some(pty_input) => pty_input.response(job).await,
            None => std::future::pending().await,
        }
    }

    /// Waits, after the end of the job, until all output is forwarded. A stop signal ends the wait. Where a time limit
    /// ended the job (`timed_out`), a reader that takes nothing for [`PATIENCE`] ends it too. Returns what is wrong
    /// with the output.
    pub async fn finish(
        &mut self,
        timed_out: bool,
        signals: &SignalStream,
        rules: &mut Rules,
        terminal: Option<&Terminal>,
    ) -> Option<String> {
        // No job takes input any more. With its earlier settings, the terminal turns keys into signals again.
        if let Some(pty_input) = &mut self.pty_input {
            pty_input.leave();
        }
        if let Err(why) = self.wait_for_copies(timed_out, signals, rules, terminal).await {
            self.trouble.report(format!("the end of the output was not forwarded: {why}"));
        }
        self.trouble.first()
    }

    async fn wait_for_copies(
        &mut self,
        timed_out: bool,
        signals: &SignalStream,
        rules: &mut Rules,
        terminal: Option<&Terminal>,
    ) -> Result<(), String> {
        let mut begun = Instant::now();
        for mut copy in std::mem::take(&mut self.copies) {
            loop {
                let taken = *self.taken.borrow_and_update();
                let until = timed_out.then(|| begun.max(taken) + PATIENCE);
                let received = tokio::select! {
                    biased;
                    _ = &mut copy => break,
                    Ok(()) = self.taken.changed(), if timed_out => continue,
                    () = super::over(until) => {
                        return Err(format!("its reader has taken nothing for {PATIENCE:?}"));
                    }
                    received = signals.recv() => received.map_err(|error| error.to_string())?,
                };
                match rules.respond(received, Instant::now()) {
                    Response::Stop(_) | Response::Kill => {
                        return Err(format!("{} arrived while pinfold waited for the reader", received.signal));
                    }
                    // Only pinfold stops: the job has ended.
                    _ if received.signal == Signal::TSTP && terminal.is_some_and(|terminal| !terminal.orphaned) => {
                        own_signals::suspend_by(received.signal);
                        begun = Instant::now();
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// Restores the terminal's settings, also after an error.
impl Drop for Forwarder {
    fn drop(&mut self) {
        if let Some(pty_input) = &mut self.pty_input {
            pty_input.leave();
        }
    }
}

/// Forwards one stream.
struct Copy {
    /// The standard stream of pinfold to which it goes.
    number: i32,
    outlet: Option<Outlet>,
    /// The stream is also read for the file of `--tee`.
    is_copied: bool,
    limit: Option<usize>,
    finder: Option<Finder>,
    trouble: Trouble,
    /// The task that feeds the job's terminal. It ends when pinfold closes this stream: a terminal whose output has no
    /// reader hangs up.
    feeding: Option<AbortHandle>,
}

impl Copy {
    async fn run(mut self, mut stream: OutputStream) {
        let mut piece = vec![0; PIECE];
        let mut first = self.limit.map_or(usize::MAX, |limit| limit / 2);
        let mut rest = self.limit.map(|limit| Captured::new(CaptureLimit::ends(0, limit - limit / 2)));
        let mut failed = false;
        loop {
            let length = tokio::select! {
                biased;
                () = self.refused() => match self.close().await {
                    // The file of --tee still receives all of the output.
                    Err(Refused::By(_)) if self.is_copied => continue,
                    // The output that the command has written already goes into the file. The next write of the command
                    // fails, as without pinfold.
                    _ if self.is_copied => {
                        read_available(&mut stream, &mut piece).await;
                        return self.let_go(stream);
                    }
                    _ => return self.let_go(stream),
                },
                length = stream.read(&mut piece) => length,
            };
            let length = match length {
                Ok(0) => break,
                Ok(length) => length,
                // The file of --tee takes no more. pinfold reports that once, and goes on where there is another
                // destination.
                Err(error) if !failed => {
                    failed = true;
                    self.is_copied = false;
                    self.trouble.report(error.to_string());
                    if self.outlet.is_none() {
                        return self.let_go(stream);
                    }
                    continue;
                }
                Err(error) => {
                    self.trouble.report(format!("cannot read the output: {error}"));
                    break;
                }
            };
            let read = &piece[..length];
            if let Some(finder) = &mut self.finder {
                finder.look(read);
            }
            let (now, later) = read.split_at(first.min(length));
            if let Some(rest) = &mut rest {
                first -= now.len();
                rest.push(later);
            }
            self.forward(now).await;
        }
        if let Some(finder) = &mut self.finder {
            finder.end_line();
        }
        if let Some(rest) = rest {
            if rest.dropped() > 0 {
                self.forward(format!("\n[... {} bytes left out ...]\n", rest.dropped()).as_bytes()).await;
            }
            self.forward(&rest.to_bytes()).await;
        }
        let _ = self.close().await;
    }

    /// Hands a piece to the outlet. Where the outlet takes no more, [`refused`](Self::refused) returns next.
    async fn forward(&self, piece: &[u8]) {
        if let Some(outlet) = &self.outlet {
            outlet.send(piece).await;
        }
    }

    async fn refused(&self) {
        match &self.outlet {
            Some(outlet) => outlet.refused().await,
            None => std::future::pending().await,
        }
    }

    /// Waits until all forwarded output has been written, and reports a loss.
    async fn close(&mut self) -> Result<(), Refused> {
        let Some(outlet) = self.outlet.take() else { return Ok(()) };
        let closed = outlet.close().await;
        if let Err(Refused::By(why)) = &closed {
            let name = if self.number == 1 { "standard output" } else { "standard error" };
            self.trouble
                .report(format!("cannot forward the output to {name}, and the rest of it is lost there: {why}"));
        }
        closed
    }

    /// Closes the stream. The next write of the command fails with SIGPIPE or EPIPE.
    fn let_go(self, stream: OutputStream) {
        drop(stream);
        if let Some(feeding) = &self.feeding {
            feeding.abort();
        }
    }
}

/// Reads the data that is in the pipe already, for the file to which the stream is copied. It reads no more than the
/// capacity of a pipe, so that a command that continues to write soon gets an error.
async fn read_available(stream: &mut OutputStream, piece: &mut [u8]) {
    let mut read = 0;
    while read < PIPE_HOLDS {
        let length = tokio::select! {
            biased;
            length = stream.read(piece) => length.unwrap_or(0),
            // By then the runtime has polled for I/O events once more.
            () = tokio::task::yield_now() => 0,
        };
        if length == 0 {
            return;
        }
        read += length;
    }
}

/// Searches for a line that contains `part`, also where the line arrives in several pieces.
struct Finder {
    part: Vec<u8>,
    /// The end of the line so far: `part` may begin in it.
    end: Vec<u8>,
    /// The line so far contains `part`.
    found: bool,
    seen: watch::Sender<bool>,
}

impl Finder {
    fn look(&mut self, piece: &[u8]) {
        for part in piece.split_inclusive(|&byte| byte == b'\n') {
            let (text, whole) = part.strip_suffix(b"\n").map_or((part, false), |text| (text, true));
            self.end.extend_from_slice(text);
            self.found = self.found || self.end.windows(self.part.len()).any(|window| window == self.part);
            self.end.drain(..self.end.len().saturating_sub(self.part.len() - 1));
            if whole {
                self.end_line();
            }
        }
    }

    /// Ends the line, at its newline or at the end of the output.
    fn end_line(&mut self) {
        if self.found && !*self.seen.borrow() {
            self.seen.send_replace(true);
        }
        self.found = false;
        self.end.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_lines_in_any_pieces() {
        let text = b"lis\ntening\nlistening\nrest";
        for size in 1..text.len() {
            let seen = watch::Sender::new(false);
            let mut finder = Finder { part: b"listening".into(), end: Vec::new(), found: false, seen };
            let mut read = 0;
            for piece in text.chunks(size) {
                finder.look(piece);
                read += piece.len();
                // The line is complete with its newline, the byte 21.
                assert_eq!(*finder.seen.borrow(), read >= 21, "{size}");
            }
        }
        let seen = watch::Sender::new(false);
        let mut finder = Finder { part: b"rest".into(), end: Vec::new(), found: false, seen };
        finder.look(text);
        assert!(!*finder.seen.borrow());
        finder.end_line();
        assert!(*finder.seen.borrow());
    }
}

//! Forwards one stream of the command to a standard stream of pinfold.

use tokio::io::AsyncReadExt;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::output::{CaptureLimit, Captured, OutputStream};

use super::outlet::{Outlet, Refused, Trouble};

const PIECE: usize = 16 * 1024;

/// The capacity of a pipe (pipe(7)).
const PIPE_HOLDS: usize = 64 * 1024;

/// Forwards one stream.
pub struct Relay {
    /// The standard stream of pinfold to which it goes.
    pub number: i32,
    pub outlet: Option<Outlet>,
    /// The stream is also read for the file of `--tee`.
    pub is_copied: bool,
    pub limit: Option<usize>,
    pub finder: Option<Finder>,
    pub trouble: Trouble,
    /// The task that feeds the job's terminal. It ends when pinfold closes this stream: a terminal whose output has no
    /// reader hangs up.
    pub feeding: Option<AbortHandle>,
}

impl Relay {
    /// Forwards until the stream is at its end, or until no destination takes any more.
    pub async fn run(mut self, mut stream: OutputStream) {
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
pub struct Finder {
    part: Vec<u8>,
    /// The end of the line so far: `part` may begin in it.
    end: Vec<u8>,
    /// The line so far contains `part`.
    found: bool,
    seen: watch::Sender<bool>,
}

impl Finder {
    /// Returns a search that sets `seen` when it has found a line.
    pub fn new(part: Vec<u8>, seen: watch::Sender<bool>) -> Self {
        Self { part, end: Vec::new(), found: false, seen }
    }

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
            let mut finder = Finder::new(b"listening".into(), seen);
            let mut read = 0;
            for piece in text.chunks(size) {
                finder.look(piece);
                read += piece.len();
                // The line is complete with its newline, the byte 21.
                assert_eq!(*finder.seen.borrow(), read >= 21, "{size}");
            }
        }
        let seen = watch::Sender::new(false);
        let mut finder = Finder::new(b"rest".into(), seen);
        finder.look(text);
        assert!(!*finder.seen.borrow());
        finder.end_line();
        assert!(*finder.seen.borrow());
    }
}

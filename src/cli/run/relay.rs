//! Forwards one stream of the command to a standard stream of pinfold.

use tokio::io::AsyncReadExt;
use tokio::task::AbortHandle;

use crate::output::{CaptureLimit, Captured, OutputStream};

use super::outlet::{Outlet, OutputLoss, Refused};

/// The capacity of a pipe (pipe(7)), which is also the number of bytes in one read.
const PIPE_CAPACITY: usize = 64 * 1024;

/// Forwards one stream.
pub struct Relay {
    pub outlet: Option<Outlet>,
    /// The stream is also read for the file of `--tee`.
    pub is_copied: bool,
    pub limit: Option<usize>,
    pub loss: OutputLoss,
    /// The task that feeds the job's terminal. It ends when pinfold closes this stream: a terminal whose output has no
    /// reader hangs up.
    pub feeding: Option<AbortHandle>,
}

impl Relay {
    /// Forwards until the stream is at its end, or until no destination takes any more.
    pub async fn run(mut self, mut stream: OutputStream) {
        let mut piece = vec![0; PIPE_CAPACITY];
        let mut first = self.limit.map_or(usize::MAX, |limit| limit / 2);
        let mut rest = self.limit.map(|limit| Captured::new(CaptureLimit::ends(0, limit - limit / 2)));
        let mut failed = false;
        loop {
            let length = tokio::select! {
                biased;
                () = self.refused() => match self.close().await {
                    // The file of --tee still receives all of the output.
                    Err(Refused::By(_)) if self.is_copied => continue,
                    // The output that is in the pipe now still goes into the file. The next write of the command fails,
                    // as without pinfold.
                    _ if self.is_copied => {
                        read_available(&mut stream, &mut piece).await;
                        return self.close_stream(stream).await;
                    }
                    _ => return self.close_stream(stream).await,
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
                    self.loss.report(error.to_string());
                    if self.outlet.is_none() {
                        return self.close_stream(stream).await;
                    }
                    continue;
                }
                Err(error) => {
                    self.loss.report(format!("cannot read the output: {error}"));
                    break;
                }
            };
            let read = &piece[..length];
            let (now, later) = read.split_at(first.min(length));
            if let Some(rest) = &mut rest {
                first -= now.len();
                rest.push(later);
            }
            self.forward(now).await;
        }
        if let Some(rest) = rest {
            if rest.dropped() > 0 {
                self.forward(format!("\n[... {} bytes left out ...]\n", rest.dropped()).as_bytes()).await;
            }
            self.forward(&rest.to_bytes()).await;
        }
        let _ = self.close().await;
    }

    /// Hands a piece to the outlet. If the outlet accepts no more output, the next [`refused`](Self::refused) returns.
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
        if let Err(Refused::By(message)) = &closed {
            self.loss.report(message.clone());
        }
        closed
    }

    /// Closes the stream, so that the next write of the command fails with SIGPIPE or EPIPE, and waits until the file of
    /// `--tee` is complete.
    async fn close_stream(self, stream: OutputStream) {
        let closed = stream.close();
        if let Some(feeding) = &self.feeding {
            feeding.abort();
        }
        if let Err(error) = closed.await {
            self.loss.report(error.to_string());
        }
    }
}

/// Reads the data that is in the pipe already, for the file to which the stream is copied. It reads no more than the
/// capacity of a pipe, so that a command that continues to write soon gets an error.
async fn read_available(stream: &mut OutputStream, piece: &mut [u8]) {
    let mut read = 0;
    while read < PIPE_CAPACITY {
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

//! Reads an output line by line.

use std::borrow::Cow;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use futures_core::Stream;

use crate::job::output::split::Splitter;
use crate::job::output::stream::{OutputStream, PIECE};

/// A longer line is returned in pieces.
const MAX_LINE: usize = 1024 * 1024;

/// A line of output.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Line {
    /// When the end of the line was read.
    pub at: SystemTime,
    /// The bytes of the line, without the newline.
    pub bytes: Vec<u8>,
    /// Whether a newline ended the line. `false` at the end of an output without a final newline, and for the pieces of
    /// a line of more than 1 MiB.
    pub complete: bool,
}

impl Line {
    /// Returns the text of the line. Invalid UTF-8 is replaced.
    #[must_use]
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.bytes)
    }
}

/// The lines of an [`OutputStream`], through [`next_line`](Self::next_line) or as a [`Stream`]. It holds at most 1 MiB
/// of output that has no newline.
///
/// ```
/// # async fn example(job: &mut pinfold::Job) -> Result<(), Box<dyn std::error::Error>> {
/// let mut lines = job.stdout.take().ok_or("it is piped")?.lines().max_line(4096);
/// while let Some(line) = lines.next_line().await? {
///     println!("{}{}", line.text(), if line.complete { "" } else { " …" });
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Lines {
    stream: OutputStream,
    splitter: Splitter,
    read_at: SystemTime,
    is_at_end: bool,
}

impl Lines {
    pub(super) fn new(stream: OutputStream) -> Self {
        Self { stream, splitter: Splitter::new(MAX_LINE), read_at: SystemTime::UNIX_EPOCH, is_at_end: false }
    }

    /// Returns lines of more than `max` bytes in pieces, instead of lines of more than 1 MiB. `max` is at least 1. If
    /// it is at least 4, no piece ends within a UTF-8 character.
    #[must_use]
    pub fn max_line(mut self, max: usize) -> Self {
        self.splitter.set_max(max.max(1));
        self
    }

    /// Returns the next line, or `None` at the end.
    ///
    /// Cancel-safe: bytes that have been read are kept.
    ///
    /// # Errors
    /// The errno of read(2), or of a write to the file of [`Command::tee_stdout`](crate::Command::tee_stdout).
    pub async fn next_line(&mut self) -> io::Result<Option<Line>> {
        std::future::poll_fn(|context| self.poll_line(context)).await
    }

    fn poll_line(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<Line>>> {
        loop {
            if let Some((line, complete)) = self.splitter.next(self.is_at_end) {
                return Poll::Ready(Ok(Some(Line { at: self.read_at, bytes: line.to_vec(), complete })));
            }
            if self.is_at_end {
                return Poll::Ready(Ok(None));
            }
            let length = ready!(self.stream.poll_piece(context, PIECE, &mut |piece| self.splitter.push(piece)))?;
            self.is_at_end = length == 0;
            self.read_at = SystemTime::now();
        }
    }
}

impl Stream for Lines {
    type Item = io::Result<Line>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_line(context).map(io::Result::transpose)
    }
}

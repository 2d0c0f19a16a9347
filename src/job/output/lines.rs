//! Reads an output line by line.

use std::borrow::Cow;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use futures_core::Stream;
use tokio::io::{AsyncRead, ReadBuf};

use crate::job::output::stream::OutputStream;

/// A longer line is returned in pieces.
const MAX_LINE: usize = 1024 * 1024;

const PIECE: usize = 8 * 1024;

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
/// # async fn example(job: &pinfold::Job) -> Result<(), Box<dyn std::error::Error>> {
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
    /// Bytes that were not returned yet begin at `start`. There is no newline before `searched`.
    held: Vec<u8>,
    start: usize,
    searched: usize,
    max: usize,
    read_at: SystemTime,
    ended: bool,
}

impl Lines {
    pub(super) fn new(stream: OutputStream) -> Self {
        Self {
            stream,
            held: Vec::new(),
            start: 0,
            searched: 0,
            max: MAX_LINE,
            read_at: SystemTime::UNIX_EPOCH,
            ended: false,
        }
    }

    /// Returns lines of more than `max` bytes in pieces, instead of lines of more than 1 MiB. `max` is at least 1. If
    /// it is at least 4, no piece ends within a UTF-8 character.
    #[must_use]
    pub fn max_line(mut self, max: usize) -> Self {
        self.max = max.max(1);
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
            if let Some(at) = self.held[self.searched..].iter().position(|&byte| byte == b'\n') {
                let end = self.searched + at;
                if end - self.start > self.max {
                    return Poll::Ready(Ok(Some(self.take_piece(self.piece_length()))));
                }
                let line = self.take(end, true);
                self.start = end + 1;
                self.searched = self.start;
                return Poll::Ready(Ok(Some(line)));
            }
            self.searched = self.held.len();
            let length = self.held.len() - self.start;
            if length > self.max || self.ended && length > 0 {
                let length = if length > self.max { self.piece_length() } else { length };
                return Poll::Ready(Ok(Some(self.take_piece(length))));
            }
            if self.ended {
                return Poll::Ready(Ok(None));
            }
            let mut piece = [0; PIECE];
            let mut buffer = ReadBuf::new(&mut piece);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer))?;
            self.ended = buffer.filled().is_empty();
            self.read_at = SystemTime::now();
            self.held.drain(..self.start);
            self.searched -= self.start;
            self.start = 0;
            self.held.extend_from_slice(buffer.filled());
        }
    }

    /// Returns the length of the next piece of a line that is too long: `max` bytes, or up to three bytes less if the
    /// piece would end within a UTF-8 character.
    fn piece_length(&self) -> usize {
        let piece = &self.held[self.start..self.start + self.max];
        // The first byte of the last character that begins in the piece.
        let Some(back) = (1..=piece.len().min(3)).find(|back| piece[piece.len() - back] & 0b1100_0000 != 0b1000_0000)
        else {
            return self.max;
        };
        let needed = match piece[piece.len() - back] {
            0b1100_0000..=0b1101_1111 => 2,
            0b1110_0000..=0b1110_1111 => 3,
            0b1111_0000..=0b1111_0111 => 4,
            _ => 1,
        };
        if needed > back && back < self.max { self.max - back } else { self.max }
    }

    /// Takes the beginning of a line that is too long, or the rest of an output that does not end with a newline.
    fn take_piece(&mut self, length: usize) -> Line {
        let end = self.start + length;
        let line = self.take(end, false);
        self.start = end;
        self.searched = self.searched.max(end);
        line
    }

    fn take(&self, end: usize, complete: bool) -> Line {
        Line { at: self.read_at, bytes: self.held[self.start..end].to_vec(), complete }
    }
}

impl Stream for Lines {
    type Item = io::Result<Line>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_line(context).map(io::Result::transpose)
    }
}

//! The supervisor's ends of a job's pipes, or its side of the job's terminal. They end with the job: a process that
//! still holds the other end (a process outside of the job that inherited it, or one in state D) can't make the reader
//! wait.

use std::future::Future;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::job::completion::{Completion, Waiting};
use crate::job::output::channel::{Channel, WeakChannel};
use crate::job::output::lines::Lines;
use crate::job::output::search::Searches;
use crate::job::output::writer::Writer;
use crate::kernel::pty::end_of_input;
use crate::report::Report;

/// How many bytes are read at a time: a whole pipe, whose default capacity is 64 KiB (pipe(7)).
pub(super) const PIECE: usize = 64 * 1024;

/// How many pieces are read before other tasks have their turn. tokio itself limits its tasks (tokio::task::coop), other
/// runtimes do not.
const PIECES: u8 = 4;

/// Waits for the end of a job, on behalf of a stream.
struct Gone(Waiting<Arc<Report>>);

impl Gone {
    fn new(report: &Completion<Arc<Report>>) -> Self {
        Self(report.wait())
    }

    /// Is ready when the job is gone. If the runtime was shut down, the job is gone too.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll(context).map(drop)
    }
}

/// The time of the last read from a job's output, for its idle timeout.
#[derive(Debug)]
pub(crate) struct Activity {
    begun: Instant,
    last_ms: AtomicU64,
    channels: Mutex<Vec<WeakChannel>>,
}

impl Activity {
    pub fn new() -> Self {
        Self { begun: Instant::now(), last_ms: AtomicU64::new(0), channels: Mutex::default() }
    }

    /// Returns whether some output of the job is unread. Then the supervisor is idle, and not the job.
    pub fn is_unread(&self) -> bool {
        let channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.iter().any(WeakChannel::is_unread)
    }

    pub fn note(&self) {
        self.last_ms.store(u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Postpones the idle timeout by a time that does not count as idle.
    pub fn postpone(&self, by: Duration) {
        let last = self.last_ms.load(Ordering::Relaxed);
        let later = last.saturating_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX));
        let now = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        // If a read happens meanwhile, its later time stays.
        self.last_ms.fetch_max(later.min(now), Ordering::Relaxed);
    }

    pub fn last(&self) -> Instant {
        self.begun + Duration::from_millis(self.last_ms.load(Ordering::Relaxed))
    }
}

/// The other receivers of each piece that is read.
#[derive(Debug, Default)]
pub(crate) struct Taps {
    pub activity: Option<Arc<Activity>>,
    pub tee: Option<Writer>,
    pub searches: Searches,
}

impl Taps {
    /// Waits until there is space for the next piece; at the end, until the copy is complete. Returns the error of a
    /// failed copy once. After that, the output can still be read, without the copy.
    fn poll_ready(&mut self, context: &Context<'_>, is_at_end: bool) -> Poll<io::Result<()>> {
        let Some(tee) = &self.tee else { return Poll::Ready(Ok(())) };
        let polled = if is_at_end { tee.poll_flush(context) } else { tee.poll_ready(context) };
        Poll::Ready(ready!(polled).map_err(|error| {
            self.tee = None;
            not_copied(&error)
        }))
    }

    fn receive(&self, piece: &[u8]) {
        if let Some(activity) = &self.activity {
            activity.note();
        }
        if let Some(tee) = &self.tee {
            tee.push(piece);
        }
        self.searches.push(piece);
    }
}

fn not_copied(error: &io::Error) -> io::Error {
    io::Error::other(format!("cannot also write the output to its file: {error}"))
}

/// The output of a job: its piped standard output or standard error, or its terminal. Reading ends when every process
/// of the job has closed the stream, or when the job is over. The stream returns everything that was written until
/// then, and does not wait for more.
///
/// An [`AsyncRead`], which is cancel-safe like that of a pipe. [`lines`](Self::lines) returns its lines. It can be used
/// in any runtime.
///
/// ```
/// # async fn example(job: &mut pinfold::Job) -> Result<(), Box<dyn std::error::Error>> {
/// use tokio::io::AsyncReadExt;
///
/// let mut stdout = job.stdout.take().ok_or("it is piped")?;
/// let mut bytes = Vec::new();
/// stdout.read_to_end(&mut bytes).await?; // Until the job is over, even if another process holds the pipe.
/// # Ok(())
/// # }
/// ```
pub struct OutputStream {
    channel: Channel,
    gone: Gone,
    /// How many bytes are still to be read after the job is gone.
    left: Option<usize>,
    ended: bool,
    taps: Taps,
    /// How many pieces were read since other tasks had their turn.
    pieces: u8,
}

impl OutputStream {
    /// Makes a stream of a channel. Call it in the context of a runtime.
    pub(crate) fn new(channel: Channel, report: &Completion<Arc<Report>>, taps: Taps) -> Self {
        if let Some(activity) = &taps.activity {
            activity.channels.lock().unwrap_or_else(PoisonError::into_inner).push(channel.downgrade());
        }
        let gone = Gone::new(report);
        Self { channel, gone, left: None, ended: false, taps, pieces: 0 }
    }

    /// Returns the lines of the stream, each with its time.
    #[must_use]
    pub fn lines(self) -> Lines {
        Lines::new(self)
    }

    /// Stops reading: the next write of the job fails with `EPIPE`, or its terminal hangs up. Waits until the file of
    /// [`tee_stdout`](crate::Command::tee_stdout) or `tee_stderr` contains everything that was read.
    ///
    /// # Errors
    /// The error of a write to the file.
    pub async fn close(mut self) -> io::Result<()> {
        let tee = self.taps.tee.take();
        drop(self);
        match tee {
            Some(tee) => tee.flush().await.map_err(|error| not_copied(&error)),
            None => Ok(()),
        }
    }

    /// Reads a piece for the searches and keeps it for the reader of this stream. Returns how many bytes are kept;
    /// `None` at the end.
    pub(crate) async fn look_ahead(&mut self) -> io::Result<Option<usize>> {
        std::future::poll_fn(|context| {
            let mut space = [MaybeUninit::uninit(); PIECE];
            let mut buffer = ReadBuf::uninit(&mut space);
            ready!(self.poll_fresh(context, &mut buffer))?;
            let piece = buffer.filled();
            Poll::Ready(Ok((!piece.is_empty()).then(|| self.taps.searches.keep(piece))))
        })
        .await
    }

    /// Waits for a piece, and calls `take` with it. Returns its length; 0 at the end. Holds no buffer while there is
    /// nothing to read.
    ///
    /// Cancel-safe.
    pub(crate) async fn read_piece(&mut self, mut take: impl FnMut(&[u8])) -> io::Result<usize> {
        std::future::poll_fn(|context| self.poll_piece(context, PIECE, &mut take)).await
    }

    /// Does the same as [`read_piece`](Self::read_piece), but reads at most `max` bytes. `max` is at least 1.
    #[cfg(feature = "cli")]
    pub(crate) async fn read_at_most(&mut self, max: usize, mut take: impl FnMut(&[u8])) -> io::Result<usize> {
        std::future::poll_fn(|context| self.poll_piece(context, max, &mut take)).await
    }

    pub(crate) fn poll_piece(
        &mut self,
        context: &mut Context<'_>,
        max: usize,
        take: &mut impl FnMut(&[u8]),
    ) -> Poll<io::Result<usize>> {
        if self.pieces == PIECES {
            self.pieces = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut space = [MaybeUninit::uninit(); PIECE];
        let mut buffer = ReadBuf::uninit(&mut space[..max.min(PIECE)]);
        let polled = Pin::new(&mut *self).poll_read(context, &mut buffer);
        self.pieces = if polled.is_pending() { 0 } else { self.pieces + 1 };
        ready!(polled)?;
        take(buffer.filled());
        Poll::Ready(Ok(buffer.filled().len()))
    }

    /// Reads a piece from the job, and gives it to the taps.
    fn poll_fresh(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.taps.poll_ready(context, self.ended))?;
        if self.ended || buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if self.left.is_none() && self.gone.poll(context).is_ready() {
            self.left = Some(self.channel.left());
        }
        let before = buffer.filled().len();
        match self.left {
            None => ready!(self.channel.poll_read(context, buffer))?,
            Some(left) => {
                let space = left.min(buffer.remaining());
                let read = self.channel.read_left(buffer.initialize_unfilled_to(space))?;
                buffer.advance(read);
                self.left = Some(left - read);
            }
        }
        let fresh = &buffer.filled()[before..];
        if fresh.is_empty() {
            self.ended = true;
            self.taps.searches.end(true);
            return self.taps.poll_ready(context, true);
        }
        self.taps.receive(fresh);
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for OutputStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let kept = self.taps.searches.take_kept(buffer.remaining(), |bytes| buffer.put_slice(bytes));
        if kept > 0 { Poll::Ready(Ok(())) } else { self.poll_fresh(context, buffer) }
    }
}

impl Drop for OutputStream {
    fn drop(&mut self) {
        if !self.ended {
            self.channel.allow_hangup();
            self.taps.searches.end(false);
        }
    }
}

impl std::fmt::Debug for OutputStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OutputStream")
            .field("channel", &self.channel)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

/// The input of a job: its piped standard input, or its terminal. Dropping or shutting down the stream ends the input.
/// On a terminal in line mode, the stream then writes the end-of-file character, which has no effect on a program that
/// reads single keys.
///
/// An [`AsyncWrite`]. When the job is over, or no process of it reads any more, a write fails with
/// [`BrokenPipe`](io::ErrorKind::BrokenPipe). The host program must ignore SIGPIPE, as Rust's runtime does.
///
/// ```
/// # async fn example(job: &mut pinfold::Job) -> Result<(), Box<dyn std::error::Error>> {
/// use tokio::io::AsyncWriteExt;
///
/// let mut stdin = job.stdin.take().ok_or("it is piped")?;
/// if let Err(error) = stdin.write_all(&[b'x'; 1_000_000]).await {
///     assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe); // No process reads it any more.
/// }
/// # Ok(())
/// # }
/// ```
pub struct InputStream {
    channel: Option<Channel>,
    gone: Gone,
    /// For a terminal: bytes have been written since the last end of a line.
    in_line: bool,
}

impl InputStream {
    /// Makes a stream of a channel. Call it in the context of a runtime.
    pub(crate) fn new(channel: Channel, report: &Completion<Arc<Report>>) -> Self {
        Self { channel: Some(channel), gone: Gone::new(report), in_line: false }
    }
}

impl AsyncWrite for InputStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let broken = || Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        let Some(channel) = &self.channel else { return broken() };
        match channel.poll_write(context, bytes) {
            Poll::Pending if self.gone.poll(context).is_ready() => broken(),
            Poll::Ready(Ok(length)) => {
                if let Some(last) = bytes[..length].last() {
                    self.in_line = !matches!(last, b'\n' | b'\r');
                }
                Poll::Ready(Ok(length))
            }
            polled => polled,
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(channel) = self.channel.as_ref().filter(|channel| channel.is_terminal) {
            let end = end_of_input(&**channel.fd(), self.in_line);
            if end.is_empty() {
                break;
            }
            match channel.poll_write(context, &end) {
                Poll::Pending if self.gone.poll(context).is_pending() => return Poll::Pending,
                Poll::Ready(Ok(1)) if self.in_line => self.in_line = false,
                _ => break,
            }
        }
        self.channel = None;
        Poll::Ready(Ok(()))
    }
}

impl Drop for InputStream {
    fn drop(&mut self) {
        if let Some(channel) = self.channel.as_ref().filter(|channel| channel.is_terminal && !channel.is_forked_copy())
        {
            channel.write_now(&end_of_input(&**channel.fd(), self.in_line));
        }
    }
}

impl std::fmt::Debug for InputStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InputStream").field("channel", &self.channel).finish_non_exhaustive()
    }
}

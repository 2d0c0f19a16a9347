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

use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::job::completion::{Completion, Waiting};
use crate::job::output::channel::{Channel, WeakChannel};
use crate::job::output::lines::Lines;
use crate::job::output::tee::Tee;
use crate::kernel::pty::end_of_input;
use crate::report::Report;

/// How many bytes are read at a time, and how many pieces are read before other tasks have their turn.
const PIECE: usize = 16 * 1024;
const PIECES: usize = 16;

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

    /// Returns whether the supervisor has not read all of the job's output yet. Then the supervisor is idle, and not
    /// the job.
    pub fn is_unread(&self) -> bool {
        let channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.iter().any(WeakChannel::is_unread)
    }

    pub fn note(&self) {
        self.last_ms.store(u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Postpones the idle timeout by a time that does not count.
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

/// What else receives each piece that is read.
#[derive(Debug, Default)]
pub(crate) struct Taps {
    pub activity: Option<Arc<Activity>>,
    pub tee: Option<Tee>,
}

/// The output of a job: its piped standard output or standard error, or its terminal. Reading ends when every process
/// of the job has closed the stream, or when the job is over. Everything that was written until then is read, and the
/// stream does not wait for more.
///
/// An [`AsyncRead`], which is cancel-safe like that of a pipe. [`lines`](Self::lines) returns its lines. It can be used
/// in any runtime.
///
/// ```
/// # async fn example(job: &pinfold::Job) -> Result<(), Box<dyn std::error::Error>> {
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
    /// Bytes that were read already, and not returned yet.
    ahead: Vec<u8>,
    gone: Gone,
    /// How many bytes are still to be read after the job is gone.
    left: Option<usize>,
    ended: bool,
    taps: Taps,
    trouble: Option<io::Error>,
}

impl OutputStream {
    /// Makes a stream of a channel. Call it in the context of a runtime.
    pub(crate) fn new(channel: Channel, report: &Completion<Arc<Report>>, taps: Taps) -> Self {
        if let Some(activity) = &taps.activity {
            activity.channels.lock().unwrap_or_else(PoisonError::into_inner).push(channel.downgrade());
        }
        let gone = Gone::new(report);
        Self { channel, ahead: Vec::new(), gone, left: None, ended: false, taps, trouble: None }
    }

    /// Returns the lines of the stream, each with its time.
    #[must_use]
    pub fn lines(self) -> Lines {
        Lines::new(self)
    }

    /// Reads a piece and keeps it for the reader of this stream. Returns all kept bytes, and whether the stream has
    /// ended.
    pub(crate) async fn look_ahead(&mut self) -> io::Result<(&[u8], bool)> {
        let mut piece = [0; 4096];
        let length = std::future::poll_fn(|context| {
            let mut buffer = ReadBuf::new(&mut piece);
            ready!(self.poll_fresh(context, &mut buffer))?;
            Poll::Ready(io::Result::Ok(buffer.filled().len()))
        })
        .await?;
        self.ahead.extend_from_slice(&piece[..length]);
        Ok((&self.ahead, length == 0))
    }

    /// Reads to the end, and calls `take` with each piece. Holds no buffer while there is nothing to read.
    pub(crate) fn poll_into(
        &mut self,
        context: &mut Context<'_>,
        take: &mut impl FnMut(&[u8]),
    ) -> Poll<io::Result<()>> {
        let mut space = [MaybeUninit::uninit(); PIECE];
        for _ in 0..PIECES {
            let mut buffer = ReadBuf::uninit(&mut space);
            ready!(Pin::new(&mut *self).poll_read(context, &mut buffer))?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            take(buffer.filled());
        }
        // Other tasks have their turn.
        context.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_fresh(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(trouble) = self.trouble.take() {
            return Poll::Ready(Err(trouble));
        }
        if self.ended || buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if let Some(tee) = &mut self.taps.tee
            && let Err(errno) = ready!(tee.poll_written(context))
        {
            self.taps.tee = None;
            return Poll::Ready(Err(not_copied(errno)));
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
        self.ended = fresh.is_empty();
        if !self.ended {
            if let Some(activity) = &self.taps.activity {
                activity.note();
            }
            if let Some(tee) = &mut self.taps.tee
                && let Err(errno) = tee.give(fresh)
            {
                self.trouble = Some(not_copied(errno));
                self.taps.tee = None;
            }
        }
        Poll::Ready(Ok(()))
    }
}

fn not_copied(errno: Errno) -> io::Error {
    io::Error::other(format!("cannot also write the output to its file: {errno}"))
}

impl AsyncRead for OutputStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return self.poll_fresh(context, buffer);
        }
        let length = buffer.remaining().min(self.ahead.len());
        buffer.put_slice(&self.ahead[..length]);
        self.ahead.drain(..length);
        Poll::Ready(Ok(()))
    }
}

impl Drop for OutputStream {
    fn drop(&mut self) {
        if !self.ended {
            self.channel.let_go();
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
/// On a terminal in line mode, this writes the end-of-file character, which has no effect on a program that reads
/// single keys.
///
/// An [`AsyncWrite`]. When the job is over, or no process of it reads any more, a write fails with
/// [`BrokenPipe`](io::ErrorKind::BrokenPipe). The host program must ignore SIGPIPE, as Rust's runtime does.
///
/// ```
/// # async fn example(job: &pinfold::Job) -> Result<(), Box<dyn std::error::Error>> {
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
        if let Some(channel) = self.channel.as_ref().filter(|channel| channel.is_terminal && !channel.is_elsewhere()) {
            channel.write_now(&end_of_input(&**channel.fd(), self.in_line));
        }
    }
}

impl std::fmt::Debug for InputStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InputStream").field("channel", &self.channel).finish_non_exhaustive()
    }
}

//! The destination of the command's output: one of pinfold's standard streams.

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::kernel::inherited;
use crate::output::Writer;
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::cli::print_message;

/// The first loss of output: a message with the output that was lost, and the reason.
#[derive(Clone)]
pub struct OutputLoss(watch::Sender<Option<String>>);

impl OutputLoss {
    pub fn none() -> Self {
        Self(watch::Sender::new(None))
    }

    /// Prints the message, and keeps it for the report and the exit code.
    pub fn report(&self, what: String) {
        print_message(&what);
        self.0.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert(what);
            is_first
        });
    }

    pub fn first(&self) -> Option<String> {
        self.0.borrow().clone()
    }
}

/// One of pinfold's standard streams.
pub struct Outlet {
    number: i32,
    pub writer: Arc<Writer>,
    /// A copy of the stream's descriptor, where it is a pipe: the kernel reports that the pipe has lost its last reader
    /// (EPOLLERR, epoll_ctl(2)).
    pipe: Option<AsyncFd<OwnedFd>>,
}

/// Why an outlet accepts no more output.
pub enum Refused {
    /// Its reader has closed it, as `head` does. No output is lost: the reader wanted no more.
    ByItsReader,
    /// A write failed. All output that the command writes from now on is lost. Contains the message for the user.
    By(String),
}

impl Outlet {
    /// Starts to write to `outer`, which is the standard stream `number`.
    ///
    /// # Errors
    /// `EMFILE` where no descriptor is available for a copy of the stream, `EAGAIN` where no thread can be started.
    pub fn new(number: i32, outer: BorrowedFd<'_>) -> crate::Result<Self> {
        // A stream that was closed at the start is now /dev/null, to which every write succeeds. A read-only descriptor
        // of /dev/null refuses every write.
        let outer = if inherited::was_closed(number) {
            File::open("/dev/null").map(OwnedFd::from)
        } else {
            outer.try_clone_to_owned()
        };
        let outer = outer.map_err(|error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            crate::Error::system("copy", "a standard stream", errno, "see ulimit -n")
        })?;
        // If pinfold cannot watch the pipe, only the next write shows that the pipe has no reader.
        let pipe = is_unnamed_pipe(&outer).then(|| outer.try_clone().ok().and_then(watched)).flatten();
        let writer = Writer::start(outer, "to forward the output")?;
        Ok(Self { number, writer: Arc::new(writer), pipe })
    }

    /// Writes a piece; waits while too many bytes wait for the reader of pinfold's output. Where the stream takes no
    /// more, the piece is dropped, and [`close`](Self::close) returns the reason.
    pub async fn send(&self, piece: &[u8]) {
        if self.writer.ready().await.is_ok() {
            self.writer.push(piece);
        }
    }

    /// Waits until a write has failed or the pipe has no reader. Cancel-safe.
    pub async fn refused(&self) {
        let no_reader = async {
            match &self.pipe {
                Some(pipe) => drop(pipe.ready(Interest::ERROR).await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.writer.failed() => {}
            () = no_reader => {}
        }
    }

    /// Waits until all output has been written.
    ///
    /// # Errors
    /// Why the rest of the output could not be written.
    pub async fn close(self) -> Result<(), Refused> {
        self.writer.flush().await.map_err(|error| {
            if error.kind() == io::ErrorKind::BrokenPipe {
                return Refused::ByItsReader;
            }
            let name = if self.number == 1 { "standard output" } else { "standard error" };
            let why = if inherited::was_closed(self.number) {
                "it was closed when pinfold was started".into()
            } else {
                error.to_string()
            };
            Refused::By(format!("cannot forward the output to {name}, and the rest of it is lost there: {why}"))
        })
    }
}

/// Returns whether the file is a pipe without a name. Another process may open a named one for reading again.
fn is_unnamed_pipe(file: &OwnedFd) -> bool {
    /// The kernel's file system for pipes without a name (include/uapi/linux/magic.h).
    const PIPEFS_MAGIC: u64 = 0x5049_5045;
    rustix::fs::fstatfs(file).is_ok_and(|stat| stat.f_type as u64 == PIPEFS_MAGIC)
}

#[allow(unsafe_code)]
fn watched(pipe: OwnedFd) -> Option<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd keeps its one descriptor open for as long as the AsyncFd owns it.
    unsafe { AsyncFd::register_with_interest(pipe, Interest::ERROR) }.ok()
}

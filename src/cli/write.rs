//! Writing to what the caller gave us: it may be non-blocking, which is a property that all who have it open share, and
//! which is therefore not ours to change (open(2), O_NONBLOCK).

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use pinfold::Signal;
use pinfold::signal::SignalQueue;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::thread;

/// Writes all of it, however long that takes: what is full is waited for, whether it blocks or not.
///
/// # Errors
/// What write(2) says but `EINTR` and `EAGAIN`: `EPIPE` where nobody reads it any more.
pub(crate) fn write_all(out: impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(&out, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(length) => bytes = &bytes[length..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => match poll(&mut [PollFd::new(&out, PollFlags::OUT)], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            },
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Prints a text that was asked for; an empty one only finishes what was printed before.
///
/// # Errors
/// What write(2) says. A standard output that was closed when pinfold was started is one: Rust's `Stdout` takes its EBADF for
/// success.
pub(crate) fn print(text: &str) -> io::Result<()> {
    if pinfold::was_closed(1) && !text.is_empty() {
        return Err(Errno::BADF.into());
    }
    let mut stdout = io::stdout();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())
}

/// How long a write waits for a reader that takes nothing.
#[derive(Clone, Copy)]
pub enum Patience {
    /// Until a signal asks pinfold to end: SIGTERM, SIGINT, SIGHUP or SIGQUIT, which have to be blocked.
    UntilSignal,
    /// The same, with an upper limit.
    AtMost(Duration),
}

/// Writes all of it, and waits no longer than that. For the time after a job, which its own time limits do not bound.
///
/// # Errors
/// As [`write_all`]; `TimedOut` or `Interrupted`, with words of their own, where the wait is over. A part has been written then.
pub(crate) fn write_within(out: File, mut bytes: &[u8], patience: Patience) -> io::Result<()> {
    // A pipe that is ready takes so much without blocking (pipe(7)); a regular file is always ready (poll(2)).
    const PIPE_BUF: usize = 4096;
    const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
    while !bytes.is_empty() && matches!(poll(&mut [PollFd::new(&out, PollFlags::OUT)], Some(&NOW)), Ok(1)) {
        match rustix::io::write(&out, &bytes[..bytes.len().min(PIPE_BUF)]) {
            Ok(length) => bytes = &bytes[length..],
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    if bytes.is_empty() {
        return Ok(());
    }
    // It blocks: the rest is for a thread, which ends with pinfold.
    let (sender, news) = mpsc::channel();
    let (rest, written) = (bytes.to_vec(), sender.clone());
    thread::start("to write to a slow reader", move || drop(written.send(Ok(write_all(out, &rest)))))
        .map_err(io::Error::other)?;
    let queue = SignalQueue::block_all().map_err(io::Error::other)?;
    thread::start("to wait for signals", move || {
        while let Ok(Some(received)) = queue.next(None) {
            if [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT].contains(&received.signal) {
                let _ = sender.send(Err(received.signal));
            }
        }
    })
    .map_err(io::Error::other)?;
    let news = match patience {
        Patience::UntilSignal => news.recv().map_err(|_| RecvTimeoutError::Disconnected),
        Patience::AtMost(time) => news.recv_timeout(time),
    };
    match news {
        Ok(Ok(written)) => written,
        Ok(Err(signal)) => {
            Err(io::Error::new(io::ErrorKind::Interrupted, format!("{signal} came while its reader took its time")))
        }
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "its reader takes nothing")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use rustix::fs::{OFlags, fcntl_setfl};

    use super::*;

    #[test]
    fn a_pipe_that_does_not_block() {
        let (mut reader, writer) = io::pipe().unwrap();
        fcntl_setfl(&writer, OFlags::NONBLOCK).unwrap();
        // More than a pipe holds (pipe(7)).
        let bytes: Vec<u8> = (0..1_000_000_u32).map(|at| at.to_le_bytes()[1]).collect();
        let expected = bytes.clone();
        let writing = std::thread::spawn(move || write_all(&writer, &bytes));
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        writing.join().unwrap().unwrap();
        assert!(read == expected, "{} bytes", read.len());
    }

    #[test]
    fn nobody_reads_it_any_more() {
        let (reader, writer) = io::pipe().unwrap();
        fcntl_setfl(&writer, OFlags::NONBLOCK).unwrap();
        drop(reader);
        // A child of another test has a copy of the reader until its exec.
        let error = loop {
            if let Err(error) = write_all(&writer, &[0; 4096]) {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}

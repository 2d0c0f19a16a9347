//! Writes to descriptors that pinfold received from its caller. They may be non-blocking. All processes that have the
//! same open file description share this property, so pinfold must not change it (open(2), O_NONBLOCK).

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::Signal;
use crate::kernel::inherited;
use crate::kernel::own_signals::SignalQueue;

use super::thread;

/// Writes all bytes, and waits without a time limit while the destination is full, whether it is blocking or not.
///
/// # Errors
/// Those of write(2), except `EINTR` and `EAGAIN`; for example `EPIPE` if no process can read from the pipe any more.
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

/// Prints a text on standard output and flushes it. With an empty text, this only flushes what was printed before.
///
/// # Errors
/// Those of write(2), and `EBADF` if standard output was closed when pinfold started; Rust's `Stdout` ignores that
/// `EBADF`.
pub(crate) fn print(text: &str) -> io::Result<()> {
    if inherited::was_closed(1) && !text.is_empty() {
        return Err(Errno::BADF.into());
    }
    let mut stdout = io::stdout();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())
}

/// How long a write waits for a reader that does not read.
#[derive(Clone, Copy)]
pub enum Patience {
    /// Until pinfold receives SIGTERM, SIGINT, SIGHUP or SIGQUIT. The caller must have blocked these signals.
    UntilSignal,
    /// Until pinfold receives one of these signals, or until this time is over.
    AtMost(Duration),
}

/// Writes all bytes, and waits no longer than `patience`. This is for the time after a job, to which the job's own time
/// limits do not apply.
///
/// # Errors
/// Those of [`write_all`]; `TimedOut` or `Interrupted`, with their own messages, if the wait is over. Some of the bytes
/// may have been written in that case.
pub(crate) fn write_within(out: File, mut bytes: &[u8], patience: Patience) -> io::Result<()> {
    // A pipe that is ready accepts this many bytes without blocking (pipe(7)). A regular file is always ready
    // (poll(2)).
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
    // The next write would block. A thread writes the rest; the thread ends with pinfold.
    let (sender, results) = mpsc::channel();
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
    let result = match patience {
        Patience::UntilSignal => results.recv().map_err(|_| RecvTimeoutError::Disconnected),
        Patience::AtMost(time) => results.recv_timeout(time),
    };
    match result {
        Ok(Ok(written)) => written,
        Ok(Err(signal)) => Err(io::Error::new(
            io::ErrorKind::Interrupted,
            format!("{signal} arrived while pinfold waited for its reader"),
        )),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "its reader does not read")),
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
    fn a_pipe_without_a_reader() {
        let (reader, writer) = io::pipe().unwrap();
        fcntl_setfl(&writer, OFlags::NONBLOCK).unwrap();
        drop(reader);
        // A child of another test may have a copy of the reader until it calls exec.
        let error = loop {
            if let Err(error) = write_all(&writer, &[0; 4096]) {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}

//! Writing to what the caller gave us: it may be non-blocking, which is a property that all who have it open share, and
//! which is therefore not ours to change (open(2), O_NONBLOCK).

use std::io;
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

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

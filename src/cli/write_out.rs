//! Writing to a stream that somebody else may have made non-blocking: the flag belongs to the open file description, which is
//! shared with whoever gave it to us (fcntl(2), `O_NONBLOCK`; open(2)).

use std::io::{Error, ErrorKind, Result};
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, write};

/// Writes all of it, and waits while there is no room.
pub(crate) fn write_all(out: impl AsFd, bytes: &[u8]) -> Result<()> {
    let mut left = bytes;
    while !left.is_empty() {
        match write(&out, left) {
            Ok(0) => return Err(Error::from(ErrorKind::WriteZero)),
            Ok(length) => left = &left[length..],
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

    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    #[test]
    fn a_full_pipe_that_does_not_block() {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        let bytes: Vec<u8> = (0..1_000_000_u32).map(|number| number as u8).collect();
        let written = bytes.clone();
        let writing = std::thread::spawn(move || write_all(&writer, &written));
        let (mut reader, mut seen) = (std::fs::File::from(reader), Vec::new());
        let mut piece = [0; 5000];
        while seen.len() < bytes.len() {
            match reader.read(&mut piece) {
                Ok(length) => seen.extend_from_slice(&piece[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    poll(&mut [PollFd::new(&reader, PollFlags::IN)], None).unwrap();
                }
                Err(error) => panic!("{error}"),
            }
        }
        writing.join().unwrap().unwrap();
        assert!(seen == bytes);
    }

    #[test]
    fn a_reader_that_is_gone() {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        drop(reader);
        // A test's process ignores SIGPIPE, as pinfold does.
        assert_eq!(write_all(&writer, b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    }
}

//! Reads standard input, which another process may have made non-blocking (as in [`super::write`]), and reads lines of
//! bounded length.

use std::io::{BufRead, Read, Result, stdin};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, read};

/// Standard input without a buffer. A read waits until there is input, even if standard input is non-blocking.
pub struct StandardInput;

impl Read for StandardInput {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let stdin = stdin();
        loop {
            match read(&stdin, &mut *buffer) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => match poll(&mut [PollFd::new(&stdin, PollFlags::IN)], None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(errno) => return Err(errno.into()),
                },
                done => return Ok(done?),
            }
        }
    }
}

/// The maximum length of a line of JSON, in bytes. A program that writes without a newline must not fill the memory.
pub const MAX_LINE: usize = 256 * 1024 * 1024;

/// The result of [`read_line`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// A whole line, without the byte that ends it.
    Whole,
    /// The beginning of a line that is longer than the maximum.
    TooLong,
    /// Nothing: the input has ended.
    End,
}

/// Appends the next line to `line`, without the `end` byte. Appends at most `max` bytes.
///
/// # Errors
/// The errno of read(2).
pub fn read_line(input: &mut impl BufRead, end: u8, max: usize, line: &mut Vec<u8>) -> Result<Line> {
    let start = line.len();
    loop {
        let available = input.fill_buf()?;
        if available.is_empty() {
            return Ok(if line.len() == start { Line::End } else { Line::Whole });
        }
        let found = available.iter().position(|&byte| byte == end);
        let length = found.unwrap_or(available.len());
        if line.len() - start + length > max {
            return Ok(Line::TooLong);
        }
        line.extend_from_slice(&available[..length]);
        input.consume(length + usize::from(found.is_some()));
        if found.is_some() {
            return Ok(Line::Whole);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;

    #[test]
    fn lines_of_bounded_length() {
        for capacity in 1..8 {
            let mut input = BufReader::with_capacity(capacity, b"ab\n\nabcd\nabcdef\nx".as_slice());
            let mut next = || {
                let mut line = Vec::new();
                let read = read_line(&mut input, b'\n', 4, &mut line).unwrap();
                if read == Line::TooLong {
                    input.skip_until(b'\n').unwrap();
                    assert!(b"abcdef".starts_with(&line));
                    line.clear();
                }
                (read, line)
            };
            let lines: Vec<_> = std::iter::from_fn(|| Some(next()).filter(|(read, _)| *read != Line::End)).collect();
            let whole = |line: &str| (Line::Whole, line.as_bytes().to_vec());
            assert_eq!(lines, [whole("ab"), whole(""), whole("abcd"), (Line::TooLong, Vec::new()), whole("x")]);
        }
    }
}

//! Reads what the user types while the command runs: `r` and Enter request a restart.

use std::io::{BufRead, BufReader, Read};

use anyhow::Result;
use tokio::sync::mpsc::{Receiver, channel};

use crate::cli::thread;

/// Starts to read standard input, and returns the channel of the requests to restart. The channel closes when standard
/// input ends.
///
/// The channel holds one request. A request that arrives before the receiver has taken the previous one has no effect.
pub fn restarts() -> Result<Receiver<()>> {
    let (sender, requests) = channel(1);
    thread::start("to read standard input", move || {
        let mut stdin = BufReader::new(std::io::stdin().lock());
        while let Some(line) = next_line(&mut stdin) {
            if line.trim_ascii() == b"r" && sender.try_send(()).is_err() && sender.is_closed() {
                break;
            }
        }
    })?;
    Ok(requests)
}

/// Returns the beginning of the next line. A line may have any length, but this keeps only its first bytes.
fn next_line(stdin: &mut impl BufRead) -> Option<Vec<u8>> {
    const KEPT: u64 = 16;
    let mut line = Vec::new();
    if stdin.by_ref().take(KEPT).read_until(b'\n', &mut line).ok()? == 0 {
        return None;
    }
    if line.last() != Some(&b'\n') {
        skip_line(stdin);
    }
    Some(line)
}

fn skip_line(stdin: &mut impl BufRead) {
    loop {
        let (length, ended) = match stdin.fill_buf() {
            Ok([]) | Err(_) => return,
            Ok(bytes) => match bytes.iter().position(|&byte| byte == b'\n') {
                Some(at) => (at + 1, true),
                None => (bytes.len(), false),
            },
        };
        stdin.consume(length);
        if ended {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_skipped() {
        let text = [&b"r\n"[..], &[b'r'; 100_000], b"\n", b"0123456789abcdef\n", b" r \n", b"last"].concat();
        let mut stdin = BufReader::with_capacity(10, &text[..]);
        let mut lines = Vec::new();
        while let Some(line) = next_line(&mut stdin) {
            lines.push(line);
        }
        assert_eq!(lines, [&b"r\n"[..], &[b'r'; 16], b"0123456789abcdef", b" r \n", b"last"]);
    }
}

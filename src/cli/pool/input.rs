//! Reads the whole input that contains the jobs, up to a limit.

use std::io::{ErrorKind, Read};

use anyhow::{Context, Result, bail};

use crate::cli::stdin::MAX_LINE;

/// The limit for a line that becomes an argument. It is far above the kernel's own limit of 128 KiB (MAX_ARG_STRLEN,
/// execve(2)).
pub const MAX_ARGUMENT: usize = 1024 * 1024;

/// The limit for the length of the input, in bytes.
const MAX_INPUT: usize = 4 * MAX_LINE;

/// The limit for the number of lines.
const MAX_LINES: usize = 10_000_000;

/// The largest number of bytes in one read.
const PIECE: usize = 64 * 1024;

/// Reads the whole input. `origin` is its name in error messages.
///
/// # Errors
/// The errno of read(2). An error also if a line, the number of lines or the whole input exceeds its limit: pinfold
/// returns this error as soon as it has read that much.
pub fn read(mut input: impl Read, origin: &str, separator: u8, max_line: usize) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    // Where the current line begins, and the number of lines before it.
    let (mut begin, mut lines) = (0, 0_usize);
    loop {
        let end = text.len();
        text.resize(end + PIECE, 0);
        let read = loop {
            match input.read(&mut text[end..]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        let length = read.with_context(|| format!("cannot read the jobs from {origin}"))?;
        let at_end = length == 0;
        text.truncate(end + length);
        // Most pieces of a long line contain no separator, and `contains` finds that out fast.
        if text[end..].contains(&separator) {
            for at in (end..text.len()).filter(|&at| text[at] == separator) {
                lines += 1;
                check_line(at - begin, max_line, lines, origin)?;
                begin = at + 1;
            }
        }
        check_line(text.len() - begin, max_line, lines + 1, origin)?;
        if lines > MAX_LINES {
            bail!("there are more than {MAX_LINES} jobs in {origin}: split them between several runs of pinfold pool");
        }
        if text.len() > MAX_INPUT {
            bail!(
                "the jobs in {origin} have more than {MAX_INPUT} bytes: split them between several runs of pinfold pool"
            );
        }
        if at_end {
            return Ok(text);
        }
    }
}

fn check_line(length: usize, max: usize, number: usize, origin: &str) -> Result<()> {
    if length > max {
        bail!(
            "line {number} of the jobs in {origin} is too long: a line may have at most {max} bytes; no job was started"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endless_input_ends_with_an_error() {
        let read = |input: &mut dyn Read, max| read(input, "it", b'\n', max).map_err(|error| error.to_string());
        let text: Vec<u8> = (0..300_000).flat_map(|line| format!("{line}\n").into_bytes()).collect();
        assert_eq!(read(&mut text.as_slice(), 6), Ok(text.clone()));
        assert!(read(&mut text.as_slice(), 5).unwrap_err().contains("line 100001 "));
        assert!(read(&mut std::io::repeat(b'x'), 1_000_000).unwrap_err().contains("line 1 "));
        assert!(read(&mut std::io::repeat(b'\n'), 1_000_000).unwrap_err().contains("more than 10000000 jobs"));
    }
}

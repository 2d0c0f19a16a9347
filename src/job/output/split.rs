//! Divides output into lines. Every part of pinfold that needs lines uses these functions.

use std::ops::Range;

use memchr::{memchr, memrchr};

/// Divides output into lines of a bounded length, in whatever pieces it arrives.
#[derive(Debug)]
pub(crate) struct Splitter {
    /// The bytes from `start` on have not been returned yet. They contain no newline before `searched`.
    held: Vec<u8>,
    start: usize,
    searched: usize,
    max: usize,
}

impl Splitter {
    /// Returns a splitter that returns lines of more than `max` bytes in pieces.
    pub fn new(max: usize) -> Self {
        Self { held: Vec::new(), start: 0, searched: 0, max }
    }

    pub fn set_max(&mut self, max: usize) {
        self.max = max;
    }

    /// Adds the next bytes of the output.
    pub fn push(&mut self, bytes: &[u8]) {
        self.held.drain(..self.start);
        self.searched -= self.start;
        self.start = 0;
        self.held.extend_from_slice(bytes);
    }

    /// Returns the next line without its newline, or the next piece of a line that is too long, and whether a newline
    /// ended it. At the end of the output (`is_end`), the rest is a line too.
    pub fn next(&mut self, is_end: bool) -> Option<(&[u8], bool)> {
        let newline = memchr(b'\n', &self.held[self.searched..]).map(|at| self.searched + at);
        self.searched = newline.unwrap_or(self.held.len());
        let length = self.searched - self.start;
        if length > self.max {
            let piece = self.take(piece_length(&self.held[self.start..self.start + self.max]));
            return Some((&self.held[piece], false));
        }
        if newline.is_some() {
            let line = self.take(length);
            // The newline itself.
            self.take(1);
            self.searched = self.start;
            return Some((&self.held[line], true));
        }
        if !is_end || length == 0 {
            return None;
        }
        let line = self.take(length);
        Some((&self.held[line], false))
    }

    fn take(&mut self, length: usize) -> Range<usize> {
        let begin = self.start;
        self.start += length;
        begin..self.start
    }
}

/// Returns how many of these bytes are a piece of a line that is too long: all, or up to three bytes less where a UTF-8
/// character would be cut.
pub(crate) fn piece_length(piece: &[u8]) -> usize {
    let max = piece.len();
    // The first byte of the last character that begins in the piece.
    let Some(back) = (1..=max.min(3)).find(|back| piece[max - back] & 0b1100_0000 != 0b1000_0000) else { return max };
    let needed = match piece[max - back] {
        0b1100_0000..=0b1101_1111 => 2,
        0b1110_0000..=0b1110_1111 => 3,
        0b1111_0000..=0b1111_0111 => 4,
        _ => 1,
    };
    if needed > back && back < max { max - back } else { max }
}

/// Returns the length of the complete lines that `bytes` begins with and that fit into `at_once` bytes. If the first
/// line does not fit, returns the length of the line, but at most the sum of `at_once` and `more`: a longer line is
/// divided. Returns `None` if `bytes` contains only the beginning of a line.
pub(crate) fn whole_lines(bytes: &[u8], at_once: usize, more: usize) -> Option<usize> {
    let (first, rest) = bytes.split_at(bytes.len().min(at_once));
    if let Some(at) = memrchr(b'\n', first) {
        return Some(at + 1);
    }
    if first.len() < at_once {
        return None;
    }
    let rest = &rest[..rest.len().min(more)];
    Some(first.len() + memchr(b'\n', rest).map_or(rest.len(), |at| at + 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Divides the output, which arrives in `pieces`.
    fn lines(pieces: &[&[u8]], max: usize) -> Vec<(Vec<u8>, bool)> {
        let mut splitter = Splitter::new(max);
        let mut lines = Vec::new();
        for (at, piece) in pieces.iter().enumerate() {
            splitter.push(piece);
            while let Some((line, complete)) = splitter.next(at + 1 == pieces.len()) {
                lines.push((line.to_vec(), complete));
            }
        }
        lines
    }

    proptest! {
        /// The lines do not depend on the pieces in which the output arrives, none is too long, and nothing is lost.
        #[test]
        fn lines_are_the_same_in_any_pieces(
            text in prop::collection::vec(prop::sample::select(vec!["a", "é", "\n", "\r", "€", "𝄞"]), 0..60),
            cuts in prop::collection::vec(0..200_usize, 0..8),
            max in 1..20_usize,
        ) {
            let text = text.concat().into_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &text[cut[0]..cut[1]]).collect();
            let whole = lines(&[&text], max);
            prop_assert_eq!(&lines(&pieces, max), &whole);
            let join = |(line, complete): &(Vec<u8>, bool)| [&line[..], if *complete { b"\n" } else { b"" }].concat();
            prop_assert_eq!(whole.iter().flat_map(join).collect::<Vec<_>>(), text);
            for (line, _) in &whole {
                prop_assert!(line.len() <= max && !line.contains(&b'\n'));
                prop_assert!(max < 4 || std::str::from_utf8(line).is_ok());
            }
        }

        /// Nothing is lost, no part is too large, and a line that fits into one part is not divided.
        #[test]
        fn lines_are_written_whole(lengths in prop::collection::vec(0..90_usize, 0..12), more in 1..100_usize) {
            const AT_ONCE: usize = 40;
            let all: Vec<u8> = lengths.iter().flat_map(|&length| [vec![b'x'; length], vec![b'\n']].concat()).collect();
            let mut rest = &all[..];
            while let Some(length) = whole_lines(rest, AT_ONCE, more) {
                let part = &rest[..length];
                prop_assert!(!part.is_empty() && length <= AT_ONCE + more);
                let line = memchr(b'\n', rest).map_or(rest.len(), |end| end + 1);
                prop_assert!(part.ends_with(b"\n") || line > AT_ONCE, "a line of {line} bytes is divided");
                prop_assert!(length <= AT_ONCE || memchr(b'\n', part).is_none_or(|end| end + 1 == length));
                rest = &rest[length..];
            }
            prop_assert!(rest.is_empty());
            prop_assert_eq!(whole_lines(b"begin", AT_ONCE, more), None);
        }
    }
}

//! Divides output into runs of complete lines, for a receiver that prints lines as soon as they are complete. All lines
//! of a run are passed on in one piece, so a short line needs no allocation of its own.

use memchr::{memchr, memrchr};

use crate::job::output::split::piece_length;

/// Collects output, in whatever pieces it arrives, and returns all lines that are complete as one run. Each line begins
/// with the tag.
#[derive(Debug)]
pub(crate) struct LineRuns {
    tag: Vec<u8>,
    /// A line of at most this many bytes is returned as a whole, with its newline and its tag.
    max: usize,
    /// The bytes that have not been returned yet, with the tags.
    held: Vec<u8>,
    /// The complete lines in `held` end here.
    complete: usize,
    /// The next byte is the first one of a line.
    begins: bool,
}

impl LineRuns {
    pub fn new(tag: &[u8], max: usize) -> Self {
        Self { tag: tag.to_vec(), max, held: Vec::new(), complete: 0, begins: true }
    }

    /// Adds the next bytes of the output.
    pub fn push(&mut self, bytes: &[u8]) {
        self.held.reserve(bytes.len());
        if self.tag.is_empty() {
            if let Some(at) = memrchr(b'\n', bytes) {
                self.complete = self.held.len() + at + 1;
            }
            self.held.extend_from_slice(bytes);
        } else {
            self.push_tagged(bytes);
        }
        if let Some(last) = bytes.last() {
            self.begins = *last == b'\n';
        }
    }

    fn push_tagged(&mut self, mut rest: &[u8]) {
        while !rest.is_empty() {
            if self.begins {
                self.held.extend_from_slice(&self.tag);
            }
            let newline = memchr(b'\n', rest);
            let (line, after) = rest.split_at(newline.map_or(rest.len(), |at| at + 1));
            self.held.extend_from_slice(line);
            self.begins = newline.is_some();
            if self.begins {
                self.complete = self.held.len();
            }
            rest = after;
        }
    }

    /// Returns the lines that are complete, or else a part of a line that is too long. No part ends within a UTF-8
    /// character.
    pub fn next(&mut self) -> Option<Vec<u8>> {
        let length = match self.complete {
            0 if self.held.len() > self.max + self.tag.len() => piece_length(&self.held),
            0 => return None,
            complete => complete,
        };
        let rest = self.held[length..].to_vec();
        self.held.truncate(length);
        self.complete = 0;
        Some(std::mem::replace(&mut self.held, rest))
    }

    /// Returns the rest at the end of the output, with a newline, so that another output can follow on a new line.
    pub fn end(mut self) -> Option<Vec<u8>> {
        if !self.begins {
            self.held.push(b'\n');
        }
        (!self.held.is_empty()).then_some(self.held)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns the runs of an output that arrives in these pieces.
    fn runs(pieces: &[&[u8]], tag: &[u8], max: usize) -> Vec<Vec<u8>> {
        let mut runs = LineRuns::new(tag, max);
        let mut returned = Vec::new();
        for piece in pieces {
            runs.push(piece);
            returned.extend(std::iter::from_fn(|| runs.next()));
            // Only the beginning of a line is held back.
            assert!(runs.held.len() <= max + tag.len() + 3 && !runs.held.contains(&b'\n'), "{runs:?}");
        }
        returned.extend(runs.end());
        returned
    }

    proptest! {
        /// However the output is cut, nothing is lost, each line has its tag, and a line that is short enough is in one
        /// run.
        #[test]
        fn runs_are_complete_lines(
            text in prop::collection::vec(prop::sample::select(vec!["a", "bc", "\n", "\r", "é", "€", "𝄞"]), 0..60),
            cuts in prop::collection::vec(0..200_usize, 0..12),
            tag in prop::sample::select(vec!["", "t\t", "long tag\t"]),
            max in 4..20_usize,
        ) {
            let text = text.concat();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &text.as_bytes()[cut[0]..cut[1]]).collect();
            let returned = runs(&pieces, tag.as_bytes(), max);
            let expected: String = text.split_terminator('\n').map(|line| format!("{tag}{line}\n")).collect();
            prop_assert_eq!(String::from_utf8(returned.concat()).unwrap(), expected);
            let all = returned.concat();
            let mut end = 0;
            for run in &returned {
                prop_assert!(std::str::from_utf8(run).is_ok());
                end += run.len();
                if !run.ends_with(b"\n") {
                    // The run ends within a line, so that line is too long.
                    let begin = memrchr(b'\n', &all[..end]).map_or(0, |at| at + 1);
                    let length = memchr(b'\n', &all[begin..]).unwrap() - tag.len();
                    prop_assert!(length > max, "a line of {length} bytes is divided");
                }
            }
        }
    }

    #[test]
    fn invalid_text_passes_unchanged() {
        let text = b"\xff\xfe\n\xe2\x82".repeat(7);
        let pieces: Vec<&[u8]> = text.chunks(3).collect();
        assert_eq!(runs(&pieces, b"", 4).concat(), [&text[..], b"\n"].concat());
    }

    #[test]
    fn a_line_of_the_largest_length_is_one_run() {
        assert_eq!(runs(&[b"abcd", b"", b"\n"], b"t ", 4), [b"t abcd\n"]);
        assert_eq!(runs(&[b"abcde", b"\n"], b"t ", 4), [&b"t abcde"[..], b"\n"]);
        assert_eq!(runs(&[b"a", b"\nb\nc", b"d\n\n"], b"", 4), [&b"a\nb\n"[..], b"cd\n\n"]);
        assert_eq!(runs(&[], b"t ", 4), Vec::<Vec<u8>>::new());
    }
}

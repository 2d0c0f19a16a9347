//! Files with environment variables (`.env`), as the dotenv libraries read them.

use std::cell::Cell;
use std::io::{self, Read};
use std::path::Path;
use std::rc::Rc;

use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::report::text::printable_path;

/// Reads the variables of a file, in their order. A variable is `NAME=value` or `export NAME=value`. A value may be in
/// single or double quotation marks, and may then contain newlines. `#` begins a comment. `$NAME` and `${NAME}` stand
/// for the value of another variable: of pinfold's environment, or of an earlier line. If a name occurs twice, the last
/// value counts.
///
/// # Errors
/// [`Error::Invalid`] with the file and the line, or [`Error::System`] if the file can't be read.
pub(crate) fn read(path: &Path) -> Result<Vec<(String, String)>> {
    let text = std::fs::read(path).map_err(|error| {
        let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
        let advice =
            if errno == Errno::NOENT { "create the file, or remove it from the service's settings" } else { "" };
        Error::system("read the environment file", printable_path(path), errno, advice)
    })?;
    parse(&text).map_err(|(line, advice)| {
        Error::invalid("environment file", format!("{}:{line}", printable_path(path)), advice)
    })
}

/// Returns the variables, or the number of the line that is wrong and the reason.
fn parse(text: &[u8]) -> std::result::Result<Vec<(String, String)>, (usize, String)> {
    let delivered = Rc::new(Cell::new(0));
    // dotenvy skips the byte order mark only in the functions that set the variables of this process.
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let lines = Lines { text, lacks_newline: !text.ends_with(b"\n"), delivered: delivered.clone() };
    let mut variables: Vec<(String, String)> = Vec::new();
    for item in dotenvy::from_read_iter(lines) {
        match item {
            Ok((key, value)) => {
                variables.retain(|(known, _)| *known != key);
                variables.push((key, value));
            }
            Err(dotenvy::Error::LineParse(line, _)) => {
                let first = delivered.get() - line.trim_end_matches('\n').matches('\n').count();
                return Err((
                    first,
                    "it must be NAME=value; a quotation mark must be closed, and a value with spaces \
                                    needs quotation marks"
                        .into(),
                ));
            }
            Err(dotenvy::Error::Io(error)) if error.kind() == io::ErrorKind::InvalidData => {
                return Err((delivered.get(), "it is not UTF-8".into()));
            }
            Err(error) => return Err((delivered.get(), error.to_string())),
        }
    }
    Ok(variables)
}

/// A reader that returns one line at a time and counts the lines, so that an error can name its line.
struct Lines<'a> {
    text: &'a [u8],
    /// Whether the last line has no newline, so that this reader must add one.
    lacks_newline: bool,
    /// How many lines were read.
    delivered: Rc<Cell<usize>>,
}

impl Read for Lines<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.text.is_empty() {
            let is_needed = std::mem::take(&mut self.lacks_newline);
            return (if is_needed { &b"\n"[..] } else { &[] }).read(buffer);
        }
        let line = memchr::memchr(b'\n', self.text).map_or(self.text.len(), |at| at + 1);
        let length = line.min(buffer.len());
        if length == line {
            self.delivered.set(self.delivered.get() + 1);
        }
        (&self.text[..length]).read(buffer)?;
        self.text = &self.text[length..];
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_as_people_write_them() {
        let text =
            "\u{feff}# comment\n\nA=1\nexport B=\"two words\" # comment\nC='$A'\nD=${A}x\nE=\"a\nb\"\nA=2\nF=\nG=x ";
        let expected = [("B", "two words"), ("C", "$A"), ("D", "1x"), ("E", "a\nb"), ("A", "2"), ("F", ""), ("G", "x")];
        let expected: Vec<_> = expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        assert_eq!(parse(text.as_bytes()).unwrap(), expected);
        assert_eq!(parse(b"").unwrap(), []);
    }

    #[test]
    fn errors_name_the_line() {
        for (text, line) in [
            (&b"A=1\nnonsense\nB=2\n"[..], 2),
            (b"A=1\n\n# comment\nB=two words\n", 4),
            (b"A=\"a\nb\"\n=x\n", 3),
            (b"A=1\nB=\"never\nclosed\n", 2),
            (b"A=1\nB=\xff\n", 2),
        ] {
            assert_eq!(parse(text).unwrap_err().0, line, "{}", String::from_utf8_lossy(text));
        }
        let path = std::env::temp_dir().join(format!("pinfold-env-{}", std::process::id()));
        std::fs::write(&path, "A=1\nB C\n").unwrap();
        let error = read(&path).unwrap_err().to_string();
        std::fs::remove_file(&path).unwrap();
        assert!(error.starts_with(&format!("environment file '{}:2' is not valid: ", path.display())), "{error}");
        assert!(read(&path).unwrap_err().to_string().contains("No such file"));
    }
}

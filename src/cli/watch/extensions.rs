//! `--ext`: watch only files with these extensions.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// One extension, with its dot: `.rs`, `.d.ts`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension(String);

/// Parses an extension, written as `rs`, `.rs` or `*.rs`. The case of letters does not matter.
pub fn parse(text: &str) -> Result<Extension, String> {
    let name = text.trim();
    let name = name.strip_prefix('*').unwrap_or(name);
    let name = name.strip_prefix('.').unwrap_or(name);
    if name.is_empty() || name.starts_with('.') || name.contains(|c: char| "*?[]{}/\\".contains(c) || c.is_whitespace())
    {
        return Err("write the extension of a file name, such as rs or d.ts; for patterns use --ignore".into());
    }
    Ok(Extension(format!(".{name}")))
}

impl Extension {
    pub fn is_of(&self, file_name: &OsStr) -> bool {
        let (name, extension) = (file_name.as_bytes(), self.0.as_bytes());
        name.len() >= extension.len() && name[name.len() - extension.len()..].eq_ignore_ascii_case(extension)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_to_write_an_extension() {
        for text in ["rs", ".rs", "*.rs", "RS", " rs", "*rs"] {
            let extension = parse(text).unwrap();
            for (name, expected) in
                [("a.rs", true), ("A.RS", true), ("rs", false), ("a.ors", false), ("a.rs.txt", false)]
            {
                assert_eq!(extension.is_of(name.as_ref()), expected, "{text} {name}");
            }
        }
        assert!(parse("d.ts").unwrap().is_of("types.d.ts".as_ref()));
        assert!(!parse("d.ts").unwrap().is_of("types.ts".as_ref()));
        for text in ["", ".", "*", "*.", "..rs", "{rs,toml}", "r?", "src/rs", "rs toml"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}

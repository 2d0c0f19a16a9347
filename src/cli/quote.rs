//! Quotes words for messages as GNU programs do: ‘word’ if the locale's character set is UTF-8, otherwise 'word'.
//! Characters that are not printable become escape sequences of C.

#[cfg(not(target_env = "musl"))]
use std::ffi::CStr;
use std::ffi::{c_int, c_uint};

// SAFETY: this is iswprint(3) of the C library, which returns whether a character is printable in the locale. It
// accepts any value.
#[allow(unsafe_code)]
unsafe extern "C" {
    safe fn iswprint(character: c_uint) -> c_int;
}

/// Returns the quoted bytes. Call this only while the process has one thread: it sets the program's LC_CTYPE to that of
/// the environment.
pub fn quote(word: &[u8]) -> Vec<u8> {
    quote_in(word, is_utf8())
}

fn quote_in(word: &[u8], utf8: bool) -> Vec<u8> {
    let (open, close) = if utf8 { ("‘", "’") } else { ("'", "'") };
    let mut quoted = open.as_bytes().to_vec();
    for chunk in word.utf8_chunks() {
        for character in chunk.valid().chars() {
            let mut bytes = [0; 4];
            let bytes = character.encode_utf8(&mut bytes).as_bytes();
            match character {
                '\\' => quoted.extend(b"\\\\"),
                '\x07' => quoted.extend(b"\\a"),
                '\x08' => quoted.extend(b"\\b"),
                '\x0c' => quoted.extend(b"\\f"),
                '\n' => quoted.extend(b"\\n"),
                '\r' => quoted.extend(b"\\r"),
                '\t' => quoted.extend(b"\\t"),
                '\x0b' => quoted.extend(b"\\v"),
                ' '..='~' if bytes != close.as_bytes() => quoted.extend(bytes),
                _ if bytes == close.as_bytes() => quoted.extend([b"\\", bytes].concat()),
                _ if utf8 && iswprint(character as c_uint) != 0 => quoted.extend(bytes),
                _ => octal(bytes, &mut quoted),
            }
        }
        octal(chunk.invalid(), &mut quoted);
    }
    quoted.extend(close.as_bytes());
    quoted
}

fn octal(bytes: &[u8], quoted: &mut Vec<u8>) {
    for byte in bytes {
        quoted.extend(format!("\\{byte:03o}").as_bytes());
    }
}

/// Returns whether the locale's character set is UTF-8, according to its name: musl itself supports UTF-8 only.
#[cfg(target_env = "musl")]
fn is_utf8() -> bool {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let locale = set("LC_ALL").or_else(|| set("LC_CTYPE")).or_else(|| set("LANG")).unwrap_or_default();
    let locale = locale.to_string_lossy().to_lowercase();
    // SAFETY: the process has one thread, see `quote`. iswprint(3) needs this call.
    #[allow(unsafe_code)]
    unsafe {
        libc::setlocale(libc::LC_CTYPE, c"".as_ptr())
    };
    locale.ends_with(".utf-8") || locale.ends_with(".utf8")
}

#[cfg(not(target_env = "musl"))]
#[allow(unsafe_code)]
fn is_utf8() -> bool {
    // SAFETY: the process has one thread, see `quote`. The string that nl_langinfo(3) returns is compared before the
    // locale can change.
    unsafe {
        libc::setlocale(libc::LC_CTYPE, c"".as_ptr());
        let codeset = libc::nl_langinfo(libc::CODESET);
        !codeset.is_null() && CStr::from_ptr(codeset).to_bytes() == b"UTF-8"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_in_coreutils() {
        let quoted = |word: &[u8], utf8| String::from_utf8(quote_in(word, utf8)).unwrap();
        let word = "a'b\\c\n\x01ä".as_bytes();
        assert_eq!(quoted(word, false), r"'a\'b\\c\n\001\303\244'");
        assert_eq!(quoted(b"\xff\xc2\x80", true), r"‘\377\302\200’");
        assert_eq!(quoted("’'?".as_bytes(), true), r"‘\’'?’");
        assert_eq!(quoted(b"", true), "‘’");
    }
}

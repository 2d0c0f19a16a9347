//! Words quoted for messages as GNU programs do it: ‘so’ where the locale's characters are UTF-8, 'so' elsewhere, and
//! what can't be printed as in C.

#[cfg(not(target_env = "musl"))]
use std::ffi::CStr;
use std::ffi::{c_int, c_uint};

// SAFETY: C's own iswprint(3): whether a character is printable in the locale. It takes any value.
#[allow(unsafe_code)]
unsafe extern "C" {
    safe fn iswprint(character: c_uint) -> c_int;
}

/// The quoted bytes. Call it only where there is one thread: it sets the character type of the program's locale to the
/// environment's.
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

/// By the locale's name: musl itself knows UTF-8 only.
#[cfg(target_env = "musl")]
fn is_utf8() -> bool {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let locale = set("LC_ALL").or_else(|| set("LC_CTYPE")).or_else(|| set("LANG")).unwrap_or_default();
    let locale = locale.to_string_lossy().to_lowercase();
    // SAFETY: one thread, see `quote`. For iswprint(3).
    #[allow(unsafe_code)]
    unsafe {
        libc::setlocale(libc::LC_CTYPE, c"".as_ptr())
    };
    locale.ends_with(".utf-8") || locale.ends_with(".utf8")
}

#[cfg(not(target_env = "musl"))]
#[allow(unsafe_code)]
fn is_utf8() -> bool {
    // SAFETY: one thread, see `quote`; the string that nl_langinfo(3) tells is copied before the locale could change.
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

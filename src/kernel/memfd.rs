//! Files in memory (memfd_create(2), Linux 3.17).

use std::ffi::CStr;
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{Errno, Result, write};

use crate::kernel::rlimit;

/// Makes a file in memory that contains `bytes`. Its offset is at the end.
///
/// # Errors
/// `FBIG` if the file would be larger than this process may make one (RLIMIT_FSIZE, setrlimit(2)). Without this check,
/// the kernel would send SIGXFSZ, which ends a host program that does not handle it. Otherwise, the errno of
/// memfd_create(2) or write(2).
pub fn containing(name: &CStr, flags: MemfdFlags, bytes: &[u8]) -> Result<OwnedFd> {
    let file = memfd_create(name, flags)?;
    let too_large = rlimit::limit(libc::RLIMIT_FSIZE).is_some_and(|(soft, _)| bytes.len() as u64 > soft);
    if too_large {
        return Err(Errno::FBIG);
    }
    let mut left = bytes;
    while !left.is_empty() {
        let written = write(&file, left)?;
        left = &left[written..];
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    #[test]
    fn it_contains_the_bytes() {
        let file = containing(c"test", MemfdFlags::CLOEXEC, b"some bytes").unwrap();
        let mut file = std::fs::File::from(file);
        assert_eq!(file.stream_position().unwrap(), 10);
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "some bytes");
    }
}

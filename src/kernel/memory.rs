//! The memory of another process, through `/proc/PID/mem` (proc_pid_mem(5)).

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::io::{Errno, Result};

/// `PATH_MAX` (include/uapi/linux/limits.h), with the NUL.
pub const PATH_MAX: usize = 4096;

/// Memory comes in pages of at least this size: a read that does not cross a page's end succeeds or fails as a whole.
const PAGE: u64 = 4096;

/// Opens the memory of the process to which the thread belongs.
///
/// # Errors
/// `EACCES` if this process may not trace that one (`PTRACE_MODE_ATTACH_FSCREDS` in ptrace(2)); `ENOENT` if it is gone.
pub fn open(thread: u32) -> Result<File> {
    File::open(format!("/proc/{thread}/mem")).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Reads a string that ends with NUL, without the NUL.
///
/// # Errors
/// `EIO` or `EFAULT` if there is no such memory; `ENAMETOOLONG` for a string of [`PATH_MAX`] bytes or more.
pub fn string(memory: &File, address: u64) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    let mut at = address;
    while text.len() < PATH_MAX {
        let mut chunk = [0; 256];
        let length = (PAGE - at % PAGE).min(chunk.len() as u64) as usize;
        bytes(memory, at, &mut chunk[..length])?;
        if let Some(end) = chunk[..length].iter().position(|&byte| byte == 0) {
            text.extend(&chunk[..end]);
            return if text.len() < PATH_MAX { Ok(text) } else { Err(Errno::NAMETOOLONG) };
        }
        text.extend(&chunk[..length]);
        at = at.checked_add(length as u64).ok_or(Errno::FAULT)?;
    }
    Err(Errno::NAMETOOLONG)
}

/// Fills `buffer` from the address on.
///
/// # Errors
/// `EIO` or `EFAULT` if there is no such memory.
pub fn bytes(memory: &File, address: u64, buffer: &mut [u8]) -> Result<()> {
    let failed = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::FAULT);
    memory.read_exact_at(buffer, address).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_of_this_process_are_read() {
        let memory = open(std::process::id()).unwrap();
        let text = std::ffi::CString::new("a path ".repeat(500)).unwrap();
        assert_eq!(string(&memory, text.as_ptr() as u64).unwrap(), text.as_bytes());
        let long = std::ffi::CString::new("x".repeat(PATH_MAX)).unwrap();
        assert_eq!(string(&memory, long.as_ptr() as u64), Err(Errno::NAMETOOLONG));
        assert!(string(&memory, 8).is_err());
        assert_eq!(open(u32::MAX).unwrap_err(), Errno::NOENT);
    }
}

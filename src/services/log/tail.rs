//! The last lines of a log, which may begin in an older file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use memchr::memrchr_iter;

use super::files::{LogFile, is_at, is_same};

/// How much is read at a time, from the end of a file.
const BLOCK: u64 = 64 * 1024;

/// How many times this function opens the files again because pinfold has renamed them meanwhile.
const ATTEMPTS: u32 = 20;

/// Returns the last `count` lines of the log, in their order, with their newlines. Without a log, the result is empty.
///
/// # Errors
/// The errno of open(2) or read(2).
pub(super) fn tail(log: &LogFile, count: usize) -> io::Result<Vec<u8>> {
    let mut blocks: Vec<Vec<u8>> = Vec::new();
    let mut missing = count;
    for file in open_all(log)? {
        if missing == 0 {
            break;
        }
        let mut end = file.metadata()?.len();
        // The newline at the end of a file ends the last line. No line begins after it.
        let mut is_last_byte = true;
        while end > 0 && missing > 0 {
            let begin = end.saturating_sub(BLOCK);
            let mut block = vec![0; (end - begin) as usize];
            file.read_exact_at(&mut block, begin)?;
            let mut from = 0;
            for at in memrchr_iter(b'\n', &block) {
                if is_last_byte && at + 1 == block.len() {
                    continue;
                }
                missing -= 1;
                if missing == 0 {
                    from = at + 1;
                    break;
                }
            }
            is_last_byte = false;
            block.drain(..from);
            blocks.push(block);
            end = begin;
        }
        // The first line of the file has no newline before it.
        if missing > 0 && file.metadata()?.len() > 0 {
            missing -= 1;
        }
    }
    blocks.reverse();
    Ok(blocks.concat())
}

/// Opens the files of the log, the newest one first.
fn open_all(log: &LogFile) -> io::Result<Vec<File>> {
    let mut files: Vec<File> = Vec::new();
    for _ in 0..ATTEMPTS {
        files.clear();
        for number in 0..=log.kept() {
            match File::open(log.older(number)) {
                Ok(file) => {
                    let metadata = file.metadata()?;
                    // This may be the file before it in the list: pinfold renamed it after the first open.
                    let known = files.last().map(File::metadata).transpose()?;
                    if known.is_none_or(|known| !is_same(&known, &metadata)) {
                        files.push(file);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        // If the first file still has its path, pinfold has renamed no file twice, so the order is right.
        match files.first() {
            Some(first) if !is_at(&log.path, first)? => {}
            _ => break,
        }
    }
    Ok(files)
}

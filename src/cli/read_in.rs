//! Reading standard input, which somebody else may have made non-blocking (as in [`super::write_out`]).

use std::io::{Read, Result, stdin};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, read};

/// Standard input without a buffer; waits while there is nothing.
pub struct StandardInput;

impl Read for StandardInput {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let stdin = stdin();
        loop {
            match read(&stdin, &mut *buffer) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => match poll(&mut [PollFd::new(&stdin, PollFlags::IN)], None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(errno) => return Err(errno.into()),
                },
                done => return Ok(done?),
            }
        }
    }
}

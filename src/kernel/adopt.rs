//! A descriptor that the caller of the `pinfold` command has opened for it, for example for the report.

use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use rustix::fs::OFlags;
use rustix::io::{Errno, FdFlags};

use crate::error::{Error, Result};
use crate::kernel::descriptor;

/// Takes ownership of the inherited descriptor `number`, and sets its close-on-exec flag: jobs do not get it.
///
/// # Errors
/// [`Error::Invalid`] if it is not open for writing, or if it is a standard descriptor. [`Error::System`] with `EBUSY`
/// if it was taken before.
#[allow(unsafe_code)]
pub(crate) fn adopt(number: i32) -> Result<OwnedFd> {
    static TAKEN: Mutex<Vec<i32>> = Mutex::new(Vec::new());
    let refuse = |advice: &str| Error::invalid("descriptor", number.to_string(), advice);
    let failed = |errno| Error::system("take", format!("descriptor {number}"), errno, "");
    if (0..3).contains(&number) {
        return Err(refuse("the standard descriptors belong to the job"));
    }
    let copy = match descriptor::copy(number) {
        Err(Errno::BADF) => return Err(refuse("it is not open")),
        copy => copy.map_err(failed)?,
    };
    let writable = rustix::fs::fcntl_getfl(copy).is_ok_and(|flags| flags.intersects(OFlags::WRONLY | OFlags::RDWR));
    if !writable || !descriptor::stays_open_at_exec(number) {
        return Err(refuse("it is not open for writing"));
    }
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    if taken.contains(&number) {
        return Err(Error::system("take", format!("descriptor {number}"), Errno::BUSY, "it was taken before"));
    }
    taken.push(number);
    // SAFETY: the descriptor is open, because exec kept it open for this process. Only this function takes ownership of
    // such a number, and only once.
    let taken = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&taken, FdFlags::CLOEXEC).map_err(failed)?;
    Ok(taken)
}

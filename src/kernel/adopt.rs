//! A descriptor that the caller of the `pinfold` command has opened for it, for example for the report.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use rustix::fs::OFlags;
use rustix::io::{Errno, FdFlags};

use crate::error::{Error, Result};
use crate::kernel::sys;

/// Takes ownership of the inherited descriptor `number`, and sets its close-on-exec flag: jobs do not get it.
///
/// # Errors
/// [`Error::Invalid`] if it is not open for writing, or if it is a standard descriptor. [`Error::System`] with `EBUSY`
/// if it was taken before.
pub(crate) fn adopt(number: i32) -> Result<OwnedFd> {
    static TAKEN: Mutex<Vec<i32>> = Mutex::new(Vec::new());
    let refuse = |advice: &str| Error::invalid("descriptor", number.to_string(), advice);
    let descriptor = match number {
        0..3 => return Err(refuse("the standard descriptors belong to the job")),
        _ => sys::inherited_fd(number).ok_or_else(|| refuse("it is not open"))?,
    };
    let writable =
        rustix::fs::fcntl_getfl(descriptor).is_ok_and(|flags| flags.intersects(OFlags::WRONLY | OFlags::RDWR));
    let ours = rustix::io::fcntl_getfd(descriptor).is_ok_and(|flags| flags.contains(FdFlags::CLOEXEC));
    if !writable || ours {
        return Err(refuse("it is not open for writing"));
    }
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    if taken.contains(&number) {
        return Err(Error::system("take", format!("descriptor {number}"), Errno::BUSY, "it was taken before"));
    }
    taken.push(number);
    let failed = |errno| Error::system("take", format!("descriptor {number}"), errno, "");
    rustix::io::fcntl_setfd(descriptor, FdFlags::CLOEXEC).map_err(failed)?;
    sys::adopt_fd(number).map_err(failed)
}

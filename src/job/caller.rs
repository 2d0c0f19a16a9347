//! The state of the caller that a spawn uses. It is recorded at the call, because the start itself may come later, in
//! another thread.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;

use crate::error::{Error, Result, short_of_descriptors};
use crate::job::command::{Command, Source};
use crate::kernel::host::HostState;
use crate::kernel::{descriptor, inherited};

/// The caller of a spawn.
pub(crate) struct Caller {
    /// The caller's rights and settings. `None` in a program that only supervises, because such a program has changed
    /// neither since it forked its guard.
    pub host: Option<HostState>,
    /// The standard descriptors that the command inherits; `None` for one that is closed.
    pub streams: [Option<InheritedFd>; 3],
    /// The other descriptors that the command inherits, with their numbers.
    pub descriptors: Vec<(i32, InheritedFd)>,
}

/// A descriptor of the caller that the job receives.
#[derive(Clone)]
pub(crate) enum InheritedFd {
    /// A copy of the descriptor, because another thread may close the descriptor and open another file under its
    /// number.
    Copy(Arc<OwnedFd>),
    /// The descriptor itself, in a program that never closes the descriptors that it inherited. Such a program may have
    /// no free descriptors for copies.
    Borrowed(BorrowedFd<'static>),
}

impl AsFd for InheritedFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Copy(copy) => copy.as_fd(),
            Self::Borrowed(descriptor) => *descriptor,
        }
    }
}

impl Caller {
    pub fn of(command: &Command) -> Result<Self> {
        let failed = |errno: Errno| {
            Error::system("duplicate", "a descriptor that the job inherits", errno, short_of_descriptors(errno))
        };
        let mut streams = [None, None, None];
        if command.pty.is_none() {
            for (number, (copy, source)) in (0..).zip(streams.iter_mut().zip(command.sources())) {
                if matches!(source, Source::Inherit) && !inherited::was_closed(number) {
                    *copy = stream(number).map_err(failed)?;
                }
            }
        }
        let mut descriptors = Vec::new();
        if let Some(sandbox) = &command.sandbox {
            for number in sandbox.descriptors() {
                let fd = inheritable(number).map_err(failed)?.ok_or_else(|| {
                    let advice = "it must be open, without the close-on-exec flag";
                    Error::invalid("descriptor to inherit", number.to_string(), advice)
                })?;
                descriptors.push((number, fd));
            }
        } else if command.inherit_descriptors {
            for number in inherited::inheritable_numbers() {
                let fd = match inherited::only_supervises() {
                    true => Some(borrow(number)),
                    false => inheritable(number).map_err(failed)?,
                };
                descriptors.extend(fd.map(|fd| (number, fd)));
            }
        }
        let host = (!inherited::only_supervises()).then(HostState::now);
        Ok(Self { host, streams, descriptors })
    }
}

/// Returns the standard descriptor with this number, if it is open.
fn stream(number: i32) -> rustix::io::Result<Option<InheritedFd>> {
    if inherited::only_supervises() {
        return Ok(descriptor::is_open(number).then(|| borrow(number)));
    }
    Ok(inherited::copy_of_stream(number)?.map(|copy| InheritedFd::Copy(Arc::new(copy))))
}

/// Returns the descriptor with this number if the command inherits it (it is open, and stays open at exec).
fn inheritable(number: i32) -> rustix::io::Result<Option<InheritedFd>> {
    if inherited::only_supervises() {
        return Ok(descriptor::stays_open_at_exec(number).then(|| borrow(number)));
    }
    Ok(inherited::copy_of_inheritable(number)?.map(|copy| InheritedFd::Copy(Arc::new(copy))))
}

/// Borrows an inherited descriptor in a program that does nothing except supervise.
#[allow(unsafe_code)]
fn borrow(number: i32) -> InheritedFd {
    // SAFETY: the descriptor is open, and such a program keeps its inherited descriptors open
    // ([`inherited::raise_own_limits`]).
    InheritedFd::Borrowed(unsafe { BorrowedFd::borrow_raw(number) })
}

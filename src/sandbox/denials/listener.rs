//! The thread that answers the kernel's questions about the calls of one job.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::explainer::{Explainer, State};
use super::processes::Members;
use super::record::Record;
use crate::error::{Error, Result, short_of_descriptors};
use crate::kernel::seccomp_notify::{Answer, Listener};
use crate::kernel::socket::receive_descriptor;
use crate::kernel::{poll, signal_set};

/// Explains the refusals of one job, in a thread of its own. The thread ends when this value is dropped, or when no
/// process can make a call any more that it would have to answer.
#[derive(Debug)]
pub struct Explanation {
    record: Arc<Mutex<Record>>,
    end: Arc<OwnedFd>,
}

/// Returns a connected pair of sockets, over which the job sends the listener: the end of this process, and that of the
/// job.
///
/// # Errors
/// [`Error::System`].
pub fn channel() -> Result<(OwnedFd, OwnedFd)> {
    let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    pair.map_err(|errno| Error::system("socketpair", "for --explain-denials", errno, short_of_descriptors(errno)))
}

impl Explanation {
    /// Starts the thread. It waits for the listener on `socket`.
    ///
    /// # Errors
    /// [`Error::System`] if there can be no further thread or descriptor.
    pub fn start(explainer: Arc<Explainer>, socket: OwnedFd, members: Members) -> Result<Self> {
        let failed = |errno| Error::system("eventfd", "for --explain-denials", errno, short_of_descriptors(errno));
        let end = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(failed)?);
        let record = Arc::new(Mutex::new(Record::default()));
        let thread = Thread { explainer, state: State::new(members), record: record.clone(), end: end.clone() };
        let started = std::thread::Builder::new().name("pinfold-denials".into()).spawn(move || thread.run(socket));
        started.map_err(|source| Error::System {
            operation: "start a thread",
            object: "for --explain-denials".into(),
            source,
            advice: "see ulimit -u, pids.max and ulimit -v".into(),
        })?;
        Ok(Self { record, end })
    }

    /// Returns what has been refused so far. A refusal is recorded before the caller learns of it.
    pub fn so_far(&self) -> Record {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Explanation {
    fn drop(&mut self) {
        // The counter of an eventfd that is written once is never full (eventfd(2)).
        let _ = rustix::io::write(&*self.end, &1_u64.to_ne_bytes());
    }
}

struct Thread {
    explainer: Arc<Explainer>,
    state: State,
    record: Arc<Mutex<Record>>,
    end: Arc<OwnedFd>,
}

impl Thread {
    fn run(mut self, socket: OwnedFd) {
        // The signal handlers of the program run in its own threads.
        signal_set::set_signal_mask(signal_set::ALL_SIGNALS);
        let Some(mut listener) = self.received(&socket).map(Listener::new) else { return };
        drop(socket);
        loop {
            let mut ready = [
                PollFd::from_borrowed_fd(listener.descriptor(), PollFlags::IN),
                PollFd::new(&*self.end, PollFlags::IN),
            ];
            if poll::wait(&mut ready, None).is_err() || ready[1].revents().contains(PollFlags::IN) {
                return;
            }
            let events = ready[0].revents();
            if events.contains(PollFlags::IN) {
                if self.serve(&mut listener).is_err() {
                    return;
                }
            } else if !events.is_empty() {
                // No process has the filter any more (Linux 5.9).
                return;
            }
        }
    }

    /// Waits for the listener.
    fn received(&self, socket: &OwnedFd) -> Option<OwnedFd> {
        let mut ready = [PollFd::new(socket, PollFlags::IN), PollFd::new(&*self.end, PollFlags::IN)];
        poll::wait(&mut ready, None).ok()?;
        if !ready[0].revents().contains(PollFlags::IN) {
            return None;
        }
        receive_descriptor(socket)
    }

    /// Answers one call.
    fn serve(&mut self, listener: &mut Listener) -> rustix::io::Result<()> {
        let notification = match listener.receive() {
            Ok(notification) => notification,
            // The caller has ended, or a signal has interrupted it.
            Err(Errno::NOENT | Errno::INTR) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        let answer = self.explainer.answer(&notification);
        let denial = self.explainer.denial(&notification, answer, &mut self.state);
        if listener.is_waiting(notification.id) {
            let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
            match denial {
                Ok(Some(denial)) => record.add(denial),
                Ok(None) => {}
                Err(errno) => drop(record.trouble.get_or_insert_with(|| errno.to_string())),
            }
        }
        match listener.answer(notification.id, answer) {
            // An old kernel without the flag to continue (before 5.5).
            Err(Errno::INVAL) if answer == Answer::Continue => {
                listener.answer(notification.id, Answer::Fail(libc::ENOSYS))
            }
            Err(Errno::NOENT) => Ok(()),
            done => done,
        }
    }
}

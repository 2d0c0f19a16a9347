//! The thread that answers the notifications of the kernel about the calls of one job.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::explainer::{Explainer, JobState};
use super::processes::Members;
use super::record::Record;
use crate::error::{Error, Result, short_of_descriptors};
use crate::kernel::seccomp_notify::{Answer, Listener};
use crate::kernel::socket::receive_descriptor;
use crate::kernel::{poll, signal_set};

/// A thread that answers the notifications about one job, and records the job's denials. The thread ends when this
/// value is dropped, or when no process has the filter any more.
#[derive(Debug)]
pub struct DenialListener {
    record: Arc<Mutex<Record>>,
    end_event: Arc<OwnedFd>,
}

/// Returns two connected sockets: one for this process, and one for the job's child. Over them, the child sends the
/// descriptor from which the notifications are read (the listener of its filter, seccomp_unotify(2)).
///
/// # Errors
/// [`Error::System`] if the sockets can't be created.
pub fn channel() -> Result<(OwnedFd, OwnedFd)> {
    let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    pair.map_err(|errno| Error::system("socketpair", "for --explain-denials", errno, short_of_descriptors(errno)))
}

impl DenialListener {
    /// Starts the thread, which first waits for the descriptor of the listener on `socket`.
    ///
    /// # Errors
    /// [`Error::System`] if the thread or a descriptor can't be created.
    pub fn start(explainer: Arc<Explainer>, socket: OwnedFd, members: Members) -> Result<Self> {
        let failed = |errno| Error::system("eventfd", "for --explain-denials", errno, short_of_descriptors(errno));
        let end_event = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(failed)?);
        let record = Arc::new(Mutex::new(Record::default()));
        let state = JobState::new(members);
        let worker = Worker { explainer, state, record: record.clone(), end_event: end_event.clone() };
        let started = std::thread::Builder::new().name("pinfold-denials".into()).spawn(move || worker.run(socket));
        started.map_err(|source| Error::System {
            operation: "start a thread",
            object: "for --explain-denials".into(),
            source,
            advice: "see ulimit -u, pids.max and ulimit -v".into(),
        })?;
        Ok(Self { record, end_event })
    }

    /// Returns the denials so far. A denial is recorded before the refused call returns.
    pub fn record(&self) -> Record {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for DenialListener {
    fn drop(&mut self) {
        // This could fail only if the counter were full (eventfd(2)), but this is the only write.
        let _ = rustix::io::write(&*self.end_event, &1_u64.to_ne_bytes());
    }
}

/// The state of the thread.
struct Worker {
    explainer: Arc<Explainer>,
    state: JobState,
    record: Arc<Mutex<Record>>,
    end_event: Arc<OwnedFd>,
}

impl Worker {
    fn run(mut self, socket: OwnedFd) {
        // The signal handlers of the host program must not run in this thread.
        signal_set::set_signal_mask(signal_set::ALL_SIGNALS);
        let Some(mut listener) = self.receive_listener(&socket).map(Listener::new) else { return };
        drop(socket);
        loop {
            let mut ready = [
                PollFd::from_borrowed_fd(listener.descriptor(), PollFlags::IN),
                PollFd::new(&*self.end_event, PollFlags::IN),
            ];
            if poll::wait(&mut ready, None).is_err() || ready[1].revents().contains(PollFlags::IN) {
                return;
            }
            let events = ready[0].revents();
            if events.contains(PollFlags::IN) {
                if self.answer_next(&mut listener).is_err() {
                    return;
                }
            } else if !events.is_empty() {
                // No process has the filter any more (Linux 5.9).
                return;
            }
        }
    }

    /// Waits until the child has sent the descriptor of the listener. Returns `None` if it does not arrive, because the
    /// child has ended or the job is over.
    fn receive_listener(&self, socket: &OwnedFd) -> Option<OwnedFd> {
        let mut ready = [PollFd::new(socket, PollFlags::IN), PollFd::new(&*self.end_event, PollFlags::IN)];
        poll::wait(&mut ready, None).ok()?;
        if !ready[0].revents().contains(PollFlags::IN) {
            return None;
        }
        receive_descriptor(socket)
    }

    /// Receives the next notification, records a denial, and answers.
    fn answer_next(&mut self, listener: &mut Listener) -> rustix::io::Result<()> {
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
                Err(errno) => drop(record.error.get_or_insert_with(|| errno.to_string())),
            }
        }
        match listener.answer(notification.id, answer) {
            // Before Linux 5.5, the kernel does not know the flag that lets it continue the call.
            Err(Errno::INVAL) if answer == Answer::Continue => {
                listener.answer(notification.id, Answer::Fail(libc::ENOSYS))
            }
            Err(Errno::NOENT) => Ok(()),
            done => done,
        }
    }
}

//! The protocol between supervisor and guard: small messages over a SOCK_SEQPACKET socket pair, with descriptors
//! attached (SCM_RIGHTS, unix(7)). pinfold sends a long specification of a command in a memfd, because the kernel
//! limits the size of a message (net.core.wmem_default, socket(7): about 200 KB). It sends a short specification in the
//! message itself, which saves the system calls for the memfd.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, Result};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use serde_bytes::Bytes;

use super::identity::Identity;
use super::terminal::Settings;
use crate::error::{SpawnStage, short_of_descriptors};
use crate::kernel::host::ChangedSettings;
use crate::report::{MainEnd, ProcessInfo};
use crate::sandbox::apply::Confinement;

/// Incremented with every change of the messages. A guard of another version refuses to serve.
pub const VERSION: u32 = 12;

/// One job of one supervisor.
pub type JobId = u64;

/// Messages from the supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToGuard {
    /// The first message. Descriptor: a pidfd of the supervisor. A supervisor that has forked its guard needs no answer
    /// (`answer` is false). It continues at once: the socket keeps its messages until the guard reads them.
    Hello { version: u32, answer: bool },
    /// The supervisor is about to make a base of this name. Descriptor: the directory that will contain it.
    Base { name: String },
    /// The supervisor is about to enable the controllers `delegated` for the cgroups below a directory, and to make a
    /// leaf named `own` there, for itself. Descriptor: the directory.
    Delegating { own: Option<String>, delegated: Vec<String> },
    /// Asks the guard to move into a cgroup. Descriptor: the cgroup's directory.
    Move,
    /// The base has been made and locked. Descriptor: its directory. The descriptor has the supervisor's lock on the
    /// base, so supervisor and guard share this lock from now on.
    BaseMade,
    /// The supervisor is about to make the directory `name` for the private tmps of its jobs. Descriptor: the directory
    /// that will contain it.
    TmpBase { name: String },
    /// The directory for private tmps has been made and locked. Descriptor: the directory, with the lock that supervisor
    /// and guard share.
    TmpBaseMade,
    /// Descriptors for the `Spawn` of this job, which follows later.
    Descriptors { job: JobId },
    /// Asks the guard to start a job. Descriptors: the leaf, if there is one, then the specification if it is not in
    /// the message, then those of [`Spec`].
    Spawn {
        job: JobId,
        /// The leaf's path from the base on. Without a leaf, the guard itself holds the job, and has no other job.
        leaf: Option<String>,
        /// The process is not cloned into its leaf, but joins the leaf itself before it executes the command.
        join: bool,
        /// The specification, if it is short.
        spec: Option<serde_bytes::ByteBuf>,
        /// The job's `oom_score_adj`. Needed if the supervisor has changed its own value, because the guard may have
        /// inherited the changed one.
        oom_score: Option<i32>,
    },
    /// Asks the guard to restore these settings of a terminal when the supervisor is gone. Descriptor: the terminal.
    Terminal { settings: Settings },
    /// A leaf is empty. The guard reaps all ended children now, and does not postpone this even if very many processes
    /// end.
    Reap,
    /// The job's leaf is empty: the guard ends the job's other descendants within this time. If the job has no leaf, it
    /// ends the whole job. With `given_up`, the leaf contains processes that SIGKILL does not end; the guard does not
    /// wait for these.
    Sweep { job: JobId, bound_ms: u64, given_up: bool },
}

/// Messages from the guard.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromGuard {
    /// The guard is ready: it reads messages and watches the supervisor. Descriptors: a pidfd of the guard, and one of
    /// its outer guard, if it has one.
    Ready { version: u32, pid: i32, outer: Option<i32> },
    /// The command has been executed. Descriptor: a pidfd of the main process.
    Spawned { job: JobId, pid: i32, joined: bool },
    /// The process was killed before its first instruction by the kernel's kill-sequence bug (Linux 6.14 to 7.2): the
    /// kernel kills a process that is cloned from one cgroup into another if one of the two was ever killed
    /// (`cgroup.kill`).
    NotStarted { job: JobId },
    /// The spawn failed, and no process of it is left.
    SpawnFailed { job: JobId, stage: SpawnStage, errno: i32 },
    /// The command has not been executed yet; its process is at this step. The guard sends this if it sweeps a job that
    /// is still being started, or if SIGKILL did not end the process in time. When the start is over, one of the
    /// messages above follows.
    Hangs { job: JobId, pid: i32, stage: SpawnStage },
    /// The guard has moved (`errno` is 0), or the reason why it has not.
    Moved { errno: i32 },
    /// A signal has stopped the main process.
    Stopped { job: JobId, signal: i32 },
    /// The main process has ended and was reaped.
    Exited {
        job: JobId,
        end: MainEnd,
        max_rss_kib: u64,
        /// The only children of the guard are main processes of other jobs, so no descendant of this job is left.
        childless: bool,
        spent: Spent,
    },
    /// The guard has no children left. Sent only for a job without a leaf.
    Childless { job: JobId, spent: Spent },
    /// No descendant of the job is left, except `survivors`. The counts are complete even if the lists are shortened.
    Swept {
        job: JobId,
        emigrants: Vec<ProcessInfo>,
        emigrant_count: u64,
        survivors: Vec<ProcessInfo>,
        survivor_count: u64,
        /// The errno that prevented the search for descendants outside of the leaf; 0 if there was none.
        unseen: i32,
    },
}

/// CPU time of the children that the guard has reaped, and of the processes that these children had waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spent {
    pub cpu_user_us: u64,
    pub cpu_system_us: u64,
}

impl Spent {
    /// Adds the CPU time of a process, in user mode and in the kernel.
    pub fn add(&mut self, (user, system): (u64, u64)) {
        self.cpu_user_us += user;
        self.cpu_system_us += system;
    }
}

/// The command to execute, in bytes as execve takes them: every string ends with NUL.
#[derive(Debug, Serialize, Deserialize)]
pub struct Spec<'a> {
    #[serde(borrow)]
    pub argv: Vec<&'a Bytes>,
    #[serde(borrow)]
    pub env: Vec<&'a Bytes>,
    /// The positions of environment variables whose value the started process replaces with its own identity.
    pub identities: Vec<(usize, Identity)>,
    /// The paths at which the program may be, in the order of PATH.
    #[serde(borrow)]
    pub candidates: Vec<&'a Bytes>,
    /// The first of the descriptors is the initial working directory.
    pub has_cwd_descriptor: bool,
    /// The directory to change to after that.
    #[serde(borrow)]
    pub cwd: Option<&'a Bytes>,
    /// The sandbox that the child applies to itself. If it has a Landlock ruleset, that is the next descriptor.
    pub sandbox: Option<Confinement>,
    pub has_ruleset: bool,
    /// The next descriptor is a socket, over which the child sends the listener of its filter.
    pub has_listener: bool,
    /// The next descriptor is the socket that receives a descriptor of the private tmp.
    pub has_tmp_socket: bool,
    /// The numbers that the remaining descriptors get in the job.
    pub targets: Vec<i32>,
    /// Signals to block and to ignore, as bit masks.
    pub blocked: u64,
    pub ignored: u64,
    /// The process group: 0 for a new one; a number to join that group; [`NEW_SESSION`], [`NEW_TERMINAL`] or
    /// [`NEW_SESSION_ON_TERMINAL`]; `None` to stay in the guard's group.
    pub process_group: Option<i32>,
    /// Resource limits: the kernel's number, soft, hard.
    pub rlimits: Vec<(u32, u64, u64)>,
    pub nice: Option<i32>,
    /// The user, group and supplementary groups to change to.
    pub user: Option<(u32, u32, Vec<u32>)>,
    /// The settings that the host has changed since the guard was started.
    pub host: ChangedSettings,
    /// The signal that the job receives when the supervisor is gone, before it is killed.
    pub death_signal: Option<i32>,
}

/// A value for `Spec::process_group`: the process gets a session of its own.
pub const NEW_SESSION: i32 = -1;

/// The same as [`NEW_SESSION`], with standard input as the controlling terminal.
pub const NEW_TERMINAL: i32 = -2;

/// The same as [`NEW_TERMINAL`] if standard input is a terminal that belongs to no session; otherwise the same as
/// [`NEW_SESSION`].
pub const NEW_SESSION_ON_TERMINAL: i32 = -3;

/// Specifications up to this length travel in the message.
pub const SHORT_SPEC: usize = 8 * 1024;

/// SCM_MAX_FD of the kernel is 253.
pub const MAX_DESCRIPTORS: usize = 250;
/// Lists of processes are shortened to fit ([`crate::guard::sweep`]).
const MAX_MESSAGE: usize = 16 * 1024;

/// Encodes a message.
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>> {
    encode_long(message, 64)
}

/// Encodes a message of about `length` bytes. The buffer has this capacity from the start.
pub fn encode_long(message: &impl Serialize, length: usize) -> Result<Vec<u8>> {
    postcard::to_extend(message, Vec::with_capacity(length)).map_err(|_| Errno::MSGSIZE)
}

/// Sends without waiting; fails with `AGAIN` if the socket is full.
pub fn send(socket: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::MSGSIZE);
    }
    loop {
        match sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Err(Errno::INTR) => {}
            done => return done.map(drop),
        }
    }
}

/// Receives the next message and its descriptors. Returns `None` when the other side is gone, and `AGAIN` when no
/// message is available.
pub fn receive<M: for<'a> Deserialize<'a>>(
    socket: impl AsFd,
    buffer: &mut Vec<u8>,
) -> Result<Option<(M, Vec<OwnedFd>)>> {
    buffer.resize(MAX_MESSAGE, 0);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let length = loop {
        match recvmsg(
            &socket,
            &mut [IoSliceMut::new(buffer)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
        ) {
            // ECONNRESET occurs once, if the other side was killed while messages from us were unread. Messages that it
            // had sent can still be received.
            Err(Errno::INTR | Errno::CONNRESET) => {}
            Err(errno) => return Err(errno),
            // Descriptors were lost in transit: the limit on open files is reached.
            Ok(received) if received.flags.contains(ReturnFlags::CTRUNC) => return Err(Errno::MFILE),
            Ok(received) if received.flags.contains(ReturnFlags::TRUNC) => return Err(Errno::MSGSIZE),
            Ok(received) => break received.bytes,
        }
    };
    if length == 0 {
        return Ok(None);
    }
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    let message = postcard::from_bytes(&buffer[..length]).map_err(|_| Errno::PROTO)?;
    Ok(Some((message, descriptors)))
}

/// The beginning of a message from a process that cannot be the guard. It is the same in every version of the protocol.
/// It cannot be confused with an encoded message: that begins with the number of its variant, and no version has as
/// many variants as the number of the letter `p` (112).
const REFUSAL: &str = "pinfold-guard: ";

/// Reports to the supervisor why this process can't be its guard.
pub fn refuse(socket: impl AsFd, why: &str) {
    // If the supervisor is gone, the reason is not needed.
    let _ = send(socket, format!("{REFUSAL}{why}").as_bytes(), &[]);
}

/// Returns the reason from a message that could not be decoded; `None` if the message is not a refusal. `buffer` is the
/// buffer that the message was received into, and was empty before.
pub fn refusal(buffer: &[u8]) -> Option<&str> {
    let text = buffer.strip_prefix(REFUSAL.as_bytes())?;
    let end = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
    std::str::from_utf8(&text[..end]).ok()
}

/// Sends the first message. A guard that was forked sends no answer: `answer` is false for it.
pub(crate) fn greet(socket: impl AsFd, answer: bool) -> crate::error::Result<()> {
    let own = rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty())
        .map_err(|errno| crate::error::Error::system("pidfd_open", "this process", errno, pidfd_advice(errno)))?;
    let hello = ToGuard::Hello { version: VERSION, answer };
    match encode(&hello).and_then(|hello| send(socket, &hello, &[own.as_fd()])) {
        // The next read finds the end of the socket and shows that the guard is gone.
        Ok(()) | Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => Ok(()),
        Err(errno) => Err(crate::error::Error::system("sendmsg", "to the guard", errno, "")),
    }
}

pub(crate) fn pidfd_advice(errno: Errno) -> &'static str {
    match errno {
        Errno::NOSYS => {
            "the call needs Linux 5.7 or later, and no seccomp filter (a unit's SystemCallFilter=) may refuse it"
        }
        errno => short_of_descriptors(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The encoding is positional: if one side leaves out a field, the other side reads the next field in its place.
    #[test]
    fn lists_of_processes_are_decoded_as_they_were_encoded() {
        let without = ProcessInfo::read(rustix::process::getpid()).unwrap();
        let mut with = without.clone();
        (with.wchan, with.user) = (Some("do_wait".into()), Some(1000));
        let swept = FromGuard::Swept {
            job: 7,
            emigrants: vec![without.clone(), with.clone()],
            emigrant_count: 2,
            survivors: vec![with, without],
            survivor_count: 3,
            unseen: 13,
        };
        let bytes = encode(&swept).unwrap();
        let back: FromGuard = postcard::from_bytes(&bytes).unwrap();
        assert_eq!(format!("{back:?}"), format!("{swept:?}"));
    }

    #[test]
    fn the_longest_lists_fit() {
        let mut process = ProcessInfo::read(rustix::process::getpid()).unwrap();
        process.command_line = "x".repeat(5000);
        (process.wchan, process.user) = (Some("y".repeat(64)), Some(u32::MAX));
        let list = vec![process.shortened(); crate::guard::sweep::MAX_DESCRIBED];
        let swept = FromGuard::Swept {
            job: JobId::MAX,
            emigrants: list.clone(),
            emigrant_count: u64::MAX,
            survivors: list,
            survivor_count: u64::MAX,
            unseen: i32::MAX,
        };
        assert!(encode(&swept).unwrap().len() <= MAX_MESSAGE);
    }
}

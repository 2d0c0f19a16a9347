//! What supervisor and guard tell each other: small messages over a SOCK_SEQPACKET socket pair, descriptors beside
//! them (SCM_RIGHTS, unix(7)). What to execute travels in a memfd, since a message fails at about 200 KB; where it is
//! short, in the message, which is measurably quicker.

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
use crate::kernel::host::Changed;
use crate::report::ProcessInfo;

/// Raised with every change of the messages: a guard of another version refuses.
pub const VERSION: u32 = 9;

/// One job of one supervisor.
pub type JobId = u64;

/// From the supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToGuard {
    /// The first message. Descriptor: a pidfd of the supervisor. A supervisor that has forked its guard knows it already,
    /// and goes on without an answer: the socket keeps its messages until the guard gets to them.
    Hello { version: u32, answer: bool },
    /// A base of this name is about to be made. Descriptor: the directory that it will be made in.
    Base { name: String },
    /// The supervisor is about to give the controllers `given` to the cgroups below a directory, and to make a leaf there of
    /// this name for itself. Descriptor: the directory.
    Giving { own: Option<String>, given: Vec<String> },
    /// Move there. Descriptor: a cgroup's directory.
    Move,
    /// The base has been made and locked. Descriptor: its directory, whose lock is shared from now on.
    BaseMade,
    /// Descriptors for the `Spawn` of this job, which comes later.
    Descriptors { job: JobId },
    /// Start a job. Descriptors: the leaf, if there is one, the specification where it is not in the message, then those
    /// of [`Spec`].
    Spawn {
        job: JobId,
        /// The leaf's path from the base on. Without one, the guard itself holds the job, and has no other.
        leaf: Option<String>,
        /// Let the process join its leaf itself, before it executes, instead of being cloned into it.
        join: bool,
        /// The specification, where it is short.
        spec: Option<serde_bytes::ByteBuf>,
    },
    /// Give a terminal these settings back when the supervisor is gone. Descriptor: the terminal.
    Terminal { settings: Settings },
    /// A leaf is empty: whoever has ended is to be reaped now, also in a mass death.
    Reap,
    /// The job's leaf is empty: end what else descends from it, within this time. Without a leaf: end all of it.
    /// With `given_up` there are processes in the leaf that SIGKILL does not end; these are not waited for.
    Sweep { job: JobId, bound_ms: u64, given_up: bool },
}

/// From the guard.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromGuard {
    /// It listens and watches. Descriptors: a pidfd of the guard, and one of its outer guard, where it has one.
    Ready { version: u32, pid: i32, outer: Option<i32> },
    /// The command has been executed. Descriptor: a pidfd of the main process.
    Spawned { job: JobId, pid: i32, joined: bool },
    /// The process was killed before its first instruction: it takes the kill sequence of another cgroup (6.14 to 7.2).
    NotStarted { job: JobId },
    /// Nothing runs.
    SpawnFailed { job: JobId, stage: SpawnStage, errno: i32 },
    /// The command has not been executed yet: its process is at this step, in time for a sweep of the job, or SIGKILL did not
    /// end it in time. One of the former messages follows when it has come to an end.
    Hangs { job: JobId, pid: i32, stage: SpawnStage },
    /// It has moved, or why not.
    Moved { errno: i32 },
    /// A signal has stopped the main process.
    Stopped { job: JobId, signal: i32 },
    /// The main process has ended and was reaped.
    Exited {
        job: JobId,
        end: End,
        max_rss_kib: u64,
        /// The guard has no child left but the main processes of other jobs: no descendant of this one either.
        childless: bool,
        spent: Spent,
    },
    /// Of a job without a leaf: the guard has no child left.
    Childless { job: JobId, spent: Spent },
    /// No descendant of the job is left, but `survivors`. The counts are right where the lists are cut.
    Swept {
        job: JobId,
        emigrants: Vec<ProcessInfo>,
        emigrant_count: u64,
        survivors: Vec<ProcessInfo>,
        survivor_count: u64,
        /// Why descendants outside of the leaf could not be looked for; 0 where they were.
        unseen: i32,
    },
}

/// What the children that the guard has reaped have used, with those that these had waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spent {
    pub cpu_user_us: u64,
    pub cpu_system_us: u64,
}

impl Spent {
    /// Adds what a process has used, in user mode and in the kernel.
    pub fn add(&mut self, (user, system): (u64, u64)) {
        self.cpu_user_us += user;
        self.cpu_system_us += system;
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    Exited { code: i32 },
    Signalled { signal: i32, core_dumped: bool },
}

/// What to execute, in bytes as execve takes them: every string ends with NUL.
#[derive(Debug, Serialize, Deserialize)]
pub struct Spec<'a> {
    #[serde(borrow)]
    pub argv: Vec<&'a Bytes>,
    #[serde(borrow)]
    pub env: Vec<&'a Bytes>,
    /// The places of variables that are to hold the identity of the process.
    pub identities: Vec<(usize, Identity)>,
    /// The paths to try to execute, in order (the search through PATH).
    #[serde(borrow)]
    pub candidates: Vec<&'a Bytes>,
    /// The first of the descriptors is the directory to start in.
    pub has_cwd_descriptor: bool,
    /// Then change to this.
    #[serde(borrow)]
    pub cwd: Option<&'a Bytes>,
    /// The numbers that the remaining descriptors get in the job.
    pub targets: Vec<i32>,
    /// Signals to block and to ignore, as bit masks.
    pub blocked: u64,
    pub ignored: u64,
    /// The process group: 0 for a new one, a number to join that, [`NEW_SESSION`], [`NEW_TERMINAL`], none to stay in the guard's.
    pub process_group: Option<i32>,
    /// Resource limits: the kernel's number, soft, hard.
    pub rlimits: Vec<(u32, u64, u64)>,
    pub nice: Option<i32>,
    /// User, group, supplementary groups to change to.
    pub user: Option<(u32, u32, Vec<u32>)>,
    /// The host's changes since the guard was started.
    pub host: Changed,
    /// What the job is sent when the supervisor is gone, before it is killed.
    pub death_signal: Option<i32>,
}

/// In the place of a process group: a session of its own.
pub const NEW_SESSION: i32 = -1;

/// The same, with standard input as its controlling terminal.
pub const NEW_TERMINAL: i32 = -2;

/// The same where standard input is a terminal that belongs to no session; elsewhere as [`NEW_SESSION`].
pub const NEW_SESSION_ON_TERMINAL: i32 = -3;

/// Specifications up to this length travel in the message.
pub const SHORT_SPEC: usize = 8 * 1024;

/// SCM_MAX_FD of the kernel is 253.
pub const MAX_DESCRIPTORS: usize = 250;
/// Lists of processes are cut to fit ([`crate::guard::sweep`]).
const MAX_MESSAGE: usize = 16 * 1024;

/// A message, encoded.
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>> {
    encode_long(message, 64)
}

/// One of about this many bytes, for which there is room from the start.
pub fn encode_long(message: &impl Serialize, length: usize) -> Result<Vec<u8>> {
    postcard::to_extend(message, Vec::with_capacity(length)).map_err(|_| Errno::MSGSIZE)
}

/// Sends without waiting; `AGAIN` where the socket is full.
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

/// The next message and its descriptors; `None` when the other side is gone; `AGAIN` where there is none now.
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
            // Completion once where the other side was killed with our messages unread; its own are still there.
            Err(Errno::INTR | Errno::CONNRESET) => {}
            Err(errno) => return Err(errno),
            // Descriptors were lost on the way: the limit on open files is reached.
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

/// Begins a message of a process that can't be the guard. It is the same in every version of the protocol: no encoded message
/// begins with this letter, which would be a variant that no version has.
const REFUSAL: &str = "pinfold-guard: ";

/// Reports to the supervisor why this process can't be its guard.
pub fn refuse(socket: impl AsFd, why: &str) {
    // A supervisor that is gone needs no reason.
    let _ = send(socket, format!("{REFUSAL}{why}").as_bytes(), &[]);
}

/// The reason in a message that could not be decoded; none where it is something else. `buffer` is what it was received into,
/// and was empty before.
pub fn refusal(buffer: &[u8]) -> Option<&str> {
    let text = buffer.strip_prefix(REFUSAL.as_bytes())?;
    let end = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
    std::str::from_utf8(&text[..end]).ok()
}

/// Sends the first message. A guard that was forked gives no `answer`.
pub(crate) fn greet(socket: impl AsFd, answer: bool) -> crate::error::Result<()> {
    let own = rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty())
        .map_err(|errno| crate::error::Error::system("pidfd_open", "this process", errno, pidfd_advice(errno)))?;
    let hello = ToGuard::Hello { version: VERSION, answer };
    match encode(&hello).and_then(|hello| send(socket, &hello, &[own.as_fd()])) {
        // The end of the socket, which comes next, shows it.
        Ok(()) | Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => Ok(()),
        Err(errno) => Err(crate::error::Error::system("sendmsg", "to the guard", errno, "")),
    }
}

pub(crate) fn pidfd_advice(errno: Errno) -> &'static str {
    match errno {
        Errno::NOSYS => {
            "Linux 5.7 or later is needed, and no seccomp filter (a unit's SystemCallFilter=) that refuses it"
        }
        errno => short_of_descriptors(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The encoding is positional: a field that is left out on one side is read as another on the other.
    #[test]
    fn lists_of_processes_go_through() {
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
        let list = vec![process.shortened(); crate::guard::sweep::TOLD];
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

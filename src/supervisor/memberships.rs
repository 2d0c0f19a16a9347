//! Sends the sandbox of a running job to `pinfold exec`, which runs one more command in it.
//!
//! The supervisor listens on an abstract Unix socket (unix(7)) as soon as it has its first job with a sandbox. It
//! answers only processes of its own user and of root. A filter, or Landlock's scope for abstract sockets, keeps a job
//! with a sandbox away from the socket. If a job has neither, the supervisor does not send the sandbox of this job.

use std::collections::{HashMap, HashSet};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::kernel::pidfd::Pidfd;
use crate::sandbox::membership::{Membership, Status, socket_name};

/// A peer that sends no request within this time gets no answer.
const ASK_WITHIN: Duration = Duration::from_secs(10);

/// The sandboxes of the running jobs of one supervisor.
#[derive(Debug, Default)]
pub(crate) struct Memberships {
    jobs: Jobs,
    listeners: Mutex<Listeners>,
}

type Jobs = Arc<Mutex<HashMap<u64, Arc<Member>>>>;

#[derive(Debug, Default)]
struct Listeners {
    /// The bases whose socket exists, or could not be made.
    bases: HashSet<String>,
    tasks: JoinSet<()>,
}

/// The sandbox of one job.
#[derive(Debug)]
pub(crate) struct Member {
    pub membership: Membership,
    pub ruleset: Option<Arc<OwnedFd>>,
    /// Why the supervisor does not send this sandbox; `None` if it does.
    pub refused: Option<&'static str>,
    main: OnceLock<Arc<Pidfd>>,
}

impl Member {
    pub fn new(membership: Membership, ruleset: Option<Arc<OwnedFd>>, refused: Option<&'static str>) -> Self {
        Self { membership, ruleset, refused, main: OnceLock::new() }
    }
}

/// Keeps a sandbox available until this value is dropped.
pub(crate) struct Registered {
    jobs: Jobs,
    leaf: u64,
    member: Arc<Member>,
}

impl Registered {
    /// Records the main process, which has executed the command.
    pub fn started(&self, main: Arc<Pidfd>) {
        let _ = self.member.main.set(main);
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.leaf);
    }
}

impl Memberships {
    /// Makes the sandbox of a job available. Call this before the job starts. `leaf` is the inode number of the job's
    /// leaf, and `base` the name of its base. If the socket can't be made, `pinfold exec` refuses the job.
    pub fn add(&self, base: &str, leaf: u64, member: Member, runtime: &Handle) -> Registered {
        let member = Arc::new(member);
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).insert(leaf, member.clone());
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        if !listeners.bases.contains(base) {
            listeners.bases.insert(base.to_owned());
            if let Ok(socket) = listen(base) {
                listeners.tasks.spawn_on(serve(socket, self.jobs.clone()), runtime);
            }
        }
        Registered { jobs: self.jobs.clone(), leaf, member }
    }

    /// Closes the sockets.
    pub fn close(&self) -> JoinSet<()> {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.tasks.abort_all();
        std::mem::take(&mut listeners.tasks)
    }
}

fn listen(base: &str) -> io::Result<UnixListener> {
    let socket = UnixListener::bind_addr(&SocketAddr::from_abstract_name(socket_name(base))?)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

async fn serve(socket: UnixListener, jobs: Jobs) {
    let Ok(socket) = tokio::net::UnixListener::from_std(socket) else { return };
    let mut answers = JoinSet::new();
    loop {
        tokio::select! {
            accepted = socket.accept() => match accepted {
                Ok((stream, _)) => {
                    answers.spawn(tokio::time::timeout(ASK_WITHIN, answer(stream, jobs.clone())));
                }
                // This process has no free descriptor now.
                Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
            },
            Some(_) = answers.join_next() => {}
        }
    }
}

/// Answers one peer: a status and the descriptors, then the membership or the reason.
async fn answer(mut stream: UnixStream, jobs: Jobs) -> io::Result<()> {
    let (peer, own) = (stream.peer_cred()?.uid(), rustix::process::geteuid().as_raw());
    if peer != own && peer != 0 {
        return Ok(());
    }
    let leaf = stream.read_u64().await?;
    let member = jobs.lock().unwrap_or_else(PoisonError::into_inner).get(&leaf).cloned();
    let refused = |reason: &str| (Status::Refused, reason.as_bytes().to_vec());
    let (mut descriptors, mut ready) = (Vec::new(), None);
    let (status, body) = match member.as_deref() {
        None => (Status::NoSandbox, Vec::new()),
        Some(Member { refused: Some(reason), .. }) => refused(reason),
        Some(member) => match (member.main.get(), postcard::to_stdvec(&member.membership)) {
            (Some(main), Ok(body)) => {
                ready = Some((member, main));
                (Status::Sandbox, body)
            }
            (None, _) => refused("its command has not been executed yet"),
            (_, Err(_)) => refused("its sandbox cannot be encoded"),
        },
    };
    if let Some((member, main)) = ready {
        descriptors.push(main.as_fd());
        descriptors.extend(member.ruleset.as_ref().map(|ruleset| ruleset.as_fd()));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    // The buffer of a new socket has room for one byte.
    sendmsg(&stream, &[IoSlice::new(&[status as u8])], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
    stream.write_all(&body).await
}

//! Lets one more command enter the sandbox of a running job. This process requests the sandbox from the job's
//! supervisor.

#![allow(unsafe_code)]

use std::ffi::OsString;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::fstat;
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Pid, getegid, geteuid, getgroups};

use super::find::{Job, Supervisor};
use crate::cgroup::directory::Cgroup;
use crate::kernel::user::User;
use crate::kernel::{descriptor, rlimit};
use crate::sandbox::membership::{Membership, Status, socket_name};

/// How long a supervisor may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest answer, in bytes. Each filter in it has at most 32 KiB.
const MAX_ANSWER: u64 = 1 << 20;

/// The sandbox of a job.
#[derive(Debug)]
pub(super) struct JobSandbox {
    membership: Membership,
    main: OwnedFd,
    ruleset: Option<OwnedFd>,
}

/// A step that failed, and its errno.
pub(super) type Failed = (&'static str, Errno);

/// Returns the sandbox of the job in this leaf; `None` for a job without one. It requests the sandbox from the
/// supervisor and does not trust the job's record, because the job itself may have changed the record.
///
/// # Errors
/// If the job has a sandbox, or may have one, and the supervisor does not send it.
pub(super) fn of(supervisor: &Supervisor, job: &Job, leaf: &Cgroup) -> Result<Option<JobSandbox>> {
    let is_recorded = job.description.as_ref().is_some_and(|known| known.sandboxed);
    match ask(supervisor, leaf)? {
        Some(Answer::Sandbox(sandbox)) => Ok(Some(*sandbox)),
        Some(Answer::Refused(reason)) => bail!("{reason}"),
        Some(Answer::None) | None if is_recorded => {
            bail!(
                "the supervisor of the job does not send the sandbox: it is another version of pinfold, or it is in \
                 another network namespace"
            )
        }
        None if !has_own_network(supervisor) && job.main.is_some_and(is_restricted) => {
            bail!(
                "the supervisor of the job is in another network namespace, so pinfold exec cannot find out \
                 whether the job has a sandbox"
            )
        }
        Some(Answer::None) | None => Ok(None),
    }
}

enum Answer {
    None,
    Sandbox(Box<JobSandbox>),
    Refused(String),
}

/// Requests the sandbox from the supervisor. Returns `None` if the supervisor does not listen, because it has had no
/// job with a sandbox.
fn ask(supervisor: &Supervisor, leaf: &Cgroup) -> Result<Option<Answer>> {
    let Some(base) = supervisor.base.as_deref().and_then(Path::file_name) else { return Ok(None) };
    let address = SocketAddr::from_abstract_name(socket_name(&base.to_string_lossy()))?;
    let mut stream = match UnixStream::connect_addr(&address) {
        Ok(stream) => stream,
        Err(error) if Errno::from_io_error(&error) == Some(Errno::CONNREFUSED) => return Ok(None),
        Err(error) => return Err(error).context("cannot request the sandbox from the supervisor of the job"),
    };
    let peer = rustix::net::sockopt::socket_peercred(&stream).context("cannot see which process answers")?;
    let is_supervisor = supervisor.pid.is_none_or(|pid| pid == peer.pid) && peer.uid.as_raw() == supervisor.owner;
    if !is_supervisor {
        bail!("another process (pid {}) answers in place of the supervisor of the job", peer.pid.as_raw_nonzero());
    }
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    let failed = "the supervisor of the job did not send the sandbox within 10 s";
    let id = fstat(leaf).context("cannot identify the leaf")?.st_ino;
    stream.write_all(&id.to_be_bytes()).context(failed)?;
    let (status, descriptors) = receive(&stream).context(failed)?;
    let mut body = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut body).context(failed)?;
    let mut descriptors = descriptors.into_iter();
    Ok(Some(match status {
        status if status == Status::NoSandbox as u8 => Answer::None,
        status if status == Status::Refused as u8 => Answer::Refused(String::from_utf8_lossy(&body).into_owned()),
        status if status == Status::Sandbox as u8 => {
            let membership: Membership = postcard::from_bytes(&body)
                .map_err(|_| anyhow!("the supervisor of the job is another version of pinfold"))?;
            let (main, ruleset) = (descriptors.next(), descriptors.next());
            match main.filter(|_| ruleset.is_some() == membership.has_ruleset) {
                Some(main) => Answer::Sandbox(Box::new(JobSandbox { membership, main, ruleset })),
                None => bail!("this process could not receive the descriptors of the sandbox (see ulimit -n)"),
            }
        }
        _ => bail!("the supervisor of the job is another version of pinfold"),
    }))
}

/// Receives the first byte of the answer, and the descriptors.
fn receive(stream: &UnixStream) -> rustix::io::Result<(u8, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut status = [0];
    let mut data = [IoSliceMut::new(&mut status)];
    let received = rustix::io::retry_on_intr(|| recvmsg(stream, &mut data, &mut control, RecvFlags::CMSG_CLOEXEC))?;
    if received.bytes == 0 {
        return Err(Errno::CONNRESET);
    }
    let descriptors = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(received) => received.collect(),
        _ => Vec::new(),
    });
    Ok((status[0], descriptors.collect()))
}

/// Returns whether the supervisor is in the network namespace of this process. The name of an abstract socket is valid
/// only in one network namespace.
fn has_own_network(supervisor: &Supervisor) -> bool {
    let network = |process: String| std::fs::read_link(format!("/proc/{process}/ns/net")).ok();
    let of_supervisor = supervisor.pid.and_then(|pid| network(pid.as_raw_nonzero().to_string()));
    of_supervisor.is_some() && of_supervisor == network("self".into())
}

/// Returns whether the process has the two properties of each sandbox: `no_new_privs` and a seccomp filter
/// (proc_pid_status(5)).
fn is_restricted(pid: Pid) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap_or_default();
    let has = |line: &str| status.lines().any(|known| known == line);
    has("NoNewPrivs:\t1") && has("Seccomp:\t2")
}

impl JobSandbox {
    /// Checks that this process can run a command as the job's user, with the job's groups and no others. `asked` is the
    /// user that the caller asks for.
    ///
    /// # Errors
    /// If this process has another user or other groups, or if it runs as root and `asked` is not the job's user.
    pub fn check_user(&self, asked: Option<&User>) -> Result<()> {
        let (uid, gid, groups) = &self.membership.user;
        if geteuid().is_root() {
            return match asked {
                Some(user) if user.uid == *uid => Ok(()),
                _ => bail!("its sandbox is for user {uid}: add --user {uid}:{gid}"),
            };
        }
        let own: Vec<_> = getgroups()?.into_iter().map(|group| group.as_raw()).collect();
        let is_same = |one: &[u32], other: &[u32]| one.iter().all(|group| other.contains(group) || group == gid);
        let same_groups = is_same(&own, groups) && is_same(groups, &own);
        if (geteuid().as_raw(), getegid().as_raw()) != (*uid, *gid) || !same_groups {
            bail!(
                "the job's sandbox is for user {uid}, group {gid} and the groups {groups:?}, but this process has \
                 another user, group or groups"
            );
        }
        Ok(())
    }

    /// Returns whether the job has mounts of its own. If so, the command must enter its working directory by the
    /// absolute path.
    pub fn has_mounts(&self) -> bool {
        self.membership.has_mounts
    }

    /// Returns whether the sandbox passes this environment variable of the caller on to the command.
    pub fn passes(&self, key: &std::ffi::OsStr) -> bool {
        self.membership.passes(key)
    }

    /// Returns the variable that names the job's own directory for temporary files.
    pub fn tmp(&self) -> Option<(OsString, OsString)> {
        self.membership.tmp.as_ref().map(|tmp| ("TMPDIR".into(), tmp.clone().into_os_string()))
    }

    /// Makes this process, which is in the job's leaf, a member of the job: its session, its resource limits, its
    /// namespaces and its user. The steps have the same order as in the child of a spawn.
    ///
    /// # Errors
    /// The step that failed.
    pub fn enter(&self) -> std::result::Result<(), Failed> {
        let of = |step: &'static str| move |errno: Errno| (step, errno);
        rustix::process::setsid().map_err(of("start a session"))?;
        for &(resource, soft, hard) in &self.membership.rlimits {
            rlimit::lower(resource, soft, hard).map_err(of("set a resource limit of the job"))?;
        }
        let namespaces = || {
            // SAFETY: this process executes the command next, or ends.
            unsafe { self.membership.enter(self.main.as_fd()) }.map_err(of("enter the namespaces of the job"))
        };
        let user = || match geteuid().is_root() {
            true => {
                let (uid, gid, groups) = self.membership.user.clone();
                let user = User { uid, gid, groups, environment: Vec::new() };
                user.apply().map_err(of("change to the user of the job"))
            }
            false => Ok(()),
        };
        // In a user namespace of the job, root has no right to change the groups. The job's user has all capabilities
        // there. Without a user namespace, only root can enter the other namespaces.
        if self.membership.has_user_namespace() {
            user()?;
            namespaces()?;
        } else {
            namespaces()?;
            user()?;
        }
        Ok(())
    }

    /// Applies the restrictions. Only the exec of the command may follow.
    ///
    /// # Errors
    /// The step that failed.
    pub fn restrict(&self) -> std::result::Result<(), Failed> {
        let of = |step: &'static str| move |errno: Errno| (step, errno);
        descriptor::close_on_exec_from(3).map_err(of("close the descriptors"))?;
        // SAFETY: this process executes the command next, or ends.
        unsafe {
            let ruleset = self.ruleset.as_ref().map(AsFd::as_fd);
            self.membership.restrict(ruleset).map_err(of("apply the Landlock rules of the job"))?;
            self.membership.filter().map_err(of("install the filters of the job"))
        }
    }
}

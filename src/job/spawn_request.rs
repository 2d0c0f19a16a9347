//! The spawn request to the guard: the specification of the process, and the descriptors for it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, SeekFrom, open, openat};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use serde_bytes::{ByteBuf, Bytes};

use super::private_tmp::{self, PrivateTmp};
use crate::cgroup::leaf::Leaf;
use crate::error::{Error, Result, short_of_descriptors};
use crate::guard::protocol::{self, JobId, MAX_DESCRIPTORS, SHORT_SPEC, Spec, ToGuard};
use crate::job::caller::{Caller, InheritedFd};
use crate::job::command::{CStrings, Command, ProcessGroup, Source};
use crate::job::settle::{PipeId, pipe_id};
use crate::kernel::host::ChangedSettings;
use crate::kernel::rlimit::NOFILE;
use crate::kernel::signal::Signal;
use crate::kernel::{inherited, memfd, oom_score, process};
use crate::report::{Promise, PromiseState, SandboxReport};
use crate::sandbox::cache::Cache;
use crate::sandbox::denials::{self, DenialListener, Explainer, Members};
use crate::sandbox::machine::Machine;
use crate::sandbox::prepare::{Prepared, TMP, prepare};
use crate::sandbox::private_tmp::PrivateTmpDir;
use crate::supervisor::link::Link;
use crate::supervisor::memberships::Member;

/// A spawn request. It keeps the encoded specification and the descriptors, because pinfold may have to send the
/// request a second time.
pub(super) struct SpawnRequest {
    spec: EncodedSpec,
    owned: Vec<OwnedFd>,
    /// The descriptors for the guard, in the order of the specification: the working directory first, if there is one.
    fds_for_guard: Vec<FdForGuard>,
    /// The supervisor's ends of the pipes.
    pub pipes: [Option<OwnedFd>; 3],
    /// The supervisor's side of the job's terminal.
    pub terminal: Option<OwnedFd>,
    /// The job's standard input, if it is a pipe or a socket.
    pub input: Option<PipeId>,
    /// The private tmp of the job's sandbox.
    pub private_tmp: Option<Box<PrivateTmp>>,
    /// The sandbox, for the report.
    pub sandbox: Option<Box<SandboxReport>>,
    /// The same sandbox, for `pinfold exec`.
    pub member: Option<Member>,
    /// The explainer of the sandbox's denials, and the socket on which its thread receives the listener's descriptor.
    explainer: Option<(Arc<Explainer>, OwnedFd)>,
}

/// How the specification is sent: in the message itself, or in a memfd.
enum EncodedSpec {
    Message(ByteBuf),
    Memfd(OwnedFd),
}

#[derive(Clone)]
enum FdForGuard {
    Owned(usize),
    Shared(std::sync::Arc<OwnedFd>),
    Inherited(InheritedFd),
}

impl FdForGuard {
    fn borrow<'a>(&'a self, owned: &'a [OwnedFd]) -> BorrowedFd<'a> {
        match self {
            Self::Owned(index) => owned[*index].as_fd(),
            Self::Shared(descriptor) => descriptor.as_fd(),
            Self::Inherited(descriptor) => descriptor.as_fd(),
        }
    }
}

impl SpawnRequest {
    /// Prepares the request. `tmp` is the private tmp of the job if it is a directory of the host.
    pub fn new(
        command: &Command,
        caller: &Caller,
        host: ChangedSettings,
        tmp: Option<PrivateTmpDir>,
        sandboxes: &Cache,
    ) -> Result<Self> {
        command.check_streams()?;
        command.check_passed()?;
        let mut sandbox = prepared(command, tmp.as_ref(), sandboxes)?;
        let has_mounted_tmp = sandbox.as_ref().is_some_and(Prepared::has_mounted_tmp);
        let mounted = has_mounted_tmp.then_some(Path::new(TMP));
        let mut strings = command.strings(tmp.as_ref().map(PrivateTmpDir::path).or(mounted))?;
        let mut pipes = [None, None, None];
        let mut owned = Vec::new();
        let mut fds_for_guard = Vec::new();
        let mut targets = Vec::new();

        // If pinfold has no permission to enter its own working directory, the guard has kept the same directory
        // (`apply_rules` in guard/mod.rs), and the job starts there.
        let has_cwd_descriptor = if sandbox.as_ref().is_some_and(Prepared::has_mounts) {
            // A descriptor of the directory would lead to the mounts outside of the sandbox.
            strings.cwd = Some(absolute(strings.cwd)?);
            false
        } else {
            match openat(CWD, c".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
                Ok(cwd) => {
                    fds_for_guard.push(FdForGuard::Owned(owned.len()));
                    owned.push(cwd);
                    true
                }
                Err(Errno::ACCESS) => false,
                Err(errno) => {
                    return Err(Error::system("open", "the working directory", errno, short_of_descriptors(errno)));
                }
            }
        };
        let ruleset = sandbox.as_mut().and_then(|sandbox| sandbox.ruleset.take());
        let has_ruleset = ruleset.is_some();
        let member = sandbox.as_ref().map(|sandbox| {
            let mut membership = sandbox.membership.clone();
            membership.user = job_user(command);
            membership.tmp = tmp.as_ref().map(PrivateTmpDir::path).or(mounted).map(Path::to_owned);
            membership.rlimits = rlimits(command);
            let unix = sandbox.report.promises.iter().find(|report| report.promise == Promise::Unix);
            let is_waived = unix.is_some_and(|report| matches!(report.state, PromiseState::Waived { .. }));
            let refused = is_waived.then_some("the promise unix is waived, so the job itself could ask for it");
            Member::new(membership, ruleset.clone(), refused)
        });
        if let Some(ruleset) = ruleset {
            fds_for_guard.push(FdForGuard::Shared(ruleset));
        }
        let mut explainer = None;
        if let Some(explains) = sandbox.as_mut().and_then(|sandbox| sandbox.explainer.take()) {
            let (ours, theirs) = denials::channel()?;
            fds_for_guard.push(FdForGuard::Owned(owned.len()));
            owned.push(theirs);
            explainer = Some((explains, ours));
        }
        let private_tmp = if has_mounted_tmp {
            let (ours, theirs) = private_tmp::socket()?;
            fds_for_guard.push(FdForGuard::Owned(owned.len()));
            owned.push(theirs);
            Some(PrivateTmp::Mounted(ours))
        } else {
            tmp.map(PrivateTmp::Directory)
        };
        let private_tmp = private_tmp.map(Box::new);
        let (confinement, report) = sandbox.map(|sandbox| (sandbox.confinement, Box::new(sandbox.report))).unzip();
        let mut input = None;
        let mut terminal = None;
        if let Some(pty) = &command.pty {
            let (ours, theirs) = pty.open(command.user.as_ref())?;
            terminal = Some(ours);
            for number in 0..3 {
                targets.push(number);
                fds_for_guard.push(FdForGuard::Owned(owned.len()));
            }
            owned.push(theirs);
        }
        for (number, source) in (0..3).zip(command.sources()) {
            if command.pty.is_some() {
                break;
            }
            if number == 2 && command.stderr_to_stdout {
                // Standard output is the last entry so far, unless the caller has no standard output for the job to
                // inherit.
                if targets.last() == Some(&1)
                    && let Some(stdout) = fds_for_guard.last().cloned()
                {
                    targets.push(number);
                    fds_for_guard.push(stdout);
                }
                break;
            }
            let descriptor = match source {
                Source::Inherit => match &caller.streams[number as usize] {
                    Some(descriptor) => FdForGuard::Inherited(descriptor.clone()),
                    None => continue,
                },
                Source::Null => {
                    let null = open(c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
                        .map_err(|errno| Error::system("open", "/dev/null", errno, short_of_descriptors(errno)))?;
                    owned.push(null);
                    FdForGuard::Owned(owned.len() - 1)
                }
                Source::Piped => {
                    let (read, write) = pipe_with(PipeFlags::CLOEXEC)
                        .map_err(|errno| Error::system("pipe", "to the job", errno, "see ulimit -n"))?;
                    let (ours, theirs) = if number == 0 { (write, read) } else { (read, write) };
                    pipes[number as usize] = Some(ours);
                    owned.push(theirs);
                    FdForGuard::Owned(owned.len() - 1)
                }
                Source::Descriptor(descriptor) => FdForGuard::Shared(descriptor.clone()),
                Source::Bytes(bytes) => {
                    let file = memfd::containing(c"pinfold-stdin", MemfdFlags::CLOEXEC, bytes)
                        .and_then(|file| rustix::fs::seek(&file, SeekFrom::Start(0)).map(|_| file))
                        .map_err(|errno| {
                            Error::system("write", "the job's standard input", errno, short_of_descriptors(errno))
                        })?;
                    owned.push(file);
                    FdForGuard::Owned(owned.len() - 1)
                }
            };
            if number == 0 {
                input = rustix::fs::fstat(descriptor.borrow(&owned)).ok().and_then(|stat| pipe_id(&stat));
            }
            targets.push(number);
            fds_for_guard.push(descriptor);
        }
        for (number, descriptor) in caller.descriptors.iter().filter(|(number, _)| !command.passed.contains_key(number))
        {
            targets.push(*number);
            fds_for_guard.push(FdForGuard::Inherited(descriptor.clone()));
        }
        for (number, descriptor) in &command.passed {
            targets.push(*number);
            fds_for_guard.push(FdForGuard::Shared(descriptor.clone()));
        }

        let signals = inherited::signals();
        fn bytes(strings: &CStrings) -> Vec<&Bytes> {
            strings.iter().map(Bytes::new).collect()
        }
        let spec = Spec {
            argv: bytes(&strings.argv),
            env: bytes(&strings.env),
            identities: command.identities(&strings.env),
            candidates: bytes(&strings.candidates),
            has_cwd_descriptor,
            cwd: strings.cwd.as_deref().map(Bytes::new),
            sandbox: confinement,
            has_ruleset,
            has_listener: explainer.is_some(),
            has_tmp_socket: has_mounted_tmp,
            targets,
            blocked: signals.blocked & !command.unblocked_signals,
            ignored: signals.ignored & !command.default_signals,
            process_group: match command.effective_process_group() {
                _ if command.pty.is_some() => Some(protocol::NEW_TERMINAL),
                ProcessGroup::New => Some(0),
                ProcessGroup::NewSession => Some(protocol::NEW_SESSION),
                ProcessGroup::NewSessionOnTerminal => Some(protocol::NEW_SESSION_ON_TERMINAL),
                ProcessGroup::Supervisors => process::own_process_group(),
            },
            rlimits: rlimits(command),
            nice: command.limits.nice,
            host,
            user: command.user.as_ref().map(|user| (user.uid, user.gid, user.groups.clone())),
            death_signal: command.supervisor_death_signal.map(Signal::number),
        };
        let failed = |errno| Error::system("encode", "the command", errno, short_of_descriptors(errno));
        let texts = [&strings.argv, &strings.env, &strings.candidates];
        // Each string is encoded with its length.
        let length = texts.iter().map(|texts| texts.len() + 3 * texts.count()).sum::<usize>() + 256;
        let bytes = protocol::encode_long(&spec, length).map_err(failed)?;
        let spec = if bytes.len() <= SHORT_SPEC {
            EncodedSpec::Message(bytes.into())
        } else {
            EncodedSpec::Memfd(memfd::containing(c"pinfold-spec", MemfdFlags::CLOEXEC, &bytes).map_err(failed)?)
        };
        Ok(Self { spec, owned, fds_for_guard, pipes, terminal, input, private_tmp, sandbox: report, member, explainer })
    }

    /// Starts the thread that records the sandbox's denials, if the policy requests explanations.
    pub fn explain(&mut self, link: &Link, has_leaf: bool) -> Result<Option<DenialListener>> {
        let members = match has_leaf {
            true => Members::OfCgroup,
            false => Members::DescendantsOf(link.pid.as_raw_nonzero().get()),
        };
        let explain = |(explainer, socket)| DenialListener::start(explainer, socket, members);
        self.explainer.take().map(explain).transpose()
    }

    /// Closes the request, which will not be sent again. After that, only the job holds its ends of the pipes, and
    /// pinfold keeps no copy of the environment of a running job.
    pub fn close(&mut self) {
        self.fds_for_guard = Vec::new();
        self.owned = Vec::new();
        self.spec = EncodedSpec::Message(ByteBuf::new());
    }

    /// Sends the request.
    pub async fn send(&mut self, link: &Link, job: JobId, leaf: Option<&Leaf>, join: bool) -> Result<()> {
        // The answer contains a descriptor. If pinfold has no room to receive it, the spawn fails here, before the
        // command runs.
        link.check_free_descriptor()?;
        let mut descriptors = Vec::with_capacity(2 + self.fds_for_guard.len());
        descriptors.extend(leaf.map(|leaf| leaf.cgroup().as_fd()));
        // The bytes are moved, not copied: they come back from the message below.
        let spec = match &mut self.spec {
            EncodedSpec::Message(bytes) => Some(std::mem::take(bytes)),
            EncodedSpec::Memfd(memfd) => {
                descriptors.push(OwnedFd::as_fd(memfd));
                None
            }
        };
        descriptors.extend(self.fds_for_guard.iter().map(|descriptor| descriptor.borrow(&self.owned)));
        let chunks: Vec<_> = descriptors.chunks(MAX_DESCRIPTORS).collect();
        let (last, first) = chunks.split_last().map_or((&[][..], &[][..]), |(last, first)| (*last, first));
        for chunk in first {
            link.send(&ToGuard::Descriptors { job }, chunk).await?;
        }
        let message = ToGuard::Spawn { job, leaf: leaf.map(Leaf::tail), join, spec, oom_score: oom_score::of_jobs() };
        let sent = link.send(&message, last).await;
        if let ToGuard::Spawn { spec: Some(bytes), .. } = message {
            self.spec = EncodedSpec::Message(bytes);
        }
        sent
    }
}

/// Prepares the sandbox of the job.
fn prepared(command: &Command, tmp: Option<&PrivateTmpDir>, sandboxes: &Cache) -> Result<Option<Prepared>> {
    let Some(sandbox) = &command.sandbox else { return Ok(None) };
    prepare(sandbox, Machine::get(), private_tmp::users(command), tmp, sandboxes).map(Some)
}

/// Returns the user, the group and the supplementary groups of the job.
fn job_user(command: &Command) -> (u32, u32, Vec<u32>) {
    use rustix::process::{getegid, geteuid, getgroups};
    match &command.user {
        Some(user) => (user.uid, user.gid, user.groups.clone()),
        None => {
            let groups = getgroups().unwrap_or_default().into_iter().map(|group| group.as_raw()).collect();
            (geteuid().as_raw(), getegid().as_raw(), groups)
        }
    }
}

/// Returns `path` as an absolute path. Both end with NUL.
fn absolute(path: Option<Vec<u8>>) -> Result<Vec<u8>> {
    let path = path.unwrap_or_else(|| vec![0]);
    if path.starts_with(b"/") {
        return Ok(path);
    }
    let own = rustix::process::getcwd(Vec::new())
        .map_err(|errno| Error::system("getcwd", "of this process", errno, "set a working directory for the job"))?;
    Ok([own.as_bytes(), b"/", &path].concat())
}

/// Returns the resource limits of the job. The limit on open files is the caller's, even if pinfold has raised its own
/// (if the caller's limit is not known, the guard's applies). The limits that the command sets follow.
fn rlimits(command: &Command) -> Vec<(u32, u64, u64)> {
    let own = inherited::open_files_limit().map(|(soft, hard)| (NOFILE, soft, hard));
    let asked = command.limits.rlimits.iter().map(|limit| (limit.resource, limit.soft, limit.hard));
    own.into_iter().chain(asked).collect()
}

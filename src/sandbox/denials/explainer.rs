//! Finds out whether the policy of a sandbox refuses a system call.

use std::collections::HashMap;
use std::sync::Arc;

use landlock::{AccessFs, BitFlags, Scope};
use rustix::io::{Errno, Result as SystemResult};

use super::super::filter;
use super::super::machine::Machine;
use super::super::mounts::View;
use super::super::policy::Sandbox;
use super::super::rules;
use super::caller::{Caller, Credentials};
use super::calls::{OpenFlags, Operation, watched};
use super::executables;
use super::files::{Call, FileRules, right_to_make};
use super::filter_denials::Alternatives;
use super::notify_filter;
use super::processes::{self, Members};
use super::sockets::{self, BoundSockets, SocketRules};
use crate::error::Result;
use crate::kernel::landlock::Handled;
use crate::kernel::seccomp::Program;
use crate::kernel::seccomp_notify::{Answer, Notification};
use crate::report::Denial;

/// A policy in the form that is needed to explain its denials. Any number of jobs can share it.
#[derive(Debug)]
pub struct Explainer {
    /// The filters that the job would have without `--explain-denials`.
    filters: Vec<Program>,
    /// The calls that pinfold inspects, by their number.
    calls: HashMap<i32, (&'static str, Operation)>,
    files: FileRules,
    sockets: SocketRules,
    scopes: BitFlags<Scope>,
    /// Whether the sandbox has a Landlock ruleset.
    has_ruleset: bool,
    is_strict: bool,
    alternatives: Alternatives,
}

/// What the thread remembers about its job from one call to the next.
#[derive(Debug)]
pub struct JobState {
    members: Members,
    bound_sockets: BoundSockets,
    /// `None` before the first call.
    credentials: Option<Arc<Credentials>>,
}

impl JobState {
    pub fn new(members: Members) -> Self {
        Self { members, bound_sockets: BoundSockets::default(), credentials: None }
    }
}

impl Explainer {
    /// Creates the explainer of a policy. `grants` are the files and directories that the policy grants.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] if a filter can't be compiled.
    pub fn new(sandbox: &Sandbox, machine: &Machine, view: &View, grants: Vec<rules::GrantedFile>) -> Result<Self> {
        let handled = rules::handled(sandbox, machine);
        let mounted = view.tmpfs.as_ref();
        let mounted = mounted.map(|(path, _, rights)| (path.clone(), BitFlags::from_bits_truncate(*rights)));
        let (connect, listen) = (sandbox.connect_tcp.clone(), sandbox.listen_tcp.clone());
        Ok(Self {
            filters: vec![filter::program(sandbox)],
            calls: watched(view.read_only).map(|(number, name, effect)| (number as i32, (name, effect))).collect(),
            files: FileRules { handled: handled.files, grants, mounted },
            sockets: SocketRules { ports: handled.ports, connect, listen, scopes: handled.scopes },
            scopes: handled.scopes,
            has_ruleset: handled != Handled::default(),
            is_strict: view.read_only,
            alternatives: Alternatives::new(sandbox),
        })
    }

    /// Returns the filter that the job gets in place of pinfold's own filters.
    pub fn program(&self) -> Program {
        let mut numbers: Vec<u32> = self.calls.keys().map(|number| number.cast_unsigned()).collect();
        numbers.sort_unstable();
        notify_filter::compile(filter::ARCHITECTURE, &numbers, &self.filters)
    }

    /// Returns the answer to a call. It depends only on the number and the arguments of the call.
    pub(super) fn answer(&self, notification: &Notification) -> Answer {
        notify_filter::answer(&self.filters, &notification.data)
    }

    /// Returns the denial if the sandbox refuses the call. `answer` shows whether pinfold's own filters refuse it;
    /// otherwise Landlock or a read-only mount can refuse it. Returns `None` if the sandbox allows the call.
    ///
    /// # Errors
    /// The errno if pinfold can't inspect the caller.
    pub(super) fn denial(
        &self,
        notification: &Notification,
        answer: Answer,
        state: &mut JobState,
    ) -> SystemResult<Option<Denial>> {
        if answer != Answer::Continue {
            return Ok(Some(self.alternatives.denial(&notification.data)));
        }
        let Some((name, operation)) = self.calls.get(&notification.data.number) else { return Ok(None) };
        let arguments = &notification.data.arguments;
        if !self.has_ruleset && !matches!(operation, Operation::Attributes(_)) || is_unrestricted(*operation, arguments)
        {
            return Ok(None);
        }
        if notification.thread == 0 {
            // The thread is not visible in pinfold's PID namespace, so pinfold can't inspect it.
            return Err(Errno::SRCH);
        }
        let caller = Caller::new(notification.thread, self.is_strict, state.credentials.clone())?;
        state.credentials = Some(caller.credentials.clone());
        let call = Call { caller: &caller, name, arguments };
        Ok(self.landlock_denial(call, *operation, state.members, &mut state.bound_sockets))
    }

    /// Returns the denial if Landlock, or a read-only mount of the sandbox, refuses the call.
    fn landlock_denial(
        &self,
        call: Call<'_>,
        operation: Operation,
        members: Members,
        bound: &mut BoundSockets,
    ) -> Option<Denial> {
        let Call { caller, name, arguments } = call;
        let argument = |index: u8| arguments[usize::from(index)];
        let number = |index: u8| argument(index) as i32;
        let address = || caller.socket_address(argument(1), argument(2) & 0xffff_ffff).ok();
        let (restricts_signals, restricts_traces) = (self.scopes.contains(Scope::Signal), self.has_ruleset);
        match operation {
            Operation::Open(at, flags) => self.files.open(call, at, open_flags(call, flags)?),
            Operation::Execute(at) => executables::denial(&self.files, call, at),
            Operation::Truncate(at) => self.files.truncate(call, at),
            Operation::MakeDirectory(at) => self.files.make(call, at, AccessFs::MakeDir),
            Operation::MakeSymlink(at) => self.files.make(call, at, AccessFs::MakeSym),
            Operation::MakeNode(at, mode) => {
                let kind = rustix::fs::FileType::from_raw_mode(argument(mode) as u32);
                // Without capabilities, a process may not make a device (mknod(2)).
                let right = right_to_make(kind);
                let is_device = matches!(right, AccessFs::MakeChar | AccessFs::MakeBlock);
                if is_device { None } else { self.files.make(call, at, right) }
            }
            Operation::Remove(at, flags) => {
                let directory = flags.is_some_and(|flags| number(flags) & libc::AT_REMOVEDIR != 0);
                self.files.remove(call, at, directory)
            }
            Operation::RemoveDirectory(at) => self.files.remove(call, at, true),
            Operation::Rename(from, to, flags) => {
                self.files.rename(call, from, to, flags.map_or(0, |flags| argument(flags) as u32))
            }
            Operation::Link(from, to) => self.files.link(call, from, to),
            Operation::Attributes(at) => self.files.attributes(call, at),
            Operation::Connect => sockets::connect(&self.sockets, &self.files, bound, call, &address()?),
            Operation::Bind => sockets::bind(&self.sockets, &self.files, bound, call, &address()?),
            Operation::Signal(process) if restricts_signals => {
                processes::signal(caller, members, number(process), name)
            }
            Operation::SignalPidfd(pidfd) if restricts_signals => {
                processes::signal(caller, members, caller.pid_of_pidfd(number(pidfd))?, name)
            }
            Operation::Trace if restricts_traces && attaches(argument(0)) => {
                processes::trace(caller, members, number(1), name)
            }
            Operation::Inspect(process) if restricts_traces => processes::trace(caller, members, number(process), name),
            Operation::InspectPidfd(pidfd) if restricts_traces => {
                processes::trace(caller, members, caller.pid_of_pidfd(number(pidfd))?, name)
            }
            _ => None,
        }
    }
}

/// Returns whether the arguments alone show that no sandbox refuses the call.
fn is_unrestricted(operation: Operation, arguments: &[u64; 6]) -> bool {
    let argument = |index: u8| arguments[usize::from(index)] as i32;
    match operation {
        // 0 is the caller's own process group; -1 is every process that the caller may send signals to.
        Operation::Signal(process) => matches!(argument(process), -1 | 0),
        // 0 is the caller itself.
        Operation::Inspect(process) => argument(process) == 0,
        Operation::Trace => !attaches(arguments[0]),
        _ => false,
    }
}

/// Returns whether a request of ptrace(2) begins to trace another process.
fn attaches(request: u64) -> bool {
    // The type of these constants depends on the C library.
    [libc::PTRACE_ATTACH as u64, libc::PTRACE_SEIZE as u64].contains(&(request & 0xffff_ffff))
}

fn open_flags(call: Call<'_>, flags: OpenFlags) -> Option<i32> {
    match flags {
        OpenFlags::Argument(index) => Some(call.arguments[usize::from(index)] as i32),
        OpenFlags::Creat => Some(libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC),
        // The first field of `struct open_how` is the flags.
        OpenFlags::How(index) => {
            let how: [u8; 8] = call.caller.bytes(call.arguments[usize::from(index)]).ok()?;
            Some(u64::from_ne_bytes(how) as i32)
        }
    }
}

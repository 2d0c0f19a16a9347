//! A policy, prepared for explanations of what it refuses.

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
use super::files::{FileCall, FileRules, made};
use super::processes::{self, Members};
use super::program;
use super::programs;
use super::refusals::Alternatives;
use super::sockets::{self, Bound, SocketRules};
use crate::error::Result;
use crate::kernel::landlock::Handled;
use crate::kernel::seccomp::Program;
use crate::kernel::seccomp_notify::{Answer, Notification};
use crate::report::Denial;

/// Everything that is needed to explain the refusals of a policy. It serves any number of jobs.
#[derive(Debug)]
pub struct Explainer {
    /// pinfold's own filters, without changes.
    filters: Vec<Program>,
    calls: HashMap<i32, (&'static str, Operation)>,
    files: FileRules,
    sockets: SocketRules,
    scopes: BitFlags<Scope>,
    /// Whether Landlock is applied at all.
    has_ruleset: bool,
    is_strict: bool,
    alternatives: Alternatives,
}

/// The facts about one job.
#[derive(Debug)]
pub struct State {
    members: Members,
    bound: Bound,
    credentials: Option<Arc<Credentials>>,
}

impl State {
    pub fn new(members: Members) -> Self {
        Self { members, bound: Bound::default(), credentials: None }
    }
}

impl Explainer {
    /// Creates the explainer of a policy. `grants` are the paths of the ruleset, with the rights on each.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] if a filter can't be compiled.
    pub fn new(sandbox: &Sandbox, machine: &Machine, view: &View, grants: Vec<rules::Place>) -> Result<Self> {
        let handled = rules::handled(sandbox, machine);
        let mounted = view.tmpfs.as_ref();
        let mounted = mounted.map(|(path, _, rights)| (path.clone(), BitFlags::from_bits_truncate(*rights)));
        let (connect, listen) = (sandbox.connect_tcp.clone(), sandbox.listen_tcp.clone());
        Ok(Self {
            filters: vec![filter::program(sandbox)],
            calls: watched(view.read_only).map(|(number, name, what)| (number as i32, (name, what))).collect(),
            files: FileRules { handled: handled.files, grants, mounted },
            sockets: SocketRules { ports: handled.ports, connect, listen, scopes: handled.scopes },
            scopes: handled.scopes,
            has_ruleset: handled != Handled::default(),
            is_strict: view.read_only,
            alternatives: Alternatives::new(sandbox),
        })
    }

    /// Returns the filter that takes the place of pinfold's own.
    pub fn program(&self) -> Program {
        let mut numbers: Vec<u32> = self.calls.keys().map(|number| number.cast_unsigned()).collect();
        numbers.sort_unstable();
        program::program(filter::ARCHITECTURE, &numbers, &self.filters)
    }

    /// Returns the answer to a call, which depends on nothing but its number and its arguments.
    pub(super) fn answer(&self, notification: &Notification) -> Answer {
        program::answer(&self.filters, &notification.data)
    }

    /// Returns what the filter refuses with this answer, or what Landlock will refuse.
    ///
    /// # Errors
    /// The errno if pinfold can't look at the caller.
    pub(super) fn denial(
        &self,
        notification: &Notification,
        answer: Answer,
        state: &mut State,
    ) -> SystemResult<Option<Denial>> {
        if answer != Answer::Continue {
            return Ok(Some(self.alternatives.denial(&notification.data)));
        }
        let Some((name, operation)) = self.calls.get(&notification.data.number) else { return Ok(None) };
        let arguments = &notification.data.arguments;
        if !self.has_ruleset && !matches!(operation, Operation::Attributes(_)) || is_own(*operation, arguments) {
            return Ok(None);
        }
        if notification.thread == 0 {
            return Err(Errno::SRCH);
        }
        let caller = Caller::new(notification.thread, self.is_strict, state.credentials.clone())?;
        state.credentials = Some(caller.credentials.clone());
        let call = FileCall { caller: &caller, name, arguments };
        Ok(self.of_call(call, *operation, state.members, &mut state.bound))
    }

    fn of_call(&self, call: FileCall<'_>, operation: Operation, members: Members, bound: &mut Bound) -> Option<Denial> {
        let FileCall { caller, name, arguments } = call;
        let argument = |index: u8| arguments[usize::from(index)];
        let number = |index: u8| argument(index) as i32;
        let address = || caller.address(argument(1), argument(2) & 0xffff_ffff).ok();
        let (signals, traces) = (self.scopes.contains(Scope::Signal), self.has_ruleset);
        match operation {
            Operation::Open(at, flags) => self.files.open(call, at, open_flags(call, flags)?),
            Operation::Execute(at) => programs::denial(&self.files, call, at),
            Operation::Truncate(at) => self.files.truncate(call, at),
            Operation::MakeDirectory(at) => self.files.make(call, at, AccessFs::MakeDir),
            Operation::MakeSymlink(at) => self.files.make(call, at, AccessFs::MakeSym),
            Operation::MakeNode(at, mode) => {
                let kind = rustix::fs::FileType::from_raw_mode(argument(mode) as u32);
                // Without capabilities, a process may not make a device (mknod(2)).
                let right = made(kind);
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
            Operation::Signal(process, _) if signals => processes::signal(caller, members, number(process), name),
            Operation::SignalDescriptor(descriptor) if signals => {
                processes::signal(caller, members, caller.process_of(number(descriptor))?, name)
            }
            Operation::Trace if traces && attaches(argument(0)) => processes::trace(caller, members, number(1), name),
            Operation::Inspect(process) if traces => processes::trace(caller, members, number(process), name),
            Operation::InspectDescriptor(descriptor) if traces => {
                processes::trace(caller, members, caller.process_of(number(descriptor))?, name)
            }
            _ => None,
        }
    }
}

/// Returns whether the arguments alone show that the call is about the caller itself, or is not restricted.
fn is_own(operation: Operation, arguments: &[u64; 6]) -> bool {
    let argument = |index: u8| arguments[usize::from(index)] as i32;
    match operation {
        Operation::Signal(process, _) => matches!(argument(process), -1 | 0),
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

fn open_flags(call: FileCall<'_>, flags: OpenFlags) -> Option<i32> {
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

//! `pinfold init` as PID 1: all other processes of the PID namespace belong to the job, and when PID 1 ends, the kernel
//! ends the namespace (pid_namespaces(7)). So there is no guard and no cgroup, and pinfold makes no file.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::io::Error;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::Result;
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};

use crate::Signal;
use crate::cli::explain::processes;
use crate::job::settle::{self, Remaining};
use crate::kernel::own_signals::SignalQueue;
use crate::kernel::pidfd::Pidfd;
use crate::report::ProcessList;
use crate::report::text::printable_os;

use super::session::HangupSignals;
use super::{Init, LEFTOVERS_GRACE, print_as};

/// As the pid for kill(2): all processes of the namespace except the caller, if the caller is PID 1.
const EVERY_PROCESS: i32 = -1;

/// Runs the command and returns the exit code.
pub fn run(init: &Init) -> Result<u8> {
    let inherited = InheritedState::read();
    let signals = SignalQueue::block_all()?.queue_also(Signal::all())?;
    let mut hangup_signals =
        if init.options.session { HangupSignals::give_up_terminal() } else { HangupSignals::default() };
    let main = match spawn(init, inherited) {
        Ok(main) => main,
        Err(error) => {
            let program = printable_os(&init.options.command[0]);
            print_as(init.name, &format!("cannot execute '{program}': {error}"));
            return Ok(if error.raw_os_error() == Some(libc::ENOENT) { 127 } else { 126 });
        }
    };
    init.debug(|| format!("started {} as process {main}", printable_os(&init.options.command[0])));
    let code = loop {
        if let Some(code) = reap(init, main)? {
            break code;
        }
        let Some(received) = signals.next(None)? else { continue };
        if received.signal == Signal::CHLD || hangup_signals.remove(received.signal) {
            continue;
        }
        if let Some(signal) = init.translate(received.signal) {
            // The command has not been reaped, so this pid cannot belong to another process.
            kill(if init.options.to_group() { -main } else { main }, signal);
        }
        if init.stops_with(received.signal) {
            // dumb-init sends this signal too. The kernel discards it, because only a process of an outer PID namespace
            // can stop PID 1 (pid_namespaces(7)).
            kill(1, Signal::STOP);
        }
    };
    end_leftovers(init, &signals)?;
    Ok(code)
}

/// Reaps all children that have ended. Returns the exit code of the command if it is one of them.
fn reap(init: &Init, main: i32) -> Result<Option<u8>> {
    let mut code = None;
    while let Some((pid, status)) = reap_one()? {
        if pid.as_raw_nonzero().get() == main {
            code = Some(exit_code(status));
            init.debug(|| format!("the command has ended with {}", exit_code(status)));
        } else if init.options.warn || init.options.verbose {
            print_as(init.name, &format!("reaped the orphan {}", pid.as_raw_nonzero()));
        }
    }
    Ok(code)
}

/// Reaps one child that has ended. Returns `None` if no child has ended, or if there is no child.
fn reap_one() -> Result<Option<(Pid, WaitStatus)>> {
    match wait(WaitOptions::NOHANG) {
        Ok(reaped) => Ok(reaped),
        Err(Errno::CHILD) => Ok(None),
        Err(errno) => Err(Error::from(errno).into()),
    }
}

fn exit_code(status: WaitStatus) -> u8 {
    match status.terminating_signal() {
        Some(signal) => crate::report::exit_code_of_signal(signal),
        None => status.exit_status().and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX),
    }
}

/// Ends the processes that the command has left: waits for the settle time, sends SIGTERM, and waits for a grace
/// period. When PID 1 ends, the kernel kills the remaining processes, including those whose parent is outside of the
/// namespace and those that this process may not signal.
fn end_leftovers(init: &Init, signals: &SignalQueue) -> Result<()> {
    let start = Instant::now();
    match wait_for_all(signals, start + settle::short_part(settle::DEFAULT))? {
        Waited::Empty => return Ok(()),
        Waited::StopRequested => {}
        Waited::TimeOver => {
            let input = rustix::fs::fstat(std::io::stdin()).ok().and_then(|stat| settle::pipe_id(&stat));
            let left = Remaining::inspect(&other_processes(), input);
            if !left.finishing.is_empty() {
                init.debug(|| "waiting for filters that the command has left".into());
                left.others.iter().for_each(|&pid| terminate(pid));
                if matches!(wait_for_all(signals, start + settle::DEFAULT)?, Waited::Empty) {
                    return Ok(());
                }
                report_unfinished(init);
            }
        }
    }
    init.debug(|| "ending the processes that the command has left".into());
    kill(EVERY_PROCESS, Signal::TERM);
    kill(EVERY_PROCESS, Signal::CONT);
    wait_for_all(signals, Instant::now() + LEFTOVERS_GRACE).map(drop)
}

/// Reports the filters that are about to be ended: their output may be incomplete.
fn report_unfinished(init: &Init) {
    let mut left = ProcessList::default();
    other_processes().into_iter().for_each(|pid| left.add(pid));
    if !left.is_empty() {
        let program = Path::new(&init.options.command[0]);
        let name = printable_os(program.file_name().unwrap_or(program.as_os_str()));
        print_as(init.name, &format!("{name} left {} behind, ended now", processes(&left)));
    }
}

/// Returns all processes of this namespace except this one, according to `/proc`.
fn other_processes() -> Vec<Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter(|&number| number != 1).filter_map(Pid::from_raw).collect()
}

/// Sends SIGTERM to one process. All processes of this namespace belong to the command, so this is correct even if the
/// pid belongs to another process by now.
fn terminate(pid: Pid) {
    if let Ok(process) = Pidfd::open(pid) {
        // An error means that the process has ended, or that this user may not signal it.
        let _ = process.send(Signal::TERM).and_then(|()| process.send(Signal::CONT));
    }
}

enum Waited {
    Empty,
    TimeOver,
    /// A signal has requested the end of this process.
    StopRequested,
}

/// Reaps children until no child is left, until the time is over, or until a signal requests a stop.
fn wait_for_all(signals: &SignalQueue, until: Instant) -> Result<Waited> {
    while !all_reaped()? {
        match signals.next(Some(until.saturating_duration_since(Instant::now())))? {
            Some(received) if [Signal::TERM, Signal::INT, Signal::QUIT].contains(&received.signal) => {
                return Ok(Waited::StopRequested);
            }
            Some(_) => {}
            None => return Ok(Waited::TimeOver),
        }
    }
    Ok(Waited::Empty)
}

/// Reaps the children that have ended. Returns whether there is no other child.
fn all_reaped() -> Result<bool> {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some(_)) => {}
            Ok(None) => return Ok(false),
            Err(Errno::CHILD) => return Ok(true),
            Err(errno) => return Err(Error::from(errno).into()),
        }
    }
}

fn kill(pid: i32, signal: Signal) {
    // An error means that there is no such process, or that this user may not signal it. In both cases there is nothing
    // to do.
    // SAFETY: kill(2) has no pointer arguments.
    let _ = unsafe { libc::kill(pid, signal.number()) };
}

/// The settings that the command inherits from this process: the signal mask, and whether SIGPIPE is ignored.
#[derive(Clone, Copy)]
struct InheritedState {
    mask: libc::sigset_t,
    ignores_pipe: bool,
}

impl InheritedState {
    fn read() -> Self {
        // SAFETY: both structures are valid when zeroed, and the calls only write to them.
        unsafe {
            let mut mask = std::mem::zeroed();
            libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &mut mask);
            let mut pipe: libc::sigaction = std::mem::zeroed();
            libc::sigaction(libc::SIGPIPE, std::ptr::null(), &mut pipe);
            // On other targets, Rust's runtime runs before `main` and makes the process ignore SIGPIPE.
            let ignores_pipe = cfg!(target_env = "gnu") && pipe.sa_sigaction == libc::SIG_IGN;
            Self { mask, ignores_pipe }
        }
    }
}

/// Starts the command in a session of its own, or in a process group of its own, which becomes the foreground group if
/// there is a terminal. Returns its pid.
fn spawn(init: &Init, mut inherited: InheritedState) -> std::io::Result<i32> {
    let session = init.options.session;
    let reset = init.options.reset_signals;
    if reset {
        // SAFETY: the set is valid, and the call only writes to it.
        unsafe { libc::sigemptyset(&mut inherited.mask) };
    }
    let mut command = Command::new(&init.options.command[0]);
    command.args(&init.options.command[1..]);
    let ours = std::process::id().to_string();
    let variables = [c"LISTEN_PID", c"WATCHDOG_PID", c"SYSTEMD_EXEC_PID"];
    let variables = variables.map(|name| {
        let value = std::env::var(name.to_str().unwrap_or_default());
        (name, value.is_ok_and(|value| value == ours))
    });
    // SAFETY: between fork and exec, the closure makes system calls only, on its own memory.
    unsafe {
        command.pre_exec(move || {
            if session {
                if libc::setsid() == -1 {
                    return Err(Error::last_os_error());
                }
                // This succeeds if the terminal belongs to no session, because the parent has given it up.
                libc::ioctl(0, libc::TIOCSCTTY, 0);
            } else {
                if libc::setpgid(0, 0) == -1 {
                    return Err(Error::last_os_error());
                }
                // The kernel sends SIGTTOU to a background process that calls tcsetpgrp(3), and std has just unblocked
                // SIGTTOU.
                let mut all = std::mem::zeroed();
                libc::sigfillset(&mut all);
                libc::pthread_sigmask(libc::SIG_SETMASK, &all, std::ptr::null_mut());
                libc::tcsetpgrp(0, libc::getpid());
            }
            // sd_listen_fds(3) and others compare these variables with their own pid. std passes the current
            // environment to exec, because this `Command` sets no other. Memory allocation is safe here, because the
            // process has one thread.
            for (name, is_ours) in variables {
                if is_ours {
                    let pid = CString::new(libc::getpid().to_string())?;
                    libc::setenv(name.as_ptr(), pid.as_ptr(), 1);
                    libc::unsetenv(c"LISTEN_PIDFDID".as_ptr());
                }
            }
            if inherited.ignores_pipe {
                libc::signal(libc::SIGPIPE, libc::SIG_IGN);
            }
            for signal in 1..=31 {
                if reset && signal != libc::SIGKILL && signal != libc::SIGSTOP {
                    libc::signal(signal, libc::SIG_DFL);
                }
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, &inherited.mask, std::ptr::null_mut());
            Ok(())
        });
    }
    // std's handle is dropped, which does not wait for the child. This module reaps the child by its pid.
    command.spawn().map(|child| child.id() as i32)
}

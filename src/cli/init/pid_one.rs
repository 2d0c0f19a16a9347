//! PID 1: everybody here is the job, and its end ends the namespace (pid_namespaces(7)). No guard, no cgroup, no file.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::io::Error;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Instant;

use anyhow::Result;
use pinfold::Signal;
use pinfold::pidfd::Pidfd;
use pinfold::settle::{self, Left};
use pinfold::signal::SignalQueue;
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};

use super::session::GivenUp;
use super::{Init, LEFTOVERS_GRACE, say};

/// Every process of the namespace but the caller, where PID 1 sends it (kill(2)).
const EVERY_PROCESS: i32 = -1;

/// Runs the command and tells the exit code.
pub fn run(init: &Init) -> Result<u8> {
    let given = Given::read();
    let signals = SignalQueue::block_all()?.queue_also(Signal::all())?;
    let mut given_up = if init.options.session { GivenUp::terminal() } else { GivenUp::default() };
    let main = match spawn(init, given) {
        Ok(main) => main,
        Err(error) => {
            let program = pinfold::text::printable_os(&init.options.command[0]);
            say(init.name, &format!("cannot execute '{program}': {error}"));
            return Ok(if error.raw_os_error() == Some(libc::ENOENT) { 127 } else { 126 });
        }
    };
    init.debug(|| format!("started {} as process {main}", pinfold::text::printable_os(&init.options.command[0])));
    let code = loop {
        if let Some(code) = reap(init, main)? {
            break code;
        }
        let Some(received) = signals.next(None)? else { continue };
        if received.signal == Signal::CHLD || given_up.took(received.signal) {
            continue;
        }
        if let Some(signal) = init.translate(received.signal) {
            // It has not been reaped, so that the pid is its own.
            kill(if init.options.to_group() { -main } else { main }, signal);
        }
        if init.stops_with(received.signal) {
            // Where this is the first process of its namespace, the kernel lets only an outer one stop it.
            kill(1, Signal::STOP);
        }
    };
    end_leftovers(init, &signals)?;
    Ok(code)
}

/// Reaps whoever has ended; the exit code of the command where it is among them.
fn reap(init: &Init, main: i32) -> Result<Option<u8>> {
    let mut code = None;
    while let Some((pid, status)) = reap_one()? {
        if pid.as_raw_nonzero().get() == main {
            code = Some(exit_code(status));
            init.debug(|| format!("the command has ended with {}", exit_code(status)));
        } else if init.options.warn || init.options.verbose {
            say(init.name, &format!("reaped the orphan {}", pid.as_raw_nonzero()));
        }
    }
    Ok(code)
}

/// `None` where nobody has ended, or nobody is there.
fn reap_one() -> Result<Option<(Pid, WaitStatus)>> {
    match wait(WaitOptions::NOHANG) {
        Ok(reaped) => Ok(reaped),
        Err(Errno::CHILD) => Ok(None),
        Err(errno) => Err(Error::from(errno).into()),
    }
}

fn exit_code(status: WaitStatus) -> u8 {
    let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}

/// Ends the processes that the command has left: the settle time, SIGTERM, a grace period. The kernel kills the rest when
/// PID 1 ends, among them processes whose parent is outside of the namespace, and those that our signals do not reach.
fn end_leftovers(init: &Init, signals: &SignalQueue) -> Result<()> {
    let start = Instant::now();
    match wait_for_all(signals, start + settle::short(settle::DEFAULT))? {
        Waited::Empty => return Ok(()),
        Waited::StopRequested => {}
        Waited::TimeOver => {
            let input = rustix::fs::fstat(std::io::stdin()).ok().and_then(|stat| settle::channel_of(&stat));
            let left = Left::look(&other_processes(), input);
            if !left.finishing.is_empty() {
                init.debug(|| "waiting for filters that the command has left".into());
                left.others.iter().for_each(|&pid| terminate(pid));
                if matches!(wait_for_all(signals, start + settle::DEFAULT)?, Waited::Empty) {
                    return Ok(());
                }
            }
        }
    }
    init.debug(|| "ending the processes that the command has left".into());
    kill(EVERY_PROCESS, Signal::TERM);
    kill(EVERY_PROCESS, Signal::CONT);
    wait_for_all(signals, Instant::now() + LEFTOVERS_GRACE).map(drop)
}

/// All processes of this namespace but this one, as `/proc` shows them.
fn other_processes() -> Vec<Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter(|&number| number != 1).filter_map(Pid::from_raw).collect()
}

/// Stops one process. Every process of this namespace belongs to the command, whichever has this pid now.
fn terminate(pid: Pid) {
    if let Ok(process) = Pidfd::open(pid) {
        // It may have ended, or belong to a user that this one may not signal.
        let _ = process.send(Signal::TERM).and_then(|()| process.send(Signal::CONT));
    }
}

enum Waited {
    Empty,
    TimeOver,
    /// A signal has asked us to stop.
    StopRequested,
}

/// Reaps until no child is left.
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

/// Reaps the children that have ended; whether no child is left then.
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
    // There may be no such process, or none that this user may signal: nothing can be done about it.
    // SAFETY: kill(2) has no memory obligations.
    let _ = unsafe { libc::kill(pid, signal.number()) };
}

/// What this process was given, for the command: its signal mask, and whether SIGPIPE was ignored.
#[derive(Clone, Copy)]
struct Given {
    mask: libc::sigset_t,
    ignores_pipe: bool,
}

impl Given {
    fn read() -> Self {
        // SAFETY: both structures are valid when zeroed, and only written to.
        unsafe {
            let mut mask = std::mem::zeroed();
            libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &mut mask);
            let mut pipe: libc::sigaction = std::mem::zeroed();
            libc::sigaction(libc::SIGPIPE, std::ptr::null(), &mut pipe);
            // Elsewhere Rust's runtime has ignored it.
            let ignores_pipe = cfg!(target_env = "gnu") && pipe.sa_sigaction == libc::SIG_IGN;
            Self { mask, ignores_pipe }
        }
    }
}

/// Starts the command in a process group of its own, which becomes the foreground one where there is a terminal, or in a
/// session of its own.
fn spawn(init: &Init, mut given: Given) -> std::io::Result<i32> {
    let session = init.options.session;
    let reset = init.options.reset_signals;
    if reset {
        // SAFETY: the set is valid, and only written to.
        unsafe { libc::sigemptyset(&mut given.mask) };
    }
    let mut command = Command::new(&init.options.command[0]);
    command.args(&init.options.command[1..]);
    let ours = std::process::id().to_string();
    let variables = [c"LISTEN_PID", c"WATCHDOG_PID", c"SYSTEMD_EXEC_PID"];
    let variables = variables.map(|name| {
        let value = std::env::var(name.to_str().unwrap_or_default());
        (name, value.is_ok_and(|value| value == ours))
    });
    // SAFETY: between fork and exec it makes system calls only, on memory of its own.
    unsafe {
        command.pre_exec(move || {
            if session {
                if libc::setsid() == -1 {
                    return Err(Error::last_os_error());
                }
                // It belongs to no session where this process gave it up.
                libc::ioctl(0, libc::TIOCSCTTY, 0);
            } else {
                if libc::setpgid(0, 0) == -1 {
                    return Err(Error::last_os_error());
                }
                // From the background that is answered with SIGTTOU, which std has just unblocked.
                let mut all = std::mem::zeroed();
                libc::sigfillset(&mut all);
                libc::pthread_sigmask(libc::SIG_SETMASK, &all, std::ptr::null_mut());
                libc::tcsetpgrp(0, libc::getpid());
            }
            // sd_listen_fds(3) and others compare these with the pid of their reader. std executes with the environment that is
            // there now, because it was asked for no other; the only thread of the process allocates here.
            for (name, is_ours) in variables {
                if is_ours {
                    let pid = CString::new(libc::getpid().to_string())?;
                    libc::setenv(name.as_ptr(), pid.as_ptr(), 1);
                    libc::unsetenv(c"LISTEN_PIDFDID".as_ptr());
                }
            }
            if given.ignores_pipe {
                libc::signal(libc::SIGPIPE, libc::SIG_IGN);
            }
            for signal in 1..=31 {
                if reset && signal != libc::SIGKILL && signal != libc::SIGSTOP {
                    libc::signal(signal, libc::SIG_DFL);
                }
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, &given.mask, std::ptr::null_mut());
            Ok(())
        });
    }
    // Its pid is kept, and it is reaped here.
    command.spawn().map(|child| child.id() as i32)
}

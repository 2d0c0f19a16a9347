//! PID 1: everybody here is the job, and its end ends the namespace (pid_namespaces(7)). No guard, no cgroup, no file.

#![allow(unsafe_code)]

use std::io::Error;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Instant;

use anyhow::Result;
use pinfold::Signal;
use pinfold::signal::SignalQueue;
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};

use super::{Init, LEFTOVERS_GRACE, say};

/// Everybody but the caller, where it is sent by PID 1 (kill(2)).
const EVERYBODY: i32 = -1;

/// Runs the command and tells the exit code.
pub fn run(init: &Init) -> Result<u8> {
    let given = Given::read();
    let signals = SignalQueue::block_all()?.queue_also(Signal::all())?;
    // What the kernel sends when the terminal is given up (ioctl_tty(2), TIOCNOTTY): it is not for the command.
    let mut ours = Vec::new();
    if init.options.session && leave_terminal() {
        ours.extend([Signal::HUP, Signal::CONT]);
    }
    let main = match spawn(init, given) {
        Ok(main) => main,
        Err(error) => {
            let program = init.options.command[0].to_string_lossy();
            say(init.name, &format!("cannot execute '{program}': {error}"));
            return Ok(if error.raw_os_error() == Some(libc::ENOENT) { 127 } else { 126 });
        }
    };
    init.debug(|| format!("started {} as process {main}", init.options.command[0].to_string_lossy()));
    let code = loop {
        if let Some(code) = reap(init, main)? {
            break code;
        }
        let Some(received) = signals.next(None)? else { continue };
        if received.signal == Signal::CHLD {
            continue;
        }
        if let Some(at) = ours.iter().position(|&signal| signal == received.signal) {
            ours.remove(at);
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

/// SIGTERM to everybody, and a moment to end; who does not is killed by the kernel when we end. So is whoever has no parent
/// in here, that is by another's order, and whom a signal of ours may not reach.
fn end_leftovers(init: &Init, signals: &SignalQueue) -> Result<()> {
    if nobody_is_left()? {
        return Ok(());
    }
    init.debug(|| "ending what the command has left".into());
    kill(EVERYBODY, Signal::TERM);
    kill(EVERYBODY, Signal::CONT);
    let over = Instant::now() + LEFTOVERS_GRACE;
    while !nobody_is_left()? {
        match signals.next(Some(over.saturating_duration_since(Instant::now())))? {
            Some(received) if received.signal == Signal::CHLD => {}
            Some(received) if [Signal::TERM, Signal::INT, Signal::QUIT].contains(&received.signal) => break,
            Some(_) => {}
            None => break,
        }
    }
    Ok(())
}

/// Reaps; whether there is no child at all then.
fn nobody_is_left() -> Result<bool> {
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
    // Nobody may be there, or nobody whom this user may signal: there is nothing to be done about it.
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

/// Starts the command in a process group of its own, the foreground one where there is a terminal, or in a session of its
/// own.
fn spawn(init: &Init, given: Given) -> std::io::Result<i32> {
    let session = init.options.session;
    let mut command = Command::new(&init.options.command[0]);
    command.args(&init.options.command[1..]);
    // SAFETY: between fork and exec it makes system calls only, on memory of its own.
    unsafe {
        command.pre_exec(move || {
            if session {
                if libc::setsid() == -1 {
                    return Err(Error::last_os_error());
                }
                // Where the terminal was given up, it is to be had.
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
            if given.ignores_pipe {
                libc::signal(libc::SIGPIPE, libc::SIG_IGN);
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, &given.mask, std::ptr::null_mut());
            Ok(())
        });
    }
    // Its pid is kept, and it is reaped here.
    command.spawn().map(|child| child.id() as i32)
}

/// Gives the controlling terminal up, so that the command's session can have it; whether it was given up for all.
fn leave_terminal() -> bool {
    // SAFETY: no argument; ENOTTY where there is none.
    unsafe { libc::ioctl(0, libc::TIOCNOTTY) == 0 && libc::getsid(0) == libc::getpid() }
}

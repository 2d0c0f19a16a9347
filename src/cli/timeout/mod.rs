//! `pinfold timeout`, also by the name `timeout`: works as timeout(1) of coreutils, and also ends every process that
//! the command has started.

mod operands;
mod options;

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::quote::quote;
use super::{FAILED, run, supervisor_of_environment, terminal, write_patiently};
use operands::signal_name;
use options::{Options, Parsed};

use crate::cli::signal_stream::SignalStream;
use crate::kernel::inherited;
use crate::kernel::own_signals::{self, Received, SignalQueue};
use crate::kernel::wake::Wake;
use crate::report::{MainEnd, exit_code_of_signal};
use crate::{Command, Error, Guard, Job, ProcessGroup, Report, Signal, SpawnError, SpawnStage, Supervisor};

const TIMED_OUT: u8 = 124;

/// When the terminal sends its stop signal, the command has to stop before timeout does, so that it does not read what
/// the user types for the shell. timeout waits this long for a command that does not stop.
const STOP_PATIENCE: Duration = Duration::from_millis(100);

/// The time between SIGTERM and SIGKILL for the processes that the command has left. It is short, because the caller
/// waits for the command and not for these processes.
const LEFTOVERS_GRACE: Duration = Duration::from_secs(1);

/// Runs `timeout WORDS` and returns the exit code. `name` is the program's name in messages.
pub fn main(name: &OsStr, words: &[OsString]) -> u8 {
    let options = match options::parse(words) {
        Parsed::Run(options) => options,
        Parsed::Help => return print(name, &options::help(&name.to_string_lossy())),
        Parsed::Version => return print(name, concat!("timeout (pinfold) ", env!("CARGO_PKG_VERSION"), "\n")),
        Parsed::Wrong(message) => {
            if let Some(message) = message {
                say(name, &message);
            }
            write_patiently(&[b"Try '", name.as_bytes(), b" --help' for more information.\n"].concat());
            return FAILED;
        }
    };
    timeout(name, &options).unwrap_or_else(|error| {
        say(name, crate::cli::message_of(&error).as_bytes());
        FAILED
    })
}

fn print(name: &OsStr, text: &str) -> u8 {
    let mut stdout = std::io::stdout();
    let written = match inherited::was_closed(1) {
        true => Err(rustix::io::Errno::BADF.into()),
        false => stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()),
    };
    let Err(error) = written else { return 0 };
    say(name, format!("write error: {}", without_number(&error)).as_bytes());
    FAILED
}

/// Returns the text of strerror(3) for an error, without the number that Rust adds.
fn without_number(error: &std::io::Error) -> String {
    let error = error.to_string();
    error.split(" (os error").next().unwrap_or_default().to_owned()
}

fn say(name: &OsStr, message: &[u8]) {
    write_patiently(&[name.as_bytes(), b": ", message, b"\n"].concat());
}

fn timeout(name: &OsStr, options: &Options) -> Result<u8> {
    let signals = SignalQueue::block_all()?;
    let guard = Guard::fork()?;
    inherited::raise_own_limits();
    let chosen = Signal::from_number(options.signal);
    // timeout receives these signals even if the caller ignored them. Other signals that the caller ignored stay
    // ignored, and timeout does not send them to the command.
    let signals =
        signals.queue_also([Signal::ALRM].into_iter().chain(chosen.filter(|&signal| signal != Signal::CHLD)))?;
    if !options.foreground {
        // This fails with EPERM for the leader of a session, which already leads its process group.
        let _ = rustix::process::setpgid(None, None);
    }
    let [program, args @ ..] = options.command.as_slice() else { unreachable!("parsed with a command") };
    let mut command = Command::new(program);
    command
        .args(args)
        .inherit_descriptors(true)
        .process_group(ProcessGroup::Supervisors)
        // coreutils' timeout does the same: if SIGCHLD was blocked, a shell that waits for its children would wait for
        // ever.
        .unblocked_signals([Signal::ALRM, Signal::CHLD])
        .default_signals(chosen.into_iter().chain([Signal::ALRM, Signal::CHLD, Signal::TTIN, Signal::TTOU]))
        .grace(LEFTOVERS_GRACE);

    if let Some(signal) = chosen {
        command.supervisor_death_signal(signal);
    }

    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the event loop")?;
    let mut limit = Limit {
        name,
        options,
        at: options.deadline.and_then(|deadline| Instant::now().checked_add(deadline)),
        next: options.signal,
        kill_after: options.kill_after,
        timed_out: false,
        suspend_at: None,
        spent: Vec::new(),
        killed: false,
    };
    let ended = runtime.block_on(supervise(&mut limit, guard, &command, signals))?;
    let code = match ended {
        Ended::Report(report) => limit.code(&report),
        Ended::NotStarted(Error::Spawn(SpawnError { stage: SpawnStage::Exec, source, .. })) => {
            let error = without_number(&source);
            let quoted = quote(program.as_bytes());
            say(name, &[b"failed to run command ", quoted.as_slice(), b": ", error.as_bytes()].concat());
            if source.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 }
        }
        Ended::NotStarted(error) => return Err(error.into()),
        Ended::Early if limit.timed_out && !options.preserve_status => TIMED_OUT,
        Ended::Early => exit_code_of_signal(limit.spent.first().copied().unwrap_or(libc::SIGKILL)),
    };
    // The kernel releases the runtime's resources at exit, faster than dropping it would.
    std::mem::forget(runtime);
    Ok(code)
}

enum Ended {
    Report(Arc<Report>),
    NotStarted(Error),
    /// A signal or the deadline ended the wait while the exec of the command hung.
    Early,
}

async fn supervise(limit: &mut Limit<'_>, guard: Guard, command: &Command, signals: SignalQueue) -> Result<Ended> {
    let signals = signals.listen()?;
    let supervisor = supervisor_of_environment(guard)?.one_job().start().await?;
    let ended = hold(limit, &supervisor, command, &signals).await;
    supervisor.close().await;
    ended
}

async fn hold(
    limit: &mut Limit<'_>,
    supervisor: &Supervisor,
    command: &Command,
    signals: &SignalStream,
) -> Result<Ended> {
    // Signals that are due before the exec of the command wait until the exec is done, for at most EXEC_PATIENCE.
    let mut early = Vec::new();
    let mut patience = None;
    let spawned = {
        let mut spawning = std::pin::pin!(supervisor.spawn(command));
        loop {
            let _wake = Wake::at(limit.at);
            let wish = tokio::select! {
                biased;
                spawned = &mut spawning => break spawned,
                received = signals.recv() => limit.wish(received?, None),
                () = run::over(limit.at) => limit.expired(),
                () = run::over(limit.suspend_at) => {
                    limit.suspend();
                    continue;
                }
                () = run::over(patience) => return Ok(Ended::Early),
            };
            if let Some(wish) = wish {
                patience = patience.or_else(|| Some(Instant::now() + run::EXEC_PATIENCE));
                early.push(wish);
            }
        }
    };
    let job = match spawned {
        Ok(job) => job,
        Err(error) => return Ok(Ended::NotStarted(error)),
    };
    for wish in early {
        limit.send(&job, wish).await;
    }
    loop {
        let _wake = Wake::at(limit.at);
        let wish = tokio::select! {
            biased;
            received = signals.recv() => {
                let received = received?;
                if job.main_has_ended() {
                    // The command has ended, and its leftovers are being stopped. The sender wants them to end sooner.
                    job.start_kill();
                    continue;
                }
                limit.wish(received, Some(&job))
            }
            report = job.wait() => return Ok(Ended::Report(report?)),
            signal = job.next_stop() => {
                // Without the guard, the kernel would have ignored this signal, because the process group would be
                // orphaned.
                if [Signal::TSTP, Signal::TTIN, Signal::TTOU].contains(&signal) && terminal::is_orphaned() {
                    job.signal_all(Signal::CONT);
                } else if limit.suspend_at.is_some() {
                    limit.suspend();
                }
                None
            }
            () = run::over(limit.suspend_at) => {
                limit.suspend();
                None
            }
            () = run::over(limit.at) => {
                if job.main_has_ended() {
                    limit.at = None;
                    continue;
                }
                limit.expired()
            }
        };
        if let Some(wish) = wish {
            limit.send(&job, wish).await;
        }
    }
}

/// The time limit, and the state of the command with regard to it.
struct Limit<'a> {
    name: &'a OsStr,
    options: &'a Options,
    /// When the next signal is due.
    at: Option<Instant>,
    /// The number of that signal.
    next: i32,
    kill_after: Option<Duration>,
    timed_out: bool,
    /// When timeout stops itself, after a stop signal of the terminal.
    suspend_at: Option<Instant>,
    /// The signals that timeout has sent to the process group. It ignores them from then on, as coreutils' timeout
    /// does.
    spent: Vec<i32>,
    /// timeout has sent SIGKILL to the process group. coreutils' timeout is in that group, and SIGKILL ends it too.
    killed: bool,
}

impl Limit<'_> {
    /// Returns the signal to send for a signal that timeout received; `None` to send nothing.
    fn wish(&mut self, received: Received, job: Option<&Job>) -> Option<i32> {
        let signal = received.signal;
        let number = signal.number();
        // coreutils' timeout unblocks only the signals that it waits for.
        if signal != Signal::ALRM && own_signals::was_blocked(signal) {
            return None;
        }
        match signal {
            Signal::ALRM => return self.expired(),
            _ if self.spent.contains(&number) => return None,
            _ if number == self.options.signal => {}
            // coreutils' timeout ignores SIGTTIN and SIGTTOU; the default action of the others is to do nothing.
            Signal::TTIN | Signal::TTOU | Signal::CHLD | Signal::CONT | Signal::URG | Signal::WINCH => return None,
            Signal::TSTP => {
                // Without the guard, the kernel would have ignored this signal if the process group is orphaned.
                self.suspend_at = (!terminal::is_orphaned()).then(|| Instant::now() + STOP_PATIENCE);
                return None;
            }
            _ => {}
        }
        // While the command is being started, it is in the same process group: a second signal would be one too many.
        let has_it = job.is_none_or(|job| !terminal::has_left_our_group(job));
        if has_it && terminal::has_reached_our_group(received) {
            // The command is in the same process group, and has received the signal from the terminal.
            self.start_kill_after();
            return None;
        }
        Some(number)
    }

    fn start_kill_after(&mut self) {
        if let Some(kill_after) = self.kill_after.take() {
            self.next = libc::SIGKILL;
            self.at = Instant::now().checked_add(kill_after);
        }
    }

    fn suspend(&mut self) {
        self.suspend_at = None;
        own_signals::suspend_by(Signal::TSTP);
    }

    fn expired(&mut self) -> Option<i32> {
        self.timed_out = true;
        self.at = None;
        Some(self.next)
    }

    async fn send(&mut self, job: &Job, number: i32) {
        let options = self.options;
        self.start_kill_after();
        if options.verbose {
            let sending = format!("sending signal {} to command ", signal_name(number));
            say(self.name, &[sending.as_bytes(), &quote(options.command[0].as_bytes())].concat());
        }
        // The number 0 stands for no signal.
        let signal = Signal::from_number(number);
        if options.foreground {
            // An error means that the command has just ended.
            let _ = signal.map(|signal| job.signal(signal));
            return;
        }
        self.spent.push(number);
        match signal {
            Some(Signal::KILL) => {
                self.killed = true;
                job.start_kill();
            }
            Some(Signal::CONT) => job.signal_group(Signal::CONT).await,
            _ => {
                if let Some(signal) = signal {
                    job.signal_group(signal).await;
                }
                if signal == Some(Signal::STOP) {
                    // coreutils' timeout is in the process group that it stops.
                    own_signals::suspend_by(Signal::STOP);
                }
                job.signal_group(Signal::CONT).await;
            }
        }
    }

    /// Returns the exit code. Does not return if this process has to end by the signal that ended the command.
    fn code(&self, report: &Report) -> u8 {
        run::explain_failures(report);
        if self.killed {
            end_by(Signal::KILL);
        }
        let mut preserve = self.options.preserve_status;
        let status = match &report.main {
            Some(MainEnd::Exited(code)) => *code as u8,
            Some(MainEnd::Signalled { signal, core_dumped, .. }) => {
                if *core_dumped {
                    say(self.name, b"the monitored command dumped core");
                }
                if !self.timed_out
                    && let Some(signal) = Signal::from_number(*signal)
                {
                    end_by(signal);
                }
                preserve |= *signal == libc::SIGKILL;
                exit_code_of_signal(*signal)
            }
            // The guard was killed, so that the status of the command is not known.
            _ => return report.exit_code,
        };
        if self.timed_out && !preserve { TIMED_OUT } else { status }
    }
}

/// Ends this process by the signal, without a core dump. Returns if this process is PID 1.
fn end_by(signal: Signal) {
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    own_signals::end_by(signal);
}

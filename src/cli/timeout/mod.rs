//! `pinfold timeout`, also under the name `timeout`: works as timeout(1) of coreutils, and also ends every process that
//! the command has started.

mod operands;
mod options;

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use crate::cli::parent::Parent;
use crate::kernel::own_signals::{self, SignalQueue};
use crate::report::SupervisorKind;
use crate::report::{MainEnd, exit_code_of_signal};
use crate::{Command, Error, Guard, ProcessGroup, Report, Signal, SpawnError, SpawnStage};
use anyhow::Result;

use super::exit::{EndsBy, Exit, FAILED, TIMED_OUT};
use super::explain::{explain_failures, unfinished_filters};
use super::on_signal::{Action, OnSignal};
use super::quote::quote;
use super::runtime::with_supervisor;
use super::signals::{Keys, Rules};
use super::supervise::{Policy, Recipients, Step, Supervision};
use super::{supervisor_of_environment, write_to_stderr};
use operands::signal_name;
use options::{Options, Parsed};

/// The time between SIGTERM and SIGKILL for the processes that the command has left. It is short, because the caller
/// waits for the command and not for these processes.
const LEFTOVERS_GRACE: Duration = Duration::from_secs(1);

/// Runs `timeout` with these arguments and returns the exit code. `name` is the program's name in messages.
pub fn main(name: &OsStr, words: &[OsString]) -> u8 {
    let options = match options::parse(words) {
        Parsed::Run(options) => options,
        Parsed::Help => return print(name, &options::help(&name.to_string_lossy())),
        Parsed::Version => return print(name, concat!("timeout (pinfold) ", env!("CARGO_PKG_VERSION"), "\n")),
        Parsed::Wrong(message) => {
            if let Some(message) = message {
                print_as(name, &message);
            }
            write_to_stderr(&[b"Try '", name.as_bytes(), b" --help' for more information.\n"].concat());
            return FAILED;
        }
    };
    timeout(name, &options).unwrap_or_else(|error| {
        print_as(name, crate::cli::message_of(&error).as_bytes());
        FAILED
    })
}

fn print(name: &OsStr, text: &str) -> u8 {
    let mut stdout = std::io::stdout();
    let written = match crate::kernel::inherited::was_closed(1) {
        true => Err(rustix::io::Errno::BADF.into()),
        false => stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()),
    };
    let Err(error) = written else { return 0 };
    print_as(name, format!("write error: {}", without_number(&error)).as_bytes());
    FAILED
}

/// Returns the text of strerror(3) for an error, without the number that Rust adds.
fn without_number(error: &std::io::Error) -> String {
    let error = error.to_string();
    error.split(" (os error").next().unwrap_or_default().to_owned()
}

fn print_as(name: &OsStr, message: &[u8]) {
    write_to_stderr(&[name.as_bytes(), b": ", message, b"\n"].concat());
}

fn timeout(name: &OsStr, options: &Options) -> Result<u8> {
    let signals = SignalQueue::block_all()?;
    // Before the guard exists: if the caller's process group is from outside of this PID namespace, the guard would stay
    // in it. With its parent in another group, the end of the guard could orphan the caller's group, and if a process of
    // that group is stopped, the kernel then sends SIGHUP to all of them (setpgid(2), "orphaned process group").
    if !options.foreground {
        // This fails with EPERM for the leader of a session, which already leads its process group.
        let _ = rustix::process::setpgid(None, None);
    }
    let guard = Guard::fork()?;
    crate::kernel::inherited::raise_own_limits();
    let chosen = Signal::from_number(options.signal);
    // timeout receives these signals even if the caller ignored them. Other signals that the caller ignored stay
    // ignored, and timeout does not send them to the command.
    let signals =
        signals.queue_also([Signal::ALRM].into_iter().chain(chosen.filter(|&signal| signal != Signal::CHLD)))?;
    let [program, args @ ..] = options.command.as_slice() else { unreachable!("parsed with a command") };
    let mut command = Command::new(program);
    command
        .args(args)
        .inherit_descriptors(true)
        .process_group(ProcessGroup::Supervisors)
        // coreutils' timeout does the same: if SIGCHLD stayed blocked, a shell that waits for its children would wait
        // forever.
        .unblocked_signals([Signal::ALRM, Signal::CHLD])
        .default_signals(chosen.into_iter().chain([Signal::ALRM, Signal::CHLD, Signal::TTIN, Signal::TTOU]))
        .grace(LEFTOVERS_GRACE);

    if let Some(signal) = chosen {
        command.supervisor_death_signal(signal);
    }

    let builder = supervisor_of_environment(guard)?.one_job().kind(SupervisorKind::Timeout);
    let deadline = options.deadline.and_then(|deadline| Instant::now().checked_add(deadline));
    let ended = with_supervisor(builder, signals, async |supervisor, signals| {
        if options.die_with_parent {
            Parent::open(None)?.stop_with_parent()?;
        }
        let announce = |step| announce(name, options, step);
        let mut supervision = Supervision::new(signals, rules(chosen), policy(options, &announce));
        supervision.set_deadline(deadline);
        let report = match supervision.start(supervisor.spawn(&command)).await? {
            Ok(job) => supervision.wait(&job).await?,
            Err(_) if supervision.timed_out && !options.preserve_status => return Ok(Exit::Code(TIMED_OUT)),
            Err(signal) => return Ok(Exit::Code(exit_code_of_signal(signal.number()))),
        };
        explain_failures(&report);
        if let Some(message) = unfinished_filters(&report) {
            print_as(name, message.as_bytes());
        }
        if matches!(&report.main, Some(MainEnd::Signalled { core_dumped: true, .. })) && !supervision.killed {
            print_as(name, b"the monitored command dumped core");
        }
        Ok(exit(options, &report, &supervision))
    });
    match ended {
        Ok(exit) => Ok(exit.code()),
        Err(Error::Spawn(SpawnError { stage: SpawnStage::Exec, source, .. })) => {
            let error = without_number(&source);
            let quoted = quote(program.as_bytes());
            print_as(name, &[b"failed to run command ", quoted.as_slice(), b": ", error.as_bytes()].concat());
            Ok(if source.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 })
        }
        Err(error) => Err(error.into()),
    }
}

/// Returns the rules: the signals that timeout does not simply send to the command.
fn rules(chosen: Option<Signal>) -> Rules {
    // coreutils' timeout ignores SIGTTIN and SIGTTOU; the default action of the others is to do nothing.
    let harmless = [Signal::TTIN, Signal::TTOU, Signal::CHLD, Signal::CONT, Signal::URG, Signal::WINCH];
    // coreutils' timeout unblocks only the signals that it waits for.
    let blocked = Signal::all().filter(|&signal| own_signals::was_blocked(signal));
    let rules = harmless.map(|signal| (signal, Action::Ignore)).into_iter();
    let rules = rules.chain([(Signal::TSTP, Action::SuspendLater)]);
    let rules = rules.chain(chosen.map(|signal| (signal, Action::Pass)));
    let rules = rules.chain(blocked.map(|signal| (signal, Action::Ignore)));
    let rules = rules.chain([(Signal::ALRM, Action::Deadline)]);
    Rules::passing_all(Keys::ReachJob, rules.map(|(signal, action)| OnSignal { signal, action }).collect())
}

fn policy<'a>(options: &Options, announce: &'a dyn Fn(Step)) -> Policy<'a> {
    Policy {
        recipients: if options.foreground { Recipients::Main } else { Recipients::OwnGroup },
        accepts_job_signals: true,
        acts_without_main: true,
        stops_with_main: false,
        // The number 0 stands for no signal.
        deadline_signal: Signal::from_number(options.signal),
        kill_after: options.kill_after,
        announce,
        ..Policy::default()
    }
}

fn announce(name: &OsStr, options: &Options, step: Step) {
    let number = match step {
        Step::Send(_, Some(signal)) => signal.number(),
        Step::Send(None, None) => 0,
        _ => return,
    };
    if options.verbose {
        let sending = format!("sending signal {} to command ", signal_name(number));
        print_as(name, &[sending.as_bytes(), &quote(options.command[0].as_bytes())].concat());
    }
}

fn exit(options: &Options, report: &Report, supervision: &Supervision<'_>) -> Exit {
    let main_was_killed = matches!(report.main, Some(MainEnd::Signalled { signal: libc::SIGKILL, .. }));
    match supervision.timed_out {
        // coreutils' timeout is in the process group to which it sends SIGKILL, and SIGKILL ends it too.
        _ if supervision.killed => Exit::Signal(Signal::KILL),
        // If the guard was killed, the status of the command is not known.
        true if !options.preserve_status && !main_was_killed && report.main.is_some() => Exit::Code(TIMED_OUT),
        true => Exit::of(report, EndsBy::None),
        false => Exit::of(report, EndsBy::Any),
    }
}

//! `pinfold init` under another init: contains the command as `pinfold run` does.

use crate::kernel::own_signals::SignalQueue;
use crate::report::SupervisorKind;
use crate::report::exit_code_of_signal;
use crate::report::text::printable_os;
use crate::{Command, Guard, ProcessGroup, Signal};
use anyhow::Result;

use super::inherited::Inherited;
use super::session::HangupSignals;
use super::{Init, LEFTOVERS_GRACE, print_as};
use crate::cli::exit::{EndsBy, Exit};
use crate::cli::explain::{explain_failures, unfinished_filters};
use crate::cli::on_signal::{Action, OnSignal};
use crate::cli::runtime::with_supervisor;
use crate::cli::signals::{Keys, Rules};
use crate::cli::supervise::{Event, Policy, Recipients, Step, Supervision};
use crate::cli::supervisor_of_environment;
use crate::cli::terminal::Terminal;

/// Runs the command and returns the exit code.
pub fn run(init: &Init) -> Result<u8> {
    let mut signals = SignalQueue::block_all()?;
    let mut inherited = Inherited::find();
    if !inherited.is_empty() {
        signals = signals.queue_also([Signal::CHLD])?;
    }
    let (terminal, hangup_signals) = if init.options.session {
        (None, HangupSignals::give_up_terminal())
    } else {
        (Terminal::open(), HangupSignals::default())
    };
    let guard = Guard::fork()?;
    crate::kernel::inherited::raise_own_limits();
    let [program, args @ ..] = init.options.command.as_slice() else { unreachable!("parsed with a command") };
    let mut command = Command::new(program);
    command.default_signals(init.reset_signals());
    if init.options.reset_signals {
        command.unblocked_signals(Signal::all());
    }
    command.args(args).inherit_descriptors(true).grace(LEFTOVERS_GRACE).process_group(if init.options.session {
        ProcessGroup::NewSessionOnTerminal
    } else if terminal.is_some() {
        // In this group the command receives the signals of the terminal's keys, as it would without pinfold.
        ProcessGroup::Supervisors
    } else {
        ProcessGroup::New
    });
    // Some children may have ended before SIGCHLD was blocked.
    reap(init, &mut inherited);
    let builder = supervisor_of_environment(guard)?.one_job().kind(SupervisorKind::Init);
    let ended = with_supervisor(builder, signals, async |supervisor, signals| -> crate::Result<_> {
        let announce = |step| announce(init, step);
        let policy = policy(init, terminal.as_ref(), hangup_signals, &announce);
        let mut supervision = Supervision::new(signals, rules(init, terminal.is_some()), policy);
        let job = match supervision.start(supervisor.spawn(&command)).await? {
            Ok(job) => job,
            Err(signal) => return Ok(Err(signal)),
        };
        init.debug(|| format!("started {} as process {}", printable_os(program), job.pid()));
        loop {
            match supervision.next(Some(&job), std::future::pending::<()>()).await? {
                Event::Ended(report) => return Ok(Ok(report)),
                Event::OwnSignal(Signal::CHLD) => reap(init, &mut inherited),
                // The kernel sends each signal for the terminal that init gave up (SIGHUP, SIGCONT) once.
                Event::OwnSignal(signal) => supervision.policy.own_signals.retain(|&own| own != signal),
                _ => {}
            }
        }
    });
    if let Some(terminal) = &terminal {
        terminal.restore(false);
    }
    let exit = match ended? {
        Ok(report) => {
            explain_failures(&report);
            if let Some(message) = unfinished_filters(&report) {
                print_as(init.name, &message);
            }
            Exit::of(&report, EndsBy::None)
        }
        Err(signal) => Exit::Code(exit_code_of_signal(signal.number())),
    };
    Ok(exit.code())
}

/// Returns rules that pass every signal on, as the options say.
fn rules(init: &Init, shares_group: bool) -> Rules {
    let action = |signal| match init.options.rewritten(signal) {
        Some(other) if other == signal => Action::Pass,
        Some(other) => Action::PassAs(other),
        None => Action::Ignore,
    };
    let keys = if shares_group { Keys::ReachJob } else { Keys::ReachPinfold };
    Rules::passing_all(keys, Signal::all().map(|signal| OnSignal { signal, action: action(signal) }).collect())
}

fn policy<'a>(
    init: &Init,
    terminal: Option<&'a Terminal>,
    hangup_signals: HangupSignals,
    announce: &'a dyn Fn(Step),
) -> Policy<'a> {
    let mut own = hangup_signals.signals();
    own.push(Signal::CHLD);
    Policy {
        terminal,
        recipients: if init.options.to_group() { Recipients::Group } else { Recipients::Main },
        acts_without_main: true,
        stops_after: Signal::all().filter(|&signal| init.stops_with(signal)).collect(),
        own_signals: own,
        announce,
        ..Policy::default()
    }
}

fn announce(init: &Init, step: Step) {
    if let Step::Send(Some(received), sent) = step {
        init.debug_signal(received, sent);
    }
}

/// Reaps the inherited children that have ended.
fn reap(init: &Init, inherited: &mut Inherited) {
    for pid in inherited.reap() {
        init.debug(|| format!("reaped process {}, a child from before the start of init", pid.as_raw_nonzero()));
    }
}

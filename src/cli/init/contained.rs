//! `pinfold init` under another init: contains the command in the way of `pinfold run`.

use anyhow::{Context, Result};

use crate::cli::terminal::{Terminal, has_left_our_group, has_reached_our_group};
use crate::cli::{run, supervisor_of_environment};
use crate::kernel::inherited;
use crate::kernel::own_signals::{self, Received, SignalQueue};
use crate::report::MainEnd;
use crate::{Command, Guard, Job, ProcessGroup, Signal};

use super::inherited::Inherited;
use super::session::GivenUp;
use super::{Init, LEFTOVERS_GRACE};

/// Runs the command and returns the exit code.
pub fn run(init: &Init) -> Result<u8> {
    let mut signals = SignalQueue::block_all()?;
    let inherited = Inherited::find();
    if !inherited.is_empty() {
        signals = signals.queue_also([Signal::CHLD])?;
    }
    let (terminal, given_up) =
        if init.options.session { (None, GivenUp::terminal()) } else { (Terminal::open(), GivenUp::default()) };
    let guard = Guard::fork()?;
    inherited::raise_own_limits();
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
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the event loop")?;
    let code =
        runtime.block_on(supervise(init, guard, &command, signals, terminal.as_ref(), Own { inherited, given_up }));
    if let Some(terminal) = &terminal {
        terminal.restore(false);
    }
    std::mem::forget(runtime);
    code
}

/// Children and signals that belong to init itself and not to the command.
struct Own {
    inherited: Inherited,
    given_up: GivenUp,
}

impl Own {
    /// Reaps the inherited children that have ended.
    fn reap(&mut self, init: &Init) {
        for pid in self.inherited.reap() {
            init.debug(|| format!("reaped process {}, a child from before the start of init", pid.as_raw_nonzero()));
        }
    }
}

async fn supervise(
    init: &Init,
    guard: Guard,
    command: &Command,
    signals: SignalQueue,
    terminal: Option<&Terminal>,
    mut own: Own,
) -> Result<u8> {
    // Some children may have ended before SIGCHLD was blocked.
    own.reap(init);
    let signals = signals.listen()?;
    let supervisor = supervisor_of_environment(guard)?.one_job().start().await?;
    // Signals that arrive meanwhile stay in the queue. The guard limits the time of an exec that hangs.
    let job = supervisor.spawn(command).await?;
    init.debug(|| {
        format!("started {} as process {}", crate::report::text::printable_os(&init.options.command[0]), job.pid())
    });
    let shares_group = terminal.is_some();
    let report = loop {
        tokio::select! {
            biased;
            report = job.wait() => break report?,
            stop = job.next_stop() => {
                if let Some(terminal) = terminal.filter(|_| shares_group) {
                    run::stopped(&job, stop, terminal);
                }
            }
            received = signals.recv() => {
                let received = received?;
                if received.signal == Signal::CHLD {
                    own.reap(init);
                } else if !own.given_up.took(received.signal) {
                    pass_on(init, &job, received, shares_group).await;
                }
            }
        }
    };
    supervisor.close().await;
    run::explain_failures(&report);
    Ok(report.main.as_ref().map_or(report.exit_code, MainEnd::exit_code))
}

async fn pass_on(init: &Init, job: &Job, received: Received, shares_group: bool) {
    if job.main_has_ended() {
        // The command has ended, and its leftovers are being stopped. The sender wants them to end sooner.
        if [Signal::TERM, Signal::INT, Signal::QUIT].contains(&received.signal) {
            job.start_kill();
        }
        return;
    }
    // If the terminal sent the signal, the command has received it from the terminal too.
    let by_the_terminal = has_reached_our_group(received) && !has_left_our_group(job);
    if shares_group && (by_the_terminal || run::is_by_the_job(job, received).await) {
        return;
    }
    if let Some(signal) = init.translate(received.signal) {
        if init.options.to_group() {
            job.signal_group(signal).await;
        } else {
            // An error means that the command has just ended.
            let _ = job.signal(signal);
        }
    }
    if init.stops_with(received.signal) {
        own_signals::suspend_by(Signal::STOP);
    }
}

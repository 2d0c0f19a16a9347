//! One run of `pinfold up`: starts the services, prints what happens, and stops them.

use std::cell::Cell;
use std::ffi::OsString;

use anyhow::Result;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::printer::Printer;
use super::socket::Socket;
use super::{Args, control};
use crate::cli::exit::{EndsBy, Exit, FAILED, TIMED_OUT, UNKILLABLE};
use crate::cli::explain::explain_failures;
use crate::cli::print_message;
use crate::cli::signal_stream::SignalStream;
use crate::cli::signals::{Keys, Rules};
use crate::cli::supervise::{Event, Policy, Step, Supervision};
use crate::cli::terminal::Terminal;
use crate::kernel::own_signals;
use crate::report::text::printable;
use crate::services::{Failure, Service, ServiceEvent, ServiceEventKind, ServiceEvents, Services};
use crate::{Command, Job, ProcessGroup, Signal, Stdio, Supervisor};

/// A service failed for good.
const SERVICE_FAILED: u8 = 1;

/// If a service does not become ready, pinfold prints this number of its last lines.
const LAST_LINES: usize = 10;

/// One run.
pub struct Session<'a> {
    args: &'a Args,
    services: Vec<Service>,
    /// The names of the services that have a readiness condition.
    with_readiness: Vec<String>,
    socket: &'a Socket,
    terminal: Option<&'a Terminal>,
    printer: Printer,
    /// The exit code, once it is decided.
    exit: Option<Exit>,
    /// The services are being stopped.
    stopping: bool,
}

/// An event of `up` itself.
enum UpEvent {
    Service(Option<ServiceEvent>),
    /// All services are ready, so the command of `--wait` can start.
    Ready,
    /// A request to stop, from the control socket.
    Down,
    /// pinfold can't print output any more.
    Output(std::io::Error),
}

impl<'a> Session<'a> {
    pub fn new(
        args: &'a Args,
        services: Vec<Service>,
        socket: &'a Socket,
        terminal: Option<&'a Terminal>,
    ) -> Result<Self> {
        let printer = Printer::start(services.iter().map(Service::name), args.wait)?;
        let with_readiness =
            services.iter().filter(|one| one.has_readiness()).map(|one| one.name().to_owned()).collect();
        Ok(Self { args, services, with_readiness, socket, terminal, printer, exit: None, stopping: false })
    }

    /// Runs until no process of the services is left.
    pub async fn run(mut self, supervisor: &Supervisor, signals: &SignalStream) -> Result<Exit> {
        let services = Services::builder().services(std::mem::take(&mut self.services)).build(supervisor)?;
        let mut events = services.events();
        let printing = self.print_output(&services);
        let (down, mut asked) = watch::channel(false);
        let control = tokio::spawn({
            let (listener, services) = (self.socket.listener.try_clone(), services.clone());
            async move { control::serve(&listener?, services, down).await }
        });
        services.start_all();
        let killed = Cell::new(false);
        let announce = |step| {
            if matches!(step, Step::Kill(_)) {
                killed.set(true);
            }
        };
        let keys = if self.terminal.is_some() { Keys::ReachJob } else { Keys::ReachPinfold };
        let own = if self.args.wait { Vec::new() } else { vec![Signal::TSTP] };
        let policy = Policy { terminal: self.terminal, announce: &announce, own_signals: own, ..Policy::default() };
        let mut supervision = Supervision::new(signals, Rules::new(keys), policy);
        let mut job: Option<Job> = None;
        let mut waits = self.args.wait;
        let (mut has_output, mut was_asked, mut aborted) = (true, false, false);
        loop {
            let own = async {
                tokio::select! {
                    biased;
                    event = next_event(&mut events, job.is_some()) => UpEvent::Service(event),
                    error = self.printer.failed(), if has_output => UpEvent::Output(error),
                    _ = asked.wait_for(|asked| *asked), if !was_asked => UpEvent::Down,
                    Ok(()) = services.ready(), if waits && !self.stopping => UpEvent::Ready,
                }
            };
            match supervision.next(job.as_ref(), own).await? {
                Event::Other(UpEvent::Service(None)) => break,
                Event::Other(UpEvent::Service(Some(event))) => self.report_event(&services, &event, job.as_ref()),
                Event::Other(UpEvent::Ready) => {
                    waits = false;
                    match supervision.start(supervisor.spawn(&self.command())).await {
                        Ok(Ok(started)) => job = Some(started),
                        Ok(Err(signal)) => self.end(&services, Exit::on_request(signal), None),
                        Err(error) => {
                            print_message(&error.to_string());
                            self.end(&services, Exit::Code(error.exit_code()), None);
                        }
                    }
                }
                Event::Other(UpEvent::Down) => {
                    was_asked = true;
                    self.end(&services, Exit::Code(0), None);
                    job.as_ref().map_or(Ok(()), |job| job.start_stop())?;
                }
                Event::Other(UpEvent::Output(error)) => {
                    has_output = false;
                    printing.abort();
                    self.output_failed(&services, &error);
                    job.as_ref().map_or(Ok(()), |job| job.start_stop())?;
                }
                Event::Ended(report) => {
                    job = None;
                    explain_failures(&report);
                    let requested = supervision.requested == Some(Signal::INT);
                    self.end(&services, Exit::of(&report, EndsBy::Interrupt { requested }), None);
                }
                Event::Requested(signal) | Event::Interrupted(signal) if job.is_none() => {
                    if self.stopping || killed.get() {
                        aborted = true;
                        printing.abort();
                        services.start_kill();
                    }
                    self.requested(&services, signal);
                }
                // Ctrl-Z: pinfold stops and the shell takes over. The services continue to run.
                Event::OwnSignal(signal) => own_signals::suspend_by(signal),
                Event::Requested(_) | Event::Interrupted(_) => {}
            }
        }
        // This task ends with the output of the services, or it was aborted.
        let _ = printing.await;
        if has_output && !aborted {
            let _ = supervision.finish(self.printer.flush()).await;
        }
        control.abort();
        Ok(self.exit.unwrap_or(Exit::Code(0)))
    }

    /// Prints all output in a task of its own, so that a blocked standard output does not delay the handling of
    /// signals.
    fn print_output(&self, services: &Services) -> JoinHandle<()> {
        if self.args.quiet {
            return tokio::spawn(async {});
        }
        let (mut lines, printer) = (services.output(), self.printer.clone());
        tokio::spawn(async move {
            while let Some(line) = lines.next_line().await {
                printer.print(&line).await;
            }
        })
    }

    /// Returns the command of `--wait`. It uses pinfold's standard streams and terminal.
    fn command(&self) -> Command {
        let words: &[OsString] = &self.args.command;
        let mut command = Command::new(&words[0]);
        let group = if self.terminal.is_some() { ProcessGroup::Supervisors } else { ProcessGroup::New };
        command.args(&words[1..]).inherit_descriptors(true).stdin(Stdio::inherit()).process_group(group);
        command
    }

    /// Handles a signal that requests a stop. Without `--wait`, this is the normal end, with exit code 0. With
    /// `--wait`, pinfold ends before the command has finished, so the exit code is that of the signal.
    fn requested(&mut self, services: &Services, signal: Signal) {
        if !self.stopping && !self.args.quiet {
            print_message(&format!("{signal}: stopping the services; a second signal kills"));
        }
        let exit = if self.args.wait { Exit::on_request(signal) } else { Exit::Code(0) };
        let is_sent_first = [Signal::INT, Signal::QUIT, Signal::HUP].contains(&signal);
        self.end(services, exit, is_sent_first.then_some(signal));
    }

    /// Decides how `up` ends, and stops the services.
    fn end(&mut self, services: &Services, exit: Exit, first: Option<Signal>) {
        self.exit.get_or_insert(exit);
        if !std::mem::replace(&mut self.stopping, true) {
            first.map_or_else(|| services.start_stop(), |first| services.start_stop_with(first));
        }
    }

    fn output_failed(&mut self, services: &Services, error: &std::io::Error) {
        // The reader has closed the output: pinfold exits like a program that SIGPIPE has ended.
        let exit = match error.kind() {
            std::io::ErrorKind::BrokenPipe => Exit::on_request(Signal::PIPE),
            _ => {
                print_message(&format!("cannot print the output of the services: {error}"));
                Exit::Code(FAILED)
            }
        };
        self.end(services, exit, None);
    }

    /// Prints what happened to a service, and ends `up` when the service has failed for good.
    fn report_event(&mut self, services: &Services, event: &ServiceEvent, job: Option<&Job>) {
        let name = &event.service;
        let print = |text: &str| {
            if !self.args.quiet {
                print_message(&format!("{name} {}", printable(text)));
            }
        };
        match &event.kind {
            ServiceEventKind::Waiting { needs, .. } if !needs.is_empty() => {
                print(&format!("waits for {}", needs.join(", ")));
            }
            ServiceEventKind::Started { pid, .. } => print(&format!("runs as process {pid}")),
            ServiceEventKind::Ready if self.with_readiness.iter().any(|one| **one == **name) => print("is ready"),
            ServiceEventKind::BackingOff { seconds, reason, .. } => {
                print(&format!("has failed: {reason}; it is started again in {seconds:.2} s"));
            }
            ServiceEventKind::Finished { stopped: false, reason, .. } => print(&format!("has finished: {reason}")),
            ServiceEventKind::Finished { .. } => print("is stopped"),
            ServiceEventKind::Note { text, .. } => print_message(&format!("{name}: {}", printable(text))),
            ServiceEventKind::Failed { failure, reason, .. } => {
                print_message(&format!("{name} has failed: {}", printable(reason)));
                if *failure == Failure::NotReady {
                    show_last_lines(services, name);
                }
                let exit = Exit::Code(match failure {
                    Failure::NotReady => TIMED_OUT,
                    Failure::NotEnded => UNKILLABLE,
                    Failure::SupervisorGone => FAILED,
                    _ => SERVICE_FAILED,
                });
                // These two failures replace an exit code that was decided before.
                if matches!(failure, Failure::NotEnded | Failure::SupervisorGone) {
                    self.exit = Some(exit);
                }
                self.end(services, exit, None);
                // An error means that the job is over.
                let _ = job.map(|job| job.start_stop());
            }
            _ => {}
        }
        // All services have ended by themselves.
        if !self.stopping && !self.args.wait && services.status().iter().all(|one| one.state.is_over()) {
            self.end(services, Exit::Code(0), None);
        }
    }
}

/// Prints the last lines of a service, so that the user sees why the service is not ready.
fn show_last_lines(services: &Services, name: &str) {
    let lines = services.last_lines(name, LAST_LINES).unwrap_or_default();
    match lines.is_empty() {
        true => print_message(&format!("{name} has printed nothing")),
        false => print_message(&format!("the last lines of {name}:")),
    }
    for line in lines {
        print_message(&format!("  {}", printable(&line.line.text())));
    }
}

/// Waits for the next event. After the last one, waits until the command of `--wait` has ended.
async fn next_event(events: &mut ServiceEvents, has_job: bool) -> Option<ServiceEvent> {
    match events.next_event().await {
        None if has_job => std::future::pending().await,
        event => event,
    }
}

//! The state of services: a machine for each one, and the order between them. One lock protects it; no code awaits while
//! it holds the lock.

mod publish;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::error::{Error, Result};
use crate::kernel::signal::Signal;
use crate::services::config::{Condition, Service};
use crate::services::events::{ServiceEvent, ServiceEventKind, ServiceStatus};
use crate::services::graph::Graph;
use crate::services::listen::Sockets;
use crate::services::log::Log;
use crate::services::machine::{Action, Event, Failure, Machine, State};
use crate::services::output::Tails;
use crate::services::run;
use crate::supervisor::Supervisor;
use crate::supervisor::queue::{Receiver, Sender, queue};

/// A request to the task that runs a job.
#[derive(Clone, Copy, Debug)]
pub(super) enum JobRequest {
    /// Stop it, with this signal first.
    Stop(Option<Signal>),
    Kill,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub supervisor: Supervisor,
    pub services: Vec<Service>,
    graph: Graph,
    pub tails: Arc<Tails>,
    /// The listening sockets of each service, which stay open while it is started again.
    pub sockets: Vec<Sockets>,
    /// The log file of each service.
    pub logs: Vec<Option<Log>>,
    states: Mutex<States>,
    /// Changes with every change of a state.
    changes: watch::Sender<u64>,
}

#[derive(Debug)]
struct States {
    all: Vec<Entry>,
    /// The services may start.
    begun: bool,
    /// All services are being stopped: no service starts any more.
    ending: bool,
    first_signal: Option<Signal>,
    listeners: Vec<Sender<ServiceEvent>>,
}

#[derive(Debug)]
struct Entry {
    machine: Machine,
    /// The requests to the task of its job.
    job: Option<Sender<JobRequest>>,
    backoff: Option<AbortHandle>,
    /// The number of the latest backoff. The end of an earlier backoff has no effect.
    backoffs: u64,
    pid: Option<i32>,
    since: Instant,
    reason: String,
    /// A stop was requested. If a stop of services that need this one was requested too, pinfold stops those first.
    stop_requested: bool,
}

/// A job that is started after the lock is released.
type Start = (usize, Receiver<JobRequest>);

impl Shared {
    /// Binds the sockets and opens the log files of the services.
    ///
    /// # Errors
    /// [`Error::Config`] for a service whose socket, log file or port is not available.
    pub fn new(supervisor: Supervisor, services: Vec<Service>, graph: Graph) -> Result<Self> {
        let (mut sockets, mut logs) = (Vec::new(), Vec::new());
        for service in &services {
            let failed = |error: Error| service.error(error.to_string());
            if let Some(ready) = service.ready.as_ref().filter(|_| service.listen.is_empty()) {
                ready.check_port().map_err(failed)?;
            }
            sockets.push(Sockets::listen(&service.listen, &service.name).map_err(failed)?);
            logs.push(service.log.clone().map(Log::open).transpose().map_err(failed)?);
        }
        let entry = |service: &Service| Entry {
            machine: Machine::new(service.restart, service.ready_by()),
            job: None,
            backoff: None,
            backoffs: 0,
            pid: None,
            since: Instant::now(),
            reason: String::new(),
            stop_requested: false,
        };
        let all = services.iter().map(entry).collect();
        Ok(Self {
            sockets,
            logs,
            supervisor,
            tails: Arc::new(Tails::new(services.len())),
            services,
            graph,
            states: Mutex::new(States { all, begun: false, ending: false, first_signal: None, listeners: Vec::new() }),
            changes: watch::Sender::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, States> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub fn listen(&self) -> Receiver<ServiceEvent> {
        let (sender, receiver) = queue();
        self.lock().listeners.push(sender);
        receiver
    }

    /// Lets the services start. Those without dependencies start at once. A second call does nothing.
    pub fn begin(self: &Arc<Self>) {
        self.change(|shared, states| {
            let is_first = !std::mem::replace(&mut states.begun, true);
            for (service, sockets) in shared.sockets.iter().enumerate().filter(|_| is_first) {
                for text in sockets.notes.iter().cloned() {
                    shared.publish(states, service, ServiceEventKind::Note { text });
                }
            }
        });
    }

    /// Passes an event to the machine of a service. A `reason` describes how its job ended, or why it is not ready.
    pub fn handle(self: &Arc<Self>, service: usize, event: Event, reason: Option<String>) {
        self.change(|shared, states| {
            if let Some(reason) = reason {
                states.all[service].reason = reason;
            }
            shared.pass(states, service, event)
        });
    }

    /// Records that the command of a service has been executed.
    pub fn spawned(self: &Arc<Self>, service: usize, pid: i32) {
        self.change(|shared, states| {
            states.all[service].pid = Some(pid);
            shared.publish(states, service, ServiceEventKind::Started { pid });
            shared.pass(states, service, Event::Spawned);
        });
    }

    /// Records that the job of a service is over.
    pub fn ended(self: &Arc<Self>, service: usize, end: std::result::Result<(), Failure>, reason: String) {
        self.change(|shared, states| {
            let entry = &mut states.all[service];
            (entry.job, entry.pid) = (None, None);
            // The reason for the stop is more useful than how the job ended after it.
            if !entry.machine.is_stopped_after_failure() {
                let is_early = entry.machine.state == State::Starting && shared.services[service].has_readiness();
                entry.reason = if is_early { format!("{reason} before it was ready") } else { reason };
            }
            shared.pass(states, service, Event::Ended(end));
        });
    }

    /// Publishes a message for the user about a service.
    pub fn note(&self, service: usize, text: String) {
        self.publish(&mut self.lock(), service, ServiceEventKind::Note { text });
    }

    /// Begins to stop these services, in the reverse order of their dependencies. With `all`, no service starts any
    /// more. `first` is the signal that the services receive first, instead of their own stop signal.
    pub fn stop(self: &Arc<Self>, services: &[usize], all: bool, first: Option<Signal>) {
        self.change(|_, states| {
            states.ending |= all;
            states.first_signal = states.first_signal.or(first);
            services.iter().for_each(|&service| states.all[service].stop_requested = true);
        });
    }

    /// Kills all services at once. No service starts any more.
    pub fn kill(self: &Arc<Self>) {
        self.change(|shared, states| {
            states.ending = true;
            for service in 0..states.all.len() {
                states.all[service].stop_requested = true;
                shared.pass(states, service, Event::KillAsked);
            }
        });
    }

    /// Passes a request to start or to restart a service to its machine. Returns `false` if all services are being
    /// stopped.
    pub fn start(self: &Arc<Self>, service: usize, event: Event) -> bool {
        let mut is_possible = true;
        self.change(|shared, states| {
            is_possible = !states.ending;
            if is_possible {
                states.all[service].stop_requested = false;
                shared.pass(states, service, event);
            }
        });
        is_possible
    }

    pub fn status(&self) -> Vec<ServiceStatus> {
        let states = self.lock();
        let status = |(service, entry): (&Service, &Entry)| ServiceStatus {
            name: service.name.clone(),
            state: entry.machine.state,
            pid: entry.pid,
            restarts: entry.machine.restarts,
            seconds: entry.since.elapsed().as_secs_f64(),
            failure: entry.machine.failure,
            stopped: entry.machine.stopped,
            message: entry.reason.clone(),
        };
        self.services.iter().zip(&states.all).map(status).collect()
    }

    /// Calls `change`, passes the events that follow from it, and starts jobs after the lock is released.
    fn change(self: &Arc<Self>, change: impl FnOnce(&Arc<Self>, &mut States)) {
        let mut states = self.lock();
        change(self, &mut states);
        self.propagate(&mut states);
        let starts: Vec<Start> = (0..states.all.len())
            .filter_map(|service| {
                let entry = &mut states.all[service];
                let (State::Starting, None) = (entry.machine.state, &entry.job) else { return None };
                let (requests, receiver) = queue();
                entry.job = Some(requests);
                Some((service, receiver))
            })
            .collect();
        let is_over = states.ending && states.all.iter().all(|entry| entry.machine.state.is_over());
        if is_over {
            states.listeners.clear();
        }
        drop(states);
        if is_over {
            self.tails.close();
        }
        for (service, requests) in starts {
            self.supervisor.inner.runtime.handle.spawn(run::run(self.clone(), service, requests));
        }
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// Passes to each service the events that follow from the states of other services, until no such event is left.
    fn propagate(self: &Arc<Self>, states: &mut States) {
        loop {
            let next = (0..states.all.len()).find_map(|service| Some((service, self.due(states, service)?)));
            let Some((service, event)) = next else { return };
            self.pass(states, service, event);
        }
    }

    /// Returns the event that a service must receive because of the states of other services, if there is one. This
    /// event always changes the state of the service, so that [`propagate`](Self::propagate) ends.
    fn due(&self, states: &States, service: usize) -> Option<Event> {
        let entry = &states.all[service];
        let state = entry.machine.state;
        if entry.stop_requested {
            let is_active = |&other: &usize| {
                let other = &states.all[other];
                other.stop_requested && !other.machine.state.is_over()
            };
            let is_needed = self.graph.needed_by[service].iter().any(is_active);
            let can_stop = !matches!(state, State::Stopping | State::Failed | State::Finished);
            return (can_stop && !is_needed || state == State::Waiting).then_some(Event::StopAsked);
        }
        if state != State::Waiting || !states.begun {
            return None;
        }
        let mut all = Fulfilled::Yes;
        for (dependency, &other) in self.services[service].depends_on.iter().zip(&self.graph.needs[service]) {
            all = all.max(self.fulfilled(states, other, dependency.condition));
        }
        match all {
            Fulfilled::Yes => Some(Event::DependenciesMet),
            Fulfilled::NotYet => None,
            Fulfilled::Never => Some(Event::DependencyFailed),
        }
    }

    /// Returns whether the service `other` fulfils this condition of a service that depends on it.
    fn fulfilled(&self, states: &States, other: usize, condition: Condition) -> Fulfilled {
        let machine = &states.all[other].machine;
        let one_shot = self.services[other].one_shot;
        match (machine.state, condition) {
            (State::Failed, _) => Fulfilled::Never,
            (State::Finished, _) if machine.stopped => Fulfilled::NotYet,
            (State::Finished, Condition::Ready) if !one_shot => Fulfilled::Never,
            (State::Finished, _) => Fulfilled::Yes,
            (State::Ready, Condition::Ready | Condition::Started) => Fulfilled::Yes,
            (State::Starting, Condition::Started) if machine.spawned => Fulfilled::Yes,
            _ => Fulfilled::NotYet,
        }
    }

    /// Passes one event to the machine of a service, performs the actions that it returns, and publishes the new state.
    fn pass(self: &Arc<Self>, states: &mut States, service: usize, event: Event) {
        let first = states.first_signal;
        let entry = &mut states.all[service];
        let before = entry.machine.state;
        let mut pause = Duration::ZERO;
        for action in entry.machine.on(event, Instant::now()) {
            match action {
                // `change` starts the job after the lock is released.
                Action::Spawn => {}
                Action::Stop => drop(entry.job.as_ref().map(|job| job.send(JobRequest::Stop(first)))),
                Action::Kill => drop(entry.job.as_ref().map(|job| job.send(JobRequest::Kill))),
                Action::StartBackoff(time) => {
                    pause = time;
                    entry.backoffs += 1;
                    entry.backoff = Some(self.clone().start_backoff(service, entry.backoffs, time));
                }
                Action::CancelBackoff => {
                    entry.backoffs += 1;
                    if let Some(backoff) = entry.backoff.take() {
                        backoff.abort();
                    }
                }
            }
        }
        let state = entry.machine.state;
        if state == before {
            return;
        }
        entry.since = Instant::now();
        let kind = self.kind_of(states, service, pause);
        self.publish(states, service, kind);
    }

    fn start_backoff(self: Arc<Self>, service: usize, number: u64, time: Duration) -> AbortHandle {
        let runtime = self.supervisor.inner.runtime.handle.clone();
        let wait = async move {
            tokio::time::sleep(time).await;
            self.change(|shared, states| {
                if states.all[service].backoffs == number {
                    shared.pass(states, service, Event::BackoffOver);
                }
            });
        };
        runtime.spawn(wait).abort_handle()
    }
}

/// Whether a dependency is fulfilled. Of several dependencies, the greatest value counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fulfilled {
    Yes,
    NotYet,
    Never,
}

//! The events of jobs, published when they happen.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use futures_core::Stream;
use serde::Serialize;

use crate::report::{MainEnd, Reason};
use crate::supervisor::queue::{Receiver, Sender, queue};

/// An event in the life of a job.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Event {
    /// The time: seconds after the spawn was requested, as in [`Phases`](crate::report::Phases).
    pub seconds: f64,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
///
/// ```
/// # async fn example(job: &pinfold::Job) -> Result<(), Box<dyn std::error::Error>> {
/// use pinfold::events::EventKind;
///
/// let mut events = job.events();
/// while let Some(event) = events.next_event().await {
///     match event.kind {
///         EventKind::Leftovers { count, .. } => println!("{count} processes are left"),
///         EventKind::OutOfMemory { kills, .. } => println!("the OOM killer ended {kills}"),
///         _ => {}
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum EventKind {
    /// The command has been executed.
    #[non_exhaustive]
    Spawned {
        /// The main process's id.
        pid: i32,
    },
    /// The main process has ended.
    #[non_exhaustive]
    MainExited {
        /// How it ended; `None` if the guard was killed.
        end: Option<MainEnd>,
    },
    /// Processes were still running when the settle time was over.
    #[non_exhaustive]
    Leftovers {
        /// How many.
        count: u64,
    },
    /// The stop signal was sent.
    #[non_exhaustive]
    Stopping {
        /// Why; [`Reason::Exited`] if it was sent to leftovers.
        reason: Reason,
    },
    /// SIGKILL was sent.
    #[non_exhaustive]
    Killing {
        /// Why.
        reason: Reason,
    },
    /// The kernel's OOM killer has ended processes of the job: the job had reached its memory limit, or the machine was
    /// out of memory.
    #[non_exhaustive]
    OutOfMemory {
        /// How many processes so far. The report has the final number ([`Report::oom`](crate::Report::oom)).
        kills: u64,
    },
    /// No process of the job runs any more.
    Empty,
    /// The job is over, and the report is available.
    Gone,
}

/// The events of one job, past and future, until [`EventKind::Gone`]. A [`Stream`].
#[derive(Debug)]
pub struct Events(Receiver<Event>);

impl Events {
    /// Waits for the next event; `None` after the last one.
    ///
    /// Cancel-safe: no event is lost.
    pub async fn next_event(&mut self) -> Option<Event> {
        self.0.recv().await
    }
}

impl Stream for Events {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.0.poll_recv(context)
    }
}

/// An event of one of a supervisor's jobs.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct JobEvent {
    /// The job: [`Job::id`](crate::JobHandle::id).
    pub job: u64,
    /// Its name: [`Job::name`](crate::JobHandle::name).
    pub name: String,
    /// What happened to it.
    pub event: Event,
}

/// The events of all jobs of a supervisor ([`Supervisor::events`](crate::Supervisor::events)). A [`Stream`].
///
/// ```
/// # async fn example(supervisor: &pinfold::Supervisor) -> Result<(), Box<dyn std::error::Error>> {
/// let mut events = supervisor.events();
/// while let Some(happened) = events.next_event().await {
///     println!("{} {:.3} s: {:?}", happened.name, happened.event.seconds, happened.event.kind);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct JobEvents(Receiver<JobEvent>);

impl JobEvents {
    /// Waits for the next event; `None` when the supervisor and its jobs are gone.
    ///
    /// Cancel-safe: no event is lost.
    pub async fn next_event(&mut self) -> Option<JobEvent> {
        self.0.recv().await
    }
}

impl Stream for JobEvents {
    type Item = JobEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<JobEvent>> {
        self.0.poll_recv(context)
    }
}

/// The listeners to all jobs of a supervisor.
#[derive(Debug, Default)]
pub(crate) struct Hub(Mutex<Vec<Sender<JobEvent>>>);

impl Hub {
    pub fn listen(&self) -> JobEvents {
        let (sender, receiver) = queue();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        JobEvents(receiver)
    }

    fn send(&self, job: u64, name: &str, event: &Event) {
        let mut listeners = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.retain(|listener| listener.send(JobEvent { job, name: name.to_owned(), event: event.clone() }));
    }
}

/// The events of a job so far, and the listeners. The list stays short, because no job has more than a few events.
#[derive(Clone, Debug)]
pub(crate) struct Log(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    job: u64,
    name: String,
    hub: Arc<Hub>,
    begun: Instant,
    past: Vec<Event>,
    listeners: Vec<Sender<Event>>,
    over: bool,
}

impl Log {
    /// Creates the log of a job whose times count from now on.
    pub fn new(job: u64, name: String, hub: Arc<Hub>) -> Self {
        let begun = Instant::now();
        let (past, listeners, over) = Default::default();
        Self(Arc::new(Mutex::new(Inner { job, name, hub, begun, past, listeners, over })))
    }

    /// Returns the number of the job.
    pub fn job(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).job
    }

    /// Returns when the spawn was requested.
    pub fn begun(&self) -> Instant {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).begun
    }

    /// Records that the OOM killer has ended processes.
    pub fn out_of_memory(&self, kills: u64) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds = inner.begun.elapsed().as_secs_f64();
        inner.send(Event { seconds, kind: EventKind::OutOfMemory { kills } });
    }

    pub fn listen(&self) -> Events {
        let (sender, receiver) = queue();
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for event in &inner.past {
            sender.send(event.clone());
        }
        if !inner.over {
            inner.listeners.push(sender);
        }
        Events(receiver)
    }

    /// Publishes the events that have happened and were not published before, in the order of their times.
    pub fn publish<const N: usize>(&self, mut reached: [(Option<f64>, EventKind); N]) {
        // The sort must be stable, because leftovers can be found at the same moment at which the main process ends.
        reached.sort_by(|(a, _), (b, _)| a.unwrap_or(f64::MAX).total_cmp(&b.unwrap_or(f64::MAX)));
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (seconds, kind) in reached {
            if let Some(seconds) = seconds {
                inner.send(Event { seconds, kind });
            }
        }
    }
}

impl Inner {
    /// Sends an event to the listeners, unless an event of this kind was sent before.
    fn send(&mut self, event: Event) {
        let known = |past: &Event| std::mem::discriminant(&past.kind) == std::mem::discriminant(&event.kind);
        if self.over || self.past.iter().any(known) {
            return;
        }
        self.listeners.retain(|listener| listener.send(event.clone()));
        self.hub.send(self.job, &self.name, &event);
        self.over = event.kind == EventKind::Gone;
        if self.over {
            self.listeners.clear();
        }
        self.past.push(event);
    }
}

//! What happens to a job, as it happens.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures_core::Stream;
use serde::Serialize;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::report::{MainEnd, Reason, Report};

/// Something that happened to a job.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Event {
    /// When: seconds after the spawn was ordered, as in [`Phases`](crate::report::Phases).
    pub seconds: f64,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
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
        /// How; `None` where the guard was killed.
        end: Option<MainEnd>,
    },
    /// Processes were still there then.
    #[non_exhaustive]
    Leftovers {
        /// How many.
        count: u64,
    },
    /// The stop signal was sent.
    #[non_exhaustive]
    Stopping {
        /// Why; [`Reason::Exited`] where it was sent to leftovers.
        reason: Reason,
    },
    /// SIGKILL was sent.
    #[non_exhaustive]
    Killing {
        /// Why.
        reason: Reason,
    },
    /// Nothing runs in it any more.
    Empty,
    /// All is over: the report is there.
    Gone,
}

/// The events of one job: those that were, and those that come, until [`EventKind::Gone`]. A [`Stream`].
#[derive(Debug)]
pub struct Events(UnboundedReceiver<Event>);

impl Events {
    /// The next one; `None` after the last.
    ///
    /// Cancel-safe: none is lost.
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

/// The events of a job so far, and who listens. A job has a handful of them, whatever it does.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    past: Vec<Event>,
    listeners: Vec<UnboundedSender<Event>>,
    over: bool,
}

impl Log {
    pub fn listen(&self) -> Events {
        let (sender, receiver) = unbounded_channel();
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for event in &inner.past {
            let _ = sender.send(event.clone());
        }
        if !inner.over {
            inner.listeners.push(sender);
        }
        Events(receiver)
    }

    /// Tells what is new in the report of a job that runs, in the order of its times.
    pub fn follow(&self, report: &Report, reason: Reason) {
        let phases = &report.phases;
        let leftovers = phases.main_exited.filter(|_| report.leftovers.count > 0);
        let mut reached = [
            (phases.spawned, EventKind::Spawned { pid: report.pid.unwrap_or(0) }),
            (phases.main_exited, EventKind::MainExited { end: report.main.clone() }),
            (leftovers, EventKind::Leftovers { count: report.leftovers.count }),
            (phases.stopping, EventKind::Stopping { reason }),
            (phases.killing, EventKind::Killing { reason }),
            (phases.empty, EventKind::Empty),
            (phases.gone, EventKind::Gone),
        ];
        // Stable: leftovers were found right after the main process's end.
        reached.sort_by(|(a, _), (b, _)| a.unwrap_or(f64::MAX).total_cmp(&b.unwrap_or(f64::MAX)));
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (seconds, kind) in reached {
            let known = |event: &Event| std::mem::discriminant(&event.kind) == std::mem::discriminant(&kind);
            let Some(seconds) = seconds.filter(|_| !inner.past.iter().any(known)) else { continue };
            let event = Event { seconds, kind };
            inner.listeners.retain(|listener| listener.send(event.clone()).is_ok());
            inner.over |= event.kind == EventKind::Gone;
            inner.past.push(event);
        }
        if inner.over {
            inner.listeners.clear();
        }
    }
}

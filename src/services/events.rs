//! The events of services, published when they happen.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use futures_core::Stream;
use serde::{Serialize, Serializer};

use crate::services::machine::{Failure, State};
use crate::supervisor::queue::Receiver;

/// An event in the life of a service.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ServiceEvent {
    /// The service.
    #[serde(serialize_with = "text")]
    pub service: Arc<str>,
    /// When it happened.
    #[serde(skip)]
    pub at: SystemTime,
    /// What happened.
    #[serde(flatten)]
    pub kind: ServiceEventKind,
}

/// What happened to a service.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum ServiceEventKind {
    /// It waits until the services that it depends on fulfil their conditions.
    #[non_exhaustive]
    Waiting {
        /// The services that do not fulfil their condition yet.
        needs: Vec<String>,
    },
    /// Its command is about to be executed.
    Starting,
    /// Its command has been executed.
    #[non_exhaustive]
    Started {
        /// The main process's id.
        pid: i32,
    },
    /// It is ready.
    Ready,
    /// It is being stopped.
    Stopping,
    /// It has failed, or it has exited with 0 and its restart policy is `Always`. pinfold starts it again after a
    /// pause. No process of it is left.
    #[non_exhaustive]
    BackingOff {
        /// The pause, in seconds.
        seconds: f64,
        /// The number of restarts by the policy, including this one.
        restarts: u64,
        /// How it ended.
        reason: String,
    },
    /// It has failed, and is not started again.
    #[non_exhaustive]
    Failed {
        /// The kind of the failure.
        failure: Failure,
        /// A description of the failure.
        reason: String,
    },
    /// It has ended without a failure, or on request. No process of it is left.
    #[non_exhaustive]
    Finished {
        /// A stop was requested.
        stopped: bool,
        /// How it ended.
        reason: String,
    },
    /// A message for the user.
    #[non_exhaustive]
    Note {
        /// A sentence.
        text: String,
    },
}

/// The events of all services from now on ([`Services::events`](crate::services::Services::events)). A [`Stream`].
/// Events that the caller does not read stay in memory.
#[derive(Debug)]
pub struct ServiceEvents(pub(super) Receiver<ServiceEvent>);

impl ServiceEvents {
    /// Waits for the next event; `None` when the services are gone.
    ///
    /// Cancel-safe: no event is lost.
    pub async fn next_event(&mut self) -> Option<ServiceEvent> {
        self.0.recv().await
    }
}

impl Stream for ServiceEvents {
    type Item = ServiceEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<ServiceEvent>> {
        self.0.poll_recv(context)
    }
}

/// The state of a service at one time ([`Services::status`](crate::services::Services::status)).
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ServiceStatus {
    /// Its name.
    #[serde(serialize_with = "text")]
    pub name: Arc<str>,
    /// Its state.
    pub state: State,
    /// The main process's id, if the service has a job.
    pub pid: Option<i32>,
    /// The number of restarts by the policy.
    pub restarts: u64,
    /// For how many seconds it has been in this state.
    pub seconds: f64,
    /// Why it has failed.
    pub failure: Option<Failure>,
    /// Whether it ended because a stop was requested.
    pub stopped: bool,
    /// How the last job ended, or what the service waits for; otherwise empty.
    pub message: String,
}

fn text<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

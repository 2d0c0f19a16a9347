//! The outcomes of tasks, for who waits for them.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures_core::Stream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Sleep;

use super::state::{Ending, Shared};
use super::task::Outcome;

/// Where an outcome is put, and who waits for it.
#[derive(Debug, Default)]
pub(super) struct Slot(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    outcome: Option<Arc<Outcome>>,
    listeners: Vec<UnboundedSender<Arc<Outcome>>>,
}

impl Slot {
    pub fn put(&self, outcome: Arc<Outcome>) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for listener in inner.listeners.drain(..) {
            let _ = listener.send(outcome.clone());
        }
        inner.outcome = Some(outcome);
    }

    fn outcome(&self) -> Option<Arc<Outcome>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).outcome.clone()
    }

    fn listen(&self, listener: &UnboundedSender<Arc<Outcome>>) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &inner.outcome {
            Some(outcome) => drop(listener.send(outcome.clone())),
            None => {
                inner.listeners.retain(|listener| !listener.is_closed());
                inner.listeners.push(listener.clone());
            }
        }
    }
}

/// A task that was handed in. Clones are the same task.
///
/// ```
/// # async fn example(handle: &pinfold::pool::Handle) -> Result<(), Box<dyn std::error::Error>> {
/// handle.cancel();
/// let outcome = handle.wait().await; // Nothing of it is left.
/// println!("{:?}, started {} times", outcome.report.reason, outcome.attempts);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Handle {
    pub(super) id: u64,
    pub(super) priority: i32,
    pub(super) slot: Arc<Slot>,
    pub(super) pool: Weak<Shared>,
}

impl Handle {
    /// The task's number, from 1 on in the order of submission.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Its outcome, if it is there.
    #[must_use]
    pub fn outcome(&self) -> Option<Arc<Outcome>> {
        self.slot.outcome()
    }

    /// Cancels it: if it waits, it is never started; if it runs, it is stopped, and killed when the grace period is over or
    /// when it is cancelled again. Comes back at once; [`wait`](Self::wait) tells when nothing of it is left.
    pub fn cancel(&self) {
        self.end(Ending::Stop);
    }

    pub(super) fn end(&self, ending: Ending) {
        if let Some(pool) = self.pool.upgrade() {
            pool.end_one(self.id, self.priority, ending);
        }
    }

    /// Waits for its outcome.
    ///
    /// Cancel-safe: dropping the future changes nothing, and it can be called again.
    pub async fn wait(&self) -> Arc<Outcome> {
        let (sender, mut receiver) = unbounded_channel();
        self.slot.listen(&sender);
        drop(sender);
        match receiver.recv().await {
            Some(outcome) => outcome,
            // The slot is ours too, and keeps a listener until it has told it; every task has an outcome, in the end.
            None => std::future::pending().await,
        }
    }
}

/// The outcomes of some tasks, as they come ([`Pool::as_completed`](super::Pool::as_completed)). A [`Stream`].
#[derive(Debug)]
pub struct Completed {
    handles: Vec<Handle>,
    receiver: UnboundedReceiver<Arc<Outcome>>,
    left: usize,
    deadline: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl Completed {
    pub(super) fn new(handles: &[Handle], timeout: Option<Duration>) -> Self {
        let (sender, receiver) = unbounded_channel();
        handles.iter().for_each(|handle| handle.slot.listen(&sender));
        // Beyond what a clock can hold there is no deadline.
        let at = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let deadline = at.map(|at| (at, Box::pin(tokio::time::sleep_until(at.into()))));
        Self { handles: handles.to_vec(), receiver, left: handles.len(), deadline }
    }

    /// The next one; `None` after the last.
    ///
    /// Cancel-safe: none is lost. The deadline ends tasks only while this is waited for.
    pub async fn next_outcome(&mut self) -> Option<Arc<Outcome>> {
        std::future::poll_fn(|context| self.poll_outcome(context)).await
    }

    fn poll_outcome(&mut self, context: &mut Context<'_>) -> Poll<Option<Arc<Outcome>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        if self.deadline.as_ref().is_some_and(|(at, _)| Instant::now() >= *at) {
            self.end_all();
        }
        let received = self.poll_received(context);
        // Only where something has to be waited for: a runtime that was shut down has told all, and its clock panics.
        if received.is_pending()
            && let Some((_, sleep)) = &mut self.deadline
        {
            ready!(sleep.as_mut().poll(context));
            self.end_all();
            return self.poll_received(context);
        }
        received
    }

    fn end_all(&mut self) {
        self.deadline = None;
        // Those that wait before those that run, whose places they would take.
        self.handles.iter().rev().for_each(|handle| handle.end(Ending::Deadline));
    }

    fn poll_received(&mut self, context: &mut Context<'_>) -> Poll<Option<Arc<Outcome>>> {
        let outcome = ready!(self.receiver.poll_recv(context));
        self.left -= 1;
        Poll::Ready(outcome)
    }
}

impl Stream for Completed {
    type Item = Arc<Outcome>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_outcome(context)
    }
}

/// The outcomes of all tasks of a pool, as they come ([`Pool::outcomes`](super::Pool::outcomes)). A [`Stream`].
#[derive(Debug)]
pub struct Outcomes(pub(super) UnboundedReceiver<Arc<Outcome>>);

impl Outcomes {
    /// The next one; `None` after the last.
    ///
    /// Cancel-safe: none is lost.
    pub async fn next_outcome(&mut self) -> Option<Arc<Outcome>> {
        self.0.recv().await
    }
}

impl Stream for Outcomes {
    type Item = Arc<Outcome>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context)
    }
}

//! The outcomes of tasks, and the futures and streams that wait for them.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures_core::Stream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Sleep;

use super::state::{Ending, Shared};
use super::task::Outcome;

/// The place for the outcome of one task, and the listeners that wait for it.
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

/// A task that was submitted. Clones are the same task.
///
/// ```
/// # async fn example(handle: &pinfold::pool::Handle) -> Result<(), Box<dyn std::error::Error>> {
/// handle.cancel();
/// let outcome = handle.wait().await; // Nothing of the task is left now.
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
    /// Returns the task's number. Numbers start with 1, in the order of submission.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Returns its outcome; `None` if the task is not done yet.
    #[must_use]
    pub fn outcome(&self) -> Option<Arc<Outcome>> {
        self.slot.outcome()
    }

    /// Cancels the task. If it waits, it is never started. If it runs, its job is stopped, and killed when the grace
    /// period is over or when the task is cancelled again. Returns at once; [`wait`](Self::wait) waits until nothing of
    /// the job is left.
    pub fn cancel(&self) {
        self.end(Ending::Stop);
    }

    /// Cancels the task as [`cancel`](Self::cancel) does, and kills its job at once.
    #[cfg(feature = "cli")]
    pub(crate) fn kill(&self) {
        self.end(Ending::Kill);
    }

    pub(super) fn end(&self, ending: Ending) {
        if let Some(pool) = self.pool.upgrade() {
            pool.end_one(self.id, self.priority, ending);
        }
    }

    /// Waits for its outcome.
    ///
    /// Cancel-safe: dropping the future has no effect on the task, and the method can be called again.
    pub async fn wait(&self) -> Arc<Outcome> {
        let (sender, mut receiver) = unbounded_channel();
        self.slot.listen(&sender);
        drop(sender);
        match receiver.recv().await {
            Some(outcome) => outcome,
            // Not reached: this handle keeps the slot alive, the slot keeps the listener until it has sent the outcome
            // to it, and every task gets an outcome.
            None => std::future::pending().await,
        }
    }
}

/// The outcomes of some tasks, in the order in which they arrive ([`Pool::as_completed`](super::Pool::as_completed)). A
/// [`Stream`].
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
        // A timeout that is too long for the clock means no deadline.
        let at = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let deadline = at.map(|at| (at, Box::pin(tokio::time::sleep_until(at.into()))));
        Self { handles: handles.to_vec(), receiver, left: handles.len(), deadline }
    }

    /// Waits for the next outcome; returns `None` after the last one.
    ///
    /// Cancel-safe: no outcome is lost. The timeout ends tasks only while the caller waits for this future.
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
        // The clock is polled only if an outcome is still missing: after a shutdown of the runtime all outcomes have
        // been sent, and its clock would panic.
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
        // Waiting tasks are ended before running ones: otherwise they would take the places of these and start.
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

/// The outcomes of all tasks of a pool, in the order in which they arrive ([`Pool::outcomes`](super::Pool::outcomes)).
/// A [`Stream`].
#[derive(Debug)]
pub struct Outcomes(pub(super) UnboundedReceiver<Arc<Outcome>>);

impl Outcomes {
    /// Waits for the next outcome; returns `None` after the last one.
    ///
    /// Cancel-safe: no outcome is lost.
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

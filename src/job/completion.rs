//! A value that is set once and delivered to all waiting futures. It is small: tokio's `watch` has eight lists of
//! waiters, and there are thousands of jobs.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

#[derive(Debug)]
struct Shared<T>(Mutex<Inner<T>>);

#[derive(Debug)]
struct Inner<T> {
    state: State<T>,
    waiting: Vec<(u64, Waker)>,
    next_key: u64,
}

#[derive(Debug)]
enum State<T> {
    NotYet,
    Complete(T),
    /// The completer was dropped without a value.
    Never,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle(&self, state: State<T>) {
        let mut inner = self.lock();
        if !matches!(inner.state, State::NotYet) {
            return;
        }
        inner.state = state;
        let waiting = std::mem::take(&mut inner.waiting);
        drop(inner);
        waiting.into_iter().for_each(|(_, waker)| waker.wake());
    }
}

/// Returns the two sides.
pub(crate) fn completion<T>() -> (Completer<T>, Completion<T>) {
    let inner = Inner { state: State::NotYet, waiting: Vec::new(), next_key: 0 };
    let shared = Arc::new(Shared(Mutex::new(inner)));
    (Completer(shared.clone()), Completion(shared))
}

/// The side that sets the value.
#[derive(Debug)]
pub(crate) struct Completer<T>(Arc<Shared<T>>);

impl<T> Completer<T> {
    pub fn complete(self, value: T) {
        self.0.settle(State::Complete(value));
    }
}

impl<T> Drop for Completer<T> {
    fn drop(&mut self) {
        self.0.settle(State::Never);
    }
}

/// The side that receives the value. Each clone receives it too.
#[derive(Debug)]
pub(crate) struct Completion<T>(Arc<Shared<T>>);

impl<T> Clone for Completion<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Clone> Completion<T> {
    /// Waits for the value. Returns `None` if the completer was dropped without a value. Cancel-safe.
    pub fn wait(&self) -> Waiting<T> {
        Waiting { shared: self.0.clone(), key: None }
    }

    /// Returns the outcome if it is known: the value, or `None` if the completer was dropped without a value.
    pub fn try_wait(&self) -> Option<Option<T>> {
        match &self.0.lock().state {
            State::NotYet => None,
            State::Complete(value) => Some(Some(value.clone())),
            State::Never => Some(None),
        }
    }
}

/// A future that needs no runtime.
#[derive(Debug)]
pub(crate) struct Waiting<T> {
    shared: Arc<Shared<T>>,
    /// The key of this future in the list of waiters.
    key: Option<u64>,
}

impl<T: Clone> Future for Waiting<T> {
    type Output = Option<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        let shared = self.shared.clone();
        let mut inner = shared.lock();
        match &inner.state {
            State::Complete(value) => return Poll::Ready(Some(value.clone())),
            State::Never => return Poll::Ready(None),
            State::NotYet => {}
        }
        let known = self.key.and_then(|key| inner.waiting.iter_mut().find(|(known, _)| *known == key));
        match known {
            Some((_, waker)) => waker.clone_from(context.waker()),
            None => {
                let key = inner.next_key;
                inner.next_key += 1;
                inner.waiting.push((key, context.waker().clone()));
                self.key = Some(key);
            }
        }
        Poll::Pending
    }
}

impl<T> Drop for Waiting<T> {
    fn drop(&mut self) {
        if let Some(own) = self.key {
            self.shared.lock().waiting.retain(|(key, _)| *key != own);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn early_and_late_waiters_receive_the_value() {
        run(async {
            let (completer, completion) = completion();
            assert_eq!(completion.try_wait(), None);
            let complete = async {
                tokio::task::yield_now().await;
                completer.complete(7);
            };
            assert_eq!(tokio::join!(completion.wait(), completion.wait(), complete), (Some(7), Some(7), ()));
            assert_eq!(completion.clone().wait().await, Some(7));
            assert_eq!(completion.try_wait(), Some(Some(7)));
        });
    }

    #[test]
    fn never() {
        run(async {
            let (completer, completion) = completion::<()>();
            let lose = async {
                tokio::task::yield_now().await;
                drop(completer);
            };
            assert_eq!(tokio::join!(completion.wait(), lose).0, None);
            assert_eq!(completion.wait().await, None);
            assert_eq!(completion.try_wait(), Some(None));
        });
    }

    #[test]
    fn a_wait_that_is_dropped_is_forgotten() {
        run(async {
            let (completer, completion) = completion::<()>();
            for _ in 0..3 {
                let mut wait = std::pin::pin!(completion.wait());
                let mut context = Context::from_waker(Waker::noop());
                // A future that is polled twice is in the list once.
                assert!(wait.as_mut().poll(&mut context).is_pending() && wait.as_mut().poll(&mut context).is_pending());
                assert_eq!(completion.0.lock().waiting.len(), 1);
            }
            assert_eq!(completion.0.lock().waiting.len(), 0);
            drop(completer);
        });
    }
}

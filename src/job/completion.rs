//! Announces the end of a job to every task that waits for it. This is tokio's [`SetOnce`]; it is also set if the actor
//! ends without a report.

use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::SetOnce;

/// Returns the two sides.
pub(crate) fn completion<T>() -> (Completer<T>, Completion<T>) {
    let value = Arc::new(SetOnce::new());
    (Completer(value.clone()), Completion(value))
}

/// The side that sets the value.
#[derive(Debug)]
pub(crate) struct Completer<T>(Arc<SetOnce<Option<T>>>);

impl<T> Completer<T> {
    pub fn complete(self, value: T) {
        // It was not set before: only `self` can set it.
        let _ = self.0.set(Some(value));
    }
}

impl<T> Drop for Completer<T> {
    fn drop(&mut self) {
        // Fails if the value was set before.
        let _ = self.0.set(None);
    }
}

/// The side that receives the value. Each clone receives it too.
#[derive(Debug)]
pub(crate) struct Completion<T>(Arc<SetOnce<Option<T>>>);

impl<T> Clone for Completion<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// A future that needs no runtime.
pub(crate) type Waiting<T> = Pin<Box<dyn Future<Output = Option<T>> + Send + Sync>>;

impl<T: Clone + Send + Sync + 'static> Completion<T> {
    /// Waits for the value. Returns `None` if the completer was dropped without a value. Cancel-safe.
    pub fn wait(&self) -> Waiting<T> {
        let value = self.0.clone();
        Box::pin(async move { value.wait().await.clone() })
    }

    /// Returns the outcome if it is known: the value, or `None` if the completer was dropped without a value.
    pub fn try_wait(&self) -> Option<Option<T>> {
        self.0.get().cloned()
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
    fn waiters_are_released_if_no_value_comes() {
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
}

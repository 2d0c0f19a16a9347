//! The timers of a job: the time at which each running timer expires.

use std::future::pending;
use std::time::{Duration, Instant};

use crate::job::stop::Timer;

#[derive(Default)]
pub(super) struct Clock([Option<Instant>; Timer::ALL.len()]);

impl Clock {
    /// Starts a timer, or starts it again. A timer with a time that the clock cannot represent never expires.
    pub fn start(&mut self, timer: Timer, time: Duration) {
        self.set(timer, Instant::now().checked_add(time));
    }

    pub fn set(&mut self, timer: Timer, end: Option<Instant>) {
        self.0[timer as usize] = end;
    }

    pub fn cancel(&mut self, timer: Timer) {
        self.0[timer as usize] = None;
    }

    /// Postpones the end of a timer, and returns the new end. Has no effect on a timer that does not run.
    pub fn postpone(&mut self, timer: Timer, by: Duration) -> Option<Instant> {
        let end = &mut self.0[timer as usize];
        *end = end.and_then(|end| end.checked_add(by));
        *end
    }

    /// Waits until a timer expires, and returns that timer. Cancel-safe.
    pub async fn expired(&mut self) -> Timer {
        let running = Timer::ALL.into_iter().zip(self.0).filter_map(|(timer, end)| Some((end?, timer)));
        let timer = sleep_until(running.min_by_key(|(end, _)| *end)).await;
        self.cancel(timer);
        timer
    }
}

pub(super) async fn sleep_until<T>(timer: Option<(Instant, T)>) -> T {
    match timer {
        Some((at, value)) => {
            // On the heap: otherwise the future would take up space in the actor all the time.
            Box::pin(tokio::time::sleep_until(at.into())).await;
            value
        }
        None => pending().await,
    }
}

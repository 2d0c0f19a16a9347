//! The schedule for reaping orphans. The guard normally reaps an orphan at once. While very many processes end (a mass
//! death), it reaps at intervals, because each scan for ended children walks through all living children, under a lock
//! that ending processes need.

use std::time::{Duration, Instant};

/// It is a mass death if this many orphans end within [`WINDOW`], or between two scans.
const MASS_DEATH: u32 = 64;
const WINDOW: Duration = Duration::from_millis(20);

/// The interval between two scans. It doubles each time, unless the supervisor waits for the last process.
const SHORTEST: Duration = Duration::from_millis(2);
const LONGEST: Duration = Duration::from_millis(32);

pub(super) struct ReapSchedule {
    /// The time since which the ended orphans are counted.
    since: Instant,
    orphans: u32,
    pause: Duration,
    due: Option<Instant>,
}

impl ReapSchedule {
    pub fn new() -> Self {
        Self { since: Instant::now(), orphans: 0, pause: SHORTEST, due: None }
    }

    /// Returns when the postponed children are to be reaped.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Records that a child has ended. Returns whether it will be reaped later, together with others. `awaited` says
    /// that the supervisor waits for the last child, so the delay must be short.
    pub fn postpones(&mut self, now: Instant, awaited: bool) -> bool {
        if now.duration_since(self.since) > WINDOW && self.due.is_none() {
            (self.since, self.orphans) = (now, 0);
        }
        if self.orphans >= MASS_DEATH {
            let pause = if awaited { SHORTEST } else { self.pause };
            self.due.get_or_insert(now + pause);
        }
        self.due.is_some()
    }

    /// Records that a scan has found this number of ended orphans.
    pub fn scan_done(&mut self, now: Instant, orphans: u32) {
        if self.due.take().is_none() {
            self.orphans += orphans;
            return;
        }
        self.pause = if orphans >= MASS_DEATH { (self.pause * 2).min(LONGEST) } else { SHORTEST };
        (self.since, self.orphans) = (now, orphans);
    }

    /// Ends the postponement after a scan: the next children are reaped at once, unless there are many again.
    pub fn reset(&mut self) {
        *self = Self::new();
    }
}

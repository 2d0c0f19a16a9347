//! When orphans are reaped: at once, but in a mass death every so often. Each look for ended children goes through all that
//! live, under a lock which the dying need.

use std::time::{Duration, Instant};

/// So many orphans that end within [`WINDOW`], or from one look to the next, are a mass death.
const CROWD: u32 = 64;
const WINDOW: Duration = Duration::from_millis(20);

/// Between two looks; twice as long each time, where nobody waits for the last of them.
const SHORTEST: Duration = Duration::from_millis(2);
const LONGEST: Duration = Duration::from_millis(32);

pub(super) struct ReapSchedule {
    /// Since when these have been reaped.
    since: Instant,
    orphans: u32,
    pause: Duration,
    due: Option<Instant>,
}

impl ReapSchedule {
    pub fn new() -> Self {
        Self { since: Instant::now(), orphans: 0, pause: SHORTEST, due: None }
    }

    /// When those are to be reaped that were put off.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// A child has ended: whether it is reaped later, with others. `awaited`: somebody waits for the last one.
    pub fn puts_off(&mut self, now: Instant, awaited: bool) -> bool {
        if now.duration_since(self.since) > WINDOW && self.due.is_none() {
            (self.since, self.orphans) = (now, 0);
        }
        if self.orphans >= CROWD {
            let pause = if awaited { SHORTEST } else { self.pause };
            self.due.get_or_insert(now + pause);
        }
        self.due.is_some()
    }

    /// A look has found so many orphans that had ended.
    pub fn looked(&mut self, now: Instant, orphans: u32) {
        if self.due.take().is_none() {
            self.orphans += orphans;
            return;
        }
        self.pause = if orphans >= CROWD { (self.pause * 2).min(LONGEST) } else { SHORTEST };
        (self.since, self.orphans) = (now, orphans);
    }

    /// After a look: the next ones are not put off, unless there are many again.
    pub fn calm(&mut self) {
        *self = Self::new();
    }
}

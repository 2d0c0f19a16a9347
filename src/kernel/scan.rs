//! Repeated scans for processes: a signal is sent to all processes of a job in passes, until a pass finds no new
//! process.

use std::time::{Duration, Instant};

use rustix::io::Result;

/// The time since the first pass during which passes are repeated, even if the least number of them has been made.
const TIME: Duration = Duration::from_millis(20);

/// Limits on the number of passes and on their time. Fewer passes are made if one of them finds no new process.
///
/// A time limit is needed: 200 processes that fork all the time leave each other process a hundredth of two CPUs, and
/// eight passes took 80 s there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScanLimits {
    least: u32,
    bound: Instant,
}

impl ScanLimits {
    /// Returns limits that allow `least` passes, and more within the first 20 ms; with 0, no pass is made. After `time`
    /// the work ends, even in the middle of a pass.
    pub fn new(least: u32, time: Duration) -> Self {
        Self { least, bound: Instant::now() + time }
    }

    /// Returns the same limits, with at most `time` from now on.
    pub fn within(self, time: Duration) -> Self {
        Self { bound: self.bound.min(Instant::now() + time), ..self }
    }

    /// Returns the same limits with another least number of passes.
    pub fn at_least(self, least: u32) -> Self {
        Self { least, ..self }
    }

    /// Returns whether no pass is allowed.
    pub fn are_none(self) -> bool {
        self.least == 0
    }

    /// Returns whether the time is over.
    pub fn are_over(self) -> bool {
        Instant::now() >= self.bound
    }
}

/// Makes passes until one of them returns `false`, which means that it found no new process. Returns whether that
/// happened within the limits: a job that forks faster than pinfold can send signals can only be killed.
pub(crate) fn until_no_new_process(scans: ScanLimits, mut pass: impl FnMut() -> Result<bool>) -> Result<bool> {
    let begun = Instant::now();
    let mut made = 0;
    while (made < scans.least || scans.least > 0 && begun.elapsed() < TIME) && !scans.are_over() {
        if !pass()? {
            return Ok(true);
        }
        made += 1;
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn passes_end() {
        let mut left = 300;
        let counted = until_no_new_process(ScanLimits::new(300, LONG), || {
            left -= 1;
            Ok(left > 0)
        });
        assert_eq!((counted, left), (Ok(true), 0));
        let mut made = 0;
        let endless = until_no_new_process(ScanLimits::new(8, LONG), || {
            made += 1;
            Ok(true)
        });
        assert_eq!(endless, Ok(false));
        assert!(made >= 8);
        assert_eq!(until_no_new_process(ScanLimits::new(0, LONG), || unreachable!()), Ok(false));
        assert_eq!(until_no_new_process(ScanLimits::new(8, Duration::ZERO), || unreachable!()), Ok(false));
    }
}

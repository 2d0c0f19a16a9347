//! A signal for everybody: sent in passes, until one finds nobody new.

use std::time::{Duration, Instant};

use rustix::io::Result;

/// Beyond the passes that are made in any case.
const TIME: Duration = Duration::from_millis(20);

/// How many passes are made, if it takes them, and for how long.
///
/// A storm of 200 that fork leaves each other process a hundredth of two CPUs: eight passes took 80 s there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScanLimits {
    least: u32,
    bound: Instant,
}

impl ScanLimits {
    /// So many, none for 0, and more within 20 ms; but nothing more when `time` is over, in the midst of a pass too.
    pub fn new(least: u32, time: Duration) -> Self {
        Self { least, bound: Instant::now() + time }
    }

    /// The same, for so long at most.
    pub fn within(self, time: Duration) -> Self {
        Self { bound: self.bound.min(Instant::now() + time), ..self }
    }

    /// The same, so many in any case.
    pub fn at_least(self, least: u32) -> Self {
        Self { least, ..self }
    }

    /// Whether none are to be made.
    pub fn are_none(self) -> bool {
        self.least == 0
    }

    /// Whether the time is over.
    pub fn are_over(self) -> bool {
        Instant::now() >= self.bound
    }
}

/// Makes passes until one says that there was nobody new (`false`), and tells whether that came: against a job that forks
/// faster than it can be told, only a kill helps.
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
    fn it_ends() {
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

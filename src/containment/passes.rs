//! A signal for everybody: sent in passes, until one finds nobody new.

use std::time::{Duration, Instant};

use rustix::io::Result;

/// Beyond the passes that are made in any case. In a chain whose links end as soon as they are told, each pass may find only
/// the next one.
const TIME: Duration = Duration::from_millis(20);

/// Makes passes until one says that there was nobody new (`false`), and tells whether that came: against a job that forks
/// faster than it can be told, only a kill helps. So many passes are made at least, and more within 20 ms; none for 0.
pub(crate) fn until_nobody_is_new(least: u32, mut pass: impl FnMut() -> Result<bool>) -> Result<bool> {
    let begun = Instant::now();
    let mut made = 0;
    while made < least || least > 0 && begun.elapsed() < TIME {
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

    #[test]
    fn it_ends() {
        let mut left = 300;
        let counted = until_nobody_is_new(1, || {
            left -= 1;
            Ok(left > 0)
        });
        assert_eq!((counted, left), (Ok(true), 0));
        let mut made = 0;
        let endless = until_nobody_is_new(8, || {
            made += 1;
            Ok(true)
        });
        assert_eq!(endless, Ok(false));
        assert!(made >= 8);
        assert_eq!(until_nobody_is_new(0, || unreachable!()), Ok(false));
    }
}

//! Detects a command that writes files that pinfold watches: each run causes the next one, without end.

use std::path::PathBuf;
use std::time::Duration;

/// The number of similar restarts in a row that pinfold reports as such a loop.
const RESTARTS: usize = 3;

/// A user does not save a file this soon after each of three starts.
const SOON: Duration = Duration::from_secs(1);

/// Times count as equal if they differ by at most this, or by at most a fifth: the same work then leads to each change.
const SPREAD: Duration = Duration::from_millis(100);

#[derive(Default)]
pub struct Repeats {
    /// The changes that caused the last restarts: the time from the start of the run to the change, and the files.
    latest: Vec<(Duration, Vec<PathBuf>)>,
    /// pinfold has reported this loop.
    reported: bool,
}

impl Repeats {
    /// Records a restart because of changed files. `after` is the time from the start of the last run to the change;
    /// `None` if no file changed while it ran. Returns the file to report if this is the third similar restart.
    pub fn add(&mut self, after: Option<Duration>, files: &[PathBuf]) -> Option<PathBuf> {
        let Some(after) = after.filter(|_| !files.is_empty()) else {
            *self = Self::default();
            return None;
        };
        self.latest.push((after, files.to_vec()));
        if self.latest.len() > RESTARTS {
            self.latest.remove(0);
        }
        if self.latest.len() < RESTARTS {
            return None;
        }
        let Some(file) = self.written_by_each() else {
            self.reported = false;
            return None;
        };
        (!std::mem::replace(&mut self.reported, true)).then_some(file)
    }

    fn written_by_each(&self) -> Option<PathBuf> {
        let times = || self.latest.iter().map(|(after, _)| *after);
        let (shortest, longest) = (times().min()?, times().max()?);
        let alike = longest - shortest <= SPREAD.max(longest / 5);
        let [earlier @ .., (_, last)] = &self.latest[..] else { return None };
        let common = last.iter().find(|file| earlier.iter().all(|(_, files)| files.contains(file)));
        match common {
            Some(file) if alike || longest <= SOON => Some(file.clone()),
            // The file has a new name each time: it is a log or a temporary file.
            None if alike => last.first().cloned(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(repeats: &mut Repeats, millis: u64, file: &str) -> Option<String> {
        let found = repeats.add(Some(Duration::from_millis(millis)), &[file.into()]);
        found.map(|file| file.to_str().unwrap().to_owned())
    }

    #[test]
    fn the_third_time_is_reported_once() {
        // The change comes soon after the start, or late but always at the same time, or under a new name each time.
        for times in [[[50, 300, 900], [10, 20, 30]], [[8000, 8500, 9000], [8000, 8500, 9000]]] {
            let mut repeats = Repeats::default();
            assert_eq!(add(&mut repeats, times[0][0], "out"), None);
            assert_eq!(add(&mut repeats, times[0][1], "out"), None);
            assert_eq!(add(&mut repeats, times[0][2], "out").as_deref(), Some("out"));
            assert_eq!(add(&mut repeats, times[0][2], "out"), None);
            let mut repeats = Repeats::default();
            assert_eq!(add(&mut repeats, times[1][0], "log.1"), None);
            assert_eq!(add(&mut repeats, times[1][1], "log.2"), None);
            assert_eq!(add(&mut repeats, times[1][2], "log.3").as_deref(), Some("log.3"));
        }
    }

    #[test]
    fn a_user_who_saves_files_is_not_reported() {
        for (times, names) in [
            ([3000, 8000, 20_000], ["a", "a", "a"]),
            ([300, 1500, 900], ["a", "b", "c"]),
            ([5000, 5100, 9000], ["a", "a", "a"]),
        ] {
            let mut repeats = Repeats::default();
            for (time, name) in times.into_iter().zip(names) {
                assert_eq!(add(&mut repeats, time, name), None, "{times:?} {names:?}");
            }
        }
        let mut repeats = Repeats::default();
        for _ in 0..2 {
            assert_eq!(add(&mut repeats, 10, "a"), None);
        }
        // The user requested this restart, or the run had ended long before.
        assert_eq!(repeats.add(None, &["a".into()]), None);
        assert_eq!(add(&mut repeats, 10, "a"), None);
    }
}

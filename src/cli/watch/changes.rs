//! The changes since the last start of the command: when their burst is over, and what pinfold prints about them.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a burst of changes can delay a restart.
const MAX_BURST: Duration = Duration::from_secs(3);

/// The number of changed files that are kept in order. pinfold prints one of them.
const MAX_SHOWN: usize = 64;

/// The files that have changed since the start of the last run.
#[derive(Default)]
pub struct Changes {
    paths: HashSet<PathBuf>,
    /// The first of these files, in the order in which they changed.
    shown: Vec<PathBuf>,
    /// The user has requested a restart, so it does not have to wait for the end of a burst.
    pub requested: bool,
    /// When the first change was noticed.
    pub first: Option<Instant>,
    latest: Option<Instant>,
}

impl Changes {
    pub fn add(&mut self, paths: Vec<PathBuf>) {
        let now = Instant::now();
        self.first.get_or_insert(now);
        self.latest = Some(now);
        for path in paths {
            if self.shown.len() < MAX_SHOWN && !self.paths.contains(&path) {
                self.shown.push(path.clone());
            }
            self.paths.insert(path);
        }
    }

    pub fn is_pending(&self) -> bool {
        self.requested || self.latest.is_some()
    }

    /// Returns the time when the burst is over; `None` if that time is too far in the future for a clock.
    pub fn settled(&self, debounce: Duration) -> Option<Instant> {
        match (self.first, self.latest) {
            (Some(first), Some(latest)) if !self.requested => {
                let longest = first.checked_add(MAX_BURST.max(debounce))?;
                Some(latest.checked_add(debounce)?.min(longest))
            }
            _ => Some(Instant::now()),
        }
    }

    /// Returns the first of the files that have changed.
    pub fn files(&self) -> &[PathBuf] {
        &self.shown
    }

    /// Returns a description for a message, such as "src/main.rs changed, and 2 more".
    pub fn describe(&self) -> String {
        // A file that still exists helps the user more than one that existed only for a moment.
        let Some(shown) = self.shown.iter().find(|path| path.exists()).or(self.shown.first()) else {
            return "restart requested".into();
        };
        match self.paths.len() - 1 {
            0 => format!("{} changed", name(shown)),
            more => format!("{} changed, and {more} more", name(shown)),
        }
    }
}

/// Returns a path for a message: relative to the current directory if the path is below it.
pub fn name(path: &Path) -> String {
    let current = std::env::current_dir().unwrap_or_default();
    let name = path.strip_prefix(&current).ok().filter(|name| !name.as_os_str().is_empty()).unwrap_or(path);
    crate::report::text::printable_path(name).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_changes_and_repeated_changes() {
        let mut changes = Changes::default();
        assert!(!changes.is_pending());
        // Editors and builds can change a whole tree. This must take seconds and not hours.
        for _ in 0..2 {
            for number in 0..200_000 {
                changes.add(vec![format!("/no/such/{number}").into()]);
            }
        }
        assert!(changes.is_pending());
        assert_eq!(changes.describe(), "/no/such/0 changed, and 199999 more");
        // The message names a file that exists, if there is one.
        let mut changes = Changes::default();
        changes.add(vec!["/no/such".into(), "/".into(), "/etc".into()]);
        assert_eq!(changes.describe(), "/ changed, and 2 more");
    }

    #[test]
    fn longer_than_a_clock_is_never() {
        let mut changes = Changes::default();
        changes.add(vec!["/".into()]);
        assert_eq!(changes.settled(Duration::MAX), None);
        assert!(changes.settled(Duration::ZERO).is_some_and(|at| at <= Instant::now()));
        changes.requested = true;
        assert!(changes.settled(Duration::MAX).is_some());
    }
}

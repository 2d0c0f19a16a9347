//! The changes since the last start: when their burst is over, and what pinfold prints about them.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// However long a burst lasts, a restart is put off no longer than this.
const LONGEST_BURST: Duration = Duration::from_secs(3);

/// So many changed files are kept in order: one of them is printed.
const SHOWN: usize = 64;

/// What has changed since the last run was started.
#[derive(Default)]
pub struct Changes {
    paths: HashSet<PathBuf>,
    /// The first of them, in the order in which they came.
    shown: Vec<PathBuf>,
    /// A restart was requested: there is nothing to wait for.
    pub asked: bool,
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
            if self.shown.len() < SHOWN && !self.paths.contains(&path) {
                self.shown.push(path.clone());
            }
            self.paths.insert(path);
        }
    }

    pub fn are_there(&self) -> bool {
        self.asked || self.latest.is_some()
    }

    /// When the burst is over; never where that is beyond what a clock can hold.
    pub fn settled(&self, debounce: Duration) -> Option<Instant> {
        match (self.first, self.latest) {
            (Some(first), Some(latest)) if !self.asked => {
                let longest = first.checked_add(LONGEST_BURST.max(debounce))?;
                Some(latest.checked_add(debounce)?.min(longest))
            }
            _ => Some(Instant::now()),
        }
    }

    /// The first of the files that have changed.
    pub fn files(&self) -> &[PathBuf] {
        &self.shown
    }

    /// "src/main.rs changed, and 2 more".
    pub fn tell(&self) -> String {
        // A file that exists says more than one that was there for a moment.
        let Some(shown) = self.shown.iter().find(|path| path.exists()).or(self.shown.first()) else {
            return "asked for".into();
        };
        match self.paths.len() - 1 {
            0 => format!("{} changed", name(shown)),
            more => format!("{} changed, and {more} more", name(shown)),
        }
    }
}

/// A path for a message: seen from the current directory.
pub fn name(path: &Path) -> String {
    let current = std::env::current_dir().unwrap_or_default();
    let name = path.strip_prefix(&current).ok().filter(|name| !name.as_os_str().is_empty()).unwrap_or(path);
    pinfold::text::printable_path(name).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_and_the_same_again() {
        let mut changes = Changes::default();
        assert!(!changes.are_there());
        // What editors and builds do to a whole tree, in seconds and not in hours.
        for _ in 0..2 {
            for number in 0..200_000 {
                changes.add(vec![format!("/no/such/{number}").into()]);
            }
        }
        assert!(changes.are_there());
        assert_eq!(changes.tell(), "/no/such/0 changed, and 199999 more");
        // Rather one that is there.
        let mut changes = Changes::default();
        changes.add(vec!["/no/such".into(), "/".into(), "/etc".into()]);
        assert_eq!(changes.tell(), "/ changed, and 2 more");
    }

    #[test]
    fn longer_than_a_clock_is_never() {
        let mut changes = Changes::default();
        changes.add(vec!["/".into()]);
        assert_eq!(changes.settled(Duration::MAX), None);
        assert!(changes.settled(Duration::ZERO).is_some_and(|at| at <= Instant::now()));
        changes.asked = true;
        assert!(changes.settled(Duration::MAX).is_some());
    }
}

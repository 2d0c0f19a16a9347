//! The changes since the last start: when their burst is over, and what is told of them.

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// However long a burst lasts, a restart is not put off longer.
const LONGEST_BURST: Duration = Duration::from_secs(3);

/// What has changed since the last run was started.
#[derive(Default)]
pub struct Changes {
    /// In the order in which they came.
    paths: Vec<PathBuf>,
    /// A restart was asked for: there is nothing to wait for.
    pub asked: bool,
    first: Option<Instant>,
    latest: Option<Instant>,
}

impl Changes {
    pub fn add(&mut self, paths: Vec<PathBuf>) {
        let now = Instant::now();
        self.first.get_or_insert(now);
        self.latest = Some(now);
        for path in paths {
            if !self.paths.contains(&path) {
                self.paths.push(path);
            }
        }
    }

    pub fn are_there(&self) -> bool {
        self.asked || self.latest.is_some()
    }

    /// When the burst is over.
    pub fn settled(&self, debounce: Duration) -> Option<Instant> {
        match (self.first, self.latest) {
            (Some(first), Some(latest)) if !self.asked => {
                Some((latest + debounce).min(first + LONGEST_BURST.max(debounce)))
            }
            _ => Some(Instant::now()),
        }
    }

    /// "src/main.rs changed, and 2 more".
    pub fn tell(&self) -> String {
        // Rather one that is there than one that was there for a moment.
        let Some(shown) = self.paths.iter().find(|path| path.exists()).or(self.paths.first()) else {
            return "asked for".into();
        };
        let current = std::env::current_dir().unwrap_or_default();
        let shown = shown.strip_prefix(&current).ok().filter(|path| !path.as_os_str().is_empty()).unwrap_or(shown);
        match self.paths.len() - 1 {
            0 => format!("{} changed", shown.display()),
            more => format!("{} changed, and {more} more", shown.display()),
        }
    }
}

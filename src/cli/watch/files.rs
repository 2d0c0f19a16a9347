//! Watches files, and decides which of the kernel's events are changes.
//!
//! Each directory has a watch of its own, so that an ignored directory needs none.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use inotify::EventMask;
use rustix::time::{ClockId, clock_gettime};

use super::extensions::Extension;
use super::ignored::Ignored;
use super::route::{End, Route};
use super::watches::{Event, Watches};

/// The maximum number of messages about directories that cannot be watched.
const MAX_REPORTED: usize = 8;

/// The maximum number of such directories that pinfold remembers, to watch them when their permissions change.
const MAX_REMEMBERED: usize = 1024;

/// The maximum number of further attempts to follow the routes, if a route changes at the same time. A change after the
/// last attempt is an event.
const MAX_ATTEMPTS: usize = 10;

pub struct Files {
    watches: Watches,
    roots: Vec<Root>,
    /// If this is not empty, only files with these extensions matter.
    extensions: Vec<Extension>,
    globs: Vec<String>,
    /// Directories that cannot be watched.
    unwatched: BTreeSet<PathBuf>,
    reported: usize,
    /// Messages to print.
    notes: Vec<String>,
    /// A file with a modification time later than this has changed.
    since: (i64, i64),
    /// pinfold has to search the directories below the roots again.
    stale: bool,
}

/// A path that `--watch` names.
struct Root {
    given: PathBuf,
    route: Route,
    /// The rules for the directory at the end of the route.
    ignored: Option<Ignored>,
}

impl Root {
    fn directory(&self) -> Option<&Path> {
        match &self.route.end {
            End::Directory(directory) => Some(directory),
            // pinfold watches the directory, because an editor that saves a file often replaces it with a new one.
            End::File(file) => file.parent(),
            End::Missing { .. } => None,
        }
    }
}

impl Files {
    /// Watches the paths. Changes after this call are not missed.
    ///
    /// # Errors
    /// If a path does not exist, if this user may not read it, or if a limit on inotify is reached.
    pub fn watch(paths: &[PathBuf], extensions: &[Extension], globs: &[String]) -> Result<Self> {
        let watches = Watches::new().map_err(|error| explain(&error, Path::new("files")))?;
        let mut files = Self {
            watches,
            roots: Vec::new(),
            extensions: extensions.to_vec(),
            globs: globs.to_vec(),
            unwatched: BTreeSet::new(),
            reported: 0,
            notes: Vec::new(),
            since: now(),
            stale: false,
        };
        for path in paths {
            let cannot = || format!("cannot watch {}", crate::report::text::printable_path(path));
            path.canonicalize().with_context(cannot)?;
            let given = std::path::absolute(path).with_context(cannot)?;
            let route = Route { steps: Vec::new(), end: End::Missing { directory: "/".into(), name: "".into() } };
            files.roots.push(Root { given, route, ignored: None });
        }
        files.refresh(true)?;
        Ok(files)
    }

    /// Returns a descriptor that is readable when [`read`](Self::read) returns events.
    pub fn descriptor(&self) -> Result<OwnedFd> {
        self.watches.descriptor().context("cannot copy the descriptor of inotify")
    }

    /// Marks the start of a run: from now on a file counts as written if its modification time is later than now.
    pub fn begin(&mut self) {
        self.since = now();
    }

    /// Returns the messages since the last call.
    pub fn notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// Returns the watched paths that do not exist now.
    pub fn missing(&self) -> impl Iterator<Item = &Path> {
        self.roots.iter().filter(|root| root.route.missing().is_some()).map(|root| root.given.as_path())
    }

    /// Reads the next events and returns the files that have changed and are not ignored; `None` if there is no event.
    pub fn read(&mut self) -> Result<Option<Vec<PathBuf>>> {
        let Some(events) = self.watches.read().context("cannot read the events of inotify")? else { return Ok(None) };
        let mut changed = Vec::new();
        let mut rerouted = false;
        for root in &mut self.roots {
            self.stale |= root.ignored.as_mut().is_some_and(Ignored::learn_outside);
        }
        for event in events {
            match event {
                Event::Overflow => {
                    // There were more events than fit in the kernel's queue (fs.inotify.max_queued_events).
                    self.stale = true;
                    changed.extend(self.roots.iter().filter_map(|root| root.directory().map(Path::to_owned)));
                }
                // The same path may now refer to another directory.
                Event::Step => self.stale = true,
                Event::Entry { path, mask } => {
                    // The file may have been replaced by a link.
                    rerouted |= mask.intersects(EventMask::CREATE | EventMask::MOVED_TO)
                        && self.roots.iter().any(|root| root.route.end == End::File(path.clone()));
                    self.entry(&path, mask, &mut changed)?;
                }
            }
        }
        if rerouted && self.roots.iter().any(|root| !self.is_current(root)) {
            self.stale = true;
        }
        if self.stale {
            changed.extend(self.refresh(false)?);
        }
        Ok(Some(changed))
    }

    /// Returns whether a path still leads to the directory that pinfold watches for it.
    fn is_current(&self, root: &Root) -> bool {
        Route::of(&root.given) == root.route
            && root.directory().is_none_or(|directory| self.watches.contains(directory))
    }

    /// Handles an event of an entry in a watched directory.
    fn entry(&mut self, path: &Path, mask: EventMask, changed: &mut Vec<PathBuf>) -> Result<()> {
        for root in &mut self.roots {
            self.stale |= root.ignored.as_mut().is_some_and(|ignored| ignored.learn(path));
        }
        let appears = mask.intersects(EventMask::CREATE | EventMask::MOVED_TO);
        if mask.contains(EventMask::ISDIR) {
            if mask.intersects(EventMask::DELETE | EventMask::MOVED_FROM) {
                self.unwatched.retain(|known| !known.starts_with(path));
                if self.watches.contains(path) {
                    self.watches.forget(path);
                    let is_root = self.roots.iter().any(|root| root.directory() == Some(path));
                    if is_root || (0..self.roots.len()).any(|root| self.matters(root, path, true)) {
                        changed.push(path.to_owned());
                    }
                }
            } else if appears {
                for root in 0..self.roots.len() {
                    // Files may have been created in this directory before pinfold watched it.
                    self.scan(root, path, &mut HashSet::new(), changed, false)?;
                }
            } else if self.unwatched.contains(path) {
                // The permissions of this directory have changed.
                for root in 0..self.roots.len() {
                    self.scan(root, path, &mut HashSet::new(), &mut Vec::new(), false)?;
                }
            }
            return Ok(());
        }
        // A new mode, owner or link count is no change, and neither is opening a file for writing without writing. But
        // `touch` and writing through mmap(2) are changes. The kernel reports the same events for all of these
        // (inotify(7)), so the modification time decides.
        let written = appears || mask.intersects(EventMask::MODIFY | EventMask::DELETE | EventMask::MOVED_FROM);
        if (written || self.is_newer(path)) && (0..self.roots.len()).any(|root| self.matters(root, path, false)) {
            changed.push(path.to_owned());
        }
        Ok(())
    }

    fn is_newer(&self, path: &Path) -> bool {
        let Ok(found) = path.metadata() else { return false };
        (found.mtime(), found.mtime_nsec()) > self.since
    }

    fn matters(&mut self, root: usize, path: &Path, is_dir: bool) -> bool {
        let root = &mut self.roots[root];
        match &root.route.end {
            End::File(file) => return file == path,
            End::Directory(directory) if path != directory && path.starts_with(directory) => {}
            _ => return false,
        }
        let name = path.file_name().unwrap_or_default();
        // A link to a directory stands for files with any name.
        let named = is_dir || self.extensions.is_empty() || self.extensions.iter().any(|known| known.is_of(name));
        let named = named || path.symlink_metadata().is_ok_and(|found| found.is_symlink()) && path.is_dir();
        let Some(ignored) = &mut root.ignored else { return named };
        // A directory that a new rule ignores is still watched until the next refresh, so its parents have to be
        // checked too.
        named
            && !if self.stale { ignored.contains_or_its_parents(path, is_dir) } else { ignored.contains(path, is_dir) }
    }

    /// Follows the paths again and watches the directories that exist now. Returns the paths that now lead elsewhere.
    fn refresh(&mut self, first: bool) -> Result<Vec<PathBuf>> {
        let mut changed = Vec::new();
        for attempt in 0.. {
            let routes: Vec<Route> = self.roots.iter().map(|root| Route::of(&root.given)).collect();
            let steps = routes.iter().flat_map(|route| &route.steps).map(PathBuf::as_path);
            self.watches.set_steps(steps, routes.iter().filter_map(Route::missing));
            // A step may have changed before pinfold watched it. Then the path leads another way now.
            let moved = self.roots.iter().zip(&routes).any(|(root, route)| Route::of(&root.given) != *route);
            if moved && attempt < MAX_ATTEMPTS {
                continue;
            }
            for (root, route) in self.roots.iter_mut().zip(routes) {
                if root.route != route {
                    changed.push(root.given.clone());
                    root.route = route;
                    root.ignored = match &root.route.end {
                        End::Directory(directory) => Some(Ignored::new(directory, &self.globs)?),
                        _ => None,
                    };
                }
            }
            break;
        }
        self.stale = false;
        let mut visited = HashSet::new();
        for root in 0..self.roots.len() {
            let Some(directory) = self.roots[root].directory().map(Path::to_owned) else { continue };
            if matches!(self.watches.add(&directory), Ok(true)) {
                // The directory was removed or moved, and then created again.
                changed.push(self.roots[root].given.clone());
            }
            // A new watch alone does not mean that the files in the directory have changed.
            self.scan(root, &directory, &mut visited, &mut Vec::new(), first)?;
        }
        self.watches.retain(&visited);
        if first {
            changed.clear();
        }
        Ok(changed)
    }

    /// Watches a directory and all directories below it that are not ignored. Adds these directories to `visited`. Adds
    /// to `changed` the files that matter in directories that were not watched before.
    fn scan(
        &mut self,
        root: usize,
        directory: &Path,
        visited: &mut HashSet<PathBuf>,
        changed: &mut Vec<PathBuf>,
        first: bool,
    ) -> Result<()> {
        let only_file = match &self.roots[root].route.end {
            End::Directory(top) if directory.starts_with(top) => false,
            End::File(file) if file.parent() == Some(directory) => true,
            _ => return Ok(()),
        };
        if self.is_ignored(root, directory) {
            return Ok(());
        }
        let mut waiting = vec![directory.to_owned()];
        while let Some(directory) = waiting.pop() {
            // pinfold watches the directory before it reads it, so that it does not miss an entry that appears
            // meanwhile.
            let is_new = match self.watches.add(&directory) {
                Ok(is_new) => is_new,
                Err(error) => {
                    let is_root = self.roots[root].directory() == Some(&directory);
                    self.not_watched(&error, &directory, first, is_root)?;
                    continue;
                }
            };
            self.unwatched.remove(&directory);
            visited.insert(directory.clone());
            if only_file {
                continue;
            }
            // If the directory has been removed meanwhile, there are no entries.
            for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
                let path = entry.path();
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    if is_new && self.matters(root, &path, false) {
                        changed.push(path);
                    }
                } else if !self.is_ignored(root, &path) {
                    waiting.push(path);
                }
            }
        }
        Ok(())
    }

    fn is_ignored(&mut self, root: usize, directory: &Path) -> bool {
        self.roots[root].ignored.as_mut().is_some_and(|ignored| ignored.contains(directory, true))
    }

    /// Handles an error of watching a directory. At the start this returns the error, except if this user may not read
    /// the directory. Later it only adds a message: the command is running, so pinfold continues to watch the other
    /// directories.
    fn not_watched(&mut self, error: &io::Error, directory: &Path, first: bool, is_root: bool) -> Result<()> {
        let refused = match error.raw_os_error() {
            // The directory is gone, or something else has its name now.
            Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP) => return Ok(()),
            Some(libc::EACCES | libc::EPERM | libc::ENAMETOOLONG) => true,
            _ => false,
        };
        if first && (is_root || !refused) {
            return Err(explain(error, directory));
        }
        let is_new = self.unwatched.len() < MAX_REMEMBERED && self.unwatched.insert(directory.to_owned());
        if is_new && self.reported < MAX_REPORTED {
            self.reported += 1;
            let more = if self.reported == MAX_REPORTED { "; pinfold does not report further directories" } else { "" };
            self.notes.push(format!("{:#}; pinfold ignores changes in it{more}", explain(error, directory)));
        }
        Ok(())
    }
}

/// Returns seconds and nanoseconds of the clock from which file systems take modification times. It is up to one tick
/// late.
fn now() -> (i64, i64) {
    let now = clock_gettime(ClockId::RealtimeCoarse);
    (now.tv_sec, now.tv_nsec)
}

/// Returns a message for an error of inotify. For a limit, the message names the setting (inotify(7),
/// user_namespaces(7)).
fn explain(error: &io::Error, directory: &Path) -> anyhow::Error {
    let at = crate::report::text::printable_path(directory);
    match error.raw_os_error() {
        Some(libc::ENOSPC) => anyhow!(
            "cannot watch {at}: this user's limit on inotify watches is reached (each directory needs one); raise it, \
             as root: sysctl fs.inotify.max_user_watches=524288 (in a user namespace user.max_inotify_watches), or watch \
             fewer directories (-w, --ignore)"
        ),
        Some(libc::EMFILE) => anyhow!(
            "cannot watch {at}: this user's limit on inotify instances is reached; raise it, as root: \
             sysctl fs.inotify.max_user_instances=512 (in a user namespace user.max_inotify_instances); or the limit \
             on open files is reached: see ulimit -n"
        ),
        _ => anyhow!("cannot watch {at}: {}", message(error)),
    }
}

/// Returns the kernel's message for an error, without the number that Rust adds.
fn message(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

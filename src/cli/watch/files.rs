//! What is watched, and which of the kernel's events are changes.
//!
//! Each directory is watched by itself, so that those which are ignored cost no watch (inotify(7)).

use std::collections::BTreeSet;
use std::ops::Bound;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind};
use notify::{ErrorKind, Event, EventKind, INotifyWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::ignored::Ignored;
use crate::cli::thread;

/// What the kernel tells.
pub type Events = UnboundedReceiver<notify::Result<Event>>;

pub struct Files {
    watcher: INotifyWatcher,
    watched: BTreeSet<PathBuf>,
    roots: Vec<Root>,
    /// Only these, where there are any.
    extensions: Vec<String>,
}

struct Root {
    directory: PathBuf,
    /// Only this file of it. The directory is watched: who saves a file puts a new one in its place.
    file: Option<PathBuf>,
    ignored: Ignored,
}

impl Files {
    /// Watches the paths. From here on nothing is missed.
    pub fn watch(paths: &[PathBuf], extensions: &[String], globs: &[String]) -> Result<(Self, Events)> {
        let (sender, events) = unbounded_channel();
        let tell = move |event| {
            // Nobody listens any more at the end.
            let _ = sender.send(event);
        };
        // The watcher's own thread is started without a look at whether it was; then it panics.
        thread::try_one("to watch files")?;
        let watcher = INotifyWatcher::new(tell, notify::Config::default().with_follow_symlinks(false))
            .map_err(|error| explain(error, Path::new("")))?;
        let extensions = extensions.iter().map(|extension| extension.trim_start_matches('.').to_owned()).collect();
        let mut files = Self { watcher, watched: BTreeSet::new(), roots: Vec::new(), extensions };
        for path in paths {
            let path =
                path.canonicalize().with_context(|| format!("cannot watch {}", pinfold::text::printable_path(path)))?;
            let (directory, file) = match path.parent() {
                Some(parent) if !path.is_dir() => (parent.to_owned(), Some(path.clone())),
                _ => (path, None),
            };
            let ignored = Ignored::new(&directory, globs)?;
            files.roots.push(Root { directory: directory.clone(), file, ignored });
            let last = files.roots.len() - 1;
            files.add(last, &directory)?;
        }
        Ok((files, events))
    }

    /// The files that have changed by this event and that matter. New directories are watched from now on.
    pub fn changed(&mut self, event: notify::Result<Event>) -> Result<Vec<PathBuf>> {
        let event = event.map_err(|error| explain(error, Path::new("")))?;
        let mut changed = Vec::new();
        if event.need_rescan() {
            // More has happened than the kernel's queue holds (fs.inotify.max_queued_events).
            for root in 0..self.roots.len() {
                let directory = self.roots[root].directory.clone();
                self.add(root, &directory)?;
                changed.push(directory);
            }
            return Ok(changed);
        }
        let appears = match event.kind {
            EventKind::Create(CreateKind::Folder) | EventKind::Modify(ModifyKind::Name(_)) => true,
            EventKind::Create(_) | EventKind::Modify(_) | EventKind::Remove(_) => false,
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
            _ => return Ok(changed),
        };
        for path in event.paths {
            let is_dir = path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
            let was_dir = self.watched.contains(&path);
            if was_dir && !is_dir {
                if self.roots.iter().any(|root| root.directory == path) {
                    bail!("{} is gone: there is nothing to watch any more", pinfold::text::printable_path(&path));
                }
                self.forget(&path);
            }
            for root in 0..self.roots.len() {
                if is_dir && appears && self.is_below(root, &path) {
                    // It may have been filled before it was watched.
                    changed.extend(self.add(root, &path)?);
                } else if !is_dir && self.matters(root, &path, was_dir) {
                    changed.push(path.clone());
                }
            }
            for root in 0..self.roots.len() {
                if path.starts_with(&self.roots[root].directory) && self.roots[root].ignored.learn(&path) {
                    let directory = self.roots[root].directory.clone();
                    self.add(root, &directory)?;
                }
            }
        }
        Ok(changed)
    }

    fn is_below(&self, root: usize, path: &Path) -> bool {
        self.roots[root].file.is_none() && path.starts_with(&self.roots[root].directory)
    }

    fn matters(&mut self, root: usize, path: &Path, was_dir: bool) -> bool {
        let root = &mut self.roots[root];
        match &root.file {
            Some(file) => return file == path,
            None if !path.starts_with(&root.directory) => return false,
            None => {}
        }
        let extension = path.extension().unwrap_or_default();
        let named = self.extensions.is_empty() || self.extensions.iter().any(|known| extension == known.as_str());
        (named || was_dir) && !root.ignored.contains(path, was_dir)
    }

    /// Watches a directory and all below it that is not ignored; tells the files in there that matter.
    fn add(&mut self, root: usize, directory: &Path) -> Result<Vec<PathBuf>> {
        if self.roots[root].file.is_some() {
            self.add_one(directory)?;
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        if directory != self.roots[root].directory && self.roots[root].ignored.contains(directory, true) {
            return Ok(found);
        }
        // Watched before it is read, so that nothing can come in between.
        self.add_one(directory)?;
        // One that is gone again has nothing in it.
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => found.extend(self.add(root, &entry.path())?),
                _ if self.matters(root, &entry.path(), false) => found.push(entry.path()),
                _ => {}
            }
        }
        Ok(found)
    }

    fn add_one(&mut self, directory: &Path) -> Result<()> {
        if self.watched.contains(directory) {
            return Ok(());
        }
        match self.watcher.watch(directory, RecursiveMode::NonRecursive) {
            Ok(()) => {
                self.watched.insert(directory.to_owned());
                Ok(())
            }
            // It was there for a moment only.
            Err(_) if !directory.exists() => Ok(()),
            Err(error) => Err(explain(error, directory)),
        }
    }

    /// A directory has gone, and all below it: the kernel has removed the watches, or they would tell of another place.
    fn forget(&mut self, directory: &Path) {
        // Those below a directory come right after it.
        let below = self.watched.range::<Path, _>((Bound::Included(directory), Bound::Unbounded));
        let gone: Vec<PathBuf> = below.take_while(|path| path.starts_with(directory)).cloned().collect();
        for path in gone {
            // Where the kernel was first, there is none.
            let _ = self.watcher.unwatch(&path);
            self.watched.remove(&path);
        }
    }
}

/// Limits by the name of what sets them (inotify(7), user_namespaces(7)).
fn explain(error: notify::Error, directory: &Path) -> anyhow::Error {
    let at = pinfold::text::printable_path(directory);
    match &error.kind {
        ErrorKind::MaxFilesWatch => anyhow!(
            "cannot watch {at}: this user's limit on inotify watches is reached, one a directory; raise it, as root: \
             sysctl fs.inotify.max_user_watches=524288 (in a user namespace user.max_inotify_watches), or watch less \
             (-w, --ignore)"
        ),
        ErrorKind::Io(io) if io.raw_os_error() == Some(libc::EMFILE) => anyhow!(
            "cannot watch files: this user's limit on inotify instances is reached; raise it, as root: \
             sysctl fs.inotify.max_user_instances=512 (in a user namespace user.max_inotify_instances), or the limit \
             on open files is: see ulimit -n"
        ),
        ErrorKind::Io(io) => anyhow!("cannot watch {at}: {io}"),
        _ => anyhow!("cannot watch {at}: {error}"),
    }
}

//! The kernel's watches (inotify(7)): one for each directory, and one for each directory or link on the path to it.
//!
//! A watch belongs to an inode, not to a path. A directory that was removed and created again under the same name has
//! another inode, so this module stores each path with the watch descriptor that the kernel returned for it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io::{ErrorKind, Result};
use std::ops::Bound;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};

/// One `read` returns at most this many bytes: a few hundred events, so that a signal does not wait long for its turn.
const BUFFER_SIZE: usize = 16 * 1024;

/// Several parts of this program may watch one inode. With this mask, a new watch adds its events to those of the
/// others.
const SHARED: WatchMask = WatchMask::MASK_ADD.union(WatchMask::DONT_FOLLOW);

/// All events that can be a change in a directory. The mask does not contain opening and reading, so the kernel does
/// not report them.
const CONTENTS: WatchMask = SHARED
    .union(WatchMask::ONLYDIR)
    .union(WatchMask::EXCL_UNLINK)
    .union(WatchMask::CREATE)
    .union(WatchMask::DELETE)
    .union(WatchMask::MOVE)
    .union(WatchMask::MODIFY)
    .union(WatchMask::CLOSE_WRITE)
    .union(WatchMask::ATTRIB);

/// The events when the directory or the link itself is removed, replaced or moved.
const STEP: WatchMask = SHARED.union(WatchMask::DELETE_SELF).union(WatchMask::MOVE_SELF);

/// The events when a name appears in the directory.
const AWAITED: WatchMask = STEP.union(WatchMask::ONLYDIR).union(WatchMask::CREATE).union(WatchMask::MOVED_TO);

/// An event of a watch that still exists.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// The kernel's queue was full, so that events are lost.
    Overflow,
    /// A directory or a link on the path to a watched directory has changed.
    Step,
    /// Something happened to a name in a watched directory.
    Entry { path: PathBuf, mask: EventMask },
}

pub struct Watches {
    inotify: Inotify,
    paths: HashMap<WatchDescriptor, PathBuf>,
    descriptors: BTreeMap<PathBuf, WatchDescriptor>,
    steps: HashSet<WatchDescriptor>,
    awaited: HashMap<WatchDescriptor, HashSet<OsString>>,
    buffer: Box<[u8]>,
}

impl Watches {
    pub fn new() -> Result<Self> {
        Ok(Self {
            inotify: Inotify::init()?,
            paths: HashMap::new(),
            descriptors: BTreeMap::new(),
            steps: HashSet::new(),
            awaited: HashMap::new(),
            buffer: vec![0; BUFFER_SIZE].into(),
        })
    }

    /// Returns a descriptor that is readable when there are events.
    pub fn descriptor(&self) -> Result<OwnedFd> {
        self.inotify.as_fd().try_clone_to_owned()
    }

    pub fn contains(&self, directory: &Path) -> bool {
        self.descriptors.contains_key(directory)
    }

    /// Watches the contents of a directory. Returns whether it was not watched before.
    pub fn add(&mut self, directory: &Path) -> Result<bool> {
        let descriptor = self.inotify.watches().add(directory, CONTENTS)?;
        match self.descriptors.get(directory) {
            Some(known) if *known == descriptor => return Ok(false),
            // The watched directory at this path was another one, and so was everything below it.
            Some(_) => self.forget(directory),
            None => {}
        }
        if let Some(earlier) = self.paths.insert(descriptor.clone(), directory.to_owned()) {
            self.descriptors.remove(&earlier);
        }
        self.descriptors.insert(directory.to_owned(), descriptor);
        Ok(true)
    }

    /// Removes the watches of a directory and of the directories below it.
    pub fn forget(&mut self, directory: &Path) {
        // In this order, the directories below a directory come directly after it.
        let below = self.descriptors.range::<Path, _>((Bound::Included(directory), Bound::Unbounded));
        let gone: Vec<PathBuf> =
            below.map(|(path, _)| path).take_while(|path| path.starts_with(directory)).cloned().collect();
        for path in gone {
            self.forget_one(&path);
        }
    }

    /// Removes the watches of all directories except these.
    pub fn retain(&mut self, wanted: &HashSet<PathBuf>) {
        let gone: Vec<PathBuf> = self.descriptors.keys().filter(|path| !wanted.contains(*path)).cloned().collect();
        for path in gone {
            self.forget_one(&path);
        }
    }

    fn forget_one(&mut self, path: &Path) {
        let Some(descriptor) = self.descriptors.remove(path) else { return };
        self.paths.remove(&descriptor);
        self.remove_unused(descriptor);
    }

    /// Replaces the watched steps with `steps`. `missing` contains names that do not exist yet, and the directories in
    /// which they have to appear.
    ///
    /// This leaves out a step that cannot be watched: a directory that this user may enter but not read.
    pub fn set_steps<'a>(
        &mut self,
        steps: impl IntoIterator<Item = &'a Path>,
        missing: impl IntoIterator<Item = (&'a Path, &'a OsStr)>,
    ) {
        let earlier: Vec<_> =
            self.steps.drain().chain(self.awaited.drain().map(|(descriptor, _)| descriptor)).collect();
        for step in steps {
            if let Ok(descriptor) = self.inotify.watches().add(step, STEP) {
                self.steps.insert(descriptor);
            }
        }
        for (directory, name) in missing {
            if let Ok(descriptor) = self.inotify.watches().add(directory, AWAITED) {
                self.awaited.entry(descriptor).or_default().insert(name.to_owned());
            }
        }
        for descriptor in earlier {
            self.remove_unused(descriptor);
        }
    }

    fn remove_unused(&mut self, descriptor: WatchDescriptor) {
        let used = self.paths.contains_key(&descriptor)
            || self.steps.contains(&descriptor)
            || self.awaited.contains_key(&descriptor);
        if !used {
            // This fails if the inode is gone, because the kernel has already removed the watch.
            let _ = self.inotify.watches().remove(descriptor);
        }
    }

    /// Returns the events of one read; `None` if the queue is empty.
    pub fn read(&mut self) -> Result<Option<Vec<Event>>> {
        let events = match self.inotify.read_events(&mut self.buffer) {
            Ok(events) => events,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut known = Vec::new();
        for event in events {
            let (descriptor, mask) = (event.wd, event.mask);
            if mask.contains(EventMask::Q_OVERFLOW) {
                known.push(Event::Overflow);
                continue;
            }
            let of_itself = EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::UNMOUNT | EventMask::IGNORED;
            let appears = mask.intersects(EventMask::CREATE | EventMask::MOVED_TO);
            let awaited = self.awaited.get(&descriptor);
            if (mask.intersects(of_itself) && (self.steps.contains(&descriptor) || awaited.is_some()))
                || (appears && event.name.is_some_and(|name| awaited.is_some_and(|names| names.contains(name))))
            {
                known.push(Event::Step);
            }
            if let (Some(directory), Some(name)) = (self.paths.get(&descriptor), event.name) {
                known.push(Event::Entry { path: directory.join(name), mask });
            }
            if mask.contains(EventMask::IGNORED) {
                // The kernel has removed this watch.
                self.steps.remove(&descriptor);
                self.awaited.remove(&descriptor);
                if let Some(path) = self.paths.remove(&descriptor)
                    && self.descriptors.get(&path) == Some(&descriptor)
                {
                    self.descriptors.remove(&path);
                }
            }
        }
        Ok(Some(known))
    }
}

//! Removes what a job left in its private tmp: by descriptors only, in linear time, and in steps.
//!
//! The job chose the names, the modes and the depth of what is there. So the removal never follows a symbolic link and
//! never uses a path with more than one part. A directory that is not empty is first moved to the top, beside the
//! private tmp. So only two directories are open at a time, however deep the tree is, and no `..` is ever used.

use std::collections::VecDeque;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::fs::{AtFlags, Dir, FileType, renameat, statat, unlinkat};
use rustix::io::{Errno, Result};

use super::directory::{open_directory, remove_directory};

/// The maximum number of times that a directory is listed. A file system can omit entries from a listing while other
/// entries are removed, so one listing is not always enough. Without a limit, a process that makes files there could
/// keep the removal from ending.
const LISTINGS: u32 = 16;

/// The bytes in one block of `st_blocks` (stat(3type)).
const BLOCK: u64 = 512;

/// The removal of directories in one place.
pub(crate) struct Removal {
    /// The directory that contains them. No job can make files in it.
    place: OwnedFd,
    /// The directories in the place that are still to be removed. The last one is next.
    pending: VecDeque<CString>,
    open: Option<Listing>,
    /// Makes names for the directories that are moved to the place.
    moved: u64,
    prefix: String,
    bytes: u64,
    failed: Option<(CString, Errno)>,
}

/// A directory that is being emptied.
struct Listing {
    name: CString,
    entries: Dir,
    listings: u32,
    /// Entries that this listing has removed or moved.
    removed: u64,
    failed: Option<Errno>,
}

/// The result of removing an entry.
enum Entry {
    Gone,
    /// It is a directory that can't be moved yet: first, other directories must be removed.
    Later,
}

impl Removal {
    /// Begins to remove the directories `names` from `place`. `prefix` is for names in `place` that no other removal
    /// uses.
    pub fn new(place: OwnedFd, names: impl IntoIterator<Item = CString>, prefix: String) -> Self {
        let pending = names.into_iter().collect();
        Self { place, pending, open: None, moved: 0, prefix, bytes: 0, failed: None }
    }

    /// Continues the removal for a while, until about the time `until`. Returns whether the removal is over. A single
    /// system call can take longer: the kernel frees all blocks of a big file at once.
    pub fn step(&mut self, until: Option<Instant>) -> bool {
        loop {
            if self.open.is_none() && !self.open_next() {
                return true;
            }
            self.remove_entries(until);
            if until.is_some_and(|until| Instant::now() >= until) {
                return self.open.is_none() && self.pending.is_empty();
            }
        }
    }

    /// Returns how many bytes were allocated to the removed files. A file with several names counts once.
    ///
    /// # Errors
    /// The first directory that could not be removed, by its name in the place, and the reason.
    pub fn result(self) -> std::result::Result<u64, (CString, Errno)> {
        self.failed.map_or(Ok(self.bytes), Err)
    }

    /// Opens the next directory that is not empty. Returns `false` if all are removed.
    fn open_next(&mut self) -> bool {
        while let Some(name) = self.pending.pop_back() {
            match self.open_one(&name) {
                Ok(None) => {}
                Ok(Some(entries)) => {
                    self.open = Some(Listing { name, entries, listings: 1, removed: 0, failed: None });
                    return true;
                }
                Err(errno) => self.fail(name, errno),
            }
        }
        false
    }

    fn fail(&mut self, name: CString, errno: Errno) {
        self.failed.get_or_insert((name, errno));
    }

    /// Removes the directory if it is empty, otherwise opens it.
    fn open_one(&self, name: &CStr) -> Result<Option<Dir>> {
        match remove_directory(self.place.as_fd(), name) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            // Normally there are only directories here.
            Err(Errno::NOTDIR) => return unlinkat(&self.place, name, AtFlags::empty()).map(|()| None),
            done => return done.map(|()| None),
        }
        match open_directory(self.place.as_fd(), name) {
            // The guard and the supervisor can both remove the same directories.
            Err(Errno::NOENT) => Ok(None),
            opened => Dir::new(opened?).map(Some),
        }
    }

    /// Removes the entries of the open directory, then the directory itself.
    fn remove_entries(&mut self, until: Option<Instant>) {
        let Some(mut listing) = self.open.take() else { return };
        let mut count = 0_u32;
        loop {
            // The clock is read rarely, because reading it takes time too.
            count += 1;
            if count.is_multiple_of(16) && until.is_some_and(|until| Instant::now() >= until) {
                self.open = Some(listing);
                return;
            }
            match listing.entries.read() {
                Some(Ok(entry)) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
                Some(Ok(entry)) => {
                    let dir = listing.entries.fd();
                    match dir.and_then(|dir| self.remove_entry(dir, entry.file_name(), entry.file_type())) {
                        Ok(Entry::Gone) => listing.removed += 1,
                        Ok(Entry::Later) => {
                            self.pending.push_front(listing.name);
                            return;
                        }
                        Err(errno) => {
                            listing.failed.get_or_insert(errno);
                        }
                    }
                }
                // The directory itself is gone.
                None | Some(Err(Errno::NOENT)) => match remove_directory(self.place.as_fd(), &listing.name) {
                    Ok(()) => return,
                    Err(Errno::NOTEMPTY | Errno::EXIST) if listing.removed > 0 && listing.listings < LISTINGS => {
                        (listing.listings, listing.removed) = (listing.listings + 1, 0);
                        listing.entries.rewind();
                    }
                    Err(errno) => return self.fail(listing.name, listing.failed.unwrap_or(errno)),
                },
                Some(Err(errno)) => return self.fail(listing.name, errno),
            }
        }
    }

    /// Removes a file or an empty directory, or moves a directory to the place.
    fn remove_entry(&mut self, dir: BorrowedFd<'_>, name: &CStr, kind: FileType) -> Result<Entry> {
        if kind != FileType::Directory {
            let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW);
            match unlinkat(dir, name, AtFlags::empty()) {
                Ok(()) => {
                    let last_name = stat.ok().filter(|stat| stat.st_nlink <= 1);
                    self.bytes += last_name.map_or(0, |stat| stat.st_blocks.cast_unsigned() * BLOCK);
                    return Ok(Entry::Gone);
                }
                Err(Errno::NOENT) => return Ok(Entry::Gone),
                // The file system did not report that it is a directory.
                Err(Errno::ISDIR) => {}
                Err(errno) => return Err(errno),
            }
        }
        match remove_directory(dir, name) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => self.move_to_place(dir, name),
            done => done.map(|()| Entry::Gone),
        }
    }

    /// Tries to move a directory. Returns its new name.
    fn move_once(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> Result<(CString, Result<()>)> {
        self.moved += 1;
        let fresh = CString::new(format!("{}{}", self.prefix, self.moved)).map_err(|_| Errno::INVAL)?;
        let moved = renameat(dir, name, &self.place, &fresh);
        Ok((fresh, moved))
    }

    fn move_to_place(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> Result<Entry> {
        let (mut fresh, mut moved) = self.move_once(dir, name)?;
        if moved == Err(Errno::ACCESS) {
            // The move changes the directory's `..`, so it needs permission to write to the directory (rename(2)).
            open_directory(dir, name)?;
            (fresh, moved) = self.move_once(dir, name)?;
        }
        while matches!(moved, Err(Errno::NOTEMPTY | Errno::EXIST)) {
            // The name is in use: an earlier process with the same pid was killed during its removal.
            (fresh, moved) = self.move_once(dir, name)?;
        }
        match moved {
            Ok(()) => {
                self.pending.push_back(fresh);
                Ok(Entry::Gone)
            }
            Err(Errno::NOENT) => Ok(Entry::Gone),
            // The place has room again when the other directories have been removed.
            Err(Errno::MLINK | Errno::NOSPC | Errno::DQUOT) if !self.pending.is_empty() => Ok(Entry::Later),
            Err(errno) => Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};

    use super::*;

    /// A place with a directory `tmp` in it, and a directory beside it that must stay as it is.
    struct Place {
        top: PathBuf,
        dir: OwnedFd,
    }

    impl Place {
        fn new(name: &str) -> Self {
            let top = std::env::temp_dir().join(format!("pinfold-removal-{name}-{}", std::process::id()));
            std::fs::create_dir_all(top.join("place/tmp")).unwrap();
            std::fs::create_dir(top.join("outside")).unwrap();
            std::fs::write(top.join("outside/file"), "kept").unwrap();
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let dir = openat(CWD, top.join("place"), flags, Mode::empty()).unwrap();
            Self { top, dir }
        }

        fn tmp(&self) -> PathBuf {
            self.top.join("place/tmp")
        }

        fn removal(&self) -> Removal {
            Removal::new(self.dir.try_clone().unwrap(), [c"tmp".to_owned()], "moved-".into())
        }

        fn remove(&self) -> std::result::Result<u64, (CString, Errno)> {
            let mut removal = self.removal();
            assert!(removal.step(None));
            removal.result()
        }

        fn is_empty(&self) -> bool {
            std::fs::read_dir(self.top.join("place")).unwrap().next().is_none()
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            assert_eq!(std::fs::read_to_string(self.top.join("outside/file")).unwrap(), "kept");
            std::fs::remove_dir_all(&self.top).unwrap();
        }
    }

    #[test]
    fn links_are_removed_and_never_followed() {
        let place = Place::new("links");
        let outside = place.top.join("outside");
        symlink(&outside, place.tmp().join("to-directory")).unwrap();
        symlink(outside.join("file"), place.tmp().join("to-file")).unwrap();
        std::fs::create_dir(place.tmp().join("below")).unwrap();
        symlink("../../../outside", place.tmp().join("below/up")).unwrap();
        std::fs::hard_link(outside.join("file"), place.tmp().join("hard")).unwrap();
        assert_eq!(place.remove(), Ok(0));
        assert!(place.is_empty());
        // The tmp itself can be a link, if another process of the same user replaced it.
        symlink(&outside, place.tmp()).unwrap();
        assert_eq!(place.remove(), Ok(0));
        assert!(place.is_empty() && outside.join("file").exists());
    }

    #[test]
    fn a_deep_tree_is_removed() {
        const DEPTH: u32 = 3000;
        let place = Place::new("deep");
        let mut dir = place.dir.try_clone().unwrap();
        let mut name = c"tmp";
        for _ in 0..DEPTH {
            dir = openat(&dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
            name = c"a-name-that-makes-the-path-longer-than-PATH_MAX";
            mkdirat(&dir, name, Mode::RWXU).unwrap();
        }
        assert_eq!(place.remove(), Ok(0));
        assert!(place.is_empty());
    }

    /// As an ordinary user; root ignores modes.
    #[test]
    fn directories_without_rights_are_removed() {
        let place = Place::new("modes");
        for path in ["a/b/c", "a/d", "e"] {
            std::fs::create_dir_all(place.tmp().join(path)).unwrap();
            std::fs::write(place.tmp().join(path).join("file"), "text").unwrap();
        }
        for path in ["a/b/c", "a/b", "a/d", "a", "e", ""] {
            let mode = if path == "e" { 0o500 } else { 0 };
            std::fs::set_permissions(place.tmp().join(path), PermissionsExt::from_mode(mode)).unwrap();
        }
        assert!(place.remove().is_ok());
        assert!(place.is_empty());
    }

    #[test]
    fn bytes_are_counted_once_for_each_file() {
        let place = Place::new("bytes");
        std::fs::create_dir(place.tmp().join("below")).unwrap();
        std::fs::write(place.tmp().join("below/one"), vec![1; 64 * 1024]).unwrap();
        std::fs::hard_link(place.tmp().join("below/one"), place.tmp().join("two")).unwrap();
        // A hole takes no space.
        std::fs::File::create(place.tmp().join("sparse")).unwrap().set_len(1 << 30).unwrap();
        let bytes = place.remove().unwrap();
        assert!((64 * 1024..128 * 1024).contains(&bytes), "{bytes}");
    }

    #[test]
    fn many_files_are_removed_in_steps() {
        const FILES: u32 = 20_000;
        let place = Place::new("steps");
        for number in 0..FILES {
            let directory = place.tmp().join((number / 100).to_string());
            std::fs::create_dir_all(&directory).unwrap();
            std::fs::File::create(directory.join(number.to_string())).unwrap();
        }
        let mut removal = place.removal();
        let mut steps = 1;
        while !removal.step(Some(Instant::now() + Duration::from_micros(500))) {
            steps += 1;
        }
        assert_eq!(removal.result(), Ok(0));
        assert!(place.is_empty() && steps > 2, "{steps} steps");
    }

    #[test]
    fn a_directory_that_another_removal_has_taken_is_no_error() {
        let place = Place::new("gone");
        std::fs::remove_dir(place.tmp()).unwrap();
        assert_eq!(place.remove(), Ok(0));
        assert!(Path::new(&place.top).exists());
    }
}

//! Files of a test.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::users::{NOBODY, is_root};

/// A directory that belongs to the user of the jobs. Removed when this value is dropped.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("pinfold-sandbox-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        let scratch = Self(path);
        give_away(scratch.path());
        scratch
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn at(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    /// Makes a file that belongs to the user of the jobs.
    pub fn file(&self, name: &str, mode: u32) -> String {
        let path = self.at(name);
        std::fs::write(&path, "a secret").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        give_away(Path::new(&path));
        path
    }

    pub fn directory(&self, name: &str) -> String {
        let path = self.at(name);
        std::fs::create_dir(&path).unwrap();
        give_away(Path::new(&path));
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn give_away(path: &Path) {
    if is_root() {
        std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
}

//! The directories and symbolic links that lead from a path of the user to the directory or file that it refers to.
//!
//! Releases are often switched with a symbolic link (`current`, or `..data` of a Kubernetes volume). So pinfold
//! remembers each step on the path, and follows the path again when a step changes.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::path::{Component, Path, PathBuf};

/// The maximum number of links that the kernel follows in one path (path_resolution(7)).
const MAX_LINKS: usize = 40;

#[derive(Debug, PartialEq, Eq)]
pub struct Route {
    /// All directories and links on the path. The path of each of these contains no other link.
    pub steps: Vec<PathBuf>,
    pub end: End,
}

#[derive(Debug, PartialEq, Eq)]
pub enum End {
    Directory(PathBuf),
    /// Anything except a directory.
    File(PathBuf),
    /// The name does not exist in the directory.
    Missing {
        directory: PathBuf,
        name: OsString,
    },
}

impl Route {
    /// Follows an absolute path.
    pub fn of(path: &Path) -> Self {
        let mut steps = Vec::new();
        let mut at = PathBuf::from("/");
        let mut rest: VecDeque<OsString> = parts(path).collect();
        let mut links = 0;
        let mut is_directory = true;
        while let Some(part) = rest.pop_front() {
            if part == ".." {
                at.pop();
                is_directory = true;
                continue;
            }
            let next = at.join(&part);
            // pinfold treats a name that this user may not examine as missing.
            let Ok(metadata) = next.symlink_metadata() else {
                return Self { steps, end: End::Missing { directory: at, name: part } };
            };
            if metadata.is_symlink() {
                links += 1;
                let Some(target) = std::fs::read_link(&next).ok().filter(|_| links <= MAX_LINKS) else {
                    return Self { steps, end: End::Missing { directory: at, name: part } };
                };
                steps.push(next);
                if target.is_absolute() {
                    at = PathBuf::from("/");
                }
                for part in parts(&target).collect::<Vec<_>>().into_iter().rev() {
                    rest.push_front(part);
                }
                is_directory = true;
                continue;
            }
            is_directory = metadata.is_dir();
            if is_directory || !rest.is_empty() {
                steps.push(next.clone());
            }
            at = next;
        }
        let end = if is_directory { End::Directory(at) } else { End::File(at) };
        Self { steps, end }
    }

    /// Returns the name that is missing, and the directory in which it has to appear.
    pub fn missing(&self) -> Option<(&Path, &OsStr)> {
        match &self.end {
            End::Missing { directory, name } => Some((directory, name)),
            _ => None,
        }
    }
}

fn parts(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_and_missing_names() {
        let root = std::env::temp_dir().join(format!("pinfold-route-{}", std::process::id()));
        std::fs::create_dir_all(root.join("releases/1")).unwrap();
        let root = root.canonicalize().unwrap();
        std::fs::write(root.join("releases/1/file"), "").unwrap();
        symlink("releases/1", root.join("current")).unwrap();
        symlink("current/file", root.join("file")).unwrap();
        symlink(root.join("nothing/there"), root.join("dangling")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        let of = |path: &str| Route::of(&root.join(path));
        let file = root.join("releases/1/file");
        for path in ["file", "current/file", "current/../1/file", "releases/./1/../1/file"] {
            assert_eq!(of(path).end, End::File(file.clone()), "{path}");
        }
        for step in ["file", "current", "releases", "releases/1"] {
            assert!(of("file").steps.contains(&root.join(step)), "{step}: {:?}", of("file"));
        }
        assert!(!of("file").steps.contains(&file));
        assert_eq!(of("current").end, End::Directory(root.join("releases/1")));
        let missing = |name: &str| End::Missing { directory: root.clone(), name: name.into() };
        assert_eq!(of("dangling").end, missing("nothing"));
        assert_eq!(of("nosuch/deeper").end, missing("nosuch"));
        assert_eq!(of("loop").end, missing("loop"));
        assert_eq!(Route::of(Path::new("/")).end, End::Directory("/".into()));
        std::fs::remove_dir_all(&root).unwrap();
    }
}

//! Decides which paths to ignore: those that git ignores, temporary files of editors and file systems, and those of
//! `--ignore`.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder, gitconfig_excludes_path};

/// The directories of version control systems.
const REPOSITORIES: [&str; 5] = [".git", ".hg", ".jj", ".svn", ".bzr"];

/// Files that editors write beside an open file, that NFS and FUSE keep for a removed file, and that file managers
/// leave behind. A `#` at the beginning has a backslash, because in this syntax it would begin a comment.
const TEMPORARY: [&str; 15] = [
    "*~",
    ".*.sw[a-p]",
    ".*.sw[a-p]x",
    ".#*",
    r"\#*#",
    ".*.kate-swp",
    ".goutputstream-*",
    "4913",
    "*___jb_tmp___",
    "*___jb_old___",
    ".~lock.*#",
    ".nfs*",
    ".fuse_hidden*",
    ".DS_Store",
    "._.DS_Store",
];

/// The names of files with rules, which may be in any directory of the tree.
const RULES: [&str; 2] = [".gitignore", ".ignore"];

/// The rules for the paths below one directory.
pub struct Ignored {
    root: PathBuf,
    /// The rules of `--ignore`, and [`TEMPORARY`].
    options: Gitignore,
    /// The top directory of the repository, or the root if there is no repository.
    top: PathBuf,
    everywhere: Vec<Gitignore>,
    by_directory: HashMap<PathBuf, Gitignore>,
    /// The files with rules that are outside of the root, and the version in which pinfold has read each of them.
    outside: Vec<(PathBuf, Option<Version>)>,
}

/// The inode, the size and the time of a file: a file that was written or replaced has another version. For `.git` all
/// four values are 0.
type Version = (u64, u64, i64, i64);

impl Ignored {
    /// Creates the rules for the directory `root`, and reads the files with rules. `globs` have the syntax of lines in
    /// a .gitignore.
    pub fn new(root: &Path, globs: &[String]) -> Result<Self> {
        let mut options = GitignoreBuilder::new(root);
        for glob in TEMPORARY.into_iter().chain(globs.iter().map(String::as_str)) {
            if glob.trim().is_empty() || glob.starts_with('#') {
                bail!("--ignore '{glob}' matches nothing: in a .gitignore this line is a comment; write '\\{glob}'");
            }
            options.add_line(None, glob).with_context(|| format!("--ignore {glob}"))?;
        }
        let options = options.build().context("--ignore")?;
        let mut ignored = Self {
            root: root.to_owned(),
            options,
            top: root.to_owned(),
            everywhere: Vec::new(),
            by_directory: HashMap::new(),
            outside: Vec::new(),
        };
        ignored.read();
        Ok(ignored)
    }

    /// Finds the repository and reads the rules that apply everywhere in it.
    fn read(&mut self) {
        let root = self.root.as_path();
        self.top = root.ancestors().find(|at| at.join(".git").exists()).unwrap_or(root).to_owned();
        let exclude = git_directory(&self.top.join(".git")).map(|git| git.join("info/exclude"));
        let of_user = gitconfig_excludes_path();
        self.by_directory.clear();
        self.everywhere.clear();
        for file in [exclude.as_ref(), of_user.as_ref()].into_iter().flatten() {
            let mut rules = GitignoreBuilder::new(&self.top);
            // An error means that the file is missing or that a line is invalid. Neither adds a rule.
            let _ = rules.add(file);
            self.everywhere.extend(rules.build());
        }
        let mut outside: Vec<PathBuf> = exclude.into_iter().chain(of_user).collect();
        for directory in root.ancestors().take_while(|directory| directory.starts_with(&self.top)).skip(1) {
            outside.extend(RULES.map(|name| directory.join(name)));
        }
        outside.extend(root.ancestors().map(|directory| directory.join(".git")));
        self.outside =
            outside.into_iter().map(|file| (version(&file), file)).map(|(version, file)| (file, version)).collect();
    }

    /// Returns whether a path is ignored. The path must be below the root, and the directories between the root and the
    /// path must not be ignored.
    pub fn contains(&mut self, path: &Path, is_dir: bool) -> bool {
        let Ok(below) = path.strip_prefix(&self.root) else { return false };
        let Some(name) = below.file_name() else { return false };
        if REPOSITORIES.iter().any(|repository| name == *repository) || self.options.matched(below, is_dir).is_ignore()
        {
            return true;
        }
        // The deepest directory that has a rule for this path decides (gitignore(5)).
        let top = self.top.clone();
        for directory in path.ancestors().skip(1).take_while(|directory| directory.starts_with(&top)) {
            match self.rules_of(directory).matched(path, is_dir) {
                Match::None => {}
                found => return found.is_ignore(),
            }
        }
        let everywhere = self.everywhere.iter().map(|rules| rules.matched(path, is_dir));
        everywhere.into_iter().find(|found| !found.is_none()).is_some_and(|found| found.is_ignore())
    }

    /// Returns whether a path or a directory between the root and the path is ignored: all files in an ignored
    /// directory are ignored (gitignore(5)).
    pub fn contains_or_its_parents(&mut self, path: &Path, is_dir: bool) -> bool {
        let root = self.root.clone();
        let parents: Vec<&Path> = path.ancestors().skip(1).take_while(|directory| *directory != root).collect();
        path.starts_with(&root)
            && (parents.into_iter().rev().any(|directory| self.contains(directory, true))
                || self.contains(path, is_dir))
    }

    fn rules_of(&mut self, directory: &Path) -> &Gitignore {
        if !self.by_directory.contains_key(directory) {
            let mut rules = GitignoreBuilder::new(directory);
            for name in RULES {
                // An error means that the file is missing or that a line is invalid. Neither adds a rule.
                let _ = rules.add(directory.join(name));
            }
            self.by_directory.insert(directory.to_owned(), rules.build().unwrap_or_else(|_| Gitignore::empty()));
        }
        &self.by_directory[directory]
    }

    /// Records that the entry `path` of a directory has changed. Returns whether this may have changed the rules.
    pub fn learn(&mut self, path: &Path) -> bool {
        let Some(name) = path.file_name().filter(|_| path.starts_with(&self.root)) else { return false };
        if RULES.iter().any(|rules| name == *rules) {
            self.by_directory.clear();
            return true;
        }
        false
    }

    /// Checks the files with rules that are outside of the root, for which there are no events. Returns whether one has
    /// changed.
    pub fn learn_outside(&mut self) -> bool {
        let changed = self.outside.iter().any(|(file, known)| version(file) != *known);
        if changed {
            self.read();
        }
        changed
    }
}

fn version(file: &Path) -> Option<Version> {
    let found = file.metadata().ok()?;
    if file.ends_with(".git") {
        // Only the existence of `.git` matters: every git command writes in it.
        return Some((0, 0, 0, 0));
    }
    Some((found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
}

/// Returns the directory of git's own files to which `.git` refers. In a work tree and in a submodule, `.git` is a file
/// with the path of that directory. A work tree shares the rules of the main work tree, whose directory is named in the
/// file `commondir` (gitrepository-layout(5)).
fn git_directory(git: &Path) -> Option<PathBuf> {
    if git.is_dir() {
        return Some(git.to_owned());
    }
    let text = std::fs::read_to_string(git).ok()?;
    let directory = git.parent()?.join(text.strip_prefix("gitdir:")?.trim());
    match std::fs::read_to_string(directory.join("commondir")) {
        Ok(common) => Some(directory.join(common.trim())),
        Err(_) => Some(directory),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_git_and_of_pinfold() {
        let root = std::env::temp_dir().join(format!("pinfold-ignored-{}", std::process::id()));
        std::fs::create_dir_all(root.join("sub/.git/x")).unwrap();
        std::fs::create_dir_all(root.join(".git/info")).unwrap();
        std::fs::write(root.join(".gitignore"), "/target\n*.log\n!keep.log\nbuild/\n").unwrap();
        std::fs::write(root.join("sub/.gitignore"), "!special.log\n").unwrap();
        std::fs::write(root.join(".git/info/exclude"), "mine\n").unwrap();
        let mut ignored = Ignored::new(&root, &["*.tmp".into(), "/gen".into()]).unwrap();
        let mut is =
            |path: &str| ignored.contains_or_its_parents(&root.join(path.trim_end_matches('/')), path.ends_with('/'));
        for path in [
            "target/",
            "a.log",
            "sub/a.log",
            "build/",
            "mine",
            ".git",
            ".git/index",
            "sub/.git/x",
            "x.tmp",
            "gen/",
            "gen/deep/file",
            ".a.rs.swp",
            "a.rs~",
            "4913",
            ".#a.rs",
            "#a.rs#",
            "a.rs___jb_tmp___",
            ".~lock.a.odt#",
            ".nfs0000000000a1b2c300000001",
            "sub/.DS_Store",
            "build/deep/a.rs",
        ] {
            assert!(is(path), "{path}");
        }
        for path in [
            "a.rs",
            "keep.log",
            "sub/special.log",
            "sub/target",
            "build",
            "sub/gen",
            ".gitignore",
            "swp",
            "#a.rs",
            "a#",
        ] {
            assert!(!is(path), "{path}");
        }
        for glob in ["#x", "", " "] {
            assert!(Ignored::new(&root, &[glob.into()]).is_err(), "{glob}");
        }
        std::fs::remove_dir_all(&root).unwrap();
    }

    /// In a work tree and in a submodule, `.git` is a file.
    #[test]
    fn dot_git_is_a_file() {
        let root = std::env::temp_dir().join(format!("pinfold-git-file-{}", std::process::id()));
        for directory in ["main/.git/info", "main/.git/worktrees/w", "main/.git/modules/s/info", "w/src", "main/s"] {
            std::fs::create_dir_all(root.join(directory)).unwrap();
        }
        std::fs::write(root.join("w/.git"), format!("gitdir: {}\n", root.join("main/.git/worktrees/w").display()))
            .unwrap();
        std::fs::write(root.join("main/.git/worktrees/w/commondir"), "../..\n").unwrap();
        std::fs::write(root.join("main/s/.git"), "gitdir: ../.git/modules/s\n").unwrap();
        std::fs::write(root.join("main/.git/info/exclude"), "of-main\n").unwrap();
        std::fs::write(root.join("main/.git/modules/s/info/exclude"), "of-module\n").unwrap();
        for (directory, name, other) in
            [("w", "of-main", "x"), ("w/src", "of-main", "x"), ("main/s", "of-module", "of-main")]
        {
            let directory = root.join(directory);
            let mut ignored = Ignored::new(&directory, &[]).unwrap();
            assert!(ignored.contains(&directory.join(name), false), "{directory:?} {name}");
            assert!(!ignored.contains(&directory.join(other), false), "{directory:?} {other}");
        }
        // pinfold reads the rules above the watched directory again when they change.
        let directory = root.join("w/src");
        let mut ignored = Ignored::new(&directory, &[]).unwrap();
        assert!(!ignored.learn_outside());
        std::fs::write(root.join("w/.gitignore"), "new\n").unwrap();
        assert!(ignored.learn_outside() && ignored.contains(&directory.join("new"), true) && !ignored.learn_outside());
        std::fs::remove_dir_all(&root).unwrap();
    }
}

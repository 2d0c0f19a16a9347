//! Which paths do not matter: what git ignores, what editors and file systems make for a moment, and what `--ignore` names.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder, gitconfig_excludes_path};

/// Version control keeps these for itself.
const REPOSITORIES: [&str; 5] = [".git", ".hg", ".jj", ".svn", ".bzr"];

/// What editors write beside an open file, what NFS and FUSE keep of a removed one, and what file managers leave. In this
/// syntax a `#` at the beginning is a comment.
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

/// Files with rules, in any directory of the tree.
const RULES: [&str; 2] = [".gitignore", ".ignore"];

/// The rules for what is below one directory.
pub struct Ignored {
    root: PathBuf,
    asked: Gitignore,
    /// Where the repository begins, or the root.
    top: PathBuf,
    everywhere: Vec<Gitignore>,
    by_directory: HashMap<PathBuf, Gitignore>,
    /// The files with rules that are outside of the root, and what they were like.
    outside: Vec<(PathBuf, Option<Version>)>,
}

/// Inode, size and times: a file that was written or replaced has another one. `.git` has none of the three numbers.
type Version = (u64, u64, i64, i64);

impl Ignored {
    /// `globs` are written as lines of a .gitignore.
    pub fn new(root: &Path, globs: &[String]) -> Result<Self> {
        let mut asked = GitignoreBuilder::new(root);
        for glob in TEMPORARY.into_iter().chain(globs.iter().map(String::as_str)) {
            if glob.trim().is_empty() || glob.starts_with('#') {
                bail!("--ignore '{glob}' names nothing: in a .gitignore this line is a comment; write '\\{glob}'");
            }
            asked.add_line(None, glob).with_context(|| format!("--ignore {glob}"))?;
        }
        let asked = asked.build().context("--ignore")?;
        let mut ignored = Self {
            root: root.to_owned(),
            asked,
            top: root.to_owned(),
            everywhere: Vec::new(),
            by_directory: HashMap::new(),
            outside: Vec::new(),
        };
        ignored.read();
        Ok(ignored)
    }

    /// Finds the repository and reads the rules that hold everywhere in it.
    fn read(&mut self) {
        let root = self.root.as_path();
        self.top = root.ancestors().find(|at| at.join(".git").exists()).unwrap_or(root).to_owned();
        let exclude = git_directory(&self.top.join(".git")).map(|git| git.join("info/exclude"));
        let of_user = gitconfig_excludes_path();
        self.by_directory.clear();
        self.everywhere.clear();
        for file in [exclude.as_ref(), of_user.as_ref()].into_iter().flatten() {
            let mut rules = GitignoreBuilder::new(&self.top);
            // A missing file has no rules, nor does a line that is invalid.
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

    /// Whether the path does not matter. It is below the root, and the directories between matter.
    pub fn contains(&mut self, path: &Path, is_dir: bool) -> bool {
        let Ok(below) = path.strip_prefix(&self.root) else { return false };
        let Some(name) = below.file_name() else { return false };
        if REPOSITORIES.iter().any(|repository| name == *repository) || self.asked.matched(below, is_dir).is_ignore() {
            return true;
        }
        // The deepest directory that has a rule for it decides (gitignore(5)).
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

    /// The same, and looks at the directories between too: a file in an ignored directory is ignored (gitignore(5)).
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
                // A missing file has no rules, nor does a line that is invalid.
                let _ = rules.add(directory.join(name));
            }
            self.by_directory.insert(directory.to_owned(), rules.build().unwrap_or_else(|_| Gitignore::empty()));
        }
        &self.by_directory[directory]
    }

    /// An entry of a directory has changed. Returns whether the rules may be others now.
    pub fn learn(&mut self, path: &Path) -> bool {
        let Some(name) = path.file_name().filter(|_| path.starts_with(&self.root)) else { return false };
        if RULES.iter().any(|rules| name == *rules) {
            self.by_directory.clear();
            return true;
        }
        false
    }

    /// Looks at the files with rules that are outside of the root: no event reports them. Returns whether one has changed.
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
        // It matters whether it is there; every command of git writes in it.
        return Some((0, 0, 0, 0));
    }
    Some((found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
}

/// The directory of git's own files that `.git` stands for. In a work tree and in a submodule, `.git` is a file that names it;
/// a work tree shares the rules of the main one, which `commondir` names (gitrepository-layout(5)).
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
    fn rules_of_git_and_of_ours() {
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

    /// In a work tree and in a submodule.
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
        // The rules above the watched directory are read again when they change.
        let directory = root.join("w/src");
        let mut ignored = Ignored::new(&directory, &[]).unwrap();
        assert!(!ignored.learn_outside());
        std::fs::write(root.join("w/.gitignore"), "new\n").unwrap();
        assert!(ignored.learn_outside() && ignored.contains(&directory.join("new"), true) && !ignored.learn_outside());
        std::fs::remove_dir_all(&root).unwrap();
    }
}

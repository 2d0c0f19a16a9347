//! Which paths do not matter: what git ignores, what editors make for a moment, and what was asked for.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};

/// Kept by version control for itself.
const REPOSITORIES: [&str; 5] = [".git", ".hg", ".jj", ".svn", ".bzr"];

/// What editors write beside a file that is open: opening one is no change.
const EDITORS: [&str; 8] = ["*~", ".*.sw[a-p]", ".*.sw[a-p]x", ".#*", "#*#", ".*.kate-swp", ".goutputstream-*", "4913"];

/// The rules for what is below one directory.
pub struct Ignored {
    root: PathBuf,
    /// Where the repository begins, or the root.
    top: PathBuf,
    asked: Gitignore,
    everywhere: Vec<Gitignore>,
    by_directory: HashMap<PathBuf, Gitignore>,
}

impl Ignored {
    /// `globs` are written as lines of a .gitignore.
    pub fn new(root: &Path, globs: &[String]) -> Result<Self> {
        let mut asked = GitignoreBuilder::new(root);
        for glob in EDITORS.into_iter().chain(globs.iter().map(String::as_str)) {
            asked.add_line(None, glob).with_context(|| format!("--ignore {glob}"))?;
        }
        let top = root.ancestors().find(|at| at.join(".git").exists()).unwrap_or(root).to_owned();
        let mut everywhere = Vec::new();
        let mut exclude = GitignoreBuilder::new(&top);
        if exclude.add(top.join(".git/info/exclude")).is_none() {
            everywhere.extend(exclude.build());
        }
        everywhere.push(GitignoreBuilder::new(&top).build_global().0);
        let asked = asked.build().context("--ignore")?;
        Ok(Self { root: root.to_owned(), top, asked, everywhere, by_directory: HashMap::new() })
    }

    /// Whether the path, which is below the root, does not matter. Those above it are not looked at: who watches a
    /// directory has asked that they do not.
    pub fn contains(&mut self, path: &Path, is_dir: bool) -> bool {
        let Ok(below) = path.strip_prefix(&self.root) else { return false };
        if below.components().any(|part| REPOSITORIES.iter().any(|repository| part.as_os_str() == *repository)) {
            return true;
        }
        if !below.as_os_str().is_empty() && self.asked.matched_path_or_any_parents(below, is_dir).is_ignore() {
            return true;
        }
        // The deepest that knows it decides (gitignore(5)).
        let top = self.top.clone();
        for directory in path.ancestors().skip(1).take_while(|directory| directory.starts_with(&top)) {
            match self.rules_of(directory).matched(path, is_dir) {
                Match::None => {}
                found => return found.is_ignore(),
            }
        }
        self.everywhere.iter().any(|rules| rules.matched(path, is_dir).is_ignore())
    }

    fn rules_of(&mut self, directory: &Path) -> &Gitignore {
        if !self.by_directory.contains_key(directory) {
            let mut rules = GitignoreBuilder::new(directory);
            for name in [".gitignore", ".ignore"] {
                // What is not there, or a line that makes no sense, rules nothing.
                let _ = rules.add(directory.join(name));
            }
            self.by_directory.insert(directory.to_owned(), rules.build().unwrap_or_else(|_| Gitignore::empty()));
        }
        &self.by_directory[directory]
    }

    /// A file of rules has changed; whether that is what it is.
    pub fn learn(&mut self, path: &Path) -> bool {
        let is_rules = path.file_name().is_some_and(|name| name == ".gitignore" || name == ".ignore");
        if is_rules {
            self.by_directory.clear();
        }
        is_rules
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
        let mut is = |path: &str| ignored.contains(&root.join(path.trim_end_matches('/')), path.ends_with('/'));
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
        ] {
            assert!(is(path), "{path}");
        }
        for path in ["a.rs", "keep.log", "sub/special.log", "sub/target", "build", "sub/gen", ".gitignore", "swp"] {
            assert!(!is(path), "{path}");
        }
        std::fs::remove_dir_all(&root).unwrap();
    }
}

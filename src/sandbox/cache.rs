//! Filters and rulesets that are made once for all jobs of a supervisor that have the same policy.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use super::filter;
use super::machine::Machine;
use super::policy::Sandbox;
use super::private_tmp::PrivateTmpDir;
use super::rules::{self, Ruleset};
use crate::error::Result;
use crate::kernel::seccomp::Program;

/// The maximum number of policies in the cache. The limit saves memory of the kernel: a ruleset keeps the inodes of
/// all granted files and directories in memory.
const MAX_POLICIES: usize = 8;

/// The filters and rulesets of the policies that were used last.
#[derive(Debug, Default)]
pub(crate) struct Cache(Mutex<VecDeque<Entry>>);

#[derive(Clone, Debug)]
struct Entry {
    sandbox: Sandbox,
    filter: Program,
    ruleset: Option<Ruleset>,
}

impl Cache {
    /// Returns pinfold's own filter and the ruleset for the policy. A ruleset in the cache is used again only if each
    /// of its paths still leads to the same file.
    ///
    /// # Errors
    /// The same as for [`rules::ruleset`].
    pub fn parts(
        &self,
        sandbox: &Sandbox,
        machine: &Machine,
        tmp: Option<&PrivateTmpDir>,
    ) -> Result<(Program, Option<Arc<OwnedFd>>)> {
        // The ruleset of a job with a private tmp is not shared, because it gets a rule for this directory. If the
        // private tmp is mounted, the child adds this rule.
        let is_shared = sandbox.private_tmp.is_none();
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = entries.iter().position(|entry| entry.sandbox == *sandbox);
        let mut entry = known.and_then(|known| entries.remove(known)).unwrap_or_else(|| Entry {
            sandbox: sandbox.clone(),
            filter: filter::program(sandbox),
            ruleset: None,
        });
        let kept = entry.ruleset.take().filter(|ruleset| is_shared && ruleset.is_current());
        // After an error, the policy does not enter the cache.
        let ruleset = match kept {
            Some(kept) => Some(kept),
            None => rules::ruleset(sandbox, machine, tmp.map(AsFd::as_fd))?,
        };
        let parts = (entry.filter.clone(), ruleset.as_ref().map(Ruleset::descriptor));
        entry.ruleset = ruleset.filter(|_| is_shared);
        entries.push_front(entry);
        entries.truncate(MAX_POLICIES);
        Ok(parts)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn an_equal_policy_has_the_same_ruleset_until_a_path_leads_elsewhere() {
        let machine = Machine::get();
        if machine.files_but_truncate.is_err() {
            return;
        }
        let path = std::env::temp_dir().join(format!("pinfold-cache-{}", std::process::id()));
        std::fs::write(&path, "one").unwrap();
        let mut sandbox = Sandbox::new();
        sandbox.read(&path);
        let cache = Cache::default();
        let parts = |sandbox: &Sandbox| cache.parts(sandbox, machine, None).unwrap();
        let number = |sandbox: &Sandbox| parts(sandbox).1.map(|ruleset| ruleset.as_raw_fd());
        let first = parts(&sandbox);
        assert_eq!(number(&sandbox.clone()), first.1.as_ref().map(AsRawFd::as_raw_fd));
        assert_eq!(parts(&sandbox).0, first.0);
        // Another file under the same name, while the first one still exists.
        let other = path.with_extension("new");
        std::fs::write(&other, "two").unwrap();
        std::fs::rename(&other, &path).unwrap();
        let second = parts(&sandbox);
        assert_ne!(second.1.as_ref().map(AsRawFd::as_raw_fd), first.1.as_ref().map(AsRawFd::as_raw_fd));
        assert_eq!(number(&sandbox), second.1.as_ref().map(AsRawFd::as_raw_fd));
        // Another policy has another ruleset. After an error, nothing enters the cache.
        std::fs::remove_file(&path).unwrap();
        assert!(cache.parts(&sandbox, machine, None).is_err());
        assert_ne!(number(&Sandbox::new()), second.1.as_ref().map(AsRawFd::as_raw_fd));
        assert!(cache.0.lock().unwrap().len() == 1);
    }

    #[test]
    fn a_private_tmp_is_not_shared() {
        let cache = Cache::default();
        let mut sandbox = Sandbox::new();
        sandbox.private_tmp(None);
        let one = cache.parts(&sandbox, Machine::get(), None).unwrap();
        let two = cache.parts(&sandbox, Machine::get(), None).unwrap();
        assert!(one.1.is_none() || one.1.map(|one| one.as_raw_fd()) != two.1.map(|two| two.as_raw_fd()));
    }
}

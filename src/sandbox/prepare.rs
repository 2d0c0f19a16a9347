//! Prepares a sandbox in the supervisor: everything that the child only has to apply.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::apply::Confinement;
use super::cache::Cache;
use super::denials::Explainer;
use super::machine::Machine;
use super::membership::Membership;
use super::mounts::{self, Ids, View};
use super::policy::Sandbox;
use super::private_tmp::PrivateTmpDir;
use super::promise::{Circumstances, resolve};
use super::rules;
use crate::error::{Error, Result};
use crate::kernel::mount;
use crate::kernel::seccomp::Program;
use crate::report::{Profile, Promise, PromiseReport, SandboxReport};

/// A sandbox that is ready for any number of jobs.
#[derive(Debug)]
pub struct Prepared {
    /// What the child applies.
    pub confinement: Confinement,
    /// The Landlock ruleset; `None` if the kernel has no Landlock, and the promises that need it are waived.
    pub ruleset: Option<Arc<OwnedFd>>,
    pub report: SandboxReport,
    /// What another process needs to enter the sandbox. The job's user, tmp and resource limits are not in it yet.
    pub membership: Membership,
    /// The explainer of denials, if the policy requests one.
    pub explainer: Option<Arc<Explainer>>,
}

impl Prepared {
    /// Returns whether the sandbox has mounts of its own. The child must then enter its working directory by path,
    /// because a descriptor would lead to the mounts of the host.
    pub fn has_mounts(&self) -> bool {
        self.confinement.actions.contains(&mounts::Action::Private)
    }

    /// Returns whether the job has its private tmp in a mount of its own.
    pub fn has_mounted_tmp(&self) -> bool {
        self.confinement.actions.iter().any(|action| matches!(action, mounts::Action::Tmpfs { .. }))
    }
}

/// The path of the private tmp, if the job has a mount namespace.
pub const TMP: &str = "/tmp";

/// The users of a sandbox.
#[derive(Clone, Copy, Debug)]
pub struct Users {
    /// The user of the supervisor.
    pub caller: Ids,
    /// The user of the job.
    pub job: Ids,
}

impl Users {
    /// Returns the users. If `job` is `None`, the job has the user and the group of this process.
    pub fn of(job: Option<(u32, u32)>) -> Self {
        let caller = Ids { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
        Self { caller, job: job.map_or(caller, |(uid, gid)| Ids { uid, gid }) }
    }

    /// Returns whether the job has another user than the supervisor.
    pub fn are_different(self) -> bool {
        self.caller.uid != self.job.uid
    }
}

/// Returns whether the private tmp of the policy needs a directory of the host, because there are no mount namespaces.
pub fn needs_tmp_directory(sandbox: &Sandbox, machine: &Machine) -> bool {
    sandbox.private_tmp.is_some_and(|tmp| tmp.size.is_none()) && machine.mounts().is_err()
}

/// Prepares the sandbox. `tmp` is the job's own directory, for a private tmp without a mount namespace
/// ([`needs_tmp_directory`]).
///
/// # Errors
/// [`Error::Invalid`] for an invalid value, a path that can't be opened, or a file that is not a filter;
/// [`Error::Promise`] for a promise that no mechanism of this machine can hold. No process has been started.
pub fn prepare(
    sandbox: &Sandbox,
    machine: &Machine,
    users: Users,
    tmp: Option<&PrivateTmpDir>,
    cache: &Cache,
) -> Result<Prepared> {
    sandbox.validate()?;
    if users.job.uid == 0 {
        return Err(Error::invalid(
            "user of the job in a sandbox",
            "root",
            format!("a sandbox cannot restrict root: run the job as another user ({})", sandbox.spelling.user()),
        ));
    }
    let writable = canonical("path to write", &sandbox.write)?;
    let circumstances = circumstances(&writable, users.are_different());
    let promises = resolve(sandbox, machine, &circumstances)?;
    let (filter, ruleset) = cache.parts(sandbox, machine, tmp)?;
    let mut filters = vec![filter];
    let added = sandbox.seccomp.as_deref().map(read_filter).transpose()?;
    filters.extend(added.clone());
    let view = View {
        read_only: sandbox.strict && machine.mounts().is_ok(),
        writable,
        hidden: hidden(sandbox, machine)?,
        tmpfs: if tmp.is_some() { None } else { tmpfs(sandbox, machine, users)? },
    };
    let explainer = explainer(sandbox, machine, &view, tmp)?;
    let listener = explainer.as_ref().map(|explainer| explainer.program());
    let filter_hash = hash(&filters);
    let all_filters = filters.clone();
    if listener.is_some() {
        filters = added.into_iter().collect();
    }
    let own_network = sandbox.network == super::policy::Network::Own && machine.network().is_ok();
    // Root needs no user namespace, because it has the capabilities. Its child changes the user afterwards.
    let ids = (!users.are_different()).then_some(users.job);
    let confinement = Confinement { actions: mounts::calls(&view, own_network, ids), filters, listener };
    let membership = Membership::new(sandbox, &confinement, all_filters, ruleset.is_some());
    Ok(Prepared {
        confinement,
        ruleset,
        membership,
        report: SandboxReport {
            profile: if sandbox.strict { Profile::Strict } else { Profile::Default },
            landlock_abi: machine.landlock_abi,
            promises,
            filter_hash,
            denials: None,
            denials_left_out: 0,
            private_tmp_bytes: None,
        },
        explainer,
    })
}

/// Returns which mechanism would hold each promise of a strict sandbox on this machine. If this process is root, the
/// result is for a job that runs as another user.
pub fn promises_here() -> Vec<PromiseReport> {
    let mut sandbox = Sandbox::new();
    sandbox.strict();
    for promise in Promise::ALL {
        sandbox.waive(promise);
    }
    let other_user = rustix::process::geteuid().is_root();
    let circumstances = Circumstances { other_user, ..Circumstances::default() };
    // All promises are waived, so none is refused.
    resolve(&sandbox, Machine::get(), &circumstances).unwrap_or_default()
}

fn explainer(
    sandbox: &Sandbox,
    machine: &Machine,
    view: &View,
    tmp: Option<&PrivateTmpDir>,
) -> Result<Option<Arc<Explainer>>> {
    if !sandbox.explain_denials {
        return Ok(None);
    }
    if let Err(reason) = machine.listener() {
        return Err(Error::invalid("option of the sandbox", "explain-denials", reason.clone()));
    }
    Explainer::new(sandbox, machine, view, rules::granted_files(sandbox, tmp.map(AsFd::as_fd))?)
        .map(|explainer| Some(Arc::new(explainer)))
}

/// Returns the paths with all symbolic links resolved, because the mount table contains such paths.
fn canonical(what: &'static str, paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let canonical = |path: &PathBuf| {
        path.canonicalize().map_err(|error| Error::invalid(what, path.to_string_lossy(), error.to_string()))
    };
    paths.iter().map(canonical).collect()
}

fn circumstances(writable: &[PathBuf], other_user: bool) -> Circumstances {
    if writable.is_empty() {
        return Circumstances { other_user, ..Circumstances::default() };
    }
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    let contained = |kinds: &[&str]| {
        let points = mount::points_of(&table, kinds);
        let pair = |path: &PathBuf| {
            let inside = |point: &&PathBuf| point.starts_with(path) || path.starts_with(point);
            points.iter().find(inside).map(|point| (path.clone(), point.clone()))
        };
        writable.iter().find_map(pair)
    };
    Circumstances {
        other_user,
        writable_cgroups: contained(&["cgroup", "cgroup2"]),
        writable_proc: contained(&["proc"]),
    }
}

/// Reads a filter that the policy adds.
fn read_filter(file: &Path) -> Result<Program> {
    let what = "seccomp filter";
    let bytes = std::fs::read(file).map_err(|error| Error::invalid(what, file.to_string_lossy(), error.to_string()))?;
    Program::from_bytes(&bytes).map_err(|reason| {
        let advice = format!("it is no BPF program in the format of seccomp_export_bpf(3): {reason}");
        Error::invalid(what, file.to_string_lossy(), advice)
    })
}

/// Returns the paths to hide.
fn hidden(sandbox: &Sandbox, machine: &Machine) -> Result<Vec<PathBuf>> {
    let paths = canonical("path to deny", &sandbox.deny)?;
    if let Some(path) = paths.first()
        && let Err(reason) = machine.mounts()
    {
        let advice = format!("it needs a mount namespace: {reason}; grant smaller paths instead");
        return Err(Error::invalid("path to deny", path.to_string_lossy(), advice));
    }
    Ok(paths)
}

/// Returns the file system for temporary files, where it is mounted for the job.
fn tmpfs(sandbox: &Sandbox, machine: &Machine, users: Users) -> Result<Option<(PathBuf, String, u64)>> {
    let Some(wanted) = sandbox.private_tmp else { return Ok(None) };
    if let Err(reason) = machine.mounts() {
        let size = wanted.size.map_or_else(String::new, |size| size.to_string());
        let advice = format!(
            "only a mount namespace can limit the size: {reason}; give no size, and set TMPDIR to a file system of that \
             size, or use a disk quota"
        );
        return Err(Error::invalid("size of the private tmp", size, advice));
    }
    let mut options = String::from("mode=0700");
    if let Some(size) = wanted.size {
        options += &format!(",size={size}");
    }
    if users.are_different() {
        let Ids { uid, gid } = users.job;
        options += &format!(",uid={uid},gid={gid}");
    }
    let rights = (rules::writing() & rules::handled(sandbox, machine).files).bits();
    Ok(Some((TMP.into(), options, rights)))
}

/// Returns the FNV-1a hash of the filters: equal filters have equal hashes.
fn hash(filters: &[Program]) -> String {
    let bytes = filters.iter().flat_map(Program::bytes);
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    format!("fnv1a:{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY: Ids = Ids { uid: 65534, gid: 65534 };
    const USERS: Users = Users { caller: NOBODY, job: NOBODY };

    fn message(sandbox: &Sandbox, machine: &Machine) -> String {
        prepare(sandbox, machine, USERS, None, &Cache::default()).unwrap_err().to_string()
    }

    #[test]
    fn bad_input_is_refused_before_anything_is_opened() {
        let machine = Machine::complete();
        assert!(message(Sandbox::new().write("/no/such/path"), &machine).contains("'/no/such/path' is not valid"));
        assert!(message(Sandbox::new().seccomp("/etc/passwd"), &machine).contains("it is no BPF program"));
        assert!(message(Sandbox::new().seccomp("/no/filter"), &machine).contains("No such file"));
        assert!(message(Sandbox::new().connect_tcp(0), &machine).contains("1 to 65535"));
        let without = Machine::complete().with_namespaces(Err("REASON".into()), Ok(()));
        let denied = message(Sandbox::new().deny("/etc"), &without);
        assert!(denied.contains("path to deny '/etc'") && denied.contains("REASON"), "{denied}");
        assert!(message(Sandbox::new().private_tmp(Some(1 << 20)), &without).contains("mount namespace"));
    }

    #[test]
    fn root_is_refused() {
        let root = Ids { uid: 0, gid: 0 };
        let users = Users { caller: root, job: root };
        let error =
            prepare(&Sandbox::new(), &Machine::complete(), users, None, &Cache::default()).unwrap_err().to_string();
        assert!(error.contains("Command::user"), "{error}");
    }

    #[test]
    fn a_path_to_write_that_contains_a_cgroup_is_noticed() {
        let found = circumstances(&["/".into()], false);
        assert!(found.writable_proc.is_some_and(|(path, _)| path == Path::new("/")));
        let none = circumstances(&["/usr".into()], true);
        assert!(none.other_user && none.writable_cgroups.is_none() && none.writable_proc.is_none());
    }
}

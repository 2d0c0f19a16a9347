//! Delegates controllers to the leaves. A cgroup gives its children a controller if the controller is enabled in its
//! `cgroup.subtree_control`. The kernel enables it only while no process is in the cgroup itself ("no internal
//! processes", the kernel's admin-guide/cgroup-v2.rst).
//!
//! pinfold writes only to the cgroup that contains its bases, never to one above it, and only if this cgroup contains
//! no other process than supervisor and guard. Each of these two moves to a leaf of its own beside the base. At the
//! end, pinfold undoes all changes in the opposite order, so that the next pinfold finds the cgroup as it was.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Pid, getpid, getppid};

use crate::cgroup::delegation::{PREFIX, Undo, controller_advice, exclusive_lock, lock_file, names};
use crate::cgroup::directory::Cgroup;
use crate::cgroup::limits::Controller;
use crate::error::{Error, Result};
use crate::guard::protocol::{FromGuard, JobId, ToGuard};
use crate::report::Refusal;
use crate::supervisor::link::Link;

/// How long the start waits for the lock while another pinfold undoes its changes. After that, it continues without the
/// lock.
const LOCK_BOUND: Duration = Duration::from_secs(1);

/// Stands for the supervisor itself in messages of the guard that concern no job. No job has this id.
pub(crate) const NO_JOB: JobId = 0;

/// Controllers that pinfold enabled, and how to disable them again.
#[derive(Debug)]
pub(crate) struct Grant {
    place: Arc<Cgroup>,
    undo: Undo,
    /// The shared lock. It shows other pinfolds that these controllers are in use, even if another process enabled
    /// them.
    lock: Mutex<Option<OwnedFd>>,
}

/// A result whose error does not end the start, unlike an error of [`Result`]. Such an error is only the reason why
/// pinfold does not use a cgroup.
type Attempt<T, E> = std::result::Result<T, E>;

impl Grant {
    /// Allows the guard to disable the controllers again. Called when the jobs are over.
    pub fn release(&self) {
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.release();
        // The guard has already done this, unless it was killed.
        if let Some(_lock) = exclusive_lock(&self.place) {
            self.undo.undo(&self.place);
        }
    }
}

/// Ensures that the cgroups made in `place` have the controllers `wanted`.
///
/// If `place` cannot give these controllers to its children, undoes all changes and returns the reason.
///
/// # Errors
/// The errors that end the start.
pub(crate) async fn delegate(
    place: &Arc<Cgroup>,
    wanted: &[Controller],
    link: &Link,
) -> Result<Attempt<Option<Grant>, Refusal>> {
    let refuse =
        |reason: String, advice: String| Ok(Err(Refusal::new(place.path().display().to_string(), reason, advice)));
    let list = |file| place.read(file).unwrap_or_default();
    let has = |list: &str, controller: &Controller| list.split_ascii_whitespace().any(|name| name == controller.name());
    if wanted.is_empty() {
        return Ok(Ok(None));
    }
    let lock = shared_lock(place, LOCK_BOUND).await;
    let given = list(c"cgroup.subtree_control");
    let missing: Vec<_> = wanted.iter().filter(|controller| !has(&given, controller)).copied().collect();
    if missing.is_empty() {
        return Ok(Ok(Some(Grant { place: place.clone(), undo: Undo::default(), lock: lock.into() })));
    }
    let names = names(&missing);

    let own_controllers = list(c"cgroup.controllers");
    if let Some(controller) = missing.iter().find(|controller| !has(&own_controllers, controller)) {
        return refuse(format!("it has no {controller} controller"), controller_advice(*controller));
    }
    // Only the root of the whole cgroup tree lacks this file (kernel: not_on_root). The root of a cgroup namespace has
    // it.
    if place.events().is_err_and(|errno| errno == Errno::NOENT) {
        return refuse(
            format!("it is the machine's root cgroup, and does not give the {names} controller to its children"),
            format!(
                "as root: echo {} > {}/cgroup.subtree_control",
                missing.iter().map(|controller| format!("+{controller}")).collect::<Vec<_>>().join(" "),
                place.path().display()
            ),
        );
    }

    let guard = Some(link.pid);
    let inside = place
        .list()
        .map_err(|errno| Error::system("read cgroup.procs of", place.path().display().to_string(), errno, ""))?;
    let is_ours = |pid: &Option<Pid>| *pid == Some(getpid()) || *pid == guard;
    let others: Vec<_> = inside.iter().filter(|pid| !is_ours(pid)).collect();
    if !others.is_empty() {
        let named: Vec<_> = others
            .iter()
            .take(3)
            .map(|pid| pid.map_or_else(|| "a process that is not visible here".into(), |pid| pid.to_string()))
            .collect();
        let more = if others.len() > named.len() { ", …" } else { "" };
        return refuse(
            format!(
                "it can't give the {names} controller to its children while other processes are in it ({}{more})",
                named.join(", ")
            ),
            advice_where_others_run(others.as_slice()),
        );
    }

    let mut undo =
        Undo { own: None, delegated: missing.iter().map(|controller| controller.name().to_owned()).collect() };
    if !inside.is_empty() {
        undo.own = Some(crate::cgroup::base::fresh_name(PREFIX)?);
    }
    // From here on, the guard undoes the changes if this process is killed.
    link.send(&ToGuard::Delegating { own: undo.own.clone(), delegated: undo.delegated.clone() }, &[place.as_fd()])
        .await?;
    let grant = Grant { place: place.clone(), undo, lock: lock.into() };
    match grant.apply(&inside, guard, link).await? {
        Ok(()) => Ok(Ok(Some(grant))),
        Err((doing, errno)) => {
            drop(grant);
            refuse(format!("cannot {doing}: {errno}"), "have it delegated: systemd's Delegate=yes, or chown the directory, its cgroup.procs and cgroup.subtree_control".into())
        }
    }
}

/// Returns each way that works on this machine if other processes are in the cgroup.
fn advice_where_others_run(others: &[&Option<Pid>]) -> String {
    let mut ways = Vec::new();
    if others.iter().all(|&&pid| pid.is_some() && pid == getppid()) {
        ways.push("replace the calling process: exec pinfold …");
    }
    // sd_booted(3).
    if std::path::Path::new("/run/systemd/system").is_dir() {
        ways.push(
            "run pinfold in a scope: systemd-run --scope -p Delegate=yes (with --user for users), or in a service with \
             Delegate=yes",
        );
    } else {
        ways.push("in a container, start its first process with: pinfold init --delegate -- CMD");
    }
    ways.push("name a cgroup without processes: --cgroup DIR");
    ways.join("; or ")
}

impl Grant {
    /// Moves the guard and this process into a leaf of their own if necessary, and enables the controllers.
    async fn apply(
        &self,
        inside: &[Option<Pid>],
        guard: Option<Pid>,
        link: &Link,
    ) -> Result<Attempt<(), (String, Errno)>> {
        if let Some(name) = &self.undo.own {
            let own = match self.place.make(name) {
                Ok(own) => own,
                Err(errno) => return Ok(Err((format!("make the cgroup {name}"), errno))),
            };
            if inside.contains(&guard) {
                let mut answers = link.listen(NO_JOB)?;
                link.send(&ToGuard::Move, &[own.as_fd()]).await?;
                let answer = answers.recv().await;
                link.forget(NO_JOB);
                match answer {
                    Some((FromGuard::Moved { errno: 0 }, _)) => {}
                    Some((FromGuard::Moved { errno }, _)) => {
                        return Ok(Err((
                            "move the guard to a leaf of its own".into(),
                            Errno::from_raw_os_error(errno),
                        )));
                    }
                    _ => return Err(Error::GuardLost),
                }
            }
            if inside.contains(&Some(getpid()))
                && let Err(errno) = own.write(c"cgroup.procs", b"0")
            {
                return Ok(Err(("move to a leaf of its own".into(), errno)));
            }
        }
        for controller in &self.undo.delegated {
            if let Err(errno) = self.place.write(c"cgroup.subtree_control", format!("+{controller}").as_bytes()) {
                return Ok(Err((format!("give the {controller} controller to its children"), errno)));
            }
        }
        Ok(Ok(()))
    }
}

/// Takes the shared lock. Another pinfold holds the exclusive lock for a moment, while it disables its controllers
/// again. Only a blocking flock(2) reports the release of a lock, so it runs in a thread of its own. A blocking thread
/// of tokio is not suitable: a runtime waits for such threads when it is shut down, and an unrelated process with read
/// permission can hold a lock on the file forever.
async fn shared_lock(place: &Cgroup, bound: Duration) -> Option<OwnedFd> {
    let file = lock_file(place)?;
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => return Some(file),
        Err(Errno::WOULDBLOCK) => {}
        Err(_) => return None,
    }
    let (sender, locked) = tokio::sync::oneshot::channel();
    let wait = move || {
        // A signal that the host handles may interrupt this thread, so the call is repeated.
        let done = loop {
            match flock(&file, FlockOperation::LockShared) {
                Err(Errno::INTR) => {}
                done => break done,
            }
        };
        // If the receiver is gone, the lock is released again.
        let _ = sender.send(done.is_ok().then_some(file));
    };
    std::thread::Builder::new().name("pinfold-lock".into()).spawn(wait).ok()?;
    tokio::time::timeout(bound, locked).await.ok()?.ok()?
}

/// Returns a cgroup in which to make bases, and whose leaves will have the controllers `wanted`: the cgroup `found`, or
/// else a scope from systemd. If the user has `named` a cgroup, pinfold does not ask systemd. If no cgroup is
/// available, returns the reasons.
pub(crate) async fn choose_place(
    found: Attempt<Cgroup, Vec<Refusal>>,
    named: bool,
    wanted: &[Controller],
    link: &Link,
) -> Result<Attempt<(Arc<Cgroup>, Option<Grant>), Vec<Refusal>>> {
    let mut refusals = Vec::new();
    match found {
        Ok(place) => {
            let place = Arc::new(place);
            match delegate(&place, wanted, link).await? {
                Ok(grant) => return Ok(Ok((place, grant))),
                Err(refusal) => refusals.push(refusal),
            }
        }
        Err(reasons) => refusals = reasons,
    }
    // If systemd is not the service manager (sd_booted(3)), pinfold does not ask it.
    if !named && std::path::Path::new("/run/systemd/system").is_dir() {
        match super::scope::make(link).await {
            Ok(scope) => {
                let scope = Arc::new(scope);
                match delegate(&scope, wanted, link).await? {
                    Ok(grant) => return Ok(Ok((scope, grant))),
                    Err(refusal) => refusals.push(refusal),
                }
            }
            Err(refusal) => refusals.push(refusal),
        }
    }
    Ok(Err(refusals))
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use super::*;

    /// A directory with a file that can be locked like a cgroup's.
    struct LockedDirectory(Cgroup);

    impl LockedDirectory {
        fn new(label: &str) -> Self {
            let path = std::env::temp_dir().join(format!("pinfold-{label}-{}", std::process::id()));
            std::fs::create_dir(&path).unwrap();
            std::fs::write(path.join("cgroup.subtree_control"), "").unwrap();
            Self(Cgroup::new(std::fs::File::open(&path).unwrap().into(), path))
        }
    }

    impl Drop for LockedDirectory {
        fn drop(&mut self) {
            std::fs::remove_dir_all(self.0.path()).unwrap();
        }
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    #[test]
    fn the_shared_lock_is_granted_when_the_exclusive_lock_is_released() {
        let place = LockedDirectory::new("lock");
        let exclusive = exclusive_lock(&place.0).unwrap();
        run(async {
            let mut waiting = std::pin::pin!(shared_lock(&place.0, Duration::from_secs(60)));
            // The future waits for the lock without blocking the thread.
            assert!(poll_fn(|context| Poll::Ready(waiting.as_mut().poll(context).is_pending())).await);
            drop(exclusive);
            let shared = waiting.await;
            assert!(shared.is_some() && exclusive_lock(&place.0).is_none());
            drop(shared);
            // A child process of another test has a copy of the descriptor until its exec.
            flock(lock_file(&place.0).unwrap(), FlockOperation::LockExclusive).unwrap();
        });
    }

    #[test]
    fn a_lock_that_is_never_released_does_not_delay_the_start() {
        let place = LockedDirectory::new("locked");
        let exclusive = exclusive_lock(&place.0).unwrap();
        assert!(run(shared_lock(&place.0, Duration::ZERO)).is_none());
        // The waiting thread gets the lock in the end and releases it again: no process is locked out forever.
        drop(exclusive);
        let file = lock_file(&place.0).unwrap();
        flock(&file, FlockOperation::LockExclusive).unwrap();
    }
}

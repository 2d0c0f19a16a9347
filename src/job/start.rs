//! Prepares the start of a job: its leaf, its streams and its actor.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use tokio::sync::{Mutex, oneshot};

use super::actor::Actor;
use super::caller::Caller;
use super::command::Command;
use super::completion::completion;
use super::handle::{JobHandle, Shared};
use super::output::Activity;
use super::{Job, actor, live, private_tmp, spawn_request, streams};
use crate::cgroup::apply as limits;
use crate::error::{Error, Result};
use crate::guard::protocol::JobId;
use crate::kernel::creator::Creator;
use crate::kernel::wake::Wake;
use crate::supervisor::backend::Backend;
use crate::supervisor::events::Log;
use crate::supervisor::{Inner, MAX_RESTARTS_AFTER_REMOVAL, Supervisor, start_sweep, tmp_base};

impl Supervisor {
    /// Starts a job, and returns when the command has been executed. Dropping this future ends the job.
    ///
    /// The job inherits what the caller has at the time of this call, not at the first poll of the future; see [the
    /// front page](crate#what-a-job-inherits).
    ///
    /// You can call it from any thread and any runtime. The job runs in the runtime that the supervisor was started in,
    /// even if the caller's runtime ends. At most a few dozen jobs start at the same time; further starts wait. A
    /// future that the caller keeps but does not poll does not delay other starts.
    ///
    /// ```
    /// # async fn example(supervisor: &pinfold::Supervisor) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut command = pinfold::Command::new("make");
    /// command.arg("check").timeout(std::time::Duration::from_secs(600));
    /// let mut job = supervisor.spawn(&command).await?;
    /// println!("process {} runs", job.pid());
    /// assert!(job.wait().await?.is_gone());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// After an error, no process of the job is left. [`Error::Spawn`] if the command can't be executed, with the
    /// errno; [`Error::Invalid`] if an argument is invalid; [`Error::HostChanged`] if the caller has other rights than
    /// the guard; [`Error::GuardLost`] if the guard is gone; or the errno of a system call that failed.
    pub fn spawn(&self, command: &Command) -> impl Future<Output = Result<Job>> + Send + use<> {
        let (supervisor, command) = (self.uncounted(), command.clone());
        // This happens at the call, not when the future is polled.
        let caller = self.inner.check_process().and_then(|()| Caller::of(&command));
        async move {
            let caller = caller?;
            let runtime = supervisor.inner.runtime.clone();
            // The start runs in its own task. Otherwise a future that the caller keeps but does not poll would delay
            // other starts.
            let starting = async move { supervisor.spawn_here(&command, caller).await };
            runtime.run(starting).await.unwrap_or(Err(Error::GuardLost))
        }
    }

    /// Starts a job from a task of the supervisor's runtime, which is polled whenever it is ready.
    pub(crate) async fn spawn_here(&self, command: &Command, caller: Caller) -> Result<Job> {
        // The semaphore is never closed.
        let turn = self.inner.start_permits.acquire().await;
        let started = Box::pin(self.start_job(command, caller)).await;
        drop(turn);
        started
    }

    async fn start_job(&self, command: &Command, caller: Caller) -> Result<Job> {
        let mut id = self.inner.next_job.fetch_add(1, Ordering::Relaxed);
        let first = id == 1;
        let backend = self.inner.backend();
        let mut started = start(self.inner.clone(), &backend, id, command, &caller).await;
        for _ in 0..MAX_RESTARTS_AFTER_REMOVAL {
            if !started.as_ref().is_err_and(|error| self.inner.is_removed(error)) {
                break;
            }
            id = self.inner.next_job.fetch_add(1, Ordering::Relaxed);
            started = start(self.inner.clone(), &backend, id, command, &caller).await;
        }
        if let Err(error) = &started
            && self.inner.fall_back_to_subreaper(&backend, error)
        {
            id = self.inner.next_job.fetch_add(1, Ordering::Relaxed);
            started = start(self.inner.clone(), &self.inner.backend(), id, command, &caller).await;
        }
        if first && let Backend::Cgroup { base, .. } = &*self.inner.backend() {
            // The sweep begins only after the start, in a task of its own, so that the command does not wait until
            // pinfold has removed the cgroups that other supervisors have left.
            let base = base.now();
            let sweep = start_sweep::sweep(base.parent().clone(), base.name().to_owned());
            let mut sweeping = self.inner.sweeping.lock().unwrap_or_else(PoisonError::into_inner);
            sweeping.spawn_on(sweep, &self.inner.runtime.handle);
        }
        started
    }
}

async fn start(
    supervisor: Arc<Inner>,
    backend: &Backend,
    id: JobId,
    command: &Command,
    caller: &Caller,
) -> Result<Job> {
    command.limits.check()?;
    let changed = caller.host.as_ref().map(|host| backend.changed(host)).unwrap_or_default();
    let mut early = None;
    let mut tmp = None;
    if private_tmp::needs_directory(command) {
        let next = supervisor.next_containment(backend).await?;
        let (made, is_first) = next.link.make_private_tmp(private_tmp::users(command)).await?;
        if is_first {
            let mut sweeping = supervisor.sweeping.lock().unwrap_or_else(PoisonError::into_inner);
            sweeping.spawn_on(tmp_base::sweep(), &supervisor.runtime.handle);
        }
        (early, tmp) = (Some(next), Some(made));
    }
    let mut spawn_request = spawn_request::SpawnRequest::new(command, caller, changed, tmp, &supervisor.sandboxes)?;
    let (pipes, terminal) = (std::mem::take(&mut spawn_request.pipes), spawn_request.terminal.take());
    let (spawned, started) = oneshot::channel();
    let (finished, report) = completion();
    let next = match early {
        Some(next) => next,
        None => supervisor.next_containment(backend).await?,
    };
    if let Some(host) = &caller.host {
        next.link.host.check_credentials(host)?;
    }
    // Dropping a leaf removes it.
    let watched = limits::apply_to(next.containment.leaf(), &command.limits)?;
    if let Some(leaf) = next.containment.leaf().filter(|_| command.user.is_some()) {
        leaf.allow_other_users();
    }
    let driver = supervisor.runtime.clone();
    let runtime = driver.handle.clone();
    let events = Log::new(id, command.display_name(), supervisor.hub.clone());
    let activity = command.idle_timeout.map(|timeout| (timeout, Arc::new(Activity::new())));
    let streams = {
        let _entered = runtime.enter();
        streams::make(command, pipes, terminal, &report, activity.as_ref().map(|(_, activity)| activity))?
    };
    let cgroup = next.containment.leaf().map(|leaf| leaf.cgroup().path().to_owned());
    let guard = next.link.pid.as_raw_nonzero().get();
    let (actor, requests, stops) = Actor::new(supervisor, command, next, spawn_request, events.clone())?;
    let memory = actor.memory.clone();
    // The timer already runs during the start. Afterwards the task that watches for idleness owns it.
    let wake = Wake::at(command.idle_timeout.and_then(|timeout| Instant::now().checked_add(timeout)));
    runtime.spawn(actor::run(actor, spawned, finished));
    // Only this future keeps `requests` open. If it is dropped here, the job ends.
    match started.await {
        Ok(Ok((pid, main))) => {
            if let Some((timeout, activity)) = activity {
                runtime.spawn(streams::watch_idle(timeout, activity, requests.downgrade(), report.clone(), wake));
            }
            if let Some(leaf) = watched {
                runtime.spawn(live::until_over(report.clone(), memory.run(leaf, (pid, main.clone()), events.clone())));
            }
            let name = command.display_name();
            let streams::Streams { stdin, stdout, stderr, searches, piped } = streams;
            let shared = Shared { number: id, pid, guard, main, name, cgroup, report, events, searches, runtime };
            Ok(Job {
                stdin,
                stdout,
                stderr,
                piped,
                handle: JobHandle::new(shared, requests.downgrade()),
                requests,
                stops: Mutex::new(stops),
                creator: Creator::current_process(),
                _driver: driver,
            })
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(Error::GuardLost),
    }
}

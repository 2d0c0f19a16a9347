//! The state of a pool: the tasks that wait, the tasks that run, and whether the pool accepts more tasks. One lock
//! protects it; no code awaits while it holds the lock.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::AbortHandle;

use super::completed::{Handle, Slot};
use super::task::{Data, Outcome, Task};
use super::{OnSlow, PoolBuilder, run};
use crate::error::{Error, Result};
use crate::job::command::Command;
use crate::kernel::signal::Signal;
use crate::report::Report;
use crate::supervisor::Supervisor;
use crate::supervisor::queue::{Receiver, Sender, queue};

/// How to end a task, from the weakest to the strongest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ending {
    #[default]
    NotYet,
    Deadline,
    Stop,
    Kill,
}

/// How many tasks of a pool wait, run and are done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// Tasks that have not been started yet.
    pub waiting: usize,
    /// Tasks that have been started and have no outcome yet.
    pub running: usize,
    /// Tasks that have an outcome, including those that were cancelled before they were started.
    pub done: u64,
    /// The tasks among `done` that did not succeed.
    pub failed: u64,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub id: u64,
    pub task: Box<Task>,
    pub slot: Arc<Slot>,
    /// Its place in the queue, which is free again when the task is started.
    _room: OwnedSemaphorePermit,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub supervisor: Supervisor,
    /// The free places in the queue.
    pub room: Arc<Semaphore>,
    pub timeout: Option<Duration>,
    pub on_slow: Option<OnSlow>,
    workers: usize,
    fail_fast: bool,
    state: Mutex<State>,
    /// How many tasks have no outcome yet.
    unfinished: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct State {
    next_id: u64,
    closed: bool,
    /// How the pool ends all of its tasks.
    ending: Ending,
    /// The first signal of that stop, if it is not the stop signal of each command.
    first_signal: Option<Signal>,
    waiting: BTreeMap<(Reverse<i32>, u64), Entry>,
    running: HashMap<u64, Running>,
    done: u64,
    failed: u64,
    deadline: Option<AbortHandle>,
    listeners: Vec<UnboundedSender<Arc<Outcome>>>,
}

/// A running task, and the channel for requests to end it.
#[derive(Debug)]
struct Running {
    requests: Sender<Ending>,
    /// Whether this single task was cancelled: the next cancellation kills it. A stop of the whole pool does not count
    /// as a cancellation.
    cancelled: bool,
}

impl Drop for State {
    fn drop(&mut self) {
        if let Some(deadline) = &self.deadline {
            deadline.abort();
        }
    }
}

impl Shared {
    pub fn new(builder: &PoolBuilder, supervisor: Supervisor) -> Self {
        Self {
            supervisor,
            room: Arc::new(Semaphore::new(builder.queue)),
            timeout: builder.timeout,
            on_slow: builder.on_slow.clone(),
            workers: builder.workers,
            fail_fast: builder.fail_fast,
            state: Mutex::default(),
            unfinished: watch::Sender::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores the tokio task of the deadline, so that it is aborted together with the pool.
    pub fn keep_deadline(&self, deadline: AbortHandle) {
        self.lock().deadline = Some(deadline);
    }

    pub fn submit(self: &Arc<Self>, task: Task, room: OwnedSemaphorePermit) -> Result<Handle> {
        let mut state = self.lock();
        if state.closed {
            return Err(Error::PoolClosed);
        }
        state.next_id += 1;
        let id = state.next_id;
        let slot = Arc::new(Slot::default());
        let handle = Handle { id, priority: task.priority, slot: slot.clone(), pool: Arc::downgrade(self) };
        state.waiting.insert((Reverse(task.priority), id), Entry { id, task: Box::new(task), slot, _room: room });
        self.unfinished.send_modify(|unfinished| *unfinished += 1);
        drop(state);
        self.start_next();
        Ok(handle)
    }

    /// Starts waiting tasks while workers are free. The caller must not hold the lock: a runtime that has been shut
    /// down drops the spawned future at once, and its destructor locks the state to report the outcome.
    fn start_next(self: &Arc<Self>) {
        while let Some((entry, requests)) = self.next_to_start() {
            let Entry { id, task, slot, _room } = entry;
            let (name, pool, slot) = (task.command.display_name(), self.clone(), Some(slot));
            let data = task.data.clone();
            let mut unfinished = Unfinished { pool, id, name, data, slot, attempts: 0, begun: false };
            self.supervisor.inner.runtime.handle.spawn(async move {
                unfinished.begun = true;
                let end_requests = EndRequests { requests, now: Ending::NotYet };
                let outcome = run::run(&unfinished.pool, id, task, end_requests, &mut unfinished.attempts).await;
                unfinished.finish(outcome);
            });
        }
    }

    fn next_to_start(&self) -> Option<(Entry, Receiver<Ending>)> {
        let mut state = self.lock();
        if state.running.len() >= self.workers {
            return None;
        }
        let (_, entry) = state.waiting.pop_first()?;
        let (requests, receiver) = queue();
        state.running.insert(entry.id, Running { requests, cancelled: false });
        Some((entry, receiver))
    }

    fn finish(self: &Arc<Self>, outcome: Outcome, slot: &Slot) {
        let failed = !outcome.success();
        self.count(outcome.id, failed);
        if failed && !outcome.cancelled && self.fail_fast {
            self.end(Ending::Stop, None);
        } else {
            self.start_next();
        }
        self.publish(outcome, slot);
    }

    /// Ends the pool after a shutdown of its runtime: no task can be started any more.
    fn abandon(&self, outcome: Outcome, slot: &Slot) {
        self.count(outcome.id, true);
        self.end(Ending::Kill, None);
        self.publish(outcome, slot);
    }

    /// Counts a running task as done.
    fn count(&self, id: u64, failed: bool) {
        let mut state = self.lock();
        state.running.remove(&id);
        state.done += 1;
        state.failed += u64::from(failed);
    }

    /// Sends an outcome to everything that waits for it.
    fn publish(&self, outcome: Outcome, slot: &Slot) {
        let outcome = Arc::new(outcome);
        slot.put(outcome.clone());
        let mut state = self.lock();
        state.listeners.retain(|listener| listener.send(outcome.clone()).is_ok());
        self.unfinished.send_modify(|unfinished| *unfinished -= 1);
        self.end_listening(&mut state);
    }

    /// Ends the streams of outcomes if the pool is closed and all tasks are done.
    fn end_listening(&self, state: &mut State) {
        if state.closed && *self.unfinished.borrow() == 0 {
            state.listeners.clear();
        }
    }

    pub fn listen(&self) -> UnboundedReceiver<Arc<Outcome>> {
        let (sender, receiver) = unbounded_channel();
        let mut state = self.lock();
        state.listeners.push(sender);
        self.end_listening(&mut state);
        receiver
    }

    /// Closes the pool: it accepts no more tasks.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        self.end_listening(&mut state);
        self.room.close();
    }

    /// Closes the pool and ends its tasks; `first_signal` is the first signal of a stop. A second call has an effect only
    /// if its ending is stronger than the previous one.
    pub fn end(&self, ending: Ending, first_signal: Option<Signal>) {
        self.close();
        let mut state = self.lock();
        let waiting = std::mem::take(&mut state.waiting);
        if ending > state.ending {
            state.ending = ending;
            state.first_signal = first_signal;
            for running in state.running.values() {
                running.requests.send(ending);
            }
        }
        drop(state);
        waiting.into_values().for_each(|entry| self.finish_cancelled(entry));
    }

    /// Ends one task. As with a job, a second stop is a kill.
    pub fn end_one(&self, id: u64, priority: i32, ending: Ending) {
        let mut state = self.lock();
        if let Some(running) = state.running.get_mut(&id) {
            let again = ending == Ending::Stop && running.cancelled;
            running.cancelled |= ending == Ending::Stop;
            running.requests.send(if again { Ending::Kill } else { ending });
            return;
        }
        let entry = state.waiting.remove(&(Reverse(priority), id));
        drop(state);
        if let Some(entry) = entry {
            self.finish_cancelled(entry);
        }
    }

    fn finish_cancelled(&self, entry: Entry) {
        let mut state = self.lock();
        state.done += 1;
        state.failed += 1;
        drop(state);
        let report = Report::of_cancelled(&entry.task.command);
        let outcome = Outcome { data: entry.task.data, ..Outcome::not_run(entry.id, report, 0, true) };
        self.publish(outcome, &entry.slot);
    }

    /// Returns the first signal of a stop of the pool.
    pub fn first_signal(&self) -> Option<Signal> {
        self.lock().first_signal
    }

    pub async fn all_done(&self) {
        // Can't fail: the sender is in `self`.
        let _ = self.unfinished.subscribe().wait_for(|unfinished| *unfinished == 0).await;
    }

    pub fn status(&self) -> Status {
        let state = self.lock();
        Status { waiting: state.waiting.len(), running: state.running.len(), done: state.done, failed: state.failed }
    }
}

/// Makes sure that a task gets an outcome, even if the future that runs it panics or is dropped with its runtime.
struct Unfinished {
    pool: Arc<Shared>,
    id: u64,
    name: String,
    data: Option<Data>,
    /// `None` if the task already has its outcome.
    slot: Option<Arc<Slot>>,
    attempts: u32,
    /// Whether the runtime has started to run the future.
    begun: bool,
}

impl Unfinished {
    fn finish(&mut self, outcome: Outcome) {
        if let Some(slot) = self.slot.take() {
            self.pool.finish(outcome, &slot);
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let Some(slot) = self.slot.take() else { return };
        let mut report = run::failed(&Command::new(&self.name), &Error::GuardLost);
        let panicked = self.begun && std::thread::panicking();
        let why =
            if panicked { "the code that held the job panicked" } else { "the runtime of the pool was shut down" };
        report.error = Some(why.into());
        let data = self.data.take();
        let outcome = Outcome { data, ..Outcome::not_run(self.id, report, self.attempts, false) };
        if panicked { self.pool.finish(outcome, &slot) } else { self.pool.abandon(outcome, &slot) }
    }
}

/// The requests to end a running task.
pub(super) struct EndRequests {
    requests: Receiver<Ending>,
    now: Ending,
}

impl EndRequests {
    /// Waits for the next request, and returns the strongest one so far. Cancel-safe.
    pub async fn next(&mut self) -> Ending {
        match self.requests.recv().await {
            Some(request) => {
                self.now = self.now.max(request);
                self.now
            }
            // The pool has removed the task and sends no more requests.
            None => std::future::pending().await,
        }
    }

    /// Waits until this ending, or a stronger one, is requested. Cancel-safe.
    pub async fn reached(&mut self, ending: Ending) {
        while self.now < ending {
            self.next().await;
        }
    }

    pub fn now(&self) -> Ending {
        self.now
    }
}

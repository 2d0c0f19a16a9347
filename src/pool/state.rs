//! What a pool knows: who waits, who runs, and whether it still takes tasks. One lock, never held across a wait.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::AbortHandle;

use super::completed::{Handle, Slot};
use super::task::{Outcome, Task};
use super::{Builder, run};
use crate::error::{Error, Result};
use crate::job::command::Command;
use crate::kernel::signal::Signal;
use crate::report::Report;
use crate::supervisor::Supervisor;
use crate::supervisor::queue::{Receiver, Sender, queue};

/// How a task is to be ended; what comes later is stronger.
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
    /// Not started yet.
    pub waiting: usize,
    /// Started, and their outcome is not there yet.
    pub running: usize,
    /// Their outcome is there; those that were never started too.
    pub done: u64,
    /// Those of them that did not succeed.
    pub failed: u64,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub id: u64,
    pub task: Box<Task>,
    pub slot: Arc<Slot>,
    /// Its place in the queue, given back when it is started.
    _room: OwnedSemaphorePermit,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub supervisor: Supervisor,
    /// Places in the queue.
    pub room: Arc<Semaphore>,
    pub timeout: Option<Duration>,
    workers: usize,
    fail_fast: bool,
    state: Mutex<State>,
    /// How many have no outcome yet.
    unfinished: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct State {
    next_id: u64,
    closed: bool,
    /// How all of them are to be ended.
    ending: Ending,
    /// The first signal of that stop, where it is not the stop signal of each command.
    first_signal: Option<Signal>,
    waiting: BTreeMap<(Reverse<i32>, u64), Entry>,
    running: HashMap<u64, Running>,
    done: u64,
    failed: u64,
    deadline: Option<AbortHandle>,
    listeners: Vec<UnboundedSender<Arc<Outcome>>>,
}

/// A task that runs, for those who want it ended.
#[derive(Debug)]
struct Running {
    wishes: Sender<Ending>,
    /// It was cancelled by itself: once more is a kill. A stop of the pool is not counted.
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
    pub fn new(builder: &Builder, supervisor: Supervisor) -> Self {
        Self {
            supervisor,
            room: Arc::new(Semaphore::new(builder.queue)),
            timeout: builder.timeout,
            workers: builder.workers,
            fail_fast: builder.fail_fast,
            state: Mutex::default(),
            unfinished: watch::Sender::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the deadline's task, to be ended with the pool.
    pub fn keep(&self, deadline: AbortHandle) {
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

    /// Starts as many as there are free workers. Without the lock: a runtime that has been shut down drops at once what it is
    /// to run, and that is told here.
    fn start_next(self: &Arc<Self>) {
        while let Some((entry, wishes)) = self.next_to_start() {
            let Entry { id, task, slot, _room } = entry;
            let (name, pool, slot) = (task.command.display_name(), self.clone(), Some(slot));
            let mut held = Held { pool, id, name, slot, attempts: 0, begun: false };
            self.supervisor.inner.runtime.handle.spawn(async move {
                held.begun = true;
                let asked = Asked { wishes, now: Ending::NotYet };
                let outcome = run::run(&held.pool, id, task, asked, &mut held.attempts).await;
                held.finish(outcome);
            });
        }
    }

    fn next_to_start(&self) -> Option<(Entry, Receiver<Ending>)> {
        let mut state = self.lock();
        if state.running.len() >= self.workers {
            return None;
        }
        let (_, entry) = state.waiting.pop_first()?;
        let (wishes, receiver) = queue();
        state.running.insert(entry.id, Running { wishes, cancelled: false });
        Some((entry, receiver))
    }

    fn finish(self: &Arc<Self>, outcome: Outcome, slot: &Slot) {
        let failed = !outcome.success();
        self.count(outcome.id, failed);
        if failed && !outcome.cancelled && self.fail_fast {
            self.end(Ending::Stop);
        } else {
            self.start_next();
        }
        self.tell(outcome, slot);
    }

    /// The runtime was shut down: nothing more is ever started.
    fn abandon(&self, outcome: Outcome, slot: &Slot) {
        self.count(outcome.id, true);
        self.end(Ending::Kill);
        self.tell(outcome, slot);
    }

    /// It has ended.
    fn count(&self, id: u64, failed: bool) {
        let mut state = self.lock();
        state.running.remove(&id);
        state.done += 1;
        state.failed += u64::from(failed);
    }

    /// Tells an outcome to who waits for it.
    fn tell(&self, outcome: Outcome, slot: &Slot) {
        let outcome = Arc::new(outcome);
        slot.put(outcome.clone());
        let mut state = self.lock();
        state.listeners.retain(|listener| listener.send(outcome.clone()).is_ok());
        self.unfinished.send_modify(|unfinished| *unfinished -= 1);
        self.end_listening(&mut state);
    }

    /// Nothing more is to be heard of a pool that is closed and done.
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

    /// Takes no more tasks.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        self.end_listening(&mut state);
        self.room.close();
    }

    /// Takes no more tasks and ends those that it has. Only a stronger ending than the one before changes anything.
    pub fn end(&self, ending: Ending) {
        self.end_with(ending, None);
    }

    /// The same, with the first signal of a stop.
    pub fn end_with(&self, ending: Ending, first_signal: Option<Signal>) {
        self.close();
        let mut state = self.lock();
        let waiting = std::mem::take(&mut state.waiting);
        if ending > state.ending {
            state.ending = ending;
            state.first_signal = first_signal;
            for running in state.running.values() {
                running.wishes.send(ending);
            }
        }
        drop(state);
        waiting.into_values().for_each(|entry| self.cancelled(entry));
    }

    /// Ends one task. A second stop is a kill, as with a job.
    pub fn end_one(&self, id: u64, priority: i32, ending: Ending) {
        let mut state = self.lock();
        if let Some(running) = state.running.get_mut(&id) {
            let again = ending == Ending::Stop && running.cancelled;
            running.cancelled |= ending == Ending::Stop;
            running.wishes.send(if again { Ending::Kill } else { ending });
            return;
        }
        let entry = state.waiting.remove(&(Reverse(priority), id));
        drop(state);
        if let Some(entry) = entry {
            self.cancelled(entry);
        }
    }

    fn cancelled(&self, entry: Entry) {
        let mut state = self.lock();
        state.done += 1;
        state.failed += 1;
        drop(state);
        let report = Report::of_cancelled(&entry.task.command);
        self.tell(Outcome::not_run(entry.id, report, 0, true), &entry.slot);
    }

    /// The first signal of a stop of the pool.
    pub fn first_signal(&self) -> Option<Signal> {
        self.lock().first_signal
    }

    pub async fn all_done(&self) {
        // The sender is ours, so it does not go away.
        let _ = self.unfinished.subscribe().wait_for(|unfinished| *unfinished == 0).await;
    }

    pub fn status(&self) -> Status {
        let state = self.lock();
        Status { waiting: state.waiting.len(), running: state.running.len(), done: state.done, failed: state.failed }
    }
}

/// Sees to it that a task has an outcome, also where what runs it panics or is dropped with its runtime.
struct Held {
    pool: Arc<Shared>,
    id: u64,
    name: String,
    /// None when it has its outcome.
    slot: Option<Arc<Slot>>,
    attempts: u32,
    /// The runtime has taken it up.
    begun: bool,
}

impl Held {
    fn finish(&mut self, outcome: Outcome) {
        if let Some(slot) = self.slot.take() {
            self.pool.finish(outcome, &slot);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(slot) = self.slot.take() else { return };
        let mut report = run::failed(&Command::new(&self.name), &Error::GuardLost);
        let panicked = self.begun && std::thread::panicking();
        let why = if panicked { "what held it panicked" } else { "the runtime that it ran in was shut down" };
        report.error = Some(why.into());
        let outcome = Outcome::not_run(self.id, report, self.attempts, false);
        if panicked { self.pool.finish(outcome, &slot) } else { self.pool.abandon(outcome, &slot) }
    }
}

/// What has been asked for of a task that runs.
pub(super) struct Asked {
    wishes: Receiver<Ending>,
    now: Ending,
}

impl Asked {
    /// Waits for the next wish, and tells the strongest. Cancel-safe.
    pub async fn next(&mut self) -> Ending {
        match self.wishes.recv().await {
            Some(wish) => {
                self.now = self.now.max(wish);
                self.now
            }
            // The pool has forgotten it, and asks for nothing more.
            None => std::future::pending().await,
        }
    }

    /// Waits until this, or something stronger, is asked for. Cancel-safe.
    pub async fn reached(&mut self, ending: Ending) {
        while self.now < ending {
            self.next().await;
        }
    }

    pub fn now(&self) -> Ending {
        self.now
    }
}

//! How a pool ends its tasks: a repeated request takes the grace period from no task, and every task has its outcome,
//! whatever happens to the code that runs it.

use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pinfold::output::Lines;
use pinfold::pool::{Handle, Pool, Shutdown, Task};
use pinfold::report::Reason;
use pinfold::{Error, Stdio, Supervisor};
use rustix::fs::{CWD, mkfifoat};
use tokio::sync::oneshot;

use crate::support::events::Process;
use crate::support::host::{shell, with_supervisor};
use crate::support::{PINFOLD, Scratch, wait_for};

const LONG: Duration = Duration::from_secs(60);

fn is_there(pid: i32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

/// Returns the parent of a main process.
fn guard_of(pid: i32) -> i32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse().unwrap()
}

/// Returns whether the process waits for an event.
fn sleeps(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap().contains("\nState:\tS")
}

/// A job that cleans up when it receives the stop signal, until the test lets it continue.
struct Careful {
    handle: Handle,
    lines: Lines,
    _fifo: Scratch,
    go: File,
}

impl Careful {
    /// Starts the job, and returns when its trap is set.
    async fn start(pool: &Pool) -> Self {
        let fifo = Scratch::new("go");
        mkfifoat(CWD, fifo.path(), 0o600.into()).unwrap();
        // Opened for reading and writing, so that the open does not block (fifo(7)).
        let go = File::options().read(true).write(true).open(fifo.path()).unwrap();
        let path = fifo.path().display();
        let trap = format!("echo cleaning; read line < {path}; echo cleaned; exit 0");
        let mut command =
            shell(&format!("trap '{trap}' TERM; exec 2> /dev/null; echo ready; while :; do sleep 0.01; done"));
        command.stdout(Stdio::piped()).grace(LONG);
        let (sender, lines) = oneshot::channel();
        let sender = Mutex::new(Some(sender));
        let task = Task::new(command).on_spawn(move |job, _| {
            let lines = job.stdout.take().unwrap().lines();
            assert!(sender.lock().unwrap().take().unwrap().send(lines).is_ok());
        });
        let handle = pool.submit(task).await.unwrap();
        let mut careful = Self { handle, lines: lines.await.unwrap(), _fifo: fifo, go };
        careful.expect_line("ready").await;
        careful
    }

    async fn expect_line(&mut self, text: &str) {
        let line = self.lines.next_line().await.unwrap();
        assert_eq!(line.map(|line| line.text().into_owned()).as_deref(), Some(text));
    }

    /// Asserts that the job is cleaning up, and that it can finish.
    async fn ends_well(mut self) {
        self.expect_line("cleaning").await;
        writeln!(self.go, "go").unwrap();
        self.expect_line("cleaned").await;
        let outcome = self.handle.wait().await;
        assert_eq!((outcome.report.reason, outcome.cancelled), (Reason::Stopped, true), "{outcome:#?}");
        assert_eq!((outcome.report.exit_code, outcome.report.killed), (0, false), "{outcome:#?}");
    }
}

#[test]
#[requires(cgroup)]
fn a_pool_that_is_stopped_again_is_not_killed() {
    with_supervisor(async |supervisor| {
        let pool = Pool::builder().workers(1).start(supervisor).unwrap();
        let careful = Careful::start(&pool).await;
        for _ in 0..3 {
            // The future is dropped, and then waited for again.
            assert!(tokio::time::timeout(Duration::ZERO, pool.shutdown(Shutdown::Stop)).await.is_err());
            pool.start_shutdown(Shutdown::Stop);
        }
        careful.ends_well().await;
        pool.shutdown(Shutdown::Stop).await;

        // A stronger request takes effect.
        let pool = Pool::builder().workers(1).start(supervisor).unwrap();
        let mut careful = Careful::start(&pool).await;
        pool.start_shutdown(Shutdown::Stop);
        careful.expect_line("cleaning").await;
        pool.start_shutdown(Shutdown::Kill);
        pool.shutdown(Shutdown::Stop).await;
        assert!(careful.handle.outcome().unwrap().report.killed);
    });
}

#[test]
#[requires(cgroup)]
fn a_cancel_and_a_stop_of_the_pool_are_not_two_cancels() {
    with_supervisor(async |supervisor| {
        for cancelled_first in [true, false] {
            let start = || Pool::builder().workers(1).start(supervisor).unwrap();
            let both = |pool: &Pool, handle: &Handle| {
                if cancelled_first {
                    handle.cancel();
                }
                pool.start_shutdown(Shutdown::Stop);
                if !cancelled_first {
                    handle.cancel();
                }
            };
            let pool = start();
            let careful = Careful::start(&pool).await;
            both(&pool, &careful.handle);
            careful.ends_well().await;

            let pool = start();
            let mut careful = Careful::start(&pool).await;
            both(&pool, &careful.handle);
            careful.expect_line("cleaning").await;
            careful.handle.cancel();
            assert!(careful.handle.wait().await.report.killed);
        }
    });
}

/// Tasks that fail after the first one are no reason to kill.
#[test]
#[requires(cgroup)]
fn fail_fast_leaves_the_grace_period() {
    with_supervisor(async |supervisor| {
        let pool = Pool::builder().workers(6).fail_fast(true).start(supervisor).unwrap();
        let careful = Careful::start(&pool).await;
        let (go, ends) = (Scratch::new("go"), Arc::new(Mutex::new(Vec::new())));
        let (mut failing, mut pids) = (Vec::new(), Vec::new());
        for _ in 0..5 {
            let script = format!("until [ -e {} ]; do sleep 0.01; done; exit 7", go.path().display());
            let (ends, (sender, started)) = (ends.clone(), oneshot::channel());
            let sender = Mutex::new(Some(sender));
            let task = Task::new(shell(&script)).on_spawn(move |job, _| {
                ends.lock().unwrap().push(Process::of(job.pid()));
                sender.lock().unwrap().take().unwrap().send(job.pid()).unwrap();
            });
            failing.push(pool.submit(task).await.unwrap());
            pids.push(started.await.unwrap());
        }
        let guard = guard_of(pids[0]);
        File::create(go.path()).unwrap();
        // All of them have failed before the pool is notified of the first failure: the pool runs in this thread, which
        // is busy. The guard has reported each exit when it has reaped all of these processes and sleeps again.
        ends.lock().unwrap().iter().for_each(Process::wait_for_end);
        wait_for(|| (pids.iter().all(|&pid| !is_there(pid)) && sleeps(guard)).then_some(()));
        for handle in &failing {
            let outcome = handle.wait().await;
            assert_eq!((outcome.report.exit_code, outcome.cancelled), (7, false), "{outcome:#?}");
        }
        careful.ends_well().await;
    });
}

#[test]
#[requires(cgroup)]
fn a_panic_of_on_spawn_fails_the_task_and_keeps_the_worker() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("the test's: dropped");
        }
    }
    with_supervisor(async |supervisor| {
        let pool = Pool::builder().workers(1).start(supervisor).unwrap();
        let mut outcomes = pool.outcomes();
        let panicking =
            Task::new(shell("setsid sleep 100 & sleep 100")).on_spawn(|job, _| panic!("the test's: {}", job.name()));
        let bomb = Bomb;
        let dropped = Task::new(shell("sleep 100")).on_spawn(move |_, _| {
            let _ = &bomb;
        });
        let map = pool.map([panicking.retries(3, LONG), dropped, Task::new(shell("exit 0"))]);
        let done = tokio::time::timeout(LONG, map).await.expect("it hangs").unwrap();
        let report = &done[0].report;
        assert_eq!((report.reason, report.exit_code, report.killed), (Reason::Killed, 125, true));
        assert_eq!(report.error.as_deref(), Some("on_spawn panicked: the test's: sh"));
        assert!(report.is_gone() && !is_there(report.pid.unwrap()));
        assert_eq!((done[0].attempts, done[0].cancelled, done[0].success()), (1, false, false));
        // The panic happens in another part of the code that runs the task.
        assert_eq!((done[1].report.reason, done[1].attempts, done[1].cancelled), (Reason::GuardLost, 1, false));
        assert!(done[2].success());
        let status = pool.status();
        assert_eq!((status.running, status.done, status.failed), (0, 3, 2));
        pool.shutdown(Shutdown::Drain).await;
        let mut seen = 0;
        while outcomes.next_outcome().await.is_some() {
            seen += 1;
        }
        assert_eq!(seen, 3);
    });
}

#[test]
#[requires(cgroup)]
fn a_panic_of_on_spawn_is_a_failure_for_fail_fast() {
    with_supervisor(async |supervisor| {
        let pool = Pool::builder().workers(1).fail_fast(true).start(supervisor).unwrap();
        let panics = Task::new(shell("exit 0")).on_spawn(|_, _| panic!("the test's"));
        let (first, second) = (pool.submit(panics).await.unwrap(), pool.submit(shell("exit 0")).await.unwrap());
        let outcome = tokio::time::timeout(LONG, first.wait()).await.expect("it hangs");
        assert!(!outcome.success());
        assert_eq!(second.wait().await.report.reason, Reason::Cancelled);
        assert!(matches!(pool.submit(shell("exit 0")).await, Err(Error::PoolClosed)));
    });
}

#[test]
#[requires(cgroup)]
fn a_runtime_that_is_shut_down_leaves_no_call_waiting() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (pool, idle, handles, pid) = runtime.block_on(async {
        let supervisor = Supervisor::builder().guard_program(PINFOLD).start().await.unwrap();
        let pool = Pool::builder().workers(1).start(&supervisor).unwrap();
        let (sender, started) = oneshot::channel();
        let sender = Mutex::new(Some(sender));
        let running = Task::new(shell("setsid sleep 100 & sleep 100"));
        let running = running.on_spawn(move |job, _| sender.lock().unwrap().take().unwrap().send(job.pid()).unwrap());
        let mut handles = vec![pool.submit(running).await.unwrap()];
        for _ in 0..3 {
            handles.push(pool.submit(shell("exit 0")).await.unwrap());
        }
        (pool, Pool::builder().start(&supervisor).unwrap(), handles, started.await.unwrap())
    });
    let end = Process::of(pid);
    drop(runtime);
    let other = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let all = async {
        let outcome = handles[0].wait().await;
        assert_eq!((outcome.report.reason, outcome.attempts, outcome.cancelled), (Reason::GuardLost, 1, false));
        assert!(outcome.report.error.as_ref().unwrap().contains("runtime"), "{outcome:#?}");
        for handle in &handles[1..] {
            assert_eq!(handle.wait().await.report.reason, Reason::Cancelled);
        }
        let mut completed = pool.as_completed(&handles, Some(LONG));
        let mut seen = 0;
        while completed.next_outcome().await.is_some() {
            seen += 1;
        }
        assert_eq!(seen, 4);
        pool.shutdown(Shutdown::Stop).await;
        assert!(pool.outcomes().next_outcome().await.is_none());
        assert!(matches!(pool.submit(shell("exit 0")).await, Err(Error::PoolClosed)));
        // A worker that had nothing to run detects it at the next task.
        let late = idle.submit(shell("exit 0")).await.unwrap();
        assert_eq!(late.wait().await.report.reason, Reason::GuardLost);
        idle.shutdown(Shutdown::Drain).await;
    };
    other.block_on(async { tokio::time::timeout(LONG, all).await.expect("it hangs") });
    // The guard ends the jobs that it holds.
    end.wait_for_end();
}

/// The loss of the guard counts as a failure, and not as a cancel.
#[test]
#[requires(cgroup)]
fn a_lost_guard_is_a_failure_for_fail_fast() {
    with_supervisor(async |supervisor| {
        let mut job = supervisor.spawn(&shell("sleep 100")).await.unwrap();
        let guard = guard_of(job.pid());
        // SAFETY: signals the guard of this test's supervisor, which lives as long as its job.
        #[allow(unsafe_code)]
        let killed = unsafe { libc::kill(guard, libc::SIGKILL) };
        assert_eq!(killed, 0);
        assert_eq!(job.wait().await.unwrap().reason, Reason::GuardLost);
        let pool = Pool::builder().workers(1).fail_fast(true).start(supervisor).unwrap();
        let outcome = pool.submit(shell("exit 0")).await.unwrap().wait().await;
        assert_eq!((outcome.report.reason, outcome.cancelled), (Reason::GuardLost, false), "{outcome:#?}");
        assert!(matches!(pool.submit(shell("exit 0")).await, Err(Error::PoolClosed)));
    });
}

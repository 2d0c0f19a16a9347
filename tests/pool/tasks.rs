//! The pool: cancelled tasks are gone, and no call waits longer than requested.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pinfold::pool::{Handle, Pool, Shutdown, Task};
use pinfold::report::Reason;
use pinfold::{Command, Error, Readiness, Stdio, Supervisor};

use crate::support::host::shell;
use crate::support::{Canary, Scratch};

const LONG: Duration = Duration::from_secs(60);

/// Runs it, and asserts that the supervisor leaves neither a process nor a cgroup.
fn with_supervisor(host: impl AsyncFnOnce(&Supervisor)) {
    let canary = Canary::new();
    crate::support::host::with_supervisor(host);
    canary.assert_alive();
}

/// Returns a long command whose descendants have sessions of their own.
fn long() -> Command {
    shell("setsid sleep 100 & setsid sleep 100")
}

/// Returns a task that reports its pids when it runs.
fn reporting(pids: &Arc<Mutex<Vec<i32>>>, command: Command) -> Task {
    let pids = pids.clone();
    Task::new(command).on_spawn(move |job, _| pids.lock().unwrap().push(job.pid()))
}

fn is_there(pid: i32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

/// `ProcessPoolExecutor` needs 200 s for this.
#[test]
#[requires(cgroup)]
fn five_long_tasks_on_two_workers_and_a_deadline() {
    with_supervisor(async |supervisor| {
        let pool = Pool::builder().workers(2).start(supervisor).unwrap();
        let pids = Arc::default();
        let mut handles = Vec::new();
        for _ in 0..5 {
            handles.push(pool.submit(reporting(&pids, long())).await.unwrap());
        }
        let begun = Instant::now();
        let mut completed = pool.as_completed(&handles, Some(Duration::from_secs(5)));
        let mut outcomes = Vec::new();
        while let Some(outcome) = completed.next_outcome().await {
            outcomes.push(outcome);
        }
        let elapsed = begun.elapsed();
        assert!(elapsed >= Duration::from_secs(5) && elapsed < Duration::from_secs(15), "{elapsed:?}");
        let of = |reason: Reason| outcomes.iter().filter(|outcome| outcome.report.reason == reason).count();
        assert_eq!((of(Reason::Deadline), of(Reason::Cancelled)), (2, 3), "{outcomes:#?}");
        assert!(outcomes.iter().all(|outcome| outcome.cancelled && outcome.report.is_gone()));
        let started = outcomes.iter().filter(|outcome| outcome.report.reason == Reason::Deadline);
        assert!(started.clone().all(|outcome| outcome.report.stopped.count == 3), "{outcomes:#?}");
        assert!(started.clone().all(|outcome| outcome.report.exit_code == 124 && outcome.id <= 2));
        // The pool itself continues.
        assert!(pool.submit(shell("exit 0")).await.unwrap().wait().await.success());
        pool.shutdown(Shutdown::Drain).await;
        assert!(pids.lock().unwrap().iter().all(|&pid| !is_there(pid)));
    });
}

#[test]
#[requires(cgroup)]
fn cancelled_is_gone() {
    with_supervisor(async |supervisor| {
        let pool = Pool::builder().workers(1).start(supervisor).unwrap();
        let scratch = Scratch::new("never");
        let running = pool.submit(long()).await.unwrap();
        let waiting = pool.submit(shell(&format!(": > {}", scratch.path().display()))).await.unwrap();
        let last = pool.submit(shell("exit 0")).await.unwrap();
        waiting.cancel();
        let outcome = waiting.wait().await;
        assert_eq!((outcome.report.reason, outcome.attempts, outcome.cancelled), (Reason::Cancelled, 0, true));
        assert_eq!(outcome.report.pid, None);
        running.cancel();
        let outcome = running.wait().await;
        assert_eq!((outcome.report.reason, outcome.cancelled), (Reason::Stopped, true));
        assert!(outcome.report.is_gone() && !is_there(outcome.report.pid.unwrap()));
        assert!(last.wait().await.success());
        assert!(!scratch.path().exists());
        // Too late: the cancel changes nothing.
        last.cancel();
        assert!(last.wait().await.success() && last.outcome().is_some());
    });
}

#[test]
#[requires(cgroup)]
fn a_second_cancel_kills() {
    with_supervisor(async |supervisor| {
        let pool = Pool::builder().workers(1).start(supervisor).unwrap();
        let mut command = shell("trap '' TERM; echo ready; while :; do sleep 100; done");
        command.stdout(Stdio::piped());
        let (said, ready) = tokio::sync::oneshot::channel();
        let said = Mutex::new(Some(said));
        let task = Task::new(command).on_spawn(move |job, _| {
            let lines = job.stdout.take().unwrap().lines();
            said.lock().unwrap().take().unwrap().send(lines).unwrap();
        });
        let handle = pool.submit(task).await.unwrap();
        let line = ready.await.unwrap().next_line().await.unwrap().unwrap();
        assert_eq!(line.text(), "ready");
        handle.cancel();
        handle.cancel();
        let outcome = handle.wait().await;
        // The pool may receive both requests at once.
        assert!(matches!(outcome.report.reason, Reason::Stopped | Reason::Killed), "{outcome:#?}");
        assert_eq!((outcome.report.exit_code, outcome.report.killed), (137, true));
    });
}

#[test]
#[requires(cgroup)]
fn map_keeps_the_order_and_the_output() {
    with_supervisor(async |supervisor| {
        let pool = Pool::builder().workers(4).queue(3).start(supervisor).unwrap();
        let commands = (0..40).map(|number| {
            let mut command = shell(&format!("echo {number}; echo e{number} >&2; exit {}", number % 3));
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            command
        });
        let outcomes = pool.map(commands).await.unwrap();
        for (number, outcome) in outcomes.iter().enumerate() {
            assert_eq!((outcome.stdout.text(), outcome.stderr.text()), (format!("{number}\n"), format!("e{number}\n")));
            assert_eq!((outcome.id, usize::from(outcome.report.exit_code)), (number as u64 + 1, number % 3));
        }
        let status = pool.status();
        assert_eq!((status.waiting, status.running, status.done, status.failed), (0, 0, 40, 26));

        // Dropping the map cancels all of them.
        let map = pool.map((0..6).map(|_| long()));
        assert!(tokio::time::timeout(Duration::from_millis(200), map).await.is_err());
        tokio::time::timeout(LONG, pool.shutdown(Shutdown::Drain)).await.unwrap();
        assert!(matches!(pool.submit(shell("exit 0")).await, Err(Error::PoolClosed)));
        assert!(matches!(pool.try_submit(shell("exit 0")), Err(Error::PoolClosed)));
    });
}

#[test]
#[requires(cgroup)]
fn a_deadline_for_the_whole_pool_and_one_for_each_job() {
    with_supervisor(async |supervisor| {
        let pool = Pool::builder().workers(2).deadline(Duration::from_secs(1)).start(supervisor).unwrap();
        let mut handles = Vec::new();
        for _ in 0..4 {
            handles.push(pool.submit(long()).await.unwrap());
        }
        let mut reasons = Vec::new();
        for handle in &handles {
            reasons.push(handle.wait().await.report.reason);
        }
        assert_eq!(reasons, [Reason::Deadline, Reason::Deadline, Reason::Cancelled, Reason::Cancelled]);
        assert!(matches!(pool.submit(long()).await, Err(Error::PoolClosed)));

        let pool = Pool::builder().workers(2).timeout(Duration::from_millis(200)).start(supervisor).unwrap();
        let mut own = shell("sleep 0.5");
        own.timeout(LONG);
        let outcomes = pool.map([long(), own]).await.unwrap();
        assert_eq!((outcomes[0].report.reason, outcomes[0].cancelled), (Reason::Deadline, false));
        assert!(outcomes[1].success());
    });
}

#[test]
#[requires(cgroup)]
fn fail_fast() {
    with_supervisor(async |supervisor| {
        let pool = Pool::builder().workers(2).fail_fast(true).start(supervisor).unwrap();
        let ready = Arc::new(tokio::sync::Notify::new());
        let running = {
            let ready = ready.clone();
            pool.submit(Task::new(long()).on_spawn(move |_, _| ready.notify_one())).await.unwrap()
        };
        ready.notified().await;
        let failing = pool.submit(shell("exit 7")).await.unwrap();
        let waiting = pool.submit(shell("exit 0")).await;
        assert_eq!(failing.wait().await.report.exit_code, 7);
        assert_eq!(running.wait().await.report.reason, Reason::Stopped);
        assert_eq!(waiting.unwrap().wait().await.report.reason, Reason::Cancelled);
        assert!(matches!(pool.submit(shell("exit 0")).await, Err(Error::PoolClosed)));
    });
}

#[test]
#[requires(cgroup)]
fn retries() {
    with_supervisor(async |supervisor| {
        let pool = Pool::builder().workers(2).start(supervisor).unwrap();
        let scratch = Scratch::new("attempts");
        let path = scratch.path().display();
        // It succeeds at the third attempt.
        let command = shell(&format!("echo x >> {path}; test $(wc -l < {path}) -ge 3"));
        let attempts = Arc::new(AtomicU32::new(0));
        let last = attempts.clone();
        let task = Task::new(command)
            .retries(5, Duration::from_millis(20))
            .on_spawn(move |_, attempt| last.store(attempt, Ordering::Relaxed));
        let begun = Instant::now();
        let outcome = pool.submit(task).await.unwrap().wait().await;
        assert!(outcome.success() && outcome.attempts == 3 && attempts.load(Ordering::Relaxed) == 3);
        assert!(begun.elapsed() >= Duration::from_millis(20 + 40));
        // It never succeeds. A task that cannot be started is not retried.
        let failing = Task::new(shell("exit 9")).retries(2, Duration::ZERO);
        let outcome = pool.submit(failing).await.unwrap().wait().await;
        assert_eq!((outcome.attempts, outcome.report.exit_code), (3, 9));
        let missing = Task::new(Command::new("/no/such")).retries(2, Duration::ZERO);
        let outcome = pool.submit(missing).await.unwrap().wait().await;
        assert_eq!((outcome.attempts, outcome.report.exit_code, outcome.cancelled), (1, 127, false));
        // A cancel also ends the pause between two attempts.
        let (failed, ready) = std::sync::mpsc::channel();
        let task = Task::new(shell("exit 9")).retries(2, LONG).on_spawn(move |job, _| {
            let mut events = job.events();
            let failed = failed.clone();
            tokio::spawn(async move {
                while events.next_event().await.is_some() {}
                let _ = failed.send(());
            });
        });
        let handle = pool.submit(task).await.unwrap();
        tokio::task::spawn_blocking(move || ready.recv().unwrap()).await.unwrap();
        handle.cancel();
        let outcome = tokio::time::timeout(LONG, handle.wait()).await.unwrap();
        assert_eq!((outcome.attempts, outcome.report.exit_code, outcome.cancelled), (1, 9, true));
    });
}

#[test]
#[requires(cgroup)]
fn priorities_and_first_in_first_out() {
    with_supervisor(async |supervisor| {
        let pool = Pool::builder().workers(1).start(supervisor).unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let blocker = pool.submit(long()).await.unwrap();
        let mut handles = Vec::new();
        for (number, priority) in [0, 0, 5, -1, 5, 0].into_iter().enumerate() {
            let order = order.clone();
            let task = Task::new(shell("exit 0")).priority(priority);
            let task = task.on_spawn(move |_, _| order.lock().unwrap().push(number));
            handles.push(pool.submit(task).await.unwrap());
        }
        blocker.cancel();
        for handle in &handles {
            assert!(handle.wait().await.success());
        }
        assert_eq!(*order.lock().unwrap(), [2, 4, 0, 1, 5, 3]);
    });
}

#[test]
#[requires(cgroup)]
fn submit_waits_while_too_many_wait() {
    with_supervisor(async |supervisor| {
        let pool = Pool::builder().workers(1).queue(2).start(supervisor).unwrap();
        let first = pool.submit(long()).await.unwrap();
        let second = pool.submit(shell("exit 0")).await.unwrap();
        let third = pool.submit(shell("exit 0")).await.unwrap();
        assert!(pool.try_submit(shell("exit 0")).unwrap().is_none());
        // A dropped future has submitted nothing.
        assert!(tokio::time::timeout(Duration::from_millis(20), pool.submit(shell("exit 0"))).await.is_err());
        assert_eq!(pool.status().waiting, 2);
        first.cancel();
        let fourth = tokio::time::timeout(LONG, pool.submit(shell("exit 0"))).await.unwrap().unwrap();
        for handle in [&second, &third, &fourth] {
            assert!(handle.wait().await.success());
        }
        assert_eq!(fourth.id(), 4);
    });
}

#[test]
#[requires(cgroup)]
fn shutdowns() {
    with_supervisor(async |supervisor| {
        let start = || Pool::builder().workers(1).start(supervisor).unwrap();
        let submit = async |pool: &Pool, scripts: &[&str]| {
            let mut handles: Vec<Handle> = Vec::new();
            for script in scripts {
                handles.push(pool.submit(shell(script)).await.unwrap());
            }
            handles
        };
        let pool = start();
        let handles = submit(&pool, &["sleep 0.1", "exit 0", "exit 0"]).await;
        pool.shutdown(Shutdown::Drain).await;
        assert!(handles.iter().all(|handle| handle.outcome().unwrap().success()));

        let pool = start();
        let handles = submit(&pool, &["sleep 100", "exit 0"]).await;
        pool.shutdown(Shutdown::Stop).await;
        let reasons: Vec<_> = handles.iter().map(|handle| handle.outcome().unwrap().report.reason).collect();
        assert_eq!(reasons, [Reason::Stopped, Reason::Cancelled]);

        // Dropping the pool kills its jobs.
        let pool = start();
        let handles = submit(&pool, &["trap '' TERM; sleep 100", "exit 0"]).await;
        drop(pool);
        let outcome = handles[0].wait().await;
        assert_eq!(outcome.report.reason, Reason::Killed);
        assert_eq!(handles[1].wait().await.report.reason, Reason::Cancelled);
    });
}

/// `PINFOLD_MANY` sets how many; the test needs some open files for each.
#[test]
#[requires(cgroup)]
fn many_sleeping_jobs_are_cancelled() {
    let many: usize = std::env::var("PINFOLD_MANY").map_or(200, |many| many.parse().unwrap());
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    with_supervisor(async |supervisor| {
        let pool = Pool::builder().workers(many).start(supervisor).unwrap();
        let mut handles = Vec::new();
        for _ in 0..many {
            let mut command = shell("exec sleep 1000");
            command.stdout(Stdio::null()).stderr(Stdio::null());
            handles.push(pool.submit(command).await.unwrap());
        }
        // The last one runs when all have been started.
        let mut ready = shell("echo ready; exec sleep 1000");
        ready.stdout(Stdio::piped());
        let mut job = supervisor.spawn(&ready).await.unwrap();
        job.ready(&Readiness::stdout_line("ready"), LONG).await.unwrap();
        let resident = |pid: &str| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap().trim().to_owned()
        };
        eprintln!("{many} jobs: resident memory of this process {}", resident("self"));
        let begun = Instant::now();
        handles.iter().for_each(Handle::cancel);
        for handle in &handles {
            let outcome = handle.wait().await;
            assert!(outcome.report.is_gone() && !is_there(outcome.report.pid.unwrap()));
            assert_eq!(outcome.report.reason, Reason::Stopped);
        }
        eprintln!("{many} jobs: all of them cancelled and proven empty after {:?}", begun.elapsed());
        job.start_kill().unwrap();
        job.wait().await.unwrap();
    });
}

#[test]
fn send_and_sync() {
    fn both<T: Send + Sync>() {}
    both::<Pool>();
    both::<Handle>();
    both::<Task>();
    both::<pinfold::pool::Outcome>();
    both::<pinfold::pool::Completed>();
}

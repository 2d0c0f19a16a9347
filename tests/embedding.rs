//! What hosts do to the library that they embed: futures that are held and not polled, calls from outside of a runtime, hosts without
//! one.

mod support;

use std::future::Future;
use std::io::{Read, Write};
use std::task::{Context, Waker};
use std::time::Duration;

use pinfold::pool::Shutdown;
use pinfold::report::Reason;
use pinfold::{Command, Pool, Signal, Stdio, Supervisor, blocking};
use support::{PINFOLD, has_cgroup};

fn sleeping() -> Command {
    let mut command = Command::new("sleep");
    command.arg("1000");
    command
}

/// More than are started at a time.
#[test]
fn spawns_that_nobody_polls_hold_nobody_up() {
    if !has_cgroup() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let supervisor = Supervisor::builder().guard_program(PINFOLD).start().await.unwrap();
        let commands: Vec<_> = (0..100).map(|_| sleeping()).collect();
        let mut held: Vec<_> = commands.iter().map(|command| Box::pin(supervisor.spawn(command))).collect();
        for spawn in &mut held {
            assert!(spawn.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
        let spawned = tokio::time::timeout(Duration::from_secs(60), supervisor.spawn(&Command::new("true"))).await;
        let job = spawned.expect("it has its turn").unwrap();
        assert!(job.wait().await.unwrap().success());
        // They have been started meanwhile, and their jobs are there for who asks again.
        let last = held.pop().unwrap().await.unwrap();
        last.kill();
        assert_eq!(last.wait().await.unwrap().reason, Reason::Killed);
        // The others end with their futures.
        drop(held);
        supervisor.close().await;
    });
}

#[test]
fn a_pool_from_outside_of_its_runtime() {
    if !has_cgroup() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (supervisor, pool, handles) = runtime.block_on(async {
        let supervisor = Supervisor::builder().guard_program(PINFOLD).start().await.unwrap();
        let pool = Pool::builder().workers(2).start(&supervisor).unwrap();
        let handles = [pool.submit(sleeping()).await.unwrap(), pool.submit(Command::new("true")).await.unwrap()];
        (supervisor, pool, handles)
    });
    let mut completed = pool.as_completed(&handles, Some(Duration::from_millis(200)));
    let mut outcomes = pool.outcomes();
    let third = pool.try_submit(Command::new("true")).unwrap().expect("there is room");
    runtime.block_on(async {
        let first = completed.next_outcome().await.unwrap();
        assert_eq!((first.id, first.success()), (2, true));
        assert_eq!(completed.next_outcome().await.unwrap().report.reason, Reason::Deadline);
        assert!(completed.next_outcome().await.is_none() && third.wait().await.success());
        pool.shutdown(Shutdown::Drain).await;
        let mut seen = 0;
        while outcomes.next_outcome().await.is_some() {
            seen += 1;
        }
        assert_eq!(seen, 3);
        supervisor.close().await;
    });
}

#[test]
fn without_a_runtime() {
    if !has_cgroup() {
        return;
    }
    let supervisor = blocking::Supervisor::start_with(Supervisor::builder().guard_program(PINFOLD)).unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "echo ready >&2; read line; echo $line; kill -STOP $$; sleep 1000"]);
    command.name("talker").stdin(Stdio::Piped).stdout(Stdio::Piped).stderr(Stdio::Piped);
    let job = supervisor.spawn(&command).unwrap();
    assert_eq!((job.id(), job.name(), job.main_has_ended()), (1, "talker", false));
    let mut errors = job.take_stderr_lines().unwrap().max_line(1000);
    assert_eq!(errors.next().unwrap().unwrap().text(), "ready");
    assert!(job.next_stop(Duration::ZERO).is_none());
    job.take_stdin().unwrap().write_all(b"hello\n").unwrap();
    let mut said = [0; 6];
    job.take_stdout().unwrap().read_exact(&mut said).unwrap();
    assert_eq!(&said, b"hello\n");
    assert_eq!(job.next_stop(Duration::from_secs(60)), Some(Signal::STOP));
    let handle = job.handle();
    assert_eq!(handle.processes().len(), job.processes().len());
    assert!(handle.usage().is_some() && job.pty_signal_keys().is_err());
    handle.freeze().unwrap();
    handle.thaw();
    job.postpone_deadline(Duration::from_secs(1));
    job.signal_group(Signal::KILL);
    assert_eq!(job.wait().unwrap().exit_code, 128 + 9);
    assert!(handle.usage().is_none() && job.main_has_ended());

    let pool = supervisor.pool(Pool::builder().workers(1).queue(1)).unwrap();
    let outcomes = pool.outcomes();
    let running = pool.submit(sleeping()).unwrap();
    let waiting = pool.submit(sleeping()).unwrap();
    assert!(pool.try_submit(sleeping()).unwrap().is_none() && running.outcome().is_none());
    assert_eq!((running.id(), waiting.id()), (1, 2));
    pool.stop();
    assert_eq!(outcomes.count(), 2);
    assert_eq!(running.outcome().unwrap().report.reason, Reason::Stopped);
    assert!(pool.submit(sleeping()).is_err());
    supervisor.close();
}

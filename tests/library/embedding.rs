//! Hosts that embed the library in unusual ways: futures that are kept without being polled, calls from outside a
//! runtime, hosts without a runtime.

use std::future::Future;
use std::io::{Read, Write};
use std::task::{Context, Waker};
use std::time::Duration;

use pinfold::pool::Shutdown;
use pinfold::report::{ContainmentKind, Reason};
use pinfold::{Command, Error, Pool, Readiness, Signal, Stdio, Supervisor, blocking};

use crate::support::PINFOLD;
use crate::support::alone::{alone, case};

fn sleeping() -> Command {
    let mut command = Command::new("sleep");
    command.arg("1000");
    command
}

/// There are more futures than the supervisor starts jobs at a time.
#[test]
#[requires(cgroup)]
fn spawns_that_are_not_polled_block_no_other_spawn() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let supervisor = Supervisor::builder().guard_program(PINFOLD).start().await.unwrap();
        let commands: Vec<_> = (0..100).map(|_| sleeping()).collect();
        let mut held: Vec<_> = commands.iter().map(|command| Box::pin(supervisor.spawn(command))).collect();
        for spawn in &mut held {
            assert!(spawn.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
        let spawned = tokio::time::timeout(Duration::from_secs(60), supervisor.spawn(&Command::new("true"))).await;
        let mut job = spawned.expect("the spawn completes").unwrap();
        assert!(job.wait().await.unwrap().success());
        // The other spawns have completed in the meantime, and their jobs are available when their futures are polled
        // again.
        let mut last = held.pop().unwrap().await.unwrap();
        last.start_kill().unwrap();
        assert_eq!(last.wait().await.unwrap().reason, Reason::Killed);
        // The other jobs end when their futures are dropped.
        drop(held);
        supervisor.close().await;
    });
}

#[test]
#[requires(cgroup)]
fn a_pool_from_outside_of_its_runtime() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (supervisor, pool, handles) = runtime.block_on(async {
        let supervisor = Supervisor::builder().guard_program(PINFOLD).start().await.unwrap();
        let pool = Pool::builder().workers(2).start(&supervisor).unwrap();
        let handles = [pool.submit(sleeping()).await.unwrap(), pool.submit(Command::new("true")).await.unwrap()];
        (supervisor, pool, handles)
    });
    // Before the runtime runs again, so that no task has ended yet.
    let mut outcomes = pool.outcomes();
    assert!(runtime.block_on(handles[1].wait()).success());
    let mut completed = pool.as_completed(&handles, Some(Duration::from_millis(200)));
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
#[requires(cgroup)]
fn without_a_runtime() {
    let supervisor = blocking::Supervisor::start_with(Supervisor::builder().guard_program(PINFOLD)).unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "echo ready >&2; read line; echo $line; kill -STOP $$; sleep 1000"]);
    command.name("talker").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut job = supervisor.spawn(&command).unwrap();
    assert_eq!((job.number(), job.name(), job.main_has_ended()), (1, "talker", false));
    let mut errors = job.stderr.take().unwrap().lines().max_line(1000);
    assert_eq!(errors.next().unwrap().unwrap().text(), "ready");
    job.stdin.take().unwrap().write_all(b"hello\n").unwrap();
    let mut said = [0; 6];
    job.stdout.take().unwrap().read_exact(&mut said).unwrap();
    assert_eq!(&said, b"hello\n");
    let handle = job.handle();
    assert_eq!(handle.processes().len(), job.processes().len());
    assert!(handle.usage().is_ok() && job.resize_pty(1, 1).is_err());
    handle.freeze().unwrap();
    handle.thaw();
    job.signal(Signal::KILL).unwrap();
    assert_eq!(job.wait().unwrap().exit_code, 128 + 9);
    assert!(handle.usage().unwrap().cpu_user_microseconds.value.is_some() && job.main_has_ended());

    // A wait closes the standard input, so cat ends.
    let mut cat = Command::new("cat").stdin(Stdio::piped()).spawn(&supervisor).unwrap();
    assert!(cat.wait_timeout(Duration::from_secs(60)).unwrap().is_some_and(|report| report.success()));

    let pool = supervisor.pool(Pool::builder().workers(1).queue(1)).unwrap();
    let outcomes = pool.outcomes();
    let running = pool.submit(sleeping()).unwrap();
    let waiting = pool.submit(sleeping()).unwrap();
    assert!(pool.try_submit(sleeping()).unwrap().is_none() && running.outcome().is_none());
    assert_eq!((running.id(), waiting.id()), (1, 2));
    pool.start_shutdown(Shutdown::Stop);
    assert_eq!(outcomes.count(), 2);
    assert_eq!(running.outcome().unwrap().report.reason, Reason::Stopped);
    assert!(pool.submit(sleeping()).is_err());
    supervisor.close();
}

/// An executor that does not know tokio: it polls, and sleeps until it is woken.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Thread(std::thread::Thread);
    impl std::task::Wake for Thread {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = std::sync::Arc::new(Thread(std::thread::current())).into();
    let (mut future, mut context) = (std::pin::pin!(future), Context::from_waker(&waker));
    loop {
        match future.as_mut().poll(&mut context) {
            std::task::Poll::Ready(done) => return done,
            std::task::Poll::Pending => std::thread::park(),
        }
    }
}

/// Makes each call of a supervisor and its jobs that waits.
async fn every_call(supervisor: Supervisor) {
    let long = Duration::from_secs(60);
    let file = crate::support::Scratch::new("ready");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "echo one; : > \"$0\"; read line; echo two"]).arg(file.path());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).timeout(long);
    let mut job = supervisor.spawn(&command).await.unwrap();
    job.ready(&Readiness::stdout_line("one"), long).await.unwrap();
    job.ready(&Readiness::file(file.path()), long).await.unwrap();
    job.ready(&Readiness::port(port.local_addr().unwrap()), long).await.unwrap();
    let never = Readiness::file("/no/such/file");
    assert!(matches!(job.ready(&never, Duration::from_millis(10)).await, Err(Error::NotReady { .. })));
    if supervisor_has_cgroup(&job).await {
        job.freeze().await.unwrap();
        job.thaw();
        job.handle().freeze().await.unwrap();
        job.handle().thaw();
        // The future is dropped before it is ready, which thaws the job again.
        drop(smol::future::poll_once(job.freeze()).await);
    }
    assert_eq!(job.processes().await.len(), 1);
    let mut stdin = job.stdin.take().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stdin, b"line\n").await.unwrap();
    drop(stdin);
    let output = job.wait_with_output().await.unwrap();
    assert_eq!((output.stdout.as_slice(), output.status.reason), (&b"one\ntwo\n"[..], Reason::Exited));
    assert!(job.wait().await.unwrap().is_gone() && job.usage().await.is_ok());
    assert!(matches!(job.freeze().await, Err(Error::System { .. })));

    let pool = Pool::builder().workers(1).deadline(long).start(&supervisor).unwrap();
    let handles = [pool.submit(Command::new("true")).await.unwrap(), pool.submit(sleeping()).await.unwrap()];
    assert!(handles[0].wait().await.success());
    let mut completed = pool.as_completed(&handles, Some(Duration::from_millis(100)));
    assert!(completed.next_outcome().await.unwrap().success());
    assert_eq!(completed.next_outcome().await.unwrap().report.reason, Reason::Deadline);
    pool.shutdown(Shutdown::Drain).await;
    supervisor.close().await;
}

async fn supervisor_has_cgroup(job: &pinfold::Job) -> bool {
    // Without a cgroup, a freeze is refused at once.
    match job.freeze().await {
        Ok(()) => {
            job.thaw();
            true
        }
        Err(error) => error.io_error().map(std::io::Error::kind) != Some(std::io::ErrorKind::Unsupported),
    }
}

/// Runs in a program that uses smol, and in a program with its own executor. There is no tokio runtime, or there is one
/// that runs elsewhere.
#[test]
#[requires(cgroup)]
fn every_call_works_outside_of_a_tokio_runtime() {
    let builder = |kind| Supervisor::builder().containment(kind);
    for kind in [ContainmentKind::Cgroup, ContainmentKind::Subreaper] {
        block_on(async { every_call(builder(kind).start().await.unwrap()).await });
        smol::block_on(async { every_call(builder(kind).start().await.unwrap()).await });
        let elsewhere = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let supervisor = elsewhere.block_on(builder(kind).start()).unwrap();
        smol::block_on(every_call(supervisor));
    }
}

/// Nothing drives the runtime meanwhile.
#[test]
#[requires(cgroup)]
fn a_supervisor_is_closed_outside_of_its_runtime() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for kind in [ContainmentKind::Cgroup, ContainmentKind::Subreaper] {
        let supervisor = runtime.block_on(Supervisor::builder().containment(kind).start()).unwrap();
        let mut job = runtime.block_on(supervisor.spawn(&sleeping())).unwrap();
        block_on(supervisor.close());
        assert!(!std::path::Path::new(&format!("/proc/{}", job.pid())).exists());
        assert!(runtime.block_on(job.wait()).unwrap().is_gone());
    }
}

/// A timer of a runtime that was shut down would panic.
#[test]
#[requires(cgroup)]
fn a_runtime_that_was_shut_down_panics_in_no_call() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (supervisor, mut job) = runtime.block_on(async {
        let supervisor = Supervisor::start().await.unwrap();
        let job = supervisor.spawn(&sleeping()).await.unwrap();
        (supervisor, job)
    });
    drop(runtime);
    block_on(async {
        let file = Readiness::file("/no/such/file");
        assert!(matches!(job.ready(&file, Duration::from_secs(60)).await, Err(Error::GuardLost)));
        assert!(matches!(job.freeze().await, Err(Error::System { .. })));
        let handle = job.handle();
        assert!(matches!(handle.ready(&file, Duration::from_secs(60)).await, Err(Error::GuardLost)));
        for lost in [job.wait().await, job.stop().await, handle.kill().await, handle.wait().await] {
            assert!(matches!(lost, Err(Error::GuardLost)));
        }
        assert!(matches!(job.try_wait(), Err(Error::GuardLost)) && matches!(handle.try_wait(), Err(Error::GuardLost)));
        assert!(matches!(supervisor.spawn(&sleeping()).await, Err(Error::GuardLost)));
        supervisor.close().await;
    });
}

/// Forks this process, calls `act` in the copy, and waits until the copy has ended with `exit`.
fn in_a_copy(act: impl FnOnce()) {
    // SAFETY: the copy has this thread only. It takes no lock that another thread can hold; if it did, the alarm would
    // end it.
    match unsafe { libc::fork() } {
        // SAFETY: `alarm` and `_exit` read no memory.
        0 => unsafe {
            libc::alarm(60);
            act();
            libc::_exit(7);
        },
        copy => {
            let mut status = 0;
            // SAFETY: waits for this process's own child.
            assert_eq!(unsafe { libc::waitpid(copy, &raw mut status, 0) }, copy);
            assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 7, "{status:#x}");
        }
    }
}

/// Returns a command that answers each line.
fn answering() -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "while read -r line; do echo $line; done; sleep 1000 & exit 7"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

/// As in Python: `os.fork()`, then `sys.exit()` in the copy, which drops its copies of all objects.
#[test]
#[requires(cgroup)]
fn a_forked_copy_that_drops_everything_changes_nothing() {
    if case().is_some() {
        let supervisor = blocking::Supervisor::start().unwrap();
        let mut terminal = Command::new("cat");
        terminal.pty(pinfold::Pty::new(24, 80));
        let mut job = supervisor.spawn(&answering()).unwrap();
        let mut with_terminal = supervisor.spawn(&terminal).unwrap();
        let pool = supervisor.pool(Pool::builder().workers(1)).unwrap();
        let task = pool.submit(sleeping()).unwrap();
        let (stdin, stdout) = (job.stdin.take().unwrap(), job.stdout.take().unwrap());
        let (keys, screen) = (with_terminal.stdin.take().unwrap(), with_terminal.stdout.take().unwrap());
        let handle = job.handle();
        let mut everything = Some((supervisor, job, with_terminal, pool, stdin, stdout, keys, screen));
        for _ in 0..3 {
            in_a_copy(|| {
                assert_eq!(handle.id(), u32::try_from(handle.pid()).ok());
                drop((handle.clone(), everything.take()));
            });
            in_a_copy(|| {
                let (supervisor, ..) = everything.take().unwrap();
                // The copy cannot use the supervisor.
                assert!(supervisor.spawn(&sleeping()).is_err());
                supervisor.close();
            });
        }
        let (supervisor, mut job, mut with_terminal, pool, mut stdin, mut stdout, mut keys, mut screen) =
            everything.unwrap();
        let mut said = [0; 6];
        stdin.write_all(b"again\n").unwrap();
        stdout.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"again\n");
        keys.write_all(b"typed\n").unwrap();
        screen.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"typed\r");
        assert!(!with_terminal.main_has_ended());
        assert!(task.outcome().is_none(), "{:?}", task.outcome());
        assert!(supervisor.spawn(&Command::new("true")).unwrap().wait().unwrap().success());
        drop(stdin);
        let report = job.wait().unwrap();
        assert_eq!((report.reason, report.exit_code), (Reason::Exited, 7));
        assert!(report.is_gone(), "{report:#?}");
        pool.start_shutdown(Shutdown::Stop);
        assert_eq!(task.wait().report.reason, Reason::Stopped);
        drop((keys, screen));
        with_terminal.kill().unwrap();
        supervisor.close();
        return println!("nothing has changed");
    }
    let said = alone("1", |_| {});
    assert!(said.contains("nothing has changed"), "{said}");
}

/// The same in a program with one thread and a tokio runtime, which the copy drops too.
#[test]
#[requires(cgroup)]
fn a_forked_copy_that_drops_its_runtime_changes_nothing() {
    if case().is_some() {
        let mut everything = None;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut guard = 0;
        let (supervisor, job) = runtime.block_on(async {
            let supervisor = Supervisor::start().await.unwrap();
            let job = supervisor.spawn(&answering()).await.unwrap();
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", job.pid())).unwrap();
            guard = stat.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
            (supervisor, job)
        });
        everything.replace((supervisor, job, runtime));
        in_a_copy(|| drop(everything.take()));
        let (supervisor, mut job, runtime) = everything.unwrap();
        // SAFETY: signal 0 changes nothing.
        assert_eq!(unsafe { (libc::kill(guard, 0), libc::kill(job.pid(), 0)) }, (0, 0));
        runtime.block_on(async {
            assert!(!job.main_has_ended());
            job.start_stop().unwrap();
            let report = job.wait().await.unwrap();
            assert!(report.reason == Reason::Stopped && report.is_gone(), "{report:#?}");
            supervisor.close().await;
        });
        return println!("nothing has changed");
    }
    let said = alone("1", |_| {});
    assert!(said.contains("nothing has changed"), "{said}");
}

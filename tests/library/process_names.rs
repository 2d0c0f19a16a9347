//! The methods that std and tokio have for a process, with the rules of those: before the end of the job, after it,
//! from several threads, and after the supervisor was closed.

use std::time::Duration;

use pinfold::report::Reason;
use pinfold::{Command, Error, JobHandle, Readiness, Signal, Stdio, Supervisor, blocking};

use crate::support::PINFOLD;
use crate::support::host::{piped, shell, with_supervisor};

const LONG: Duration = Duration::from_secs(60);

fn sleeping() -> Command {
    shell("exec sleep 1000")
}

/// Returns what the command prints with std's own spawn.
fn std_output(command: &mut std::process::Command) -> String {
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

#[test]
#[requires(cgroup)]
fn before_and_after_the_end() {
    with_supervisor(async |supervisor| {
        let mut job = sleeping().name("first").spawn(supervisor).await.unwrap();
        let handle = job.handle();
        assert_eq!(job.id(), u32::try_from(job.pid()).ok());
        assert_eq!((handle.id(), handle.pid()), (job.id(), job.pid()));
        assert_eq!((handle.number(), handle.name()), (job.number(), "first"));
        assert!(job.try_wait().unwrap().is_none() && handle.try_wait().unwrap().is_none());
        // A future that is not polled does nothing.
        drop(job.stop());
        drop(handle.kill());
        let report = handle.stop().await.unwrap();
        assert_eq!((report.reason, report.signal(), report.code()), (Reason::Stopped, Some(15), None));
        assert!(!report.success() && report.is_gone());
        // After the end, each method answers at once.
        for again in [job.wait().await, job.stop().await, job.kill().await, handle.wait().await, handle.kill().await] {
            assert_eq!(again.unwrap(), report);
        }
        assert_eq!((job.try_wait().unwrap(), handle.try_wait().unwrap()), (Some(report.clone()), Some(report.clone())));
        assert_eq!((job.id(), handle.id(), Some(handle.pid())), (None, None, report.pid));
        // A handle outlives its job, and has its events from the start on.
        drop(job);
        assert_eq!(handle.wait().await.unwrap(), report);
        let mut events = handle.events();
        let first = events.next_event().await.unwrap().kind;
        assert!(
            matches!(first, pinfold::events::EventKind::Spawned { pid, .. } if Some(pid) == report.pid),
            "{first:?}"
        );
        while events.next_event().await.is_some() {}
        assert!(handle.main_has_ended() && handle.processes().await.is_empty());
        assert!(handle.signal(Signal::TERM).is_err());

        let mut job = sleeping().spawn(supervisor).await.unwrap();
        let report = job.kill().await.unwrap();
        assert_eq!((report.reason, report.signal(), job.number()), (Reason::Killed, Some(9), 2));
    });
}

/// The main process has ended and the job has not: its process id may be given to another process.
#[test]
#[requires(cgroup)]
fn an_id_is_that_of_a_living_process() {
    with_supervisor(async |supervisor| {
        let mut command = piped("sleep 1000 & exit 0");
        let mut job = command.leftovers(pinfold::Leftovers::Wait).spawn(supervisor).await.unwrap();
        let mut events = job.events();
        while !matches!(events.next_event().await.unwrap().kind, pinfold::events::EventKind::MainExited { .. }) {}
        assert!(job.id().is_none() && job.handle().id().is_none() && job.try_wait().unwrap().is_none());
        let report = job.kill().await.unwrap();
        assert_eq!((report.code(), report.pid), (Some(0), Some(job.pid())));
    });
}

#[test]
#[requires(cgroup)]
fn status_and_output() {
    with_supervisor(async |supervisor| {
        let status = shell("exit 7").status(supervisor).await.unwrap();
        assert_eq!((status.success(), status.code(), status.signal()), (false, Some(7), None));
        assert_eq!(
            status.exit_status(),
            Some(std::process::Command::new("sh").args(["-c", "exit 7"]).status().unwrap())
        );
        let status = shell("kill -USR1 $$").status(supervisor).await.unwrap();
        assert_eq!(status.exit_status().unwrap().to_string(), "signal: 10 (SIGUSR1)");

        let mut command = Command::new("sh");
        command.args(["-c", "readlink /proc/self/fd/0; echo err >&2"]);
        let output = command.output(supervisor).await.unwrap();
        assert!(output.status.success());
        assert_eq!((output.stdout, output.stderr), (b"/dev/null\n".to_vec(), b"err\n".to_vec()));
        // A stream that was set stays as it is.
        command.stdin(Stdio::bytes("")).stderr(Stdio::null());
        let output = command.output(supervisor).await.unwrap();
        assert!(output.stdout.starts_with(b"/memfd:"), "{output:?}");
        assert_eq!(output.stderr.len(), 0);
        let missing = Command::new("/no/such/program").status(supervisor).await;
        assert!(matches!(missing, Err(Error::Spawn(_))));
    });
}

/// The pipe ends when no process of the job is left.
#[test]
#[requires(cgroup)]
fn a_dropped_status_kills_the_job() {
    with_supervisor(async |supervisor| {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut command = shell("echo ready; exec sleep 1000");
        command.stdout(std::os::fd::OwnedFd::from(writer));
        let status = command.status(supervisor);
        drop(command);
        let read = tokio::task::spawn_blocking(move || {
            let mut ready = [0; 6];
            std::io::Read::read_exact(&mut reader, &mut ready).map(|()| reader)
        });
        let mut reader = tokio::select! {
            _ = status => unreachable!("the job sleeps"),
            read = read => read.unwrap().unwrap(),
        };
        let rest = tokio::task::spawn_blocking(move || {
            let mut rest = Vec::new();
            std::io::Read::read_to_end(&mut reader, &mut rest).map(|_| rest)
        });
        assert!(tokio::time::timeout(LONG, rest).await.expect("the job is killed").unwrap().unwrap().is_empty());
    });
}

#[test]
#[requires(cgroup)]
fn from_two_threads_and_after_close() {
    let supervisor = blocking::Supervisor::start_with(Supervisor::builder().guard_program(PINFOLD)).unwrap();
    let mut job = sleeping().spawn(&supervisor).unwrap();
    let threads: Vec<_> = [blocking::JobHandle::stop, blocking::JobHandle::kill, blocking::JobHandle::wait]
        .map(|end| (end, job.handle()))
        .into_iter()
        .map(|(end, handle)| std::thread::spawn(move || end(&handle).unwrap()))
        .collect();
    let report = job.wait().unwrap();
    assert!(threads.into_iter().all(|thread| thread.join().unwrap() == report));
    assert!(matches!(report.reason, Reason::Stopped | Reason::Killed));
    assert_eq!((job.try_wait().unwrap(), job.id()), (Some(report), None));

    let mut talker = piped("echo ready; exec sleep 1000").spawn(&supervisor).unwrap();
    let handle = talker.handle();
    talker.ready(&Readiness::stdout_line("ready"), LONG).unwrap();
    assert_eq!((talker.id(), handle.id()), (u32::try_from(handle.pid()).ok(), u32::try_from(talker.pid()).ok()));
    // A handle does not read, and sees what the job has read.
    handle.ready(&Readiness::stdout_line("ready"), LONG).unwrap();
    let unread = handle.ready(&Readiness::stdout_line("steady"), Duration::from_millis(20));
    assert!(matches!(unread, Err(Error::NotReady { .. })), "{unread:?}");
    assert_eq!(Command::new("true").output(&supervisor).unwrap().status.code(), Some(0));
    assert!(Command::new("true").status(&supervisor).unwrap().success());
    supervisor.close();
    let report = handle.wait().unwrap();
    assert_eq!((talker.stop().unwrap(), handle.kill().unwrap()), (report.clone(), report.clone()));
    assert_eq!((talker.id(), handle.try_wait().unwrap()), (None, Some(report)));
    let over = handle.ready(&Readiness::file("/no/such/file"), LONG);
    assert!(matches!(over, Err(Error::NotReady { .. })), "{over:?}");
    // The output of the job is still there.
    assert_eq!(talker.wait_with_output().unwrap().stdout, b"ready\n");
    assert_eq!(talker.wait_with_output().unwrap().stdout, b"", "the first call returned it");
}

#[test]
#[requires(cgroup)]
fn the_environment_and_argument_zero() {
    with_supervisor(async |supervisor| {
        let mut command = Command::new("sh");
        command.arg0("zero").args(["-c", "tr '\\0' ' ' < /proc/$$/cmdline; echo; env"]);
        command.env("A", "1").env_clear().envs([("B", "2"), ("PATH", "/usr/bin:/bin"), ("C", "3")]).env_remove("C");
        let text = String::from_utf8(command.output(supervisor).await.unwrap().stdout).unwrap();
        assert!(text.starts_with("zero -c ") && text.contains("\nB=2\n"), "{text}");
        assert!(!text.contains("\nA=") && !text.contains("\nC=") && !text.contains("\nHOME="), "{text}");
        assert!(command.get_envs().all(|(_, value)| value.is_some()));

        let mut from = std::process::Command::new("sh");
        from.args(["-c", "pwd; env | grep -v ^_= | sort", "x"]).env("B", "2").env_remove("HOME").current_dir("/");
        let output = Command::from(&from).output(supervisor).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), std_output(&mut from));
        // Not even std shows that the environment is cleared.
        let shown = Command::from({
            from.env_clear();
            from
        });
        assert_eq!(shown.get_envs().count(), 0);
        let output = shown.output(supervisor).await.unwrap();
        assert!(String::from_utf8_lossy(&output.stdout).contains("PATH="));
    });
}

#[test]
fn send_and_sync() {
    fn for_any_thread<T: Clone + Send + Sync + 'static>() {}
    for_any_thread::<JobHandle>();
    for_any_thread::<blocking::JobHandle>();
    for_any_thread::<Stdio>();
    fn future(_: &(impl Send + ?Sized)) {}
    let _ = |supervisor: &Supervisor, command: &Command, handle: &JobHandle| {
        future(&command.spawn(supervisor));
        future(&command.status(supervisor));
        future(&command.output(supervisor));
        future(&handle.stop());
        future(&handle.kill());
        future(&handle.wait());
    };
}

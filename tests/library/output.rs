//! A job's output as a host receives it: complete, bounded, in lines, and without waiting longer than the job runs.

use std::io::{Read, Seek, Write};
use std::time::{Duration, SystemTime};

use pinfold::output::CaptureLimit;
use pinfold::report::Reason;
use pinfold::{Command, Error, Readiness, Stdio, Supervisor};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::Scratch;
use crate::support::host::{piped, with_supervisor};

/// Long enough that only a hang reaches it.
const LONG: Duration = Duration::from_secs(60);

#[test]
#[requires(cgroup)]
fn both_streams_and_the_report() {
    with_supervisor(async |supervisor| {
        let mut command = piped("cat; echo error >&2; exit 3");
        command.stdin(Stdio::bytes("given"));
        // Two jobs, each with its own output.
        for _ in 0..2 {
            let output = supervisor.spawn(&command).await.unwrap().wait_with_output().await.unwrap();
            assert_eq!((output.stdout, output.stderr), (b"given".to_vec(), b"error\n".to_vec()));
            assert_eq!((output.status.exit_code, output.status.reason), (3, Reason::Exited));
        }
    });
}

/// The read returns the output that is there, and does not wait for more. The end of a stream is not the end of the
/// job.
#[test]
#[requires(cgroup)]
fn a_closed_stream_is_not_the_end_of_the_job() {
    with_supervisor(async |supervisor| {
        let mut job = supervisor.spawn(&piped("echo last; exec >&- 2>&-; read forever < /dev/zero")).await.unwrap();
        let mut text = String::new();
        job.stdout.take().unwrap().read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "last\n");
        assert!(!job.processes().await.is_empty());
        assert!(job.stdout.take().is_none());
        job.start_kill().unwrap();
        assert_eq!(job.wait().await.unwrap().reason, Reason::Killed);
        assert!(job.processes().await.is_empty());
    });
}

/// The test itself holds the other end, like a process outside the job that received it.
#[test]
#[requires(cgroup)]
fn a_held_pipe_does_not_delay_the_return_and_loses_nothing() {
    with_supervisor(async |supervisor| {
        let script = "head -c 60000 /dev/zero; echo held >&2; echo ready > $0; read go < $0.go";
        let scratch = Scratch::directory("held");
        let (ready, go) = (scratch.path().join("fifo"), scratch.path().join("fifo.go"));
        for fifo in [&ready, &go] {
            rustix::fs::mkfifoat(rustix::fs::CWD, fifo, 0o600.into()).unwrap();
        }
        let mut command = piped(script);
        command.arg(ready.to_str().unwrap());
        let mut job = supervisor.spawn(&command).await.unwrap();
        let pid = job.pid();
        let held = tokio::task::spawn_blocking(move || {
            assert_eq!(std::fs::read_to_string(ready).unwrap(), "ready\n");
            let write_only =
                |number: i32| std::fs::OpenOptions::new().write(true).open(format!("/proc/{pid}/fd/{number}")).unwrap();
            let held = (write_only(1), write_only(2));
            std::fs::write(go, "go\n").unwrap();
            held
        })
        .await
        .unwrap();
        let output = tokio::time::timeout(LONG, job.wait_with_output()).await.unwrap().unwrap();
        assert_eq!((output.stdout.len(), output.stderr.as_slice()), (60_000, &b"held\n"[..]));
        // The pipe was held all the time.
        drop(held);
    });
}

#[test]
#[requires(cgroup)]
fn everything_is_kept_unless_the_caller_sets_a_limit() {
    with_supervisor(async |supervisor| {
        let mut command = piped("echo begin; head -c 30000000 /dev/zero; echo; echo end");
        let output = supervisor.spawn(&command).await.unwrap().wait_with_output().await.unwrap();
        assert_eq!((output.stdout_dropped, output.stdout.len()), (0, 30_000_011));

        command.capture(CaptureLimit::default());
        let output = supervisor.spawn(&command).await.unwrap().wait_with_output().await.unwrap();
        let kept = output.stdout;
        assert_eq!((output.stdout_dropped, kept.len()), (30_000_011 - 1024 * 1024, 1024 * 1024));
        assert!(kept.starts_with(b"begin\n\0") && kept.ends_with(b"\0\nend\n"));
    });
}

#[test]
#[requires(cgroup)]
fn a_dropped_wait_loses_no_output() {
    with_supervisor(async |supervisor| {
        let mut job = supervisor.spawn(&piped("seq 20000; sleep 0.1; seq 20001 40000")).await.unwrap();
        let output = loop {
            if let Ok(output) = tokio::time::timeout(Duration::from_millis(1), job.wait_with_output()).await {
                break output.unwrap();
            }
        };
        let whole: String = (1..=40_000).map(|number| format!("{number}\n")).collect();
        assert_eq!(output.stdout, whole.as_bytes());
    });
}

#[test]
#[requires(cgroup)]
fn lines_and_their_times() {
    with_supervisor(async |supervisor| {
        let before = SystemTime::now();
        let mut job = supervisor.spawn(&piped(r"printf 'one\n\ntwo\377\nlast'")).await.unwrap();
        let mut lines = job.stdout.take().unwrap().lines();
        let mut seen = Vec::new();
        while let Some(line) = lines.next_line().await.unwrap() {
            assert!(line.at >= before && line.at <= SystemTime::now());
            seen.push((line.text().into_owned(), line.complete));
        }
        let expected = [("one", true), ("", true), ("two\u{fffd}", true), ("last", false)];
        assert_eq!(seen, expected.map(|(text, complete)| (text.to_owned(), complete)));
        assert!(lines.next_line().await.unwrap().is_none());

        // Output without a newline arrives in pieces. None is lost, and pinfold holds no more of it than the maximum
        // length of a line.
        let mut job = supervisor.spawn(&piped("head -c 5000000 /dev/zero")).await.unwrap();
        let mut lines = job.stdout.take().unwrap().lines().max_line(100_000);
        let mut total = 0;
        while let Some(line) = lines.next_line().await.unwrap() {
            assert!(line.bytes.len() <= 100_000 && !line.complete);
            total += line.bytes.len();
        }
        assert_eq!(total, 5_000_000);

        // The length limit also applies where the newline arrives at once, and does not depend on how the output was
        // split into reads.
        let mut job = supervisor.spawn(&piped(r"printf 'abc\nabcdefgh\n\nabcd'")).await.unwrap();
        let mut lines = job.stdout.take().unwrap().lines().max_line(3);
        let mut seen = Vec::new();
        while let Some(line) = lines.next_line().await.unwrap() {
            seen.push((line.text().into_owned(), line.complete));
        }
        let expected =
            [("abc", true), ("abc", false), ("def", false), ("gh", true), ("", true), ("abc", false), ("d", false)];
        assert_eq!(seen, expected.map(|(text, complete)| (text.to_owned(), complete)));
    });
}

/// As [`tokio::process::Child::wait`] does. Without it, `cat` would wait for more input, and the caller for `cat`.
#[test]
#[requires(cgroup)]
fn a_wait_closes_the_standard_input_that_was_not_taken() {
    with_supervisor(async |supervisor| {
        let mut cat = Command::new("cat");
        cat.stdin(Stdio::piped());
        let mut job = cat.spawn(supervisor).await.unwrap();
        assert!(tokio::time::timeout(LONG, job.wait()).await.unwrap().unwrap().success());
        assert!(job.stdin.is_none());
        assert!(tokio::time::timeout(LONG, cat.status(supervisor)).await.unwrap().unwrap().success());

        // A handle leaves it to the owner of the job.
        let mut job = cat.spawn(supervisor).await.unwrap();
        let handle = job.handle();
        assert!(tokio::time::timeout(Duration::ZERO, handle.wait()).await.is_err() && job.stdin.is_some());
        assert!(job.try_wait().unwrap().is_none());
        // cat ends because of the closed input or of the stop signal.
        let report = tokio::time::timeout(LONG, job.stop()).await.unwrap().unwrap();
        assert_eq!((&handle.wait().await.unwrap(), job.try_wait().unwrap().as_ref()), (&report, Some(&report)));
        assert!(job.start_kill().is_ok() && job.kill().await.is_ok(), "the job is over");
    });
}

#[test]
#[requires(cgroup)]
fn standard_input_as_a_stream() {
    with_supervisor(async |supervisor| {
        let mut command = piped("cat");
        command.stdin(Stdio::piped());
        let mut job = supervisor.spawn(&command).await.unwrap();
        let mut stdin = job.stdin.take().unwrap();
        let bytes = vec![b'x'; 1_000_000];
        let write = async {
            stdin.write_all(&bytes).await.unwrap();
            drop(stdin);
        };
        let (output, ()) = tokio::join!(job.wait_with_output(), write);
        assert_eq!(output.unwrap().stdout.len(), 1_000_000);

        // The job ends without reading its input: no hang.
        let mut job = supervisor.spawn(command.arg("").stdout(Stdio::null())).await.unwrap();
        let mut stdin = job.stdin.take().unwrap();
        job.start_kill().unwrap();
        let error = tokio::time::timeout(LONG, stdin.write_all(&bytes)).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    });
}

#[test]
#[requires(cgroup)]
fn input_that_is_never_read_delays_nothing() {
    with_supervisor(async |supervisor| {
        let mut command = piped("echo done");
        command.stdin(Stdio::bytes(vec![b'x'; 100_000_000]));
        let output = supervisor.spawn(&command).await.unwrap().wait_with_output().await.unwrap();
        assert_eq!(output.stdout, b"done\n");
    });
}

#[test]
#[requires(cgroup)]
fn an_idle_timeout() {
    with_supervisor(async |supervisor| {
        let mut command = piped("echo once; sleep 1000");
        command.idle_timeout(Duration::from_millis(300));
        let output = supervisor.spawn(&command).await.unwrap().wait_with_output().await.unwrap();
        assert_eq!((output.status.reason, output.status.exit_code), (Reason::Idle, 124));
        assert_eq!(output.stdout, b"once\n");
        assert!(output.status.phases.stopping.unwrap() >= 0.3);

        // A job that writes in time is left alone, here for four times the timeout in all.
        let mut command = piped("for i in 1 2 3 4 5 6 7 8; do sleep 0.25; echo $i >&2; done");
        command.idle_timeout(Duration::from_secs(1));
        let output = supervisor.spawn(&command).await.unwrap().wait_with_output().await.unwrap();
        assert_eq!((output.status.reason, output.stderr.len()), (Reason::Exited, 16));

        // The job has no output that could be watched.
        let mut command = Command::new("true");
        command.idle_timeout(LONG);
        let error = supervisor.spawn(&command).await.unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{error}");
    });
}

#[test]
#[requires(cgroup)]
fn a_tee() {
    with_supervisor(async |supervisor| {
        let scratch = Scratch::new("tee");
        let file = std::fs::OpenOptions::new().read(true).write(true).create_new(true).open(scratch.path()).unwrap();
        let mut command = piped("echo one; echo two");
        command.tee_stdout(file.try_clone().unwrap());
        let output = supervisor.spawn(&command).await.unwrap().wait_with_output().await.unwrap();
        assert_eq!(output.stdout, b"one\ntwo\n");
        let (mut file, mut text) = (file, String::new());
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "one\ntwo\n");

        // A file that accepts no data causes one error, and the output is still complete.
        command.tee_stdout(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
        let mut job = supervisor.spawn(&command).await.unwrap();
        let error = job.wait_with_output().await.unwrap_err();
        assert!(matches!(error, Error::System { .. }), "{error}");
        assert!(error.to_string().contains("No space left on device"), "{error}");
        assert_eq!(job.wait_with_output().await.unwrap().stdout, b"one\ntwo\n");

        let error = supervisor.spawn(command.stdout(Stdio::null())).await.unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{error}");
    });
}

/// More than a pipe holds goes to a file that accepts no data. A reader that stops because of this must not wait for
/// the job.
#[test]
#[requires(cgroup)]
fn a_tee_that_fails_does_not_delay_the_job() {
    with_supervisor(async |supervisor| {
        let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut command = piped("head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2; exit 3");
        command.tee_stdout(full()).tee_stderr(full());
        let mut job = supervisor.spawn(&command).await.unwrap();
        for _ in 0..2 {
            let failed = tokio::time::timeout(LONG, job.wait_with_output()).await.expect("it is reported at once");
            assert!(matches!(failed, Err(Error::System { .. })), "{failed:?}");
        }
        // One error for each stream; none of the output is lost.
        let output = job.wait_with_output().await.unwrap();
        assert_eq!((output.stdout.len(), output.stderr.len()), (1_000_000, 1_000_000));
        assert_eq!(output.status.exit_code, 3);
    });
}

#[test]
#[requires(cgroup)]
fn a_file_as_standard_output() {
    with_supervisor(async |supervisor| {
        let scratch = Scratch::new("file");
        let mut file = std::fs::File::create_new(scratch.path()).unwrap();
        writeln!(file, "before").unwrap();
        let mut command = piped("echo during");
        command.stdout(file);
        supervisor.spawn(&command).await.unwrap().wait().await.unwrap();
        assert_eq!(scratch.text(), "before\nduring\n");
    });
}

/// A host may share these types between threads, or move them.
#[test]
fn send_and_sync() {
    fn both<T: Send + Sync>() {}
    fn future(_: &(impl Send + ?Sized)) {}
    both::<Command>();
    both::<Supervisor>();
    both::<pinfold::Job>();
    both::<pinfold::Report>();
    both::<Error>();
    both::<pinfold::events::Events>();
    both::<pinfold::output::OutputStream>();
    both::<pinfold::output::InputStream>();
    both::<pinfold::output::Lines>();
    both::<pinfold::output::Output>();
    // The futures are Send too, because hosts spawn them.
    let check = |supervisor: &Supervisor, job: &mut pinfold::Job, command: &Command, readiness: &Readiness| {
        future(&supervisor.spawn(command));
        future(&job.wait());
        future(&job.wait_with_output());
        future(&job.ready(readiness, LONG));
        future(&job.processes());
    };
    let _ = check;
}

/// `2>&1`: what one process writes to both streams in turn arrives in that order, wherever standard output goes.
#[test]
#[requires(cgroup)]
fn stderr_to_stdout_keeps_the_order_of_the_writes() {
    const SCRIPT: &str = "i=0; while [ $i -lt 200 ]; do echo out $i; echo err $i >&2; i=$((i + 1)); done";
    let expected: String = (0..200).map(|at| format!("out {at}\nerr {at}\n")).collect();
    let read_back = |mut file: std::fs::File| {
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    };
    with_supervisor(async |supervisor| {
        let file = || {
            let file = rustix::fs::memfd_create(c"output", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
            std::fs::File::from(file)
        };
        let (copy, own) = (file(), file());
        let mut command = crate::support::host::shell(SCRIPT);
        command.stderr_to_stdout(true).stderr(Stdio::piped());
        command.stdout(Stdio::piped()).tee_stdout(copy.try_clone().unwrap());
        let mut job = supervisor.spawn(&command).await.unwrap();
        assert!(job.stderr.take().is_none());
        let output = job.wait_with_output().await.unwrap();
        assert_eq!((String::from_utf8_lossy(&output.stdout), output.stderr.len()), (expected.as_str().into(), 0));
        assert_eq!(read_back(copy), expected);

        let mut command = crate::support::host::shell(SCRIPT);
        command.stderr_to_stdout(true).stdout(own.try_clone().unwrap());
        assert!(supervisor.spawn(&command).await.unwrap().wait().await.unwrap().success());
        assert_eq!(read_back(own), expected);

        // A job with a terminal has a single output already.
        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT]).stderr_to_stdout(true).pty(pinfold::Pty::new(24, 80));
        let output = supervisor.spawn(&command).await.unwrap().wait_with_output().await.unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).replace('\r', ""), expected);

        // There is no second stream to copy.
        let mut command = piped("true");
        command.stderr_to_stdout(true).tee_stderr(file());
        assert!(matches!(supervisor.spawn(&command).await, Err(Error::Invalid { .. })));
    });
}

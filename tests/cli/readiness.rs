//! Readiness: pinfold does not report a job as ready before it is, and waiting takes nothing from the job.

use std::net::TcpListener;
use std::time::Duration;

use pinfold::{Command, Error, Readiness};
use tokio::io::AsyncReadExt;

use crate::support::host::{piped, with_supervisor};
use crate::support::{Run, Scratch, program};

/// Long enough that only a hang reaches it.
const LONG: Duration = Duration::from_secs(60);

#[test]
#[requires(cgroup)]
fn by_a_line_a_port_or_a_file() {
    with_supervisor(async |supervisor| {
        let mut job = supervisor.spawn(&piped("echo starting; echo 'listening on 7'; sleep 1000")).await.unwrap();
        job.ready(&Readiness::stdout_line("listening"), LONG).await.unwrap();
        // The output after the line can be read, and also the output that was read to find the line.
        job.start_stop().unwrap();
        assert_eq!(job.wait_with_output().await.unwrap().stdout, b"starting\nlistening on 7\n");

        // The job never gets ready: it ends, or the time is over.
        let never = Readiness::stdout_line("listening");
        let mut job = supervisor.spawn(&piped("echo starting")).await.unwrap();
        let error = job.ready(&never, LONG).await.unwrap_err();
        assert!(matches!(error, Error::NotReady { .. }) && error.to_string().contains("'listening'"), "{error}");
        let mut job = supervisor.spawn(&piped("sleep 1000")).await.unwrap();
        for readiness in [never, Readiness::port(([127, 0, 0, 1], 1)), Readiness::file("/no/such")] {
            let error = job.ready(&readiness, Duration::from_millis(50)).await.unwrap_err();
            assert!(matches!(error, Error::NotReady { .. }) && error.to_string().contains("50ms"), "{error}");
        }
        job.start_kill().unwrap();
        let error = job.ready(&Readiness::port(([127, 0, 0, 1], 1)), LONG).await.unwrap_err();
        assert!(matches!(error, Error::NotReady { .. }), "{error}");

        // A port is free until a process listens on it.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let mut job = supervisor.spawn(&piped("sleep 1000")).await.unwrap();
        let port = Readiness::port(address);
        let (ready, _listener) = tokio::join!(job.ready(&port, LONG), async {
            // No event shows that an attempt to connect has failed, so the port is free for some time.
            tokio::time::sleep(Duration::from_millis(50)).await;
            TcpListener::bind(address).unwrap()
        });
        ready.unwrap();

        // A file, in a directory that does not exist yet.
        let scratch = Scratch::directory("ready");
        let path = scratch.path().join("a/b/file");
        let script = format!(
            "cd {}; sleep 0.1; mkdir a; sleep 0.1; mkdir a/b; sleep 0.1; : > a/b/file",
            scratch.path().display()
        );
        let mut job = supervisor.spawn(&piped(&format!("{script}; sleep 1000"))).await.unwrap();
        job.ready(&Readiness::file(&path), LONG).await.unwrap();
        assert!(path.exists());
    });
}

/// A file that can never exist is an error, and not a timeout.
#[test]
#[requires(cgroup)]
fn a_file_below_a_file_can_never_exist() {
    with_supervisor(async |supervisor| {
        let mut job = supervisor.spawn(&piped("sleep 1000")).await.unwrap();
        let error = job.ready(&Readiness::file("/etc/passwd/a/b"), LONG).await.unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{error:?}");
        job.start_kill().unwrap();
        job.wait().await.unwrap();
    });
    // The error comes before anything is started.
    let mark = Scratch::new("mark");
    let script = format!("echo ran > {}", mark.path().display());
    let ran = Run::new(["--ready", "file:/etc/passwd/a/b", "--", "sh", "-c", &script]).run().assert_code(125);
    assert!(!mark.path().exists(), "{ran:#?}");
}

/// The job itself puts a file in the way: that is not reported as a timeout either.
#[test]
#[requires(cgroup)]
fn a_job_that_makes_its_readiness_impossible_fails() {
    let directory = Scratch::directory("in-the-way");
    let way = directory.path().join("way");
    let what = format!("file:{}/up", way.display());
    let script = format!("echo > {}; sleep 1000", way.display());
    let ran = Run::new(["--ready", &what, "--", "sh", "-c", &script]).run().assert_code(125);
    assert!(ran.reported_error().contains(way.to_str().unwrap()), "{ran:#?}");
    assert_eq!((&ran.report["exit_code"], &ran.report["reason"]), (&125.into(), &"stopped".into()));
}

/// A connection may get the very port that it connects to (one of two ports here, of 28232 by default) as its own,
/// although no process listens there.
#[test]
#[requires(cgroup, root, program("unshare"), program("ip"))]
fn a_connection_to_itself_is_no_listener() {
    let in_net = |options: &[&str], job: &[&str]| {
        let script = r#"exec unshare --net sh -ec '
            ip link set lo up; echo 40000 40001 > /proc/sys/net/ipv4/ip_local_port_range; exec "$@"' sh "$@""#;
        Run::in_shell(script, [options, &["--"], job].concat())
    };
    for port in ["40000", "40001"] {
        for address in ["127.0.0.1", "[::1]"] {
            let what = format!("port:{address}:{port}");
            let ran = in_net(&["--ready", &what, "--ready-timeout", "300ms"], &["sleep", "1000"]).run();
            assert_eq!((ran.code, &ran.report["reason"]), (124, &"stopped".into()), "{what}: {ran:#?}");
            assert!(ran.reported_error().contains(&format!("{address}:{port}")), "{ran:#?}");
        }
        // The check does not take the port away from the job that will listen on it, however long that takes.
        let up = Scratch::new("up");
        let up_name = up.path().to_str().unwrap();
        let what = format!("port:{port}");
        let script =
            format!(r#"sleep 0.3; "$0" 127.0.0.1 {port}; until [ -s {up_name} ]; do sleep 0.02; done; exit 3"#);
        let port_program = program("port");
        let job = ["sh", "-c", &script, port_program.to_str().unwrap()];
        in_net(&["--ready", &what, "--ready-notify", up_name], &job).run().assert_code(3);
        assert_eq!(up.text(), "ready\n");
    }
}

/// If the job is not ready in time, the exit code is 124, whatever code or signal the job ends with. The report says so
/// too.
#[test]
#[requires(cgroup)]
fn too_late_is_124_however_it_ended() {
    for stop_signal in ["TERM", "INT"] {
        let options = ["--ready", "line:never", "--ready-timeout", "100ms", "--stop-signal", stop_signal];
        let ran = Run::new(options.iter().chain(&["--", "sleep", "1000"])).run().assert_code(124);
        assert_eq!((ran.signal, &ran.report["exit_code"]), (None, &124.into()), "{ran:#?}");
        assert!(ran.reported_error().contains("'never'") && ran.stderr.lines().count() == 1, "{ran:#?}");
    }
    let options = ["--idle-timeout", "100ms", "--stop-signal", "INT", "--", "sleep", "1000"];
    assert_eq!(Run::new(options).run().assert_code(124).signal, None);
}

/// The check finds a server on any of the addresses of localhost, by its port alone and by its host name.
#[test]
#[requires(cgroup, root, program("unshare"), program("ip"))]
fn a_port_is_found_at_each_address_of_this_machine() {
    let server = program("port");
    for address in ["127.0.0.1", "::1"] {
        for what in ["port:40001", "port:localhost:40001"] {
            let up = Scratch::new("up");
            let script = r#"exec unshare --net sh -ec 'ip link set lo up; exec "$@"' sh "$@""#;
            let job = r#""$0" "$1" 40001; until [ -s "$2" ]; do sleep 0.02; done; exit 3"#;
            let (server, up_name) = (server.to_str().unwrap(), up.path().to_str().unwrap());
            let options = ["--ready", what, "--ready-notify", up_name, "--", "sh", "-c", job, server, address, up_name];
            Run::in_shell(script, options).run().assert_code(3);
            assert_eq!(up.text(), "ready\n", "{what} at {address}");
        }
    }
}

/// Another program listens there: the job cannot, and does not count as ready.
#[test]
#[requires(cgroup)]
fn a_port_that_is_held_before_the_start_is_an_error() {
    let v6 = TcpListener::bind("[::1]:0").ok();
    for listener in [Some(TcpListener::bind("127.0.0.1:0").unwrap()), v6].into_iter().flatten() {
        let address = listener.local_addr().unwrap();
        for what in [
            format!("port:{}", address.port()),
            format!("port:{address}"),
            format!("port:localhost:{}", address.port()),
        ] {
            let mark = Scratch::new("mark");
            let script = format!("echo ran > {}", mark.path().display());
            let ran = Run::new(["--ready", &what, "--", "sh", "-c", &script]).run().assert_code(125);
            assert!(ran.stderr.contains(&address.to_string()) && !mark.path().exists(), "{what}: {ran:#?}");
        }
        with_supervisor(async |_| {
            let error = Readiness::local_port(address.port()).check_before_start().await.unwrap_err();
            assert!(matches!(error, Error::Invalid { .. }), "{error}");
        });
        drop(listener);
        with_supervisor(async |_| Readiness::port(address).check_before_start().await.unwrap());
    }
}

/// What counts as a readiness line is the same for the command and the library, whether the library's caller has taken
/// the streams or not.
#[test]
#[requires(cgroup)]
fn a_line_counts_when_it_is_complete() {
    // Scripts whose output contains the line "up", and those that never complete it.
    let table = [
        ("echo up", true),
        ("echo it is up now", true),
        ("echo up >&2", true),
        ("printf 'up\\r\\n'", true),
        ("printf '\\377up\\376\\n'", true),
        ("printf u; sleep 0.1; printf 'p\\n'", true),
        ("printf u; sh -c 'echo p'", true),
        ("printf up; exec >&- 2>&-", true),
        ("head -c 3000000 /dev/zero; echo up", true),
        ("printf up", false),
        ("printf 'up\\r'", false),
        ("printf 'u\\np\\n'", false),
        ("echo UP", false),
        ("printf u; echo p >&2", false),
    ];
    for (script, is_ready) in table {
        let up = Scratch::new("up");
        let up_name = up.path().to_str().unwrap();
        // A job that is ready waits for that; a job that is not goes on until the time is over.
        let wait = if is_ready { "until [ -s \"$0\" ]; do sleep 0.02; done" } else { "exec sleep 1000" };
        let job = format!("{script}; {wait}");
        let timeout = if is_ready { "1m" } else { "300ms" };
        let options = ["--ready", "line:up", "--ready-timeout", timeout, "--ready-notify", up_name];
        let ran = Run::new(options.iter().chain(&["--", "sh", "-c", &job, up_name])).run();
        let expected = if is_ready { (0, "ready\n".into()) } else { (124, "failed\n".into()) };
        assert_eq!((ran.code, up.text()), expected, "{script}: {}", ran.stderr);
    }
    with_supervisor(async |supervisor| {
        for (script, is_ready) in table {
            let timeout = if is_ready { LONG } else { Duration::from_millis(300) };
            for is_taken in [false, true] {
                let mut job = supervisor.spawn(&piped(&format!("{script}; exec sleep 1000"))).await.unwrap();
                let streams = if is_taken { [job.stdout.take(), job.stderr.take()] } else { [None, None] };
                let readiness = Readiness::line("up");
                let ready = job.ready(&readiness, timeout);
                let reading: Vec<_> = streams
                    .into_iter()
                    .flatten()
                    .map(|mut stream| tokio::spawn(async move { stream.read_to_end(&mut Vec::new()).await }))
                    .collect();
                let ready = ready.await;
                assert_eq!(ready.is_ok(), is_ready, "{script}, taken: {is_taken}: {ready:?}");
                if is_ready {
                    // The search has a memory.
                    job.ready(&Readiness::line("up"), Duration::ZERO).await.unwrap();
                }
                let only = [Readiness::stdout_line("up"), Readiness::stderr_line("up")];
                if !is_taken && script == "echo up" {
                    job.ready(&only[0], Duration::ZERO).await.unwrap();
                    job.ready(&only[1], Duration::from_millis(50)).await.unwrap_err();
                }
                job.start_kill().unwrap();
                job.wait().await.unwrap();
                for reading in reading {
                    reading.await.unwrap().unwrap();
                }
            }
        }
        // A line cannot contain a newline, and an output that is not piped has no lines.
        let mut job = supervisor.spawn(&piped("exec sleep 1000")).await.unwrap();
        let error = job.ready(&Readiness::line("a\nb"), LONG).await.unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{error}");
        let mut job = supervisor.spawn(Command::new("sleep").arg("1000")).await.unwrap();
        let error = job.ready(&Readiness::line("a"), LONG).await.unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{error}");
    });
}

/// Two searches in one output, and the output that they have read is complete.
#[test]
#[requires(cgroup)]
fn several_searches_in_one_output() {
    with_supervisor(async |supervisor| {
        let mut job = supervisor.spawn(&piped("echo one; echo two; exec sleep 1000")).await.unwrap();
        let (one, two) = (Readiness::stdout_line("one"), Readiness::stdout_line("two"));
        let handle = job.handle();
        let (both, other) = tokio::join!(job.ready(&two, LONG), handle.ready(&one, LONG));
        both.and(other).unwrap();
        job.ready(&Readiness::line("wo"), LONG).await.unwrap();
        job.start_stop().unwrap();
        assert_eq!(job.wait_with_output().await.unwrap().stdout, b"one\ntwo\n");
    });
}

/// The reader of --ready-notify gets an answer in every case, and a job that was never ready is a failure.
#[test]
#[requires(cgroup)]
fn a_reader_of_ready_notify_is_released_when_the_job_will_never_be_ready() {
    let scratch = Scratch::directory("notify");
    let fifo = scratch.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, 0o600.into()).unwrap();
    let fifo = fifo.to_str().unwrap();
    let up = format!("file:{}", scratch.path().join("up").display());
    let touch = format!("touch {}", scratch.path().join("up").display());
    let by_fifo = |options: &[&str], job: &str| {
        let script = format!(r#""$@" & pid=$!; cat {fifo}; wait $pid"#);
        Run::in_shell(&script, [options, &["--ready-notify", fifo, "--", "sh", "-c", job]].concat()).run()
    };
    let line = ["--ready", "line:never"];
    for (options, job, code) in [
        (&line[..], "true", 124),
        (&["--ready", &up], "exec true", 124),
        (&["--ready", "port:1"], "exit 0", 124),
        (&line, "exit 3", 3),
        (&line, "kill -9 $$", 137),
        (&["--ready", "line:never", "--ready-timeout", "100ms"], "exec sleep 1000", 124),
        (&["--ready", "line:never", "-t", "100ms"], "exec sleep 1000", 124),
        (&["--ready", "line:never", "--cwd", "/no/such"], "true", 125),
        (&["--ready", "line:never", "--memory", "0"], "true", 125),
    ] {
        let ran = by_fifo(options, job).assert_code(code);
        assert_eq!(ran.stdout, "failed\n", "{options:?} {job}: {ran:#?}");
        assert!(ran.stderr.starts_with("pinfold: "), "{options:?} {job}: {ran:#?}");
        assert_eq!(ran.report["exit_code"], code, "{ran:#?}");
    }
    // Readiness counts if it comes together with the end of the job.
    for (options, job) in [(&["--ready", "line:up"][..], "echo up >&2"), (&["--ready", &up], touch.as_str())] {
        assert_eq!(by_fifo(options, job).assert_code(0).stdout, "ready\n", "{options:?}");
    }
    // A descriptor, and a file that contains the word of an earlier run.
    let script = r#"exec 5> >(cat); "$@" 5>&5; code=$?; exec 5>&-; wait; exit $code"#;
    let options = ["--ready", "line:never", "--ready-notify", "fd:5", "--", "true"];
    assert_eq!(Run::in_shell(script, options).run().assert_code(124).stdout, "failed\n");
    let notified = Scratch::new("told");
    std::fs::write(notified.path(), "ready\n").unwrap();
    let mut running = Run::new(
        [&line[..], &["--ready-notify", notified.path().to_str().unwrap(), "sh", "-c", "echo runs; exec cat"]].concat(),
    );
    running.command().stdin(std::process::Stdio::piped());
    let mut running = running.start();
    assert_eq!((running.line().as_str(), notified.text().as_str()), ("runs", ""));
    drop(running.child.stdin.take());
    running.finish().assert_code(124);
    assert_eq!(notified.text(), "failed\n");
    // Nothing reads the FIFO: pinfold reports that and does not wait for a reader.
    let ran = Run::new(["--ready", "line:up", "--ready-notify", fifo, "--", "echo", "up"]).run().assert_code(0);
    assert!(ran.stderr.contains(fifo), "{ran:#?}");
}

//! A stop begins with the signal that pinfold received, so that the job's handlers for it run.

use std::time::Duration;

use pinfold::report::Reason;
use pinfold::{Command, Readiness, Signal, Stdio, blocking};

use crate::support::host::with_supervisor;
use crate::support::{Run, Running, program};

/// Long enough that only a hang reaches it.
const LONG: Duration = Duration::from_secs(60);

/// Prints how it is interrupted, and that its `finally` block ran.
const PYTHON: &str = "
import signal, sys
signal.signal(signal.SIGHUP, lambda *_: (print('reload', flush=True), sys.exit(4)))
try:
    print('ready', flush=True)
    while True: signal.pause()
except KeyboardInterrupt:
    print('interrupted', flush=True)
    sys.exit(3)
finally:
    print('finally', flush=True)
";

#[test]
#[requires(cgroup, program("python3"))]
fn stop_with_sends_that_signal_first() {
    with_supervisor(async |supervisor| {
        for (signal, printed, code) in [
            (Signal::INT, "ready\ninterrupted\nfinally\n", 3),
            (Signal::HUP, "ready\nreload\nfinally\n", 4),
            (Signal::TERM, "ready\n", 143),
        ] {
            let mut command = Command::new("python3");
            command.args(["-c", PYTHON]).stdout(Stdio::piped()).grace(LONG);
            let mut job = supervisor.spawn(&command).await.unwrap();
            job.ready(&Readiness::stdout_line("ready"), LONG).await.unwrap();
            match signal {
                // One of the signals goes through a second handle.
                Signal::HUP => job.handle().start_stop_with(signal),
                _ => job.start_stop_with(signal),
            }
            .unwrap();
            let output = job.wait_with_output().await.unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), printed);
            let report = &output.status;
            assert_eq!((report.exit_code, report.reason, report.killed), (code, Reason::Stopped, false));
        }
    });
}

/// A shell starts its background processes with SIGINT ignored; nohup(1) ignores SIGHUP.
#[test]
#[requires(cgroup)]
fn processes_that_ignore_the_first_signal_receive_the_stop_signal_next() {
    with_supervisor(async |supervisor| {
        for (signal, script) in [
            (Signal::INT, "sh -c 'echo ready; exec sleep 1000' & exec sleep 1001"),
            (Signal::QUIT, "ulimit -c 0; (echo ready; exec sleep 1000) & exec sleep 1001"),
            (Signal::HUP, "nohup sh -c 'echo ready; exec sleep 1000' 2>/dev/null & exec sleep 1001"),
        ] {
            let mut command = Command::new("sh");
            command.args(["-c", script]).stdout(Stdio::piped()).grace(LONG);
            let mut job = supervisor.spawn(&command).await.unwrap();
            job.ready(&Readiness::stdout_line("ready"), LONG).await.unwrap();
            job.start_stop_with(signal).unwrap();
            let report = job.wait().await.unwrap();
            assert_eq!(i32::from(report.exit_code), 128 + signal.number(), "{report:#?}");
            assert_eq!((report.killed, report.stopped.count), (false, 2), "{report:#?}");
        }
    });
}

#[test]
#[requires(cgroup)]
fn a_second_stop_kills_whatever_its_signal() {
    with_supervisor(async |supervisor| {
        let mut command = Command::new("sh");
        let script = "trap 'echo one' INT; trap '' TERM; echo ready; while :; do sleep 0.1; done";
        command.args(["-c", script]).stdout(Stdio::piped()).grace(LONG);
        let mut job = supervisor.spawn(&command).await.unwrap();
        job.ready(&Readiness::stdout_line("ready"), LONG).await.unwrap();
        job.start_stop_with(Signal::INT).unwrap();
        job.ready(&Readiness::stdout_line("one"), LONG).await.unwrap();
        job.start_stop_with(Signal::TERM).unwrap();
        let report = job.wait().await.unwrap();
        assert_eq!((report.killed, report.exit_code), (true, 137), "{report:#?}");
    });
}

/// The same with the blocking API, without tokio in the host.
#[test]
#[requires(cgroup)]
fn the_blocking_api_does_the_same() {
    let builder = pinfold::Supervisor::builder().guard_program(crate::support::PINFOLD);
    let supervisor = blocking::Supervisor::start_with(builder).unwrap();
    for by_handle in [false, true] {
        let mut command = Command::new("sh");
        command.args(["-c", "trap 'exit 5' INT; echo ready; while :; do sleep 0.1; done"]).stdout(Stdio::piped());
        let mut job = supervisor.spawn(&command).unwrap();
        job.ready(&Readiness::stdout_line("ready"), LONG).unwrap();
        let sent = if by_handle { job.handle().start_stop_with(Signal::INT) } else { job.start_stop_with(Signal::INT) };
        sent.unwrap();
        assert_eq!(job.wait().unwrap().exit_code, 5);
    }
    supervisor.close();
}

/// Runs without a controlling terminal, wherever the tests are run.
fn detached(words: &[&str]) -> Running {
    Run::in_shell(r#"exec setsid "$@""#, words).start()
}

/// Starts a job that prints each signal that it receives and ends after `last`. Returns when the job has printed that
/// it is ready.
fn printing(options: &[&str], last: i32) -> Running {
    let (program, last) = (program("signals"), last.to_string());
    let mut running = detached(&[options, &[program.to_str().unwrap(), last.as_str()]].concat());
    assert_eq!(running.line(), "ready");
    running
}

#[test]
#[requires(cgroup, program("python3"))]
fn run_sends_the_received_signal_first() {
    for containment in ["cgroup", "subreaper"] {
        for (signal, printed, code) in [
            (libc::SIGINT, "interrupted\nfinally\n", 3),
            (libc::SIGHUP, "reload\nfinally\n", 4),
            (libc::SIGTERM, "", 143),
        ] {
            let options = ["--containment", containment, "--grace", "1h", "python3", "-c", PYTHON];
            let mut running = detached(&options);
            assert_eq!(running.line(), "ready");
            running.signal(signal);
            let ran = running.finish().assert_code(code);
            assert_eq!((ran.stdout.as_str(), &ran.report["killed"]), (printed, &false.into()), "{ran:#?}");
        }
    }
    // To its main process alone, and with a stop signal that was chosen.
    for (options, printed) in
        [(["--signal-to", "main"], "2\n"), (["--stop-signal", "TERM"], "15\n"), (["--stop-signal", "USR1"], "10\n")]
    {
        let last = printed.trim().parse().unwrap();
        let running = printing(&options, last);
        running.signal(libc::SIGINT);
        let ran = running.finish().assert_code(0);
        assert_eq!(ran.stdout.replace("18\n", ""), printed, "{options:?}");
    }
}

#[test]
#[requires(cgroup)]
fn a_signal_does_what_its_option_says() {
    // A reload: the job continues.
    for (option, signal) in [("HUP=pass", libc::SIGHUP), ("int=pass", libc::SIGINT), ("3=pass", libc::SIGQUIT)] {
        let mut running = printing(&["--grace", "1h", "--on-signal", option], libc::SIGUSR2);
        for _ in 0..3 {
            running.signal(signal);
            assert_eq!(running.line(), signal.to_string());
        }
        // SAFETY: signals pinfold, whose job has not ended.
        unsafe { libc::kill(running.pinfold_pid(), libc::SIGUSR2) };
        let ran = running.finish().assert_code(0);
        assert_eq!((ran.stdout.as_str(), &ran.report["reason"]), ("12\n", &"exited".into()), "{ran:#?}");
    }
    let mut running = printing(&["--on-signal", "HUP=ignore"], libc::SIGTERM);
    let pinfold = running.pinfold_pid();
    for signal in [libc::SIGHUP, libc::SIGHUP, libc::SIGUSR1] {
        // SAFETY: signals pinfold, whose job has not ended.
        unsafe { libc::kill(pinfold, signal) };
    }
    assert_eq!(running.line(), "10");
    running.signal(libc::SIGTERM);
    assert_eq!(running.finish().assert_code(0).stdout, "15\n");

    let mut running = printing(&["-v", "--on-signal", "INT=kill"], 0);
    // Before pinfold has started the job, the signal ends pinfold itself.
    assert_ne!(running.error_line(), "");
    running.signal(libc::SIGINT);
    assert_eq!(running.finish().assert_code(137).report["killed"], true);

    // A signal that stops the job only because of the option causes the usual stop.
    let running = printing(&["--on-signal", "USR1=stop"], libc::SIGTERM);
    // SAFETY: signals pinfold, whose job has not ended.
    unsafe { libc::kill(running.pinfold_pid(), libc::SIGUSR1) };
    let ran = running.finish().assert_code(0);
    assert_eq!((ran.stdout.as_str(), &ran.report["reason"]), ("15\n", &"stopped".into()), "{ran:#?}");

    for wrong in ["HUP", "HUP=reload", "KILL=pass", "FOO=stop"] {
        Run::new(["--on-signal", wrong, "true"]).run().assert_code(125);
    }
}

/// The signal is blocked until pinfold is executed, so it is pending before pinfold does anything.
#[test]
#[requires(cgroup, program("python3"))]
fn signals_before_the_start() {
    let script = "import os, signal, sys
numbers = [int(number) for number in sys.argv[1].split(',')]
signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
for number in numbers: os.kill(os.getpid(), number)
signal.pthread_sigmask(signal.SIG_SETMASK, [])
os.execv(sys.argv[2], sys.argv[2:])";
    // The signals stay blocked across exec where they would otherwise end Python.
    let script = script.replace("signal.pthread_sigmask(signal.SIG_SETMASK, [])\n", "");
    let before = |numbers: &str, words: &[&str]| {
        let shell = format!("exec setsid python3 -c \"$SCRIPT\" {numbers} \"$@\"");
        let mut run = Run::in_shell(&shell, words);
        run.command().env("SCRIPT", &script);
        run.run()
    };
    let signals = program("signals");
    for signal in [libc::SIGINT, libc::SIGHUP, libc::SIGTERM] {
        // The job starts, and its stop begins with that signal.
        let ran = before(&signal.to_string(), &[signals.to_str().unwrap(), &signal.to_string()]).assert_code(0);
        assert_eq!((ran.stdout, &ran.report["reason"]), (format!("ready\n{signal}\n"), &"stopped".into()));
    }
    // With a second request no job starts.
    let ran = before("15,1", &["echo", "no"]);
    assert_eq!((ran.stdout.as_str(), &ran.report["reason"]), ("", &"stopped".into()), "{ran:#?}");
    assert!([129, 143].contains(&ran.code), "{ran:#?}");
    let ran = before("2,15", &["--on-signal", "TERM=ignore", signals.to_str().unwrap(), "2"]).assert_code(0);
    assert_eq!(ran.stdout, "ready\n2\n");
}

/// A job stopped by SIGSTOP is continued for its stop, and its handlers run.
#[test]
#[requires(cgroup)]
fn a_stop_of_a_stopped_job() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let mut running =
            detached(&["--grace", "1h", "sh", "-c", "trap 'echo handled; exit 6' INT TERM; echo $$; kill -STOP $$"]);
        crate::support::wait_until_stopped(running.line().parse().unwrap());
        running.signal(signal);
        let ran = running.finish().assert_code(6);
        assert_eq!(ran.stdout, "handled\n");
    }
}

/// Without a shell that has job control, the kernel ignores a stop by job control (setpgid(2), "orphaned process
/// group"). The job's process group is not orphaned, because the guard is its parent: pinfold continues the job.
#[test]
#[requires(cgroup)]
fn a_stop_by_job_control_has_no_effect_where_no_shell_would_continue_it() {
    let ways = [
        &[][..],
        &[crate::support::PINFOLD, "run", "-q", "--"],
        &[crate::support::PINFOLD, "run", "-q", "--containment", "subreaper", "--"],
        &[crate::support::PINFOLD, "init", "--"],
        &[crate::support::PINFOLD, "timeout", "1h"],
    ];
    for way in ways {
        for signal in ["TSTP", "TTIN", "TTOU"] {
            let script = format!("kill -{signal} $$; echo on; exit 3");
            let words = [&["setsid", "-w"], way, &["sh", "-c", &script]].concat();
            let mut run = Run::bare(words);
            run.command().stdin(std::process::Stdio::null());
            assert_eq!(run.run().assert_code(3).stdout, "on\n", "{way:?} {signal}");
        }
    }
}

/// The signal comes before the job, with it, or when it has just ended: the exit code is that of the command or of the
/// signal, and no other.
#[test]
#[requires(cgroup)]
fn a_signal_at_any_moment_of_a_short_job() {
    let mut codes = std::collections::BTreeMap::new();
    for round in 0..90_u64 {
        let signal = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP][round as usize % 3];
        let running = detached(&["sh", "-c", "exit 3"]);
        // The warden has its handlers, and pinfold exists.
        let pinfold = crate::support::wait_for(|| {
            let id = running.child.id();
            let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
            let pid = children.split_whitespace().next().and_then(|pid| pid.parse::<i32>().ok());
            (pid.is_some() || running.ends_within(Duration::ZERO)).then_some(pid)
        });
        // On a busy machine all of it can be over before this test sees it.
        let Some(pinfold) = pinfold else {
            running.finish().assert_code(3);
            continue;
        };
        crate::support::wait_for(|| {
            // bash and setsid are executed first; after that signals are queued.
            let program = std::fs::read_link(format!("/proc/{pinfold}/exe"));
            let over = !std::path::Path::new(&format!("/proc/{pinfold}")).exists();
            (over || program.is_ok_and(|program| program == std::path::Path::new(crate::support::PINFOLD)))
                .then_some(())
        });
        let moment = std::time::Instant::now() + Duration::from_micros(round * 50);
        while std::time::Instant::now() < moment {
            std::hint::spin_loop();
        }
        running.signal(signal);
        let ran = running.finish();
        assert!([3, 128 + signal].contains(&ran.code), "{signal}: {ran:#?}");
        *codes.entry(ran.code).or_insert(0) += 1;
    }
    crate::support::measured(&format!("exit codes and how often: {codes:?}"));
}

/// As the first process of a container, pinfold cannot die of its own signals (pid_namespaces(7)).
#[test]
#[requires(cgroup, root)]
fn as_pid_1_an_interrupt_of_the_job_is_exit_code_130() {
    for (script, code) in [("kill -INT $$", 130), ("kill -TERM $$", 143), ("trap 'exit 4' INT; kill -INT $$", 4)] {
        let mut command = std::process::Command::new("unshare");
        command.args([
            "--pid",
            "--fork",
            "--mount-proc",
            crate::support::PINFOLD,
            "run",
            "-q",
            "--",
            "sh",
            "-c",
            script,
        ]);
        assert_eq!(command.status().unwrap().code(), Some(code), "{script}");
    }
}

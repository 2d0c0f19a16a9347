//! A stop begins with the signal that was received, so that the job's handlers for it run.

mod support;

use std::time::Duration;

use pinfold::report::Reason;
use pinfold::{Command, Readiness, Signal, Stdio, blocking};
use support::has_program;
use support::host::with_supervisor;

/// Long enough that only a hang reaches it.
const LONG: Duration = Duration::from_secs(60);

/// Prints how it is interrupted, and that its `finally` ran.
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
fn stop_with_sends_that_signal_first() {
    if !has_program("python3") {
        return;
    }
    with_supervisor(async |supervisor| {
        for (signal, printed, code) in [
            (Signal::INT, "ready\ninterrupted\nfinally\n", 3),
            (Signal::HUP, "ready\nreload\nfinally\n", 4),
            (Signal::TERM, "ready\n", 143),
        ] {
            let mut command = Command::new("python3");
            command.args(["-c", PYTHON]).stdout(Stdio::Piped).grace(LONG);
            let job = supervisor.spawn(&command).await.unwrap();
            job.ready(&Readiness::stdout_line("ready"), LONG).await.unwrap();
            match signal {
                // By another hand, once.
                Signal::HUP => job.handle().stop_with(signal),
                _ => job.stop_with(signal),
            }
            let output = job.wait_with_output().await.unwrap();
            assert_eq!(output.stdout.text(), printed);
            let report = &output.report;
            assert_eq!((report.exit_code, report.reason, report.killed), (code, Reason::Stopped, false));
        }
    });
}

/// A shell starts its background processes with SIGINT ignored; nohup(1) ignores SIGHUP.
#[test]
fn processes_that_ignore_the_first_signal_receive_the_stop_signal_next() {
    with_supervisor(async |supervisor| {
        for (signal, script) in [
            (Signal::INT, "sh -c 'echo ready; exec sleep 1000' & exec sleep 1001"),
            (Signal::QUIT, "ulimit -c 0; (echo ready; exec sleep 1000) & exec sleep 1001"),
            (Signal::HUP, "nohup sh -c 'echo ready; exec sleep 1000' 2>/dev/null & exec sleep 1001"),
        ] {
            let mut command = Command::new("sh");
            command.args(["-c", script]).stdout(Stdio::Piped).grace(LONG);
            let job = supervisor.spawn(&command).await.unwrap();
            job.ready(&Readiness::stdout_line("ready"), LONG).await.unwrap();
            job.stop_with(signal);
            let report = job.wait().await.unwrap();
            assert_eq!(i32::from(report.exit_code), 128 + signal.number(), "{report:#?}");
            assert_eq!((report.killed, report.stopped.count), (false, 2), "{report:#?}");
        }
    });
}

#[test]
fn a_second_stop_kills_whatever_its_signal() {
    with_supervisor(async |supervisor| {
        let mut command = Command::new("sh");
        let script = "trap 'echo one' INT; trap '' TERM; echo ready; while :; do sleep 0.1; done";
        command.args(["-c", script]).stdout(Stdio::Piped).grace(LONG);
        let job = supervisor.spawn(&command).await.unwrap();
        job.ready(&Readiness::stdout_line("ready"), LONG).await.unwrap();
        job.stop_with(Signal::INT);
        job.ready(&Readiness::stdout_line("one"), LONG).await.unwrap();
        job.stop_with(Signal::TERM);
        let report = job.wait().await.unwrap();
        assert_eq!((report.killed, report.exit_code), (true, 137), "{report:#?}");
    });
}

/// The same without tokio in the host.
#[test]
fn the_blocking_twin() {
    if !support::has_cgroup() {
        return;
    }
    let builder = pinfold::Supervisor::builder().guard_program(support::PINFOLD);
    let supervisor = blocking::Supervisor::start_with(builder).unwrap();
    for by_handle in [false, true] {
        let mut command = Command::new("sh");
        command.args(["-c", "trap 'exit 5' INT; echo ready; while :; do sleep 0.1; done"]).stdout(Stdio::Piped);
        let job = supervisor.spawn(&command).unwrap();
        job.ready(&Readiness::stdout_line("ready"), LONG).unwrap();
        if by_handle {
            job.handle().stop_with(Signal::INT)
        } else {
            job.stop_with(Signal::INT)
        }
        assert_eq!(job.wait().unwrap().exit_code, 5);
    }
    supervisor.close();
}

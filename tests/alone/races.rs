//! Promise 1 in races: a tree of processes that forks all the time. Requests, ends of main processes, and the close of
//! the supervisor come in any order.
//!
//! `PINFOLD_RACE_ROUNDS` sets the number of rounds. `PINFOLD_RACE_SEED` repeats a random plan, as far as the machine's timing
//! allows.

use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use pinfold::report::{MainEnd, Reason};
use pinfold::{Command, Error, Job, Leftovers, Report, Signal, Stdio, Supervisor};

use crate::support::random::{Random, setting};
use crate::support::{Canary, PINFOLD, program};

/// Longer than any job here may take: the grace period is far shorter, and the kill bound (10 s) must never be reached.
const BOUND: Duration = Duration::from_secs(8);

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Returns `race` with these words, and the pipe that all processes of the job hold.
fn race(words: &[String]) -> (Command, std::io::PipeReader) {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = Command::new(program("race"));
    command.args(words).stdin(Stdio::null()).stdout(OwnedFd::from(writer));
    (command, reader)
}

/// Checks at once, without waiting, that no process of the job lives: none holds the pipe any more.
fn assert_ended(mut pipe: &std::io::PipeReader, context: &str) {
    let mut poll = libc::pollfd { fd: pipe.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: passes one structure and does not wait.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    assert!(ready == 1 && poll.revents & libc::POLLHUP != 0, "a process of the job lives: {context}");
    pipe.read_to_string(&mut String::new()).unwrap();
}

fn assert_gone(report: &Report, context: &str) {
    assert!(report.is_gone(), "{context}: {report:#?}");
    let leaf = report.containment.cgroup.as_ref().unwrap();
    assert!(!Path::new(leaf).exists(), "{context}: {leaf} is left");
}

/// Waits for this time, and lets the other tasks run. tokio's timers are not precise to the microsecond.
async fn wait_precisely(micros: u64) {
    let end = Instant::now() + Duration::from_micros(micros);
    while Instant::now() < end {
        tokio::task::yield_now().await;
    }
}

#[test]
#[requires(cgroup)]
fn a_tree_that_forks_all_the_time_is_killed() {
    let canary = Canary::new();
    let mut random = Random::new("a tree that forks all the time", "PINFOLD_RACE_SEED").0;
    let rounds = setting("PINFOLD_RACE_ROUNDS", 50);
    let mut longest = Duration::ZERO;
    runtime().block_on(async {
        let supervisor = Supervisor::builder().guard_program(PINFOLD).start().await.unwrap();
        for round in 0..rounds {
            let (command, mut output) = race(&["storm".into()]);
            let mut job = supervisor.spawn(&command).await.unwrap();
            drop(command);
            output.read_exact(&mut [0; 6]).unwrap();
            wait_precisely(random.below(3_000)).await;
            let begun = Instant::now();
            job.start_kill().unwrap();
            let report = job.wait().await.unwrap();
            longest = longest.max(begun.elapsed());
            let context = format!("round {round}");
            assert_ended(&output, &context);
            assert_gone(&report, &context);
            assert_eq!((report.reason, report.exit_code), (Reason::Killed, 137), "{context}");
        }
        supervisor.close().await;
    });
    println!("{rounds} kills, no process left, at most {} ms", longest.as_millis());
    canary.assert_alive();
}

/// An action on a job, and the delay in microseconds after the previous action.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Request {
    Stop,
    Kill,
    Signal(i32),
    SignalAll(i32),
    Drop,
}

#[derive(Clone, Debug)]
struct Plan {
    /// When the main process exits by itself, and with which code.
    main: (u64, u8),
    leftovers: u64,
    wait_for_leftovers: bool,
    timeout: Option<u64>,
    requests: Vec<(u64, Request)>,
    /// The start took longer than the timeout.
    too_late: bool,
}

impl Plan {
    fn new(random: &mut Random) -> Self {
        let mut requests = Vec::new();
        for _ in 0..random.below(4) {
            let signal = [libc::SIGTERM, libc::SIGKILL, libc::SIGSTOP, libc::SIGUSR1][random.below(4) as usize];
            let request = match random.below(6) {
                0 | 1 => Request::Stop,
                2 => Request::Kill,
                3 => Request::Signal(signal),
                4 => Request::SignalAll(signal),
                _ => Request::Drop,
            };
            requests.push((random.below(4_000), request));
        }
        Self {
            main: (random.below(15_000), random.below(120) as u8),
            leftovers: random.below(3),
            wait_for_leftovers: random.below(4) == 0,
            // A process that waits, or is stopped by SIGSTOP, also ends.
            timeout: Some(5_000 + random.below(200_000)),
            requests,
            too_late: false,
        }
    }

    fn sends(&self, signal: i32) -> bool {
        self.requests.iter().any(|(_, request)| [Request::Signal(signal), Request::SignalAll(signal)].contains(request))
    }

    fn asks(&self, request: Request) -> bool {
        self.requests.iter().any(|(_, asked)| *asked == request)
    }
}

#[test]
#[requires(cgroup)]
fn requests_ends_and_close_in_any_order() {
    let canary = Canary::new();
    let mut random = Random::new("requests, ends and close", "PINFOLD_RACE_SEED").0;
    let rounds = setting("PINFOLD_RACE_ROUNDS", 50);
    let mut longest = Duration::ZERO;
    runtime().block_on(async {
        for round in 0..rounds {
            let supervisor = Supervisor::builder().guard_program(PINFOLD).start().await.unwrap();
            let mut running = Vec::new();
            for _ in 0..=random.below(4) {
                let plan = Plan::new(&mut random);
                running.push(tokio::spawn(act(&supervisor, plan, round)));
            }
            // In some rounds the supervisor is closed while jobs run or are being spawned.
            let closed_early = random.below(3) == 0;
            let mut supervisor = Some(supervisor);
            if closed_early {
                wait_precisely(random.below(20_000)).await;
                close(supervisor.take().unwrap(), round).await;
            }
            let mut leaves = Vec::new();
            for running in running {
                let (plan, took, ended) = running.await.unwrap();
                longest = longest.max(took);
                let context = format!("round {round}, closed early: {closed_early}, {plan:?}");
                match ended {
                    Some(report) => {
                        check(&plan, &report, closed_early, &context);
                        leaves.push(report.containment.cgroup.clone().unwrap());
                    }
                    None => assert!(closed_early || plan.too_late || plan.asks(Request::Drop), "no report: {context}"),
                }
            }
            if let Some(supervisor) = supervisor {
                close(supervisor, round).await;
            }
            for leaf in leaves {
                let base = Path::new(&leaf).parent().unwrap();
                assert!(!base.exists(), "round {round}: {} is left", base.display());
            }
        }
    });
    println!("{rounds} rounds, at most {} ms a job", longest.as_millis());
    canary.assert_alive();
}

async fn close(supervisor: Supervisor, round: u64) {
    let closed = tokio::time::timeout(BOUND, supervisor.close()).await;
    assert!(closed.is_ok(), "round {round}: close did not return");
}

/// Carries out the plan. Returns the time that it took, and the report, or `None` where the job was dropped or never
/// started.
fn act(
    supervisor: &Supervisor,
    plan: Plan,
    round: u64,
) -> impl Future<Output = (Plan, Duration, Option<std::sync::Arc<Report>>)> + Send + use<> {
    let context = format!("round {round}, {plan:?}");
    let words = ["main".into(), plan.main.0.to_string(), plan.main.1.to_string(), plan.leftovers.to_string()];
    let (mut command, output) = race(&words);
    command.grace(Duration::from_millis(20));
    if plan.wait_for_leftovers {
        command.leftovers(Leftovers::Wait);
    }
    if let Some(timeout) = plan.timeout {
        command.timeout(Duration::from_micros(timeout));
    }
    let begun = Instant::now();
    let spawn = supervisor.spawn(&command);
    async move {
        let job = tokio::time::timeout(BOUND, spawn).await;
        drop(command);
        // An error is only possible where the supervisor was closed, or where the deadline came before the job began. The
        // caller checks which.
        let job = match job.unwrap_or_else(|_| panic!("spawn did not return: {context}")) {
            Ok(job) => job,
            Err(error) => {
                assert_ended_soon(&output, begun, &context).await;
                let deadline = matches!(error, Error::EndedEarly { reason: Reason::Deadline, .. });
                return (Plan { too_late: deadline, ..plan }, begun.elapsed(), None);
            }
        };
        let job = perform(job, &plan).await;
        let report = match job {
            Some(mut job) => {
                let report = tokio::time::timeout(BOUND, job.wait()).await;
                let report = report.unwrap_or_else(|_| panic!("wait did not return: {context}")).unwrap();
                assert_ended(&output, &context);
                assert_gone(&report, &context);
                Some(report)
            }
            None => {
                assert_ended_soon(&output, begun, &context).await;
                None
            }
        };
        (plan, begun.elapsed(), report)
    }
}

async fn perform(job: Job, plan: &Plan) -> Option<Job> {
    for (micros, request) in &plan.requests {
        wait_precisely(*micros).await;
        match request {
            Request::Stop => job.start_stop().unwrap(),
            Request::Kill => job.start_kill().unwrap(),
            Request::Signal(number) => {
                // The job may have ended already.
                let _ = job.signal(Signal::from_number(*number).unwrap());
            }
            Request::SignalAll(number) => job.signal_all(Signal::from_number(*number).unwrap()),
            Request::Drop => return None,
        }
    }
    Some(job)
}

/// Checks that a dropped job, for which nothing waits, ends by itself.
async fn assert_ended_soon(output: &std::io::PipeReader, begun: Instant, context: &str) {
    loop {
        let mut poll = libc::pollfd { fd: output.as_raw_fd(), events: 0, revents: 0 };
        // SAFETY: passes one structure and does not wait.
        if unsafe { libc::poll(&raw mut poll, 1, 0) } == 1 && poll.revents & libc::POLLHUP != 0 {
            return;
        }
        assert!(begun.elapsed() < BOUND, "a process of a dropped job lives: {context}");
        tokio::task::yield_now().await;
    }
}

/// Checks that the report contains nothing that the plan cannot have caused.
fn check(plan: &Plan, report: &Report, closed_early: bool, context: &str) {
    let context = format!("{context}: {report:#?}");
    match report.reason {
        Reason::Exited => {}
        Reason::Deadline => assert_eq!(report.exit_code, 124, "{context}"),
        Reason::Stopped => assert!(plan.asks(Request::Stop), "{context}"),
        Reason::Killed => assert!(plan.asks(Request::Kill) && report.killed, "{context}"),
        Reason::GuardLost => assert!(closed_early, "{context}"),
        other => panic!("{other:?}: {context}"),
    }
    match &report.main {
        Some(MainEnd::Exited(code)) => {
            assert_eq!(*code, i32::from(plan.main.1), "{context}");
            assert!(report.exit_code == plan.main.1 || report.reason == Reason::Deadline, "{context}");
        }
        Some(MainEnd::Signalled { signal, .. }) => {
            let asked = report.reason != Reason::Exited || plan.sends(*signal);
            assert!(asked || closed_early && *signal == libc::SIGKILL, "{context}");
            let code = if report.reason == Reason::Deadline { 124 } else { 128 + signal };
            assert_eq!(i32::from(report.exit_code), code, "{context}");
        }
        None => assert!(closed_early, "{context}"),
        other => panic!("{other:?}: {context}"),
    }
    let ended_by_pinfold = report.phases.stopping.is_some() || report.phases.killing.is_some();
    assert_eq!(report.killed, report.phases.killing.is_some(), "{context}");
    assert!(ended_by_pinfold || matches!(report.reason, Reason::Exited), "{context}");
}

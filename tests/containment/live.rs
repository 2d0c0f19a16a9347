//! A running job: its resource usage, which the library reports; and frozen jobs.

use std::time::Duration;

use pinfold::report::{MainEnd, Reason};
use pinfold::{Command, Controller, Limits, Signal, Stdio, Supervisor};

use crate::support::needs::need;
use crate::support::{Scratch, has, host, program};

/// Returns the cgroup in which jobs can have controllers, if scripts/vm-test names one.
fn builder_cgroup() -> Option<std::ffi::OsString> {
    std::env::var_os("PINFOLD_CGROUP")
}

/// Runs `host`, or skips it because the controllers are not available.
pub(super) fn with_controllers(controllers: &[Controller], host: impl AsyncFnOnce(&Supervisor)) {
    let mut builder = Supervisor::builder().controllers(controllers.iter().copied());
    let named = builder_cgroup();
    if let Some(cgroup) = &named {
        builder = builder.cgroup(cgroup);
    }
    match host::with(builder, host) {
        Err(error) if named.is_none() && !controllers.is_empty() => {
            for controller in controllers {
                has(need(&controller.to_string(), false, &error.to_string()));
            }
        }
        done => done.unwrap(),
    }
}

/// Runs `host` with a job that counts.
fn with_counting_job(host: impl AsyncFnOnce(pinfold::Job, &Scratch)) {
    with_controllers(&[], async |supervisor| {
        let file = Scratch::new("count");
        let mut command = Command::new(program("use"));
        command.args(["count", file.path().to_str().unwrap()]).stdin(Stdio::null());
        let job = supervisor.spawn(&command).await.unwrap();
        counts(&file).await;
        host(job, &file).await;
    });
}

fn count(file: &Scratch) -> u64 {
    file.text().trim().parse().unwrap_or(0)
}

/// Waits until the count grows.
async fn counts(file: &Scratch) {
    let before = count(file);
    // The supervisor runs in the same thread, so a wait that blocks the thread would stop it too.
    while count(file) <= before {
        tokio::task::yield_now().await;
    }
}

/// The kernel sets this when all processes of the cgroup stand still (cgroup-v2.rst, `cgroup.freeze`).
fn assert_frozen(cgroup: Option<&std::path::Path>) {
    let events = std::fs::read_to_string(cgroup.unwrap().join("cgroup.events")).unwrap();
    assert!(events.lines().any(|line| line == "frozen 1"), "{events}");
}

#[test]
#[requires(cgroup)]
fn a_job_stands_still_and_goes_on() {
    with_counting_job(async |mut job, file| {
        job.freeze().await.unwrap();
        assert_frozen(job.cgroup());
        let counted = count(file);
        assert!(job.usage().await.unwrap().cpu_user_microseconds.value.is_some());
        assert_eq!(count(file), counted);
        // A second freeze changes nothing.
        job.freeze().await.unwrap();
        job.thaw();
        counts(file).await;

        // A dropped freeze thaws the job.
        let dropped = tokio::time::timeout(Duration::ZERO, job.freeze()).await;
        if dropped.is_ok() {
            job.thaw();
        }
        counts(file).await;

        job.freeze().await.unwrap();
        job.start_kill().unwrap();
        let report = job.wait().await.unwrap();
        assert_eq!(report.reason, Reason::Killed);
        assert!(report.is_gone() && report.unkillable.count == 0);
        // A job that has ended cannot be frozen.
        assert!(job.freeze().await.is_err());
        job.thaw();
        assert_eq!(job.usage().await.unwrap(), report.usage);
    });
}

/// The job receives the stop signal first, and not only SIGKILL after the grace period.
#[test]
#[requires(cgroup)]
fn a_frozen_job_is_stopped() {
    with_controllers(&[], async |supervisor| {
        let script = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done";
        let (reader, writer) = std::io::pipe().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdout(std::os::fd::OwnedFd::from(writer)).grace(Duration::from_secs(60));
        let mut job = supervisor.spawn(&command).await.unwrap();
        let mut first = [0; 6];
        tokio::task::spawn_blocking(move || std::io::Read::read_exact(&mut &reader, &mut first))
            .await
            .unwrap()
            .unwrap();
        job.freeze().await.unwrap();
        job.start_stop().unwrap();
        let report = job.wait().await.unwrap();
        assert_eq!((report.main.clone(), report.killed), (Some(MainEnd::Exited(5)), false));
    });
}

#[test]
#[requires(cgroup)]
fn a_frozen_job_dies_with_its_supervisor() {
    with_counting_job(async |job, _| {
        job.freeze().await.unwrap();
        let _ = job.signal(Signal::TERM);
        drop(job);
    });
}

/// The same through a second handle, which the holder of a pool's job has.
#[test]
#[requires(cgroup)]
fn a_handle_freezes_too() {
    with_counting_job(async |mut job, file| {
        let handle = job.handle();
        handle.freeze().await.unwrap();
        assert_frozen(job.cgroup());
        handle.thaw();
        counts(file).await;
        assert!(handle.usage().await.unwrap().cpu_user_microseconds.value.is_some());
        job.start_kill().unwrap();
        job.wait().await.unwrap();
        assert!(handle.freeze().await.is_err() && handle.usage().await.is_ok());
    });
}

#[test]
#[requires(cgroup)]
fn usage_while_it_runs() {
    with_controllers(&[], async |supervisor| {
        let mut command = Command::new(program("use"));
        let mut job = supervisor.spawn(command.args(["burn", "60"])).await.unwrap();
        let used = async || job.usage().await.unwrap().cpu_user_microseconds.value.unwrap();
        let first = used().await;
        // The kernel gives no event for CPU time.
        while used().await < first + 100_000 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        job.start_kill().unwrap();
        assert!(job.wait().await.unwrap().usage.cpu_user_microseconds.value.unwrap() >= first + 100_000);
    });
}

fn on_one_cpu() {
    // SAFETY: the set of CPUs is plain data that the call only reads. It affects this thread only.
    #[allow(unsafe_code)]
    let done = unsafe {
        let mut cpus: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(0, &mut cpus);
        libc::sched_setaffinity(0, size_of_val(&cpus), &raw const cpus)
    };
    assert_eq!(done, 0);
}

/// Fifty jobs at once, half of them with three times the weight, all on one CPU so that they compete.
#[test]
fn shares_by_weight() {
    // Users seldom have the cpuset controller. With cpuset, kernels before 6.2 ignore an affinity.
    let root = rustix::process::geteuid().is_root();
    let cpuset = root || builder_cgroup().is_some();
    if !cpuset {
        // This thread's affinity is inherited by the guard that it starts, and by the jobs.
        on_one_cpu();
    }
    let wanted: &[_] = if cpuset { &[Controller::Cpu, Controller::Cpuset] } else { &[Controller::Cpu] };
    with_controllers(wanted, async |supervisor| {
        let mut jobs = Vec::new();
        for number in 0..50 {
            let mut limits = Limits::new().cpu_weight(if number % 2 == 0 { 100 } else { 300 });
            if cpuset {
                limits = limits.cpuset("0");
            }
            let mut command = Command::new(program("use"));
            command.args(["burn", "600"]).stdin(Stdio::null()).limits(limits);
            jobs.push(supervisor.spawn(&command).await.unwrap());
        }
        let used = async |job: &pinfold::Job| {
            let usage = job.usage().await.unwrap();
            (usage.cpu_user_microseconds.value.unwrap() + usage.cpu_system_microseconds.value.unwrap()) as f64
        };
        let mut before = Vec::new();
        for job in &jobs {
            before.push(used(job).await);
        }
        // Waits until each job has had many time slices. The kernel gives no event for CPU time.
        let mut spent = [0.0, 0.0];
        while spent[0] + spent[1] < 8e6 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            spent = [0.0, 0.0];
            for (number, job) in jobs.iter().enumerate() {
                spent[number % 2] += used(job).await - before[number];
            }
        }
        let ratio = spent[1] / spent[0];
        crate::support::measured(&format!("shares of {ratio:.2} to 1 for weights of 300 to 100"));
        assert!((3.0 * 0.85..=3.0 * 1.15).contains(&ratio), "{ratio}, of {spent:?}");
        for job in &jobs {
            job.start_kill().unwrap();
        }
        for job in &mut jobs {
            assert!(job.wait().await.unwrap().is_gone());
        }
    });
}

/// A limit whose controller was not requested from the supervisor is an error, and nothing is started.
#[test]
#[requires(cgroup)]
fn a_limit_without_its_controller() {
    with_controllers(&[], async |supervisor| {
        let mark = Scratch::new("mark");
        let mut command = Command::new("touch");
        let limits = Limits::new().pids(5);
        command.arg(mark.path()).limits(limits);
        let error = supervisor.spawn(&command).await.unwrap_err();
        assert!(matches!(error, pinfold::Error::Limit { .. }), "{error}");
        assert!(!mark.path().exists());
    });
}

//! Promise 2: after SIGKILL of the supervisor, of the guard, or of the process group, at any instant, nothing runs and
//! no cgroup directory is left within one second.
//!
//! `scripts/faults --rounds N --seed S` runs more rounds than the suite does. Each test makes
//! its process the subreaper of all orphans, so that "no child left" proves the end.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::random::{Random, setting};
use crate::support::{PINFOLD, program};

const BOUND: Duration = Duration::from_secs(1);
/// If the supervisor or the guard is killed, the other one has cleaned up within this time. The test waits in a busy
/// loop, until it has used this much CPU time itself: on a loaded machine, the other processes get their CPU time later
/// too.
const BETWEEN_BOTH: Duration = Duration::from_millis(50);
/// The bound of one second assumes that the processes get CPU time. On a loaded machine, they may get it later. So the
/// test also waits until its own check, which never sleeps, has used this much CPU time.
const BOUND_OF_CPU_TIME: Duration = Duration::from_millis(250);

/// Which process is killed, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The supervisor, 0 to 12 ms after its start.
    SupervisorEarly,
    /// The supervisor, when the job runs; in every other round a stop is in progress.
    SupervisorLate,
    /// The supervisor, after it was stopped by SIGSTOP.
    SupervisorStopped,
    /// The guard, 0 to 3 ms after it first appears.
    Guard,
    /// The supervisor's process group, at any time.
    ProcessGroup,
    /// The supervisor, and the guard 50 ms later ([`BETWEEN_BOTH`]).
    Both,
    /// The guard, and the supervisor 50 ms later.
    BothGuardFirst,
    /// Both at the same instant: the next pinfold in the same cgroup removes what is left.
    AtOnce,
}

#[test]
#[each_containment]
fn nothing_outlives_a_killed_supervisor_or_guard(containment: &str) {
    // SAFETY: changes only which process adopts our orphans.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
    let (mut random, seed) = Random::new("faults", "PINFOLD_FAULT_SEED");
    let rounds = setting("PINFOLD_FAULT_ROUNDS", 40);
    println!("seed {seed}, {rounds} rounds of each fault, twice that of early ones");
    faults(containment, &mut random, seed, rounds);
}

fn faults(containment: &str, random: &mut Random, seed: u64, rounds: u64) {
    faults_of("tree", containment, random, seed, rounds);
    // The first threads of its processes exit early, so `cgroup.kill` does not end these processes.
    faults_of("headless", containment, random, seed, rounds / 4 + 1);
}

fn faults_of(job: &str, containment: &str, random: &mut Random, seed: u64, rounds: u64) {
    for (fault, rounds) in [
        (Fault::SupervisorEarly, 2 * rounds),
        (Fault::SupervisorLate, rounds),
        (Fault::SupervisorStopped, rounds / 4 + 1),
        (Fault::Guard, rounds),
        (Fault::ProcessGroup, rounds),
        (Fault::Both, rounds / 10 + 1),
        (Fault::BothGuardFirst, rounds / 10 + 1),
        (Fault::AtOnce, rounds / 4 + 1),
    ] {
        if containment == "subreaper" && fault == Fault::AtOnce {
            // Without a cgroup, the next pinfold cannot distinguish the remaining processes of the job from other processes.
            continue;
        }
        let mut longest = Duration::ZERO;
        for round in 0..rounds {
            let took = one_round(job, containment, fault, random)
                .unwrap_or_else(|left| panic!("{job}, {containment}, {fault:?}, round {round}, seed {seed}: {left}"));
            longest = longest.max(took);
        }
        let longest = longest.as_millis();
        println!("{job}, {containment}, {fault:?}: {rounds} rounds, 0 survivors, 0 directories, at most {longest} ms");
    }
}

/// Runs one supervisor and its fault. Returns the time from the last kill until everything was gone, or a description
/// of what was left.
fn one_round(job: &str, containment: &str, fault: Fault, random: &mut Random) -> Result<Duration, String> {
    let mut supervisor = Command::new(PINFOLD)
        .args(["run", "--containment", containment, "--grace", "5s", "--"])
        .arg(program(job))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap();
    let pid = supervisor.id() as i32;
    match fault {
        Fault::SupervisorEarly => {
            spin(Duration::from_micros(random.below(12_000)));
            kill(pid);
        }
        Fault::SupervisorLate => {
            ready(&mut supervisor);
            if random.below(2) == 0 {
                // SAFETY: signals our own child, which is not reaped yet.
                unsafe { libc::kill(pid, libc::SIGTERM) };
            }
            spin(Duration::from_micros(random.below(5_000)));
            kill(pid);
        }
        Fault::SupervisorStopped => {
            if random.below(2) == 0 {
                ready(&mut supervisor);
            }
            spin(Duration::from_micros(random.below(8_000)));
            // SAFETY: signals our own child, which is not reaped yet.
            unsafe { libc::kill(pid, libc::SIGSTOP) };
            // SAFETY: waits for our own child, and reads no status.
            assert_eq!(unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WUNTRACED) }, pid);
            spin(Duration::from_micros(random.below(5_000)));
            kill(pid);
        }
        Fault::Guard => {
            let guard = guard_of(&mut supervisor);
            spin(Duration::from_micros(random.below(3_000)));
            kill_guard(guard);
        }
        Fault::ProcessGroup => {
            if random.below(2) == 0 {
                ready(&mut supervisor);
            }
            spin(Duration::from_micros(random.below(8_000)));
            kill(-pid);
        }
        Fault::Both => {
            let guard = guard_of(&mut supervisor);
            ready(&mut supervisor);
            kill(pid);
            work(BETWEEN_BOTH);
            kill_guard(guard);
        }
        Fault::BothGuardFirst => {
            let guard = guard_of(&mut supervisor);
            ready(&mut supervisor);
            kill_guard(guard);
            work(BETWEEN_BOTH);
            kill(pid);
        }
        Fault::AtOnce => {
            let guard = guard_of(&mut supervisor);
            ready(&mut supervisor);
            kill(pid);
            kill_guard(guard);
            // Waits until both are dead: until then they hold their lock.
            for dead in [pid, guard] {
                // SAFETY: waits for our own child or for an orphan of which we are the parent now, and reads no status.
                unsafe { libc::waitpid(dead, std::ptr::null_mut(), 0) };
            }
            let next = Command::new(PINFOLD).args(["run", "--", "true"]).status().unwrap();
            assert!(next.success());
        }
    }
    let begun = Instant::now();
    gone(pid, begun)?;
    Ok(begun.elapsed())
}

/// Checks that every child of ours is gone, and every directory of that supervisor too.
fn gone(supervisor: i32, begun: Instant) -> Result<(), String> {
    let used = cpu_time();
    loop {
        // SAFETY: reaps our own children; nothing else here waits for them.
        let reaped = unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::__WALL | libc::WNOHANG) };
        if reaped > 0 {
            continue;
        }
        let childless = reaped == -1;
        let directories = directories(supervisor);
        if childless && directories.is_empty() {
            return Ok(());
        }
        if begun.elapsed() > BOUND && cpu_time() - used > BOUND_OF_CPU_TIME {
            // The children of every thread: the kernel lists them under the thread that started them.
            let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten();
            let children: String =
                threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok()).collect();
            return Err(format!(
                "left after {:?}: children [{}], directories {directories:?}",
                begun.elapsed(),
                children.trim()
            ));
        }
        std::thread::yield_now();
    }
}

/// Returns the bases of that supervisor in our own cgroup.
fn directories(supervisor: i32) -> Vec<std::path::PathBuf> {
    let prefix = format!("pinfold-{supervisor}-");
    std::fs::read_dir(crate::support::own_cgroup())
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .collect()
}

fn ready(supervisor: &mut Child) {
    let mut line = String::new();
    BufReader::new(supervisor.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
}

/// Returns the pid of the guard as soon as it exists.
fn guard_of(supervisor: &mut Child) -> i32 {
    let pid = supervisor.id();
    crate::support::wait_for(|| {
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    })
}

fn kill(target: i32) {
    // SAFETY: signals our own child or its group, not reaped yet.
    assert_eq!(unsafe { libc::kill(target, libc::SIGKILL) }, 0);
}

fn kill_guard(guard: i32) {
    // SAFETY: signals a descendant of ours. After its end, it stays a zombie until we reap it, or until its parent
    // reaps it. We have not reaped either of them.
    unsafe { libc::kill(guard, libc::SIGKILL) };
}

/// Uses that much CPU time.
fn work(time: Duration) {
    let begun = cpu_time();
    while cpu_time() - begun < time {
        std::hint::spin_loop();
    }
}

/// Returns the CPU time of this thread.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).expect("a time since the start of the thread")
}

/// Waits for that time, precise to the microsecond: the fault must hit at a random instant.
fn spin(time: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < time {
        std::hint::spin_loop();
    }
}

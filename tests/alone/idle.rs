//! Promise 8: waiting costs no wake-ups. A sleeping job wakes neither the supervisor nor the guard.

use std::time::Duration;

use crate::support::{Run, Running, wait_for};

/// No wake-up may happen during this time. The test has to wait in real time, because no event shows that a process will
/// not be woken.
const WINDOW: Duration = Duration::from_secs(2);

#[test]
#[requires(cgroup)]
fn a_job_that_sleeps_wakes_no_process() {
    // The second job has a deadline, and descendants that communicate with each other.
    let mut jobs = [
        Run::new(["--", "sh", "-c", "echo ready; exec sleep 1000"]).start(),
        Run::new(["--timeout", "1h", "--", "sh", "-c", "echo ready; while sleep 0.05; do setsid true; done"]).start(),
    ];
    let watched = jobs.each_mut().map(|job| {
        assert_eq!(job.line(), "ready");
        let supervisor = job.pinfold_pid();
        (supervisor, guard_of(supervisor))
    });
    // Waits until supervisor and guard are at rest: asleep for a moment without a context switch. The kernel gives no
    // event for that.
    for pid in watched.into_iter().flat_map(|(supervisor, guard)| [supervisor, guard]) {
        wait_for(|| {
            let before = switches(pid);
            std::thread::sleep(Duration::from_millis(50));
            (switches(pid) == before && is_asleep(pid)).then_some(())
        });
    }
    let before = watched.map(|(supervisor, guard)| (switches(supervisor), switches(guard)));
    std::thread::sleep(WINDOW);
    let after = watched.map(|(supervisor, guard)| (switches(supervisor), switches(guard)));
    assert_eq!(after, before, "context switches of (supervisor, guard), for the sleeping job and the busy job");
    for job in jobs {
        assert_eq!(stop(job), 143);
    }
}

/// Many sleeping jobs wake neither their pool nor its guard, wherever their output goes.
#[test]
#[requires(cgroup)]
fn many_jobs_that_sleep_wake_no_process() {
    for output in ["group", "stream"] {
        let args = ["-j", "30", "--shell", "--timeout", "1h", "--output", output];
        let running = crate::support::pool::start(&args, &"exec sleep 1000\n".repeat(30));
        let pinfold = running.pinfold_pid();
        let guard = wait_for(|| {
            let children = std::fs::read_to_string(format!("/proc/{pinfold}/task/{pinfold}/children")).ok()?;
            children.split_whitespace().next()?.parse::<i32>().ok()
        });
        // All of them run, and none of them has anything left to do.
        let children = || std::fs::read_to_string(format!("/proc/{guard}/task/{guard}/children")).unwrap_or_default();
        wait_for(|| (children().split_whitespace().count() == 30).then_some(()));
        wait_for(|| {
            let before = (all_switches(pinfold), all_switches(guard));
            std::thread::sleep(Duration::from_millis(100));
            (before == (all_switches(pinfold), all_switches(guard))).then_some(())
        });
        let before = (all_switches(pinfold), all_switches(guard));
        std::thread::sleep(WINDOW);
        assert_eq!((all_switches(pinfold), all_switches(guard)), before, "{output}: (pinfold, guard)");
        running.signal(libc::SIGTERM);
        running.finish();
    }
}

fn stop(job: Running) -> i32 {
    job.signal(libc::SIGTERM);
    job.finish().code
}

/// Returns the supervisor's only child.
fn guard_of(supervisor: i32) -> i32 {
    let children = std::fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")).unwrap();
    let children: Vec<&str> = children.split_whitespace().collect();
    assert_eq!(children.len(), 1, "{children:?}");
    children[0].parse().unwrap()
}

fn status(pid: i32) -> String {
    assert_eq!(std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().count(), 1, "one thread");
    std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap()
}

/// Returns the voluntary and the involuntary context switches.
fn switches(pid: i32) -> Vec<u64> {
    let status = status(pid);
    let counts = status.lines().filter_map(|line| line.split_once("voluntary_ctxt_switches:"));
    let counts: Vec<u64> = counts.map(|(_, count)| count.trim().parse().unwrap()).collect();
    assert_eq!(counts.len(), 2, "{status}");
    counts
}

/// The context switches of all its threads.
fn all_switches(pid: i32) -> Vec<u64> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let mut counts = Vec::new();
    for thread in threads {
        let status = std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        let lines = status.lines().filter_map(|line| line.split_once("voluntary_ctxt_switches:"));
        counts.extend(lines.map(|(_, count)| count.trim().parse::<u64>().unwrap()));
    }
    counts
}

fn is_asleep(pid: i32) -> bool {
    status(pid).lines().any(|line| line.starts_with("State:\tS"))
}

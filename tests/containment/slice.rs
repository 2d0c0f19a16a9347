//! The guard's CPU time slice is short from the second job on. Jobs keep their usual slice.

use pinfold::{Command, Stdio};

use crate::support::host::with_supervisor;
use crate::support::needs::{Need, need};

/// Returns a value from the kernel's scheduling data of a process: a line of `/proc/PID/sched`.
fn scheduling(text: &str, key: &str) -> Option<String> {
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim().to_owned())
}

fn own() -> String {
    std::fs::read_to_string("/proc/self/sched").unwrap_or_default()
}

fn slice() -> Need {
    let reason = "/proc/self/sched does not show it: Linux 6.12 with CONFIG_SCHED_DEBUG is needed";
    need("se.slice", scheduling(&own(), "se.slice").is_some(), reason)
}

#[test]
#[requires(cgroup, slice)]
fn jobs_have_the_usual_slice() {
    let own = own();
    let usual = scheduling(&own, "se.slice").unwrap();
    with_supervisor(async |supervisor| {
        for number in 1..=3 {
            let mut command = Command::new("sh");
            // The data of the reader itself, and of the guard.
            command.args(["-c", "cat /proc/self/sched; echo; cat /proc/$PPID/sched"]).stdout(Stdio::piped());
            let output = supervisor.spawn(&command).await.unwrap().wait_with_output().await.unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            let (job, guard) = text.split_once("\n\n").unwrap();
            let values = |key| (scheduling(job, key), scheduling(&own, key));
            for key in ["se.slice", "policy", "prio"] {
                let (job, own) = values(key);
                assert!(job.is_some() && job == own, "{number}, {key}: {job:?}, {own:?}");
            }
            let guards = scheduling(guard, "se.slice").unwrap();
            assert_eq!(guards == usual, number == 1, "{number}: {guards}");
        }
    });
}

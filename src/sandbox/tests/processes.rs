//! Attempts against processes outside of the job, through every call that takes the id of a process.

use super::super::policy::Sandbox;
use super::harness::Outside::{NotTried, Works};
use super::harness::{Run, Table, Victim, program};

const EPERM: &str = "denied EPERM";
const EACCES: &str = "denied EACCES";
const ALLOWED: &str = "allowed";

#[test]
fn a_process_outside_cannot_be_signalled_traced_read_or_limited() {
    // With Yama's ptrace_scope 1 or higher, a process can only trace its own children, even without a sandbox.
    let traces = match std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope") {
        Ok(scope) if scope.trim() != "0" => NotTried,
        _ => Works,
    };
    let rows = [
        ("kill_kill", EPERM, Works),
        ("kill_stop", EPERM, Works),
        ("kill_group", EPERM, Works),
        ("tkill_kill", EPERM, Works),
        ("tgkill_kill", EPERM, Works),
        ("queue_kill", EPERM, Works),
        ("pidfd_kill", EPERM, Works),
        ("trace_attach", EPERM, traces),
        ("trace_seize", EPERM, traces),
        ("memory_file", EACCES, traces),
        ("environ_file", EACCES, Works),
        ("oom_score", EACCES, Works),
        ("their_root", EACCES, NotTried),
        ("their_directory", EACCES, traces),
        ("vm_read", EPERM, traces),
        ("vm_write", EPERM, traces),
        ("descriptor", EPERM, traces),
        ("advise", EACCES, NotTried),
        ("compare", EPERM, traces),
        ("limit_cpu", EPERM, Works),
        ("limit_files", EPERM, Works),
        ("limit_read", EPERM, Works),
        ("limit_high_bits", EPERM, Works),
        ("nice_process", EPERM, Works),
        ("nice_group", EPERM, Works),
        ("nice_user", EPERM, NotTried),
        ("io_priority", EPERM, Works),
        ("io_priority_user", EPERM, NotTried),
        ("schedule_idle", EPERM, Works),
        ("schedule_param", EPERM, Works),
        ("schedule_attr", EPERM, Works),
        ("affinity", EPERM, Works),
    ];
    let table = Table { program: "processes", sandbox: Sandbox::new(), rows: &rows };
    let differences = table.differences(|| {
        let victim = Victim::new();
        (vec![victim.pid()], Box::new(victim))
    });
    assert!(differences.is_empty(), "{differences:#?}");
}

#[test]
fn the_job_may_do_the_same_to_itself() {
    let names = [
        "self_kill",
        "self_group",
        "self_trace",
        "self_limit",
        "self_nice",
        "self_io_priority",
        "self_schedule",
        "self_affinity",
    ];
    let rows = names.map(|name| (name, ALLOWED, Works));
    let table = Table { program: "processes", sandbox: Sandbox::new(), rows: &rows };
    let differences = table.differences(|| (Vec::new(), Box::new(super::harness::Nothing)));
    assert!(differences.is_empty(), "{differences:#?}");
}

#[test]
fn a_victim_lives_on() {
    let program = program("processes");
    let mut sandbox = Sandbox::new();
    sandbox.read(&program);
    for user in super::harness::users() {
        let victim = Victim::new();
        for attempt in ["kill_kill", "kill_stop", "kill_group", "pidfd_kill", "owner_signal", "trace_seize"] {
            let run = Run::new([program.to_str().unwrap(), attempt, &victim.pid()]);
            run.within(&sandbox, user).run();
            // A victim that has just been started may still run.
            assert!(matches!(victim.state(), 'R' | 'S'), "{attempt} as {user:?}: {}", victim.state());
        }
    }
    for user in super::harness::users() {
        let victim = Victim::new();
        victim.stop();
        let run = Run::new([program.to_str().unwrap(), "continue_all"]);
        assert_eq!(run.within(&sandbox, user).run().line(), ALLOWED);
        assert_eq!(victim.state(), 'T', "kill(-1) as {user:?}");
    }
    // Without a sandbox, even a signal that a pipe sends to its owner (F_SETOWN) arrives.
    let victim = Victim::new();
    Run::new([program.to_str().unwrap(), "owner_signal", &victim.pid()]).run();
    let begun = std::time::Instant::now();
    while matches!(victim.state(), 'R' | 'S') {
        assert!(begun.elapsed().as_secs() < 20, "the signal did not arrive");
        std::thread::yield_now();
    }
}

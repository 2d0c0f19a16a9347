//! Filters that a job leaves (`exec > >(tee log)`) write everything that they have read, as without pinfold. Other
//! processes that the job leaves do not delay the return.
//!
//! `PINFOLD_FILTERS=ROUNDS` sets how many rounds each pair of filter and command runs. `scripts/filters` makes more
//! than 2,000 runs. For comparison, it also runs coreutils' `timeout`.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::events::wait_in;
use crate::support::watched::Watched;
use crate::support::{PINFOLD, Ran, Run, Scratch, has, needs};

/// Scripts for bash, which write the lines 1 to 20 and `verdict` to `out`, through filters that need some time for
/// that.
const FILTERS: [(&str, &str); 9] = [
    ("tee", "exec > >(tee out >/dev/null); seq 1 20; echo verdict"),
    ("gzip", "exec > >(gzip >out.gz; zcat out.gz >out); seq 1 20; echo verdict"),
    ("while read", "exec > >(while read -r line; do sleep 0.02; echo \"$line\" >>out; done); seq 1 20; echo verdict"),
    // Its `sleep` does not have a pipe as standard input.
    (
        "while read, with a process for each line",
        "exec > >(while read -r line; do sleep 0.02 </dev/null; echo \"$line\" >>out; done); seq 1 20; echo verdict",
    ),
    ("stderr", "exec 2> >(sleep 0.05; cat >out); seq 1 20 >&2; echo verdict >&2"),
    ("nested", "exec > >(tee >(sleep 0.3; cat >out) >/dev/null); seq 1 20; echo verdict"),
    (
        "two, of which one holds the other's pipe",
        "exec > >(sleep 0.3; cat >out) 2> >(cat >/dev/null); seq 1 20; echo verdict",
    ),
    ("fifo", "mkfifo fifo; (sleep 0.3; cat >out) <fifo & exec >fifo; seq 1 20; echo verdict"),
    // pinfold stops the process that holds the pipe open. Then the filter reads to the end.
    ("beside a daemon that holds the pipe", "exec > >(sleep 0.3; cat >out); sleep 999 & seq 1 20; echo verdict"),
];

fn expected() -> String {
    (1..=20).map(|number| format!("{number}\n")).chain(["verdict\n".into()]).collect()
}

fn rounds() -> usize {
    std::env::var("PINFOLD_FILTERS").map_or(1, |rounds| rounds.parse().expect("PINFOLD_FILTERS is a number"))
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

/// The settle time of commands that have an option for it. On a busy machine, these filters can need more than the
/// default.
const SETTLE: [&str; 2] = ["--settle", "1m"];

/// How many runs in a row may be too slow for the settle time of a command that has no option for it.
const TOO_SLOW: usize = 20;

/// Runs every filter under a command to which `bash -c SCRIPT` is appended.
fn no_line_is_lost(name: &str, command: &[&str]) {
    let mut lost = Vec::new();
    let (mut runs, mut late) = (0, 0);
    for _ in 0..rounds() {
        for (filter, script) in FILTERS {
            let is_late = |ran: &Ran| ran.stderr.contains("behind");
            // pinfold reports a filter that it ended at the end of the settle time. Such a run shows nothing, so the test
            // repeats it.
            let (ran, written) = (0..TOO_SLOW)
                .map(|_| {
                    let directory = Scratch::directory("filters");
                    let mut run = Run::bare(words(command).into_iter().chain(words(&["bash", "-c", script])));
                    run.command().current_dir(directory.path());
                    let ran = run.run().assert_code(0);
                    (ran, std::fs::read_to_string(directory.path().join("out")).unwrap_or_default())
                })
                .inspect(|(ran, _)| late += usize::from(is_late(ran)))
                .find(|(ran, _)| !is_late(ran))
                .unwrap_or_else(|| panic!("{name}, {filter}: {TOO_SLOW} runs were too slow for the settle time"));
            runs += 1;
            if written != expected() {
                lost.push(format!("{filter}: {written:?}, {ran:?}"));
            }
        }
    }
    println!("{name}: {runs} runs, {} lost output; {late} more were ended at the settle time", lost.len());
    assert!(lost.is_empty(), "{name}: {lost:#?}");
}

#[test]
#[requires(cgroup, program("bash"))]
fn run() {
    no_line_is_lost("run", &[PINFOLD, "run", "--quiet", SETTLE[0], SETTLE[1], "--"]);
}

#[test]
#[requires(program("bash"))]
fn run_without_a_cgroup() {
    let options = ["--quiet", "--containment", "subreaper"];
    no_line_is_lost("run, subreaper", &[&[PINFOLD, "run"][..], &options, &SETTLE, &["--"]].concat());
}

#[test]
#[requires(program("bash"))]
fn timeout() {
    no_line_is_lost("timeout", &[PINFOLD, "timeout", "60"]);
}

#[test]
#[requires(program("bash"))]
fn init() {
    no_line_is_lost("init", &[PINFOLD, "init", "--"]);
}

/// Each run ends only when all its filters have ended. Only then does the next run begin.
#[test]
#[requires(cgroup, program("bash"))]
fn watch() {
    let directory = Scratch::directory("filters");
    std::fs::create_dir(directory.path().join("watched")).unwrap();
    let mut runs = 0;
    for (filter, script) in FILTERS {
        let script = format!("rm -f out fifo; {script}");
        let mut watched =
            Watched::start(directory.path(), &[&["-w", "watched"][..], &SETTLE].concat(), &["bash", "-c", &script]);
        for round in 0..rounds() {
            if round > 0 {
                watched.keys("r\n");
                assert!(watched.said().starts_with("restart requested"));
            }
            assert!(watched.said().starts_with("bash exited with 0"), "{filter}");
            let written = std::fs::read_to_string(directory.path().join("out")).unwrap_or_default();
            assert_eq!(written, expected(), "{filter}, run {round}");
            runs += 1;
        }
        watched.end();
    }
    println!("watch: {runs} runs, 0 lost output");
}

#[test]
#[requires(namespaces, program("bash"))]
fn init_as_pid_1() {
    let namespace = ["unshare", "--pid", "--fork", "--mount-proc"];
    no_line_is_lost("init as PID 1", &[&namespace[..], &[PINFOLD, "init", "--"]].concat());
}

#[test]
#[requires(program("bash"))]
fn pool() {
    for _ in 0..rounds() {
        let directory = Scratch::directory("filters");
        let lines: String = (FILTERS.iter().enumerate())
            .map(|(number, (_, script))| {
                let script = format!("mkdir {number}; cd {number}; {script}");
                format!("{}\n", serde_json::json!({ "command": ["bash", "-c", script] }))
            })
            .collect();
        let list = directory.path().join("jobs.jsonl");
        std::fs::write(&list, lines).unwrap();
        let options = [&[PINFOLD, "pool", "-j", "4"][..], &SETTLE, &["--jobs"]].concat();
        let mut run = Run::bare(words(&options).into_iter().chain([list.into()]));
        run.command().current_dir(directory.path());
        let ran = run.run().assert_code(0);
        for (number, (filter, _)) in FILTERS.iter().enumerate() {
            let written = std::fs::read_to_string(directory.path().join(number.to_string()).join("out"));
            assert_eq!(written.unwrap_or_default(), expected(), "{filter}: {ran:#?}");
        }
    }
    println!("pool: {} runs, 0 lost output", rounds() * FILTERS.len());
}

/// The comparison: without pinfold no line is lost either, once the filters have finished.
#[test]
#[requires(program("bash"), program("timeout"))]
fn without_pinfold() {
    for _ in 0..rounds() {
        for (filter, script) in FILTERS {
            if filter.contains("daemon") {
                continue;
            }
            let directory = Scratch::directory("filters");
            let timeout =
                Command::new("timeout").args(["60", "bash", "-c", script]).current_dir(directory.path()).status();
            assert!(timeout.unwrap().success());
            let out = directory.path().join("out");
            let written = || std::fs::read_to_string(&out).is_ok_and(|written| written == expected());
            wait_in(directory.path(), || written().then_some(()));
        }
    }
    println!("coreutils' timeout, without a bound on the wait: {} runs, 0 lost output", rounds() * (FILTERS.len() - 1));
}

/// Returns the report of a job that leaves the processes that `script` starts.
fn leaving(options: &[&str], script: &str) -> crate::support::Ran {
    let mut run = Run::new(options.iter().chain(&["--", "bash", "-c", script]));
    run.command().current_dir(env!("CARGO_TARGET_TMPDIR"));
    run.run().assert_code(0)
}

fn seconds(ran: &crate::support::Ran, phase: &str) -> f64 {
    ran.report["phases"][phase].as_f64().unwrap_or_else(|| panic!("no time of {phase}: {ran:#?}"))
}

#[test]
#[requires(program("bash"))]
fn a_daemon_gets_a_short_part_of_the_settle_time() {
    for script in [
        "sleep 999 &",
        "setsid sleep 999 >/dev/null 2>&1 </dev/null & disown",
        "(trap '' HUP; exec sleep 999) & sleep 999 &",
    ] {
        let ran = leaving(&[], script);
        let settled = seconds(&ran, "settled") - seconds(&ran, "main_exited");
        assert!((0.15..1.5).contains(&settled), "{settled} s: {ran:#?}");
        assert!(ran.report["leftovers"]["count"].as_u64() >= Some(1), "{ran:#?}");
    }
}

/// A process that ignores the stop signal receives it twice if a filter is left: first because the process is not a
/// filter, and again when the settle time is over.
#[test]
#[requires(program("bash"))]
fn a_process_that_receives_the_stop_signal_twice_is_reported_once() {
    let script = "trap '' TERM; sleep 999 & trap - TERM; sleep 999 | sleep 999 &";
    let ran = leaving(&["--settle", "1s", "--grace", "200ms"], script);
    assert_eq!((&ran.report["stopped"]["count"], &ran.report["killed"]), (&3.into(), &true.into()), "{ran:#?}");
}

#[test]
fn a_process_that_still_has_the_input_of_the_job_is_no_filter() {
    // The pipe to pinfold's own standard input stays open.
    let mut run = Run::new(["--", "bash", "-c", "sleep 999 <&0 &"]);
    run.command().stdin(std::process::Stdio::piped());
    let ran = run.run().assert_code(0);
    let settled = seconds(&ran, "settled") - seconds(&ran, "main_exited");
    assert!(settled < 1.0, "{settled} s: {ran:#?}");
    assert_eq!(ran.report["leftovers"]["count"], 1, "{ran:#?}");
}

#[test]
fn a_filter_that_does_not_end_is_a_leftover_when_the_settle_time_is_over() {
    let script = "exec > >(trap '' PIPE; cat >/dev/null; sleep 999); echo line";
    let ran = leaving(&["--settle", "500ms"], script);
    let settled = seconds(&ran, "settled") - seconds(&ran, "main_exited");
    assert!((0.4..60.0).contains(&settled), "{settled} s: {ran:#?}");
    assert!(ran.listed("leftovers").contains("sleep 999"), "{ran:#?}");
}

/// `timeout` and `init` do not report a daemon, like the usual programs with these names. But they report a filter that
/// they end, because its output may be incomplete.
#[test]
#[requires(program("bash"))]
fn a_filter_that_is_ended_is_reported() {
    let namespace = ["unshare", "--pid", "--fork", "--mount-proc", PINFOLD, "init", "--"];
    let commands = [&[PINFOLD, "timeout", "60"][..], &[PINFOLD, "init", "--"], &namespace];
    for command in commands.into_iter().filter(|command| command[0] == PINFOLD || has(needs::namespaces())) {
        let stderr = |script: &str| {
            let ran = Run::bare(words(command).into_iter().chain(words(&["bash", "-c", script]))).run();
            ran.assert_code(0).stderr
        };
        let message = stderr("exec > >(trap '' PIPE; cat >/dev/null; exec sleep 999); echo line");
        assert!(message.contains("bash left 1 process") && message.contains("sleep 999"), "{command:?}: {message}");
        assert_eq!(message.lines().count(), 1, "{command:?}: {message}");
        assert_eq!(stderr("sleep 999 &"), "", "{command:?}");
    }
}

#[test]
fn without_a_settle_time_leftovers_are_stopped_at_once() {
    let ran = leaving(&["--settle", "0s"], "sleep 999 &");
    assert_eq!(ran.report["leftovers"]["count"], 1, "{ran:#?}");
    assert!(seconds(&ran, "settled") - seconds(&ran, "main_exited") < 0.1, "{ran:#?}");
}

#[test]
#[each_containment]
fn a_process_that_ends_by_itself_in_time_is_no_leftover(containment: &str) {
    let python = "
import concurrent.futures, multiprocessing, sys
if __name__ == '__main__':
    case = sys.argv[1]
    if case == 'shared memory':
        from multiprocessing import shared_memory
        memory = shared_memory.SharedMemory(create=True, size=10)
        memory.close()
        memory.unlink()
    else:
        context = multiprocessing.get_context('spawn')
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
            assert list(pool.map(abs, [-1, -2])) == [1, 2]
";
    let directory = Scratch::directory("filters-python");
    let program = directory.path().join("main.py");
    std::fs::write(&program, python).unwrap();
    let program = program.to_str().unwrap();
    let mut cases = vec![
        vec!["bash", "-c", "sleep 0.02 &"],
        vec!["bash", "-c", "(sleep 0.01; sleep 0.01) & setsid sleep 0.02 &"],
        vec!["bash", "-c", "exec > >(cat >/dev/null); echo line"],
    ];
    if has(needs::program("python3")) {
        cases.push(vec!["python3", program, "shared memory"]);
        cases.push(vec!["python3", program, "spawned pool"]);
    }
    for case in &cases {
        let options = [&["--containment", containment, "--fail-on-leftovers"][..], &SETTLE, &["--"]].concat();
        let ran = Run::new(options.iter().chain(case)).run().assert_code(0);
        assert_eq!(ran.report["leftovers"]["count"], 0, "{ran:#?}");
    }
}

#[test]
fn the_deadline_and_a_stop_end_the_settle_time() {
    // The filter reads its pipe to the end and then does not exit.
    let script = "exec > >(cat >/dev/null; echo settling >&2; exec sleep 999); echo line";
    let deadline = Run::new(["--timeout", "1s", "--settle", "1h", "--", "bash", "-c", script]).run().assert_code(0);
    assert_eq!(deadline.report["reason"], "exited", "{deadline:#?}");
    let mut running = Run::new(["--settle", "1h", "--", "bash", "-c", script]).start();
    assert_eq!(running.error_line(), "settling");
    running.signal(libc::SIGTERM);
    let stopped = running.finish();
    assert!(stopped.elapsed < Duration::from_secs(60), "{stopped:#?}");
    assert_eq!(stopped.report["leftovers"]["count"].as_u64(), Some(1), "{stopped:#?}");
}

#[test]
fn a_stop_of_the_main_process_alone_lets_filters_finish() {
    let directory = Scratch::directory("filters");
    let script =
        "trap 'seq 1 20; echo verdict; exit 0' TERM; exec > >(sleep 0.1; cat >out); echo ready >&2; sleep 999 & wait";
    let mut run = Run::new(["--signal-to", "main", "--", "bash", "-c", script]);
    run.command().current_dir(directory.path());
    let mut running = run.start();
    assert_eq!(running.error_line(), "ready");
    running.signal(libc::SIGTERM);
    let ran = running.finish();
    let written = std::fs::read_to_string(Path::new(directory.path()).join("out")).unwrap_or_default();
    assert_eq!(written, expected(), "{ran:#?}");
}

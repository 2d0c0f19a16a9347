//! `pinfold pool`: its arguments and input, and how it ends.

use std::io::Write as _;
use std::process::Command;

use crate::support::events::wait_in;
use crate::support::messages::Messages;
use crate::support::needs::need;
use crate::support::pool::{lines, pool, start, text};
use crate::support::pty::Pty;
use crate::support::{PINFOLD, Run, Scratch, has};

#[test]
#[requires(cgroup)]
fn three_kinds_of_jobs() {
    let ran = pool(&["-j", "1", "--", "echo", "<{}>", "{}{}"], "a b\n\n*\n").assert_code(0);
    assert_eq!(ran.stdout, "<a b> a ba b\n<*> **\n");
    let mut messages = Messages::default();
    messages.add("2 succeed", &ran.stderr);
    let ran = pool(&["-j", "1", "-q", "-0", "--", "echo"], "a\nb\0c").assert_code(0);
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("a\nb\nc\n", ""));
    let ran = pool(&["-j", "1", "--shell"], "echo one; echo two >&2\nexit 3\n").assert_code(1);
    assert_eq!(ran.stdout, "one\ntwo\n");
    messages.add("the second of 2 fails", &ran.stderr);
    let jobs = concat!(
        r#"{"command": ["sh", "-c", "pwd; echo $A-$PATH_; cat"], "cwd": "/", "env": {"A": "b", "PATH_": null}, "stdin": "given"}"#,
        "\n",
        r#"{"command": ["sleep", "100"], "timeout": 0.2, "name": "sleeper"}"#,
        "\n",
        r#"{"command": ["/no/such"], "retries": 3}"#,
        "\n",
    );
    let ran = pool(&["-j", "1"], jobs).assert_code(1);
    assert_eq!(ran.stdout, "/\nb-\ngiven");
    messages.add("a deadline, and no program", &ran.stderr);
    insta::assert_snapshot!(messages);
}

/// The requested number of jobs runs at a time, even if output waits to be printed: each job waits for all the others.
#[test]
#[requires(cgroup)]
fn many_at_a_time() {
    let there = Scratch::directory("there");
    let script = format!("cd {}; : >{{}}; until [ -e 150 ]; do sleep 0.1; done; echo {{}}", text(there.path()));
    let jobs: String = (1..=150).map(|number| format!("{number}\n")).collect();
    for order in [&["--keep-order"][..], &[]] {
        let args = [&["-j", "150", "--timeout", "2m", "-q"], order, &["--", "sh", "-c", &script]].concat();
        let ran = pool(&args, &jobs).assert_code(0);
        assert_eq!(ran.stdout.lines().count(), 150);
        assert!(order.is_empty() || ran.stdout == jobs, "{}", ran.stdout);
        std::fs::remove_file(there.path().join("150")).unwrap();
    }
}

/// pinfold reports that more open files are needed than the limit allows, before anything starts. The limit that it
/// suggests is enough.
#[test]
#[requires(cgroup)]
fn too_few_descriptors() {
    let limited = |workers: &str, output: &str| {
        let script = "ulimit -n 100; exec \"$@\"";
        let args = ["pool", "-j", workers, "--output", output, "--stderr", "separate", "--shell"];
        let mut run = Run::bare(["sh", "-c", script, "sh", PINFOLD].iter().chain(&args));
        run.command().stdin(std::process::Stdio::piped());
        let mut running = run.start();
        let mut stdin = running.child.stdin.take().unwrap();
        stdin.write_all("echo out; echo err >&2\n".repeat(200).as_bytes()).unwrap();
        drop(stdin);
        running.finish()
    };
    for output in ["group", "stream"] {
        let ran = limited("150", output);
        let Some((_, enough)) = ran.stderr.split_once("enough for -j ") else {
            // A process that may raise the hard limit is not limited by it.
            ran.assert_counts(200, 0);
            continue;
        };
        assert_eq!((ran.code, ran.stdout.as_str()), (125, ""));
        let enough = enough.split(';').next().unwrap();
        let ran = limited(enough, output).assert_code(0);
        assert_eq!(ran.stdout.lines().count(), 200, "-j {enough}: {}", ran.stderr);
    }
}

/// Jobs that end at the same time are named in any order.
fn sorted(lines: &str) -> String {
    let mut lines: Vec<&str> = lines.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}

#[test]
#[requires(cgroup)]
fn a_deadline_fail_fast_and_interrupts() {
    let sleeps = "100\n101\n102\n103\n104\n";
    let results = Scratch::new("deadline");
    let args = ["-j", "2", "--deadline", "300ms", "--results", text(results.path()), "--", "sleep"];
    let ran = pool(&args, sleeps).assert_code(124);
    let mut messages = Messages::default();
    messages.add("a deadline", &sorted(&ran.stderr));
    // None of them is recorded as done, so all of them run again.
    let ended = lines(results.path());
    assert_eq!(ended.len(), 2);
    assert!(ended.iter().all(|line| line["done"] == false && line["report"]["reason"] == "deadline"), "{ended:#?}");

    let ran = pool(&["-j", "2", "--fail-fast", "--shell"], "sleep 100\nexit 3\nsleep 101\nsleep 102\n").assert_code(1);
    messages.add("--fail-fast", &sorted(&ran.stderr));

    // One signal stops them. A second signal kills them.
    let polite = "setsid sleep 100 & echo ready >&2; wait\n".repeat(3);
    let mut running = start(&["-j", "2", "--shell", "--output", "stream"], &polite);
    assert_eq!((running.error_line(), running.error_line()), ("ready".into(), "ready".into()));
    running.signal(libc::SIGTERM);
    let ran = running.finish().assert_code(128 + libc::SIGTERM);
    messages.add("SIGTERM", &sorted(&ran.stderr));

    let deaf = "trap '' TERM INT; echo ready >&2; while :; do sleep 100; done\n";
    let mut running = start(&["-j", "2", "--shell", "--output", "stream", "--grace", "1h"], deaf);
    assert_eq!(running.error_line(), "ready");
    running.signal(libc::SIGINT);
    messages.add("SIGINT", &running.error_line());
    insta::assert_snapshot!(messages);
    running.signal(libc::SIGTERM);
    running.finish().assert_code(128 + libc::SIGTERM);

    // pinfold dies of the signal itself, so that loops in shells stop.
    let mut running = start(&["--shell", "--output", "stream"], "echo ready >&2; sleep 100\n");
    assert_eq!(running.error_line(), "ready");
    running.signal(libc::SIGINT);
    assert_eq!(running.finish().signal, Some(libc::SIGINT));
}

/// A killed guard ends everything, and pinfold reports that. A job that did not finish is not recorded as done.
#[test]
#[requires(cgroup)]
fn a_killed_guard() {
    let results = Scratch::new("guard");
    let args = ["-j", "2", "--shell", "--output", "stream", "--results", text(results.path())];
    let mut running = start(&args, &"echo ready >&2; sleep 100\n".repeat(4));
    assert_eq!((running.error_line(), running.error_line()), ("ready".into(), "ready".into()));
    let pinfold = running.pinfold_pid();
    let children = std::fs::read_to_string(format!("/proc/{pinfold}/task/{pinfold}/children")).unwrap();
    let guard: i32 = children.split_whitespace().next().unwrap().parse().unwrap();
    // SAFETY: signals pinfold's child, which lives, because pinfold has not reaped it.
    #[allow(unsafe_code)]
    let killed = unsafe { libc::kill(guard, libc::SIGKILL) };
    assert_eq!(killed, 0);
    let ran = running.finish().assert_code(125);
    ran.assert_names("guard");
    let ended = lines(results.path());
    // The jobs that ran are recorded; one more may have been in progress.
    assert!(ended.len() >= 2, "{ended:#?}");
    assert!(ended.iter().all(|line| line["done"] == false), "{ended:#?}");
}

/// Each failed job is a reason to stop the others, but only once: jobs that clean up keep their grace period.
#[test]
#[requires(cgroup)]
fn fail_fast_leaves_the_grace_period() {
    let (fail, go, results) = (Scratch::new("fail"), Scratch::new("go"), Scratch::new("results"));
    let [fail_now, go_on] = [&fail, &go].map(|fifo| {
        rustix::fs::mkfifoat(rustix::fs::CWD, fifo.path(), 0o600.into()).unwrap();
        // Opened for reading and writing, so that the open does not block (fifo(7)).
        std::fs::File::options().read(true).write(true).open(fifo.path()).unwrap()
    });
    let trap = format!("echo cleaning; read line < {}; echo cleaned; exit 0", text(go.path()));
    let careful = format!("trap '{trap}' TERM; echo ready; while :; do sleep 0.01; done\n");
    let failing = format!("exec 9< {}; echo ready; read line <&9; exit 7\n", text(fail.path())).repeat(5);
    let args = ["-j", "6", "--fail-fast", "--shell", "--output", "stream", "--grace", "1m", "--results"];
    let args = [&args[..], &[text(results.path())]].concat();
    let mut running = start(&args, &(careful + &failing));
    for _ in 0..6 {
        assert_eq!(running.line(), "ready");
    }
    // All of them get the end of the fifo at once.
    drop(fail_now);
    assert_eq!(running.line(), "cleaning");
    (&go_on).write_all(b"go\n").unwrap();
    assert_eq!(running.line(), "cleaned");
    running.finish().assert_code(1);
    let ended = lines(results.path());
    let careful = ended.iter().find(|line| line["line"] == 1).unwrap();
    assert_eq!((&careful["report"]["killed"], &careful["report"]["reason"]), (&false.into(), &"stopped".into()));
}

/// pinfold reports that it cannot start a thread, before anything starts.
#[test]
#[requires(cgroup)]
fn a_printer_thread_that_cannot_be_started_is_reported() {
    let mark = Scratch::new("mark");
    let mut run = Run::bare([PINFOLD, "pool", "--", "touch", text(mark.path())]);
    // There is no memory for a stack of this size. The error is EAGAIN, as with a limit on threads (pthread_create(3)).
    run.command().env("RUST_MIN_STACK", (1_u64 << 60).to_string()).stdin(std::process::Stdio::piped());
    let mut running = run.start();
    running.child.stdin.take().unwrap().write_all(b"x\n").unwrap();
    assert_eq!(running.finish().assert_code(125).stderr.lines().count(), 1);
    assert!(!mark.path().exists());
}

/// A line has the same limits as pinfold run. pinfold reports a limit that it cannot enforce, before anything starts.
#[test]
#[requires(cgroup)]
fn limits_of_jobs() {
    let line = |limits: &str, script: &str| format!(r#"{{"command": ["sh", "-c", "{script}"], "limits": {limits}}}"#);
    // Limits that need no controller.
    let jobs = line(r#"{"rlimit": ["nofile=17:18"], "nice": 3}"#, "ulimit -n; nice") + "\n";
    assert_eq!(pool(&[], &jobs).assert_code(0).stdout, "17\n3\n");
    let wrong = format!("{}\n{}\n", line(r#"{"memory": "much"}"#, "true"), line(r#"{"cpu": 1}"#, "true"));
    let ran = pool(&[], &wrong).assert_code(125);
    ["line 1: ", "much", "line 2: ", "cpu"].iter().for_each(|named| ran.assert_names(named));

    let mark = Scratch::new("mark");
    let jobs = line(r#"{"pids": 20, "memory": "64M"}"#, &format!("echo ran > {}", text(mark.path())));
    let (results, both) = (Scratch::new("limits"), r#"x=$(seq 9999999); echo $?"#);
    let jobs = format!("{jobs}\n{}\n", line(r#"{"memory": "16M"}"#, both));
    let ran = pool(&["-j", "1", "--results", text(results.path())], &jobs);
    if ran.code == 125 {
        // The message names the controllers and what to do, and no job has run.
        ran.assert_names("memory, pids");
        assert!(!mark.path().exists());
        has(need("memory", false, &ran.stderr));
        return;
    }
    let done = lines(results.path());
    assert!(mark.path().exists() && done[0]["report"]["usage"]["processes_peak"]["value"].is_u64(), "{done:#?}");
    assert_eq!(done[1]["report"]["reason"], "oom", "{done:#?}");
    assert!(done[1]["report"]["oom"]["kills"].as_u64().unwrap() > 0);
}

/// On a terminal pinfold shows how many jobs run, are done and have failed, and the remaining time. It removes this at
/// the end.
#[test]
#[requires(cgroup)]
fn progress_on_a_terminal() {
    let (go, jobs) = ([Scratch::new("go"), Scratch::new("go")], Scratch::new("jobs"));
    let waits = go.each_ref().map(|go| {
        rustix::fs::mkfifoat(rustix::fs::CWD, go.path(), 0o600.into()).unwrap();
        format!("read line < {}", text(go.path()))
    });
    std::fs::write(jobs.path(), format!("exit 3\ntrue\n{}\n{}\n", waits[0], waits[1])).unwrap();
    let mut command = Command::new(PINFOLD);
    command.args(["pool", "-j", "2", "--shell", "--jobs", text(jobs.path())]);
    let mut pty = Pty::start(command);
    // The failure has its own line, beside the bar.
    pty.expect("line 1, exit 3: exit code 3");
    pty.expect("2/4, 2 running, 1 failed");
    pty.expect("s left");
    for go in &go {
        std::fs::write(go.path(), "go\n").unwrap();
    }
    pty.expect("3 succeeded, 1 failed");
    assert_eq!(pty.wait().code(), Some(1));
}

/// A script that writes to $2 when it is ready, and prints the first signal that it receives.
const REPORTS_SIGNAL: &str = r#"
    for signal in TERM INT HUP QUIT USR1; do
        trap "echo $1 $signal; sleep 0.3; echo $1 ends; exit" $signal
    done
    echo >>$2
    while :; do sleep 0.05; done
"#;

/// The jobs receive the signal that pinfold received, or the chosen one. SIGHUP stops the pool as the other signals do.
#[test]
#[requires(cgroup)]
fn a_stop_of_the_pool_begins_with_the_received_signal() {
    let directory = Scratch::directory("signals");
    let script = directory.path().join("script");
    std::fs::write(&script, REPORTS_SIGNAL).unwrap();
    let script = text(&script);
    // Sends the signal when the processes of the job are ready, and returns the output of the job.
    let stopped_by = |sent: i32, args: &[&str], both: bool| {
        let ready = directory.path().join("ready");
        let _ = std::fs::remove_file(&ready);
        let main = format!("exec sh {script} main {}", text(&ready));
        let job = if both { format!("setsid sh {script} child {} & {main}", text(&ready)) } else { main };
        let running =
            start(&[&["-j", "1", "--stderr=separate"], args, &["--shell"]].concat(), &format!("{job}\nnever\n"));
        let count = || std::fs::read_to_string(&ready).unwrap_or_default().lines().count();
        wait_in(directory.path(), || (count() == 1 + usize::from(both)).then_some(()));
        running.signal(sent);
        let ran = running.finish().assert_code(128 + sent);
        ran.stdout.replace('\n', ",")
    };
    for (sent, args, expected) in [
        (libc::SIGTERM, [].as_slice(), "TERM"),
        (libc::SIGINT, &[], "INT"),
        (libc::SIGHUP, &[], "HUP"),
        (libc::SIGQUIT, &[], "QUIT"),
        (libc::SIGINT, &["--stop-signal", "USR1"], "USR1"),
        (libc::SIGHUP, &["--stop-signal", "TERM"], "TERM"),
    ] {
        assert_eq!(stopped_by(sent, args, false), format!("main {expected},main ends,"), "{sent} {args:?}");
    }
    let all = stopped_by(libc::SIGTERM, &[], true);
    assert!(all.find("child TERM") < all.find("main ends"), "{all}");
    // The child is a leftover when the main process has exited, and receives the stop signal then.
    let main = stopped_by(libc::SIGTERM, &["--signal-to", "main"], true);
    assert!(main.starts_with("main TERM,main ends,"), "{main}");
}

/// pinfold lowers its own `oom_score_adj` where it may (CAP_SYS_RESOURCE), and starts further guards after that. No job
/// inherits the lowered value: the kernel would end everything else first.
#[test]
#[requires(root)]
fn no_job_inherits_pinfolds_value_for_the_oom_killer() {
    let own: i32 = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim().parse().unwrap();
    // The second form hides the cgroups.
    let hidden = r#"unshare --mount sh -c 'mount -t tmpfs none /sys/fs/cgroup; exec "$@"' sh "$@""#;
    for form in [r#""$@""#, hidden] {
        for workers in ["-j1", "-j3"] {
            let script = format!("yes /proc/self/oom_score_adj | head -n 4 | {form}");
            let mut shell = Command::new("sh");
            shell.args(["-c", &script, "sh", PINFOLD, "pool", workers, "cat"]).env_remove("PINFOLD_CGROUP");
            let output = shell.output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            let values: Vec<i32> = text.lines().map(|line| line.parse().unwrap()).collect();
            assert_eq!(values.len(), 4, "{form} {workers} {text}");
            assert!(values.iter().all(|value| *value >= own && *value == values[0]), "{form} {workers} {values:?}");
        }
    }
}

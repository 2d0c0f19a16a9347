//! Invalid options, missing resources and closed descriptors: pinfold prints a clear message, exits with the right
//! code, starts nothing and does not panic.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::support::{Canary, PINFOLD, Ran, Run, Scratch, has, needs};

/// Runs `pinfold run ARGS` and asserts that it fails with a readable message.
fn refused(run: Run, code: i32, said: &str) -> Ran {
    let ran = run_without_panic(run).assert_code(code);
    assert!(ran.stderr.starts_with("pinfold: ") || ran.stderr.starts_with("error: "), "{ran:#?}");
    assert!(ran.stderr.contains(said), "{said:?} is not in {ran:#?}");
    ran
}

/// Runs it with backtraces enabled, and asserts that it prints none.
fn run_without_panic(mut run: Run) -> Ran {
    run.command().env("RUST_BACKTRACE", "1");
    let ran = run.run();
    for word in ["panicked", "backtrace", "RUST_BACKTRACE"] {
        assert!(!ran.stderr.contains(word), "{ran:#?}");
    }
    ran
}

/// Returns a command that creates the file `mark` if it ever runs.
fn marking(mark: &Scratch) -> [String; 3] {
    ["sh".into(), "-c".into(), format!("echo ran > {}", mark.path().display())]
}

#[test]
fn invalid_options() {
    let mark = Scratch::new("mark");
    for (options, said) in [
        (vec!["--stop-signal", "FOO"], "FOO"),
        (vec!["--stop-signal", "0"], "1 to 64"),
        (vec!["--stop-signal", "65"], "1 to 64"),
        (vec!["--stop-signal", ""], "signal"),
        (vec!["--stop-signal", "-1"], "-1"),
        (vec!["--timeout", "-1"], "-1"),
        (vec!["--timeout=-1"], "-1"),
        (vec!["--timeout", ""], "write 1h30m"),
        (vec!["--timeout", "soon"], "write 1h30m"),
        (vec!["--timeout", "5 parsecs"], "parsecs"),
        (vec!["--timeout", "99999999999999999999"], "write 1h30m"),
        (vec!["--timeout", "99999999999999999999y"], "write 1h30m"),
        (vec!["--timeout", "1e400"], "write 1h30m"),
        (vec!["--grace", "NaN"], "write 1h30m"),
        (vec!["--signal-to", "nobody"], "possible values: all, main"),
        (vec!["--leftovers", "keep"], "possible values: kill, wait"),
        (vec!["--require", "luck"], "possible values: cgroup"),
        (vec!["--env-remove", ""], "KEY"),
        (vec!["--env-remove", "A=B"], "KEY"),
        (vec!["--timeout", "5M"], "month"),
        (vec!["--grace", "1h5M"], "month"),
        (vec!["--grace", "-1"], "negative"),
        (vec!["--grace", "-1s"], "negative"),
        (vec!["--grace=-1"], "negative"),
        (vec!["--kill-bound", "-.5"], "negative"),
        (vec!["--pids", "-5"], "negative"),
        (vec!["--memory", "-1G"], "negative"),
        (vec!["--max-output", "-1K"], "negative"),
        (vec!["--env", "=value"], "KEY=VALUE"),
        (vec!["--env", ""], "KEY=VALUE"),
        (vec!["--no-such-option"], "--no-such-option"),
        (vec!["--timout", "5s"], "'--timeout'"),
        (vec!["-q", "-v"], "cannot be used with"),
        (vec!["--timeout", "1s", "--timeout", "2s"], "multiple times"),
    ] {
        let args = options.iter().map(ToString::to_string).chain(marking(&mark));
        let ran = refused(Run::new(args), 125, said);
        assert!(!mark.path().exists() && !ran.stderr.contains("'-- -1"), "{options:?}: {ran:#?}");
    }
}

/// A duration that is longer than any clock can hold means no deadline, and causes no overflow.
#[test]
#[requires(cgroup)]
fn absurdly_long_durations() {
    for long in ["18446744073709551615", "18446744073709551615s", "500000000000years", "1000000000h"] {
        let ran = run_without_panic(Run::new(["--timeout", long, "--grace", long, "sh", "-c", "exit 3"]));
        assert_eq!(ran.assert_code(3).stderr, "", "{long}");
    }
    // An infinite grace period: the job ends by itself.
    let script = "trap 'exit 4' TERM; sleep 1000 & wait";
    let ran = run_without_panic(Run::new(["--timeout", "1s", "--grace", "18446744073709551615", "sh", "-c", script]));
    assert_eq!(ran.assert_code(124).report["main"]["exited"], 4);
}

#[test]
fn no_command() {
    refused(Run::new::<[&str; 0]>([]), 125, "COMMAND");
    refused(Run::new(["--"]), 125, "COMMAND");
    refused(Run::new(["--timeout", "1s", "--"]), 125, "COMMAND");
    refused(Run::new(["--cwd", "", "true"]), 125, "--cwd");
}

#[test]
#[requires(cgroup)]
fn a_working_directory_that_cannot_be_entered() {
    let mark = Scratch::new("mark");
    for (cwd, said) in [
        ("/no/such/directory", "'/no/such/directory'"),
        ("/etc/passwd", "'/etc/passwd'"),
        ("\u{1}", r"'\001'"),
        ("no/such", "'no/such'"),
    ] {
        let args = ["--cwd".to_owned(), cwd.into()].into_iter().chain(marking(&mark));
        let ran = refused(Run::new(args), 125, said);
        assert!(ran.stderr.contains("working directory"), "{ran:#?}");
        assert!(!mark.path().exists());
    }
}

#[test]
fn a_report_that_cannot_be_written_is_found_before_the_command_runs() {
    let mark = Scratch::new("mark");
    let directory = Scratch::directory("report-dir");
    let in_directory = directory.path().display().to_string();
    for (place, said) in [
        ("/no/such/directory/report", "/no/such/directory/report"),
        (in_directory.as_str(), "report-dir"),
        ("", "write a file name"),
        ("fd:99", "descriptor 99"),
        ("fd:1000000", "descriptor 1000000"),
        ("fd:0", "descriptor 0"),
        ("fd:1", "descriptor 1"),
        ("fd:", "fd:3"),
        ("fd:-1", "fd:3"),
        ("fd:x", "fd:3"),
        ("fd:99999999999999", "fd:3"),
    ] {
        let words = [PINFOLD, "run", "--report", place].map(ToString::to_string).into_iter().chain(marking(&mark));
        refused(Run::bare(words), 125, said);
        assert!(!mark.path().exists(), "{place}");
    }
    // The descriptor is open, but only for reading.
    let script = format!("exec 9</dev/null; exec {PINFOLD} run --report fd:9 touch {}", mark.path().display());
    refused(Run::bare(["bash", "-c", &script]), 125, "not open for writing");
    assert!(!mark.path().exists());
}

#[test]
#[requires(cgroup)]
fn a_report_that_cannot_be_written_in_the_end_fails_after_the_job() {
    let full = [(r#"exec "$@""#, "/dev/full"), (r#"exec 9>/dev/full; exec "$@""#, "fd:9")];
    for (script, place) in full {
        let mark = Scratch::new("mark");
        let words = ["bash", "-c", script, "bash", PINFOLD, "run", "--report", place].map(ToString::to_string);
        let ran = refused(Run::bare(words.into_iter().chain(marking(&mark))), 125, "No space left on device");
        assert!(ran.stderr.contains("the job is over"), "{ran:#?}");
        assert_eq!(mark.text(), "ran\n");
    }
    let words = ["bash", "-c", r#"exec "$@" >/dev/full"#, "bash", PINFOLD, "run", "--report", "-", "true"];
    refused(Run::bare(words), 125, "standard output: No space left on device");
    // The reader has gone. pinfold does not die of SIGPIPE either; it exits with a code.
    let script = format!("{PINFOLD} run --report - true | exec true; exit ${{PIPESTATUS[0]}}");
    let ran = run_without_panic(Run::bare(["bash", "-c", &script]));
    assert!(ran.code == 0 || ran.code == 125 && ran.stderr.contains("Broken pipe"), "{ran:#?}");
}

/// The job sees the same closed streams as without pinfold, and pinfold itself works with them too.
#[test]
#[requires(cgroup)]
fn closed_streams() {
    for closed in [vec![0], vec![1], vec![2], vec![0, 1], vec![0, 2], vec![1, 2], vec![0, 1, 2]] {
        let redirections: String = closed.iter().map(|number| format!(" {number}>&-")).collect();
        let given = crate::support::assert_same_without_pinfold("", "", &redirections);
        assert!(closed.iter().all(|number| !given.contains(&format!("fd {number}:"))), "{given}");
    }
}

#[test]
fn failures_with_closed_streams() {
    for closed in ["1>&-", "2>&-", "0<&- 1>&- 2>&-"] {
        let script = format!(r#"exec "$@" {closed}"#);
        run_without_panic(Run::in_shell(&script, ["--stop-signal", "FOO", "true"])).assert_code(125);
        if has(needs::cgroup()) {
            run_without_panic(Run::in_shell(&script, ["no-such-command"])).assert_code(127);
            run_without_panic(Run::in_shell(&script, ["--cwd", "/no/such", "true"])).assert_code(125);
            // The streams are closed, so pinfold cannot print a message; only the exit code counts.
            run_without_panic(Run::in_shell(&script, ["--timeout", "100ms", "sleep", "1000"])).assert_code(124);
        }
    }
}

#[test]
fn a_report_to_an_unwritable_standard_output() {
    let mark = Scratch::new("mark");
    for stdout in [">&-", "1</dev/null"] {
        let script = format!(r#"exec {PINFOLD} run --report - -- "$@" {stdout}"#);
        let words = ["bash", "-c", &script, "bash"].map(ToString::to_string).into_iter().chain(marking(&mark));
        refused(Run::bare(words), 125, "standard output");
        assert!(!mark.path().exists());
    }
}

#[test]
#[requires(cgroup)]
fn bytes_that_are_no_utf8() {
    let bad = OsStr::from_bytes(b"b\xffd");
    let with = |before: &str| OsStr::from_bytes(&[before.as_bytes(), bad.as_bytes()].concat()).to_owned();

    let ran = refused(Run::new([bad]), 127, "b\u{fffd}d");
    assert_eq!(ran.report["command"][0].as_str().unwrap_or("b\u{fffd}d"), "b\u{fffd}d");
    refused(Run::new([OsStr::new("--cwd"), &with("/no/"), OsStr::new("true")]), 125, "/no/b\u{fffd}d");
    refused(Run::new([OsStr::new("--timeout"), bad, OsStr::new("true")]), 125, "error: ");
    refused(Run::new([OsStr::new("--stop-signal"), bad, OsStr::new("true")]), 125, "error: ");
    refused(Run::new([OsStr::new("--signal-to"), bad, OsStr::new("true")]), 125, "error: ");
    refused(Run::new([&*with("--no-such-"), OsStr::new("true")]), 125, "unexpected argument");

    let shell = "test \"$A\" = \"$(printf 'b\\377d')\" && test \"$B\" = \"$A\" && test \"$1\" = \"$A\"";
    let mut run = Run::new([OsStr::new("--env"), &with("B="), "sh".as_ref(), "-c".as_ref(), shell.as_ref()]);
    run.command().args(["sh".as_ref(), bad]).env("A", bad);
    run_without_panic(run).assert_code(0);

    let scratch = Scratch::directory("bytes");
    let directory = scratch.path().join(bad);
    std::fs::create_dir(&directory).unwrap();
    let ran = run_without_panic(Run::new([OsStr::new("--cwd"), directory.as_os_str(), "pwd".as_ref()])).assert_code(0);
    assert!(ran.report["cwd"].as_str().unwrap().ends_with("b\u{fffd}d"), "{ran:#?}");
    let report = directory.join("report");
    let mut run = Run::bare([OsStr::new(PINFOLD), "run".as_ref(), "--report".as_ref(), report.as_os_str()]);
    run.command().arg("true");
    run_without_panic(run).assert_code(0);
    assert!(std::fs::read_to_string(&report).unwrap().starts_with("{\"version\":1,"));
}

#[test]
fn a_named_directory_that_is_no_cgroup() {
    let mark = Scratch::new("mark");
    for (place, said) in
        [("/no/such/cgroup", "/no/such/cgroup"), ("/tmp", "cgroup2"), ("/etc/passwd", "/etc/passwd"), ("", "cgroup")]
    {
        let args = ["--cgroup".to_owned(), place.into()].into_iter().chain(marking(&mark));
        refused(Run::new(args), 125, said);
        let mut run = Run::new(marking(&mark));
        run.command().env("PINFOLD_CGROUP", if place.is_empty() { "/no/such" } else { place });
        refused(run, 125, if place.is_empty() { "/no/such" } else { said });
        assert!(!mark.path().exists());
    }
}

/// A failure affects no other process and leaves nothing: the warden counts the processes, and the canary process still
/// lives.
#[test]
fn failures_affect_no_other_process() {
    let canary = Canary::new();
    if has(needs::cgroup()) {
        run_without_panic(Run::new(["no-such-command"])).assert_code(127);
        run_without_panic(Run::new(["/"])).assert_code(126);
    }
    run_without_panic(Run::new(["--timeout", "-1", "true"])).assert_code(125);
    canary.assert_alive();
}

/// Durations have the syntax of coreutils' timeout.
#[test]
#[requires(cgroup)]
fn durations_as_of_timeout() {
    for no_limit in ["0", "0s", "0.0", "inf", "1e9", "1e3h"] {
        let options = ["--timeout", no_limit, "--idle-timeout", no_limit, "sh", "-c", "sleep 0.05; exit 3"];
        assert_eq!(run_without_panic(Run::new(options)).assert_code(3).stderr, "", "{no_limit}");
    }
    for soon in [".1", "1e-1", "100ms"] {
        run_without_panic(Run::new(["--timeout", soon, "-q", "sleep", "1000"])).assert_code(124);
    }
    // An infinite grace period lasts until the job ends.
    let script = "trap 'exit 4' TERM; sleep 1000 & wait";
    let ran = run_without_panic(Run::new(["--timeout", "1", "--grace", "inf", "sh", "-c", script]));
    assert_eq!(ran.assert_code(124).report["main"]["exited"], 4);
}

#[test]
#[requires(cgroup)]
fn variables_are_passed_on_and_removed() {
    let of = |options: &[&str]| {
        let mut run = Run::new(options.iter().chain(&["--", "sh", "-c", "echo \"$A $B ${C-none} ${D-none}\""]));
        run.command().env("A", "a").env("B", "b=1").env_remove("C").env("D", "");
        run_without_panic(run).assert_code(0).stdout
    };
    assert_eq!(of(&[]), "a b=1 none \n");
    assert_eq!(of(&["--clear-env", "--env", "A", "--env", "B", "--env", "C", "--env", "D"]), "a b=1 none \n");
    assert_eq!(of(&["--env-remove", "A", "--env-remove", "C", "--env-remove", "D"]), " b=1 none none\n");
    assert_eq!(of(&["--env-remove", "A", "--env", "A=new", "--env", "C="]), "new b=1  \n");
    assert_eq!(of(&["--env-remove", "A", "--env", "A"]), "a b=1 none \n");
}

/// An empty variable counts as unset. The message about an invalid variable contains its name.
#[test]
fn empty_and_invalid_variables_of_pinfold() {
    let commands: [&[&str]; 5] =
        [&["run", "true"], &["timeout", "10", "true"], &["init", "true"], &["pool"], &["sweep", "--dry-run"]];
    if has(needs::cgroup()) {
        for words in commands {
            let mut run = Run::bare([PINFOLD].iter().chain(words));
            run.command().env("PINFOLD_CGROUP", "").env("PINFOLD_CONTAINMENT", "");
            assert_eq!(
                run_without_panic(run).assert_code(0).stderr.replace("0 succeeded", "").lines().count(),
                usize::from(words[0] == "pool")
            );
        }
        // The job's environment stays unchanged.
        let mut run = Run::new(["sh", "-c", "echo \"${PINFOLD_CGROUP-unset}\""]);
        run.command().env("PINFOLD_CGROUP", "");
        assert_eq!(run_without_panic(run).assert_code(0).stdout, "\n");
    }
    for words in &commands[..4] {
        for value in ["", " ", "luck", "CGROUPS"].into_iter().skip(1) {
            let mut run = Run::bare([PINFOLD].iter().chain(*words));
            run.command().env("PINFOLD_CONTAINMENT", value);
            refused_by(run, &["PINFOLD_CONTAINMENT", value]);
        }
    }
    for words in commands {
        let mut run = Run::bare([PINFOLD].iter().chain(words));
        run.command().env("PINFOLD_CGROUP", "/no/such/cgroup");
        refused_by(run, &["/no/such/cgroup"]);
    }
}

fn refused_by(run: Run, words: &[&str]) {
    let ran = run_without_panic(run).assert_code(125);
    assert!(words.iter().all(|word| ran.stderr.contains(word)), "{words:?} is not in {ran:#?}");
}

/// With a small stack, or a file size limit of a kilobyte (which also holds in memory), pinfold works or reports the
/// reason why not.
#[test]
fn limits_of_the_caller_that_are_too_low_are_named() {
    let commands = ["run -- true", "timeout 10 true", "init true", "pool -- true", "sweep --dry-run", "--help"];
    for (limit, said) in
        [("-s 64", "stack"), ("-s 16", "stack"), ("-Ss 64", "stack"), ("-f 1", "ulimit -f"), ("-f 0", "ulimit -f")]
    {
        for command in commands {
            let script = format!("ulimit {limit}; exec {PINFOLD} {command}");
            let mut run = Run::bare(["bash", "-c", &script]);
            if said == "ulimit -f" {
                run.command().env("LARGE", "x".repeat(100_000));
            } else {
                // The kernel puts the environment on the stack too: a large environment would leave none of the 16 KiB for
                // the dynamic loader.
                run.command().env_clear().env("PATH", "/usr/bin:/bin");
            }
            let ran = run_without_panic(run);
            let reason = ran.code == 125 && ran.stderr.starts_with("pinfold") && ran.stderr.contains(said);
            assert!(ran.code == 0 || reason, "{script}: {ran:#?}");
        }
    }
}

/// A pinfold that opened a FIFO without a reader could not be ended even by a signal. So pinfold refuses such a FIFO
/// and starts nothing.
#[test]
fn a_fifo_without_a_reader_is_refused() {
    let scratch = Scratch::directory("fifo");
    let (fifo, mark) = (scratch.path().join("fifo"), scratch.path().join("mark"));
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, 0o600.into()).unwrap();
    let (fifo, job) = (fifo.to_str().unwrap(), format!("echo ran > {}", mark.display()));
    for option in ["--report", "--tee"] {
        let ran = Run::bare([PINFOLD, "run", option, fifo, "--", "sh", "-c", &job]).run().assert_code(125);
        assert!(ran.stderr.contains(fifo) && ran.stderr.contains("FIFO that no process reads"), "{ran:#?}");
        assert!(!mark.exists());
    }
    if !has(needs::cgroup()) {
        return;
    }
    // pinfold waits for a reader that opens the FIFO a little later.
    for (option, has) in [("--report", "\"exit_code\":0"), ("--tee", "output")] {
        let script = format!(r#""$@" & pid=$!; cat {fifo} >&2; wait $pid"#);
        let words = ["bash", "-c", &script, "bash", PINFOLD, "run", option, fifo, "--", "echo", "output"];
        let ran = Run::bare(words).run().assert_code(0);
        assert!(ran.stderr.contains(has), "{ran:#?}");
    }
}

/// pinfold fails when it cannot print a text that the caller asked for.
#[test]
fn a_text_that_could_not_be_printed() {
    for words in [&["--version"][..], &["--help"], &["run", "--help"], &["doctor"], &["doctor", "--json"]] {
        for (place, why) in [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")] {
            let script = format!(r#"exec "$@" {place}"#);
            let ran = Run::bare(["bash", "-c", &script, "bash", PINFOLD].iter().chain(words)).run().assert_code(125);
            assert!(ran.stderr.starts_with("pinfold: ") && ran.stderr.contains(why), "{words:?}: {ran:#?}");
        }
    }
}

//! Invalid options, missing resources and closed descriptors: pinfold prints a clear message, exits with the right
//! code, starts nothing and does not panic.

use std::ffi::OsStr;
use std::fmt::Display;
use std::os::unix::ffi::OsStrExt;

use crate::support::messages::Messages;
use crate::support::{Canary, PINFOLD, Ran, Run, Scratch, has, needs};

/// Asserts that this fails with 125, and adds its message.
fn refused(messages: &mut Messages, cause: impl Display, run: Run) {
    messages.add(cause, &run_without_panic(run).assert_code(125).stderr);
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
    let (mark, mut messages) = (Scratch::new("mark"), Messages::default());
    for options in [
        vec!["--stop-signal", "FOO"],
        vec!["--stop-signal", "0"],
        vec!["--stop-signal", "65"],
        vec!["--stop-signal", ""],
        vec!["--stop-signal", "-1"],
        vec!["--timeout", "-1"],
        vec!["--timeout=-1"],
        vec!["--timeout", ""],
        vec!["--timeout", "soon"],
        vec!["--timeout", "5 parsecs"],
        vec!["--timeout", "99999999999999999999"],
        vec!["--timeout", "99999999999999999999y"],
        vec!["--timeout", "1e400"],
        vec!["--grace", "NaN"],
        vec!["--signal-to", "nobody"],
        vec!["--leftovers", "keep"],
        vec!["--require", "luck"],
        vec!["--env-remove", ""],
        vec!["--env-remove", "A=B"],
        vec!["--timeout", "5M"],
        vec!["--grace", "1h5M"],
        vec!["--grace", "-1"],
        vec!["--grace", "-1s"],
        vec!["--grace=-1"],
        vec!["--kill-bound", "-.5"],
        vec!["--pids", "-5"],
        vec!["--memory", "-1G"],
        vec!["--max-output", "-1K"],
        vec!["--env", "=value"],
        vec!["--env", ""],
        vec!["--no-such-option"],
        vec!["--timout", "5s"],
        vec!["-q", "-v"],
        vec!["--timeout", "1s", "--timeout", "2s"],
    ] {
        let args = options.iter().map(ToString::to_string).chain(marking(&mark));
        refused(&mut messages, options.join(" "), Run::new(args));
        assert!(!mark.path().exists(), "{options:?}");
    }
    insta::assert_snapshot!(messages);
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
    let mut messages = Messages::default();
    for words in [&[][..], &["--"], &["--timeout", "1s", "--"], &["--cwd", "", "true"]] {
        refused(&mut messages, format!("run {}", words.join(" ")), Run::new(words));
    }
    insta::assert_snapshot!(messages);
}

#[test]
#[requires(cgroup)]
fn a_working_directory_that_cannot_be_entered() {
    let (mark, mut messages) = (Scratch::new("mark"), Messages::default());
    for cwd in ["/no/such/directory", "/etc/passwd", "\u{1}", "no/such"] {
        let args = ["--cwd".to_owned(), cwd.into()].into_iter().chain(marking(&mark));
        refused(&mut messages, format!("{cwd:?}"), Run::new(args));
        assert!(!mark.path().exists());
    }
    insta::assert_snapshot!(messages);
}

#[test]
fn a_report_that_cannot_be_written_is_found_before_the_command_runs() {
    let (mark, mut messages) = (Scratch::new("mark"), Messages::default());
    let directory = Scratch::directory("report-dir");
    let in_directory = directory.path().display().to_string();
    for place in [
        "/no/such/directory/report",
        in_directory.as_str(),
        "",
        "fd:99",
        "fd:1000000",
        "fd:0",
        "fd:1",
        "fd:",
        "fd:-1",
        "fd:x",
        "fd:99999999999999",
    ] {
        let words = [PINFOLD, "run", "--report", place].map(ToString::to_string).into_iter().chain(marking(&mark));
        refused(&mut messages, place, Run::bare(words));
        assert!(!mark.path().exists(), "{place}");
    }
    // The descriptor is open, but only for reading.
    let script = format!("exec 9</dev/null; exec {PINFOLD} run --report fd:9 touch {}", mark.path().display());
    refused(&mut messages, "fd:9, open for reading", Run::bare(["bash", "-c", &script]));
    assert!(!mark.path().exists());
    insta::assert_snapshot!(messages);
}

#[test]
#[requires(cgroup)]
fn a_report_that_cannot_be_written_in_the_end_fails_after_the_job() {
    let mut messages = Messages::default();
    let full = [(r#"exec "$@""#, "/dev/full"), (r#"exec 9>/dev/full; exec "$@""#, "fd:9")];
    for (script, place) in full {
        let mark = Scratch::new("mark");
        let words = ["bash", "-c", script, "bash", PINFOLD, "run", "--report", place].map(ToString::to_string);
        refused(&mut messages, place, Run::bare(words.into_iter().chain(marking(&mark))));
        assert_eq!(mark.text(), "ran\n");
    }
    let words = ["bash", "-c", r#"exec "$@" >/dev/full"#, "bash", PINFOLD, "run", "--report", "-", "true"];
    refused(&mut messages, "a full standard output", Run::bare(words));
    insta::assert_snapshot!(messages);
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
    let (mark, mut messages) = (Scratch::new("mark"), Messages::default());
    for stdout in [">&-", "1</dev/null"] {
        let script = format!(r#"exec {PINFOLD} run --report - -- "$@" {stdout}"#);
        let words = ["bash", "-c", &script, "bash"].map(ToString::to_string).into_iter().chain(marking(&mark));
        refused(&mut messages, stdout, Run::bare(words));
        assert!(!mark.path().exists());
    }
    insta::assert_snapshot!(messages);
}

#[test]
#[requires(cgroup)]
fn bytes_that_are_no_utf8() {
    let bad = OsStr::from_bytes(b"b\xffd");
    let with = |before: &str| OsStr::from_bytes(&[before.as_bytes(), bad.as_bytes()].concat()).to_owned();

    let mut messages = Messages::default();
    let ran = run_without_panic(Run::new([bad])).assert_code(127);
    assert_eq!(ran.report["command"][0].as_str().unwrap_or("b\u{fffd}d"), "b\u{fffd}d");
    messages.add("COMMAND", &ran.stderr);
    for (option, value) in [("--cwd", &*with("/no/")), ("--timeout", bad), ("--stop-signal", bad), ("--signal-to", bad)]
    {
        refused(&mut messages, option, Run::new([OsStr::new(option), value, OsStr::new("true")]));
    }
    refused(&mut messages, "an option", Run::new([&*with("--no-such-"), OsStr::new("true")]));
    insta::assert_snapshot!(messages);

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
    let (mark, mut messages) = (Scratch::new("mark"), Messages::default());
    for place in ["/no/such/cgroup", "/tmp", "/etc/passwd", ""] {
        let args = ["--cgroup".to_owned(), place.into()].into_iter().chain(marking(&mark));
        refused(&mut messages, format!("--cgroup '{place}'"), Run::new(args));
        let mut run = Run::new(marking(&mark));
        run.command().env("PINFOLD_CGROUP", if place.is_empty() { "/no/such" } else { place });
        refused(&mut messages, format!("PINFOLD_CGROUP='{place}'"), run);
        assert!(!mark.path().exists());
    }
    insta::assert_snapshot!(messages);
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
    let mut messages = Messages::default();
    for option in ["--report", "--tee"] {
        refused(&mut messages, option, Run::bare([PINFOLD, "run", option, fifo, "--", "sh", "-c", &job]));
        assert!(!mark.exists());
    }
    insta::assert_snapshot!(messages);
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

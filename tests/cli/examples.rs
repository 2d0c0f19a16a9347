//! The examples work as documented: a repository with configure, make and tests, one of which leaves a daemon.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::{Run, Scratch};

/// Returns the path of the example's program. Cargo builds it with all tests, but not with this file alone.
fn example(name: &str) -> PathBuf {
    static BUILT: std::sync::Once = std::sync::Once::new();
    BUILT.call_once(|| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--all-features", "--examples"]).current_dir(crate::support::PROJECT);
        assert!(cargo.status().unwrap().success());
    });
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.join("examples").join(name)
}

/// Makes a typical repository. `test` is the script of its last test.
fn repository(test: &str) -> Scratch {
    let scratch = Scratch::directory("repository");
    let write = |name: &str, text: &str| std::fs::write(scratch.path().join(name), text).unwrap();
    write("configure", "#!/bin/sh\necho checking for a compiler\necho 'CC = cc' > config.mk\n");
    write("hello.c", "#include <stdio.h>\nint main(void) { puts(\"hello\"); return 0; }\n");
    let makefile =
        "include config.mk\nhello: hello.c\n\t$(CC) -o $@ $<\ntest: hello\n\t./hello | grep -q hello\n\tsh test.sh\n";
    write("Makefile", makefile);
    write("test.sh", test);
    let script = "chmod +x configure && git init -q . && git add . && \
        git -c user.name=a -c user.email=a@example.org commit -qm first";
    let made = Command::new("sh").args(["-ec", script]).current_dir(scratch.path()).status().unwrap();
    assert!(made.success());
    scratch
}

fn ci(repository: &Path, directory: &Path) -> Run {
    // A file:// address, because git ignores --depth for a plain path, with a warning.
    let address = format!("file://{}", repository.display());
    let mut run = Run::bare([example("ci_executor").as_os_str(), address.as_ref(), "hello".as_ref()]);
    run.command().current_dir(directory).stdin(Stdio::piped()).env_remove("PINFOLD_GUARD");
    run
}

#[test]
#[requires(cgroup, program("git"), program("make"), program("cc"))]
fn the_ci_executor_builds_tests_and_keeps_the_artefact() {
    let (good, directory) = (repository("echo fine\n"), Scratch::directory("artefacts"));
    let ran = ci(good.path(), directory.path()).run().assert_code(0);
    for line in
        ["[clone] passed", "[configure] checking for a compiler", "[build] passed", "[test] fine", "[test] passed"]
    {
        assert!(ran.stdout.contains(line), "{line} is not in {}", ran.stdout);
    }
    assert!(directory.path().join("hello").exists());

    // The last test leaves a daemon, outside its process group.
    let leaky = repository("setsid nohup sleep 4321 >/dev/null 2>&1 </dev/null &\nexit 0\n");
    let directory = Scratch::directory("artefacts");
    let ran = ci(leaky.path(), directory.path()).run().assert_code(1);
    assert!(ran.stdout.contains("[test] left behind, and ended by pinfold: "), "{}", ran.stdout);
    assert!(ran.stdout.contains("[build] passed") && !directory.path().join("hello").exists());
}

#[test]
#[requires(cgroup, program("git"), program("make"), program("cc"))]
fn the_cancel_button_works_in_the_middle() {
    let slow = repository("setsid sleep 4321 &\necho in the middle\nsleep 4321\n");
    let directory = Scratch::directory("artefacts");
    let mut running = ci(slow.path(), directory.path()).start();
    let mut out = BufReader::new(running.child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("in the middle") {
        line.clear();
        assert!(out.read_line(&mut line).unwrap() > 0, "the example ended early");
    }
    writeln!(running.child.stdin.as_mut().unwrap(), "cancel").unwrap();
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut out, &mut rest).unwrap();
    // `finish` asserts that nothing is left.
    running.finish().assert_code(1);
    assert!(rest.contains("[test] failed, Stopped"), "{rest}");
}

/// Makes a directory with programs of these scripts, by name.
fn programs(scripts: &[(&str, &str)]) -> Scratch {
    use std::os::unix::fs::PermissionsExt;
    let scratch = Scratch::directory("programs");
    for (name, script) in scripts {
        let path = scratch.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    scratch
}

#[test]
#[requires(cgroup)]
fn the_test_runner_distinguishes_passing_from_leaking() {
    let tests = programs(&[
        ("good", "echo unseen"),
        ("bad", "echo what went wrong >&2; exit 3"),
        ("slow", "setsid sleep 4321 & sleep 4321"),
        // The report identifies the process by its name, which it only has after executing three programs.
        (
            "leaky",
            "setsid nohup sleep 4321 >/dev/null 2>&1 </dev/null &\nuntil grep -q ^sleep /proc/$!/cmdline; do :; done",
        ),
        ("crash", "kill -SEGV $$"),
        ("flaky", "[ -e \"$0.again\" ] || { : >\"$0.again\"; exit 1; }"),
    ]);
    let all = ["good", "bad", "slow", "leaky", "crash", "flaky"].map(|name| tests.path().join(name));
    let run = |names: &[PathBuf]| {
        let mut words = vec![example("test_runner").into_os_string()];
        words.extend(["--jobs", "3", "--timeout", "1.5", "--retries", "1"].map(Into::into));
        words.extend(names.iter().map(|name| name.clone().into_os_string()));
        let mut run = Run::bare(words);
        run.command().env_remove("PINFOLD_GUARD");
        run.run()
    };
    let ran = run(&all).assert_code(1);
    let verdict = |name: &str| {
        // The warnings about slow tests come before the verdict.
        let line = ran
            .stdout
            .lines()
            .rfind(|line| line.contains('[') && line.ends_with(name))
            .unwrap_or_else(|| panic!("{name}: {ran:#?}"));
        line.split('[').next().unwrap().trim().to_owned()
    };
    let verdicts = ["/good", "/bad", "/slow", "/leaky", "/crash", "/flaky"].map(verdict);
    assert_eq!(verdicts, ["PASS", "FAIL", "TIMEOUT", "LEAKED", "CRASHED", "FLAKY"], "{}", ran.stdout);
    assert!(ran.stdout.contains("| what went wrong") && !ran.stdout.contains("unseen"), "{}", ran.stdout);
    assert!(ran.stdout.contains("sleep 4321") && ran.stdout.contains("2 passed, 4 failed"), "{}", ran.stdout);
    assert!(run(&all[..1]).assert_code(0).stdout.contains("1 passed, 0 failed"));
}

#[test]
#[requires(sandbox, cgroup, program("python3"))]
fn the_sandbox_runner_bounds_what_it_runs() {
    let run = |code: &str| -> serde_json::Value {
        let mut run = Run::bare([example("sandbox_runner")]);
        run.command().stdin(Stdio::piped()).env_remove("PINFOLD_GUARD").env("NOT_FOR_IT", "secret");
        let mut running = run.start();
        running.child.stdin.take().unwrap().write_all(code.as_bytes()).unwrap();
        let ran = running.finish().assert_code(0);
        serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:#?}"))
    };
    let verdict = run("import os; print(6 * 7, os.environ.get('NOT_FOR_IT'))");
    assert_eq!((&verdict["stdout"], &verdict["exit_code"]), (&"42 None\n".into(), &0.into()), "{verdict}");
    let verdict = run("x = bytearray(10**10)");
    assert!(verdict["reason"] == "oom" || verdict["stderr"].as_str().unwrap().contains("MemoryError"), "{verdict}");
    let verdict = run("while True: print('x' * 1000)\nimport nothing");
    let time = (&verdict["reason"], verdict["left_out_bytes"].as_u64().unwrap() > 0);
    assert!(verdict["exit_code"] == 124 || verdict["reason"] == "exited", "{verdict}");
    assert!(time.1 && verdict["stdout"].as_str().unwrap().len() < 10_000, "{time:?}");
    let verdict = run("import subprocess; subprocess.Popen(['setsid', 'sleep', '4321']); print('bye')");
    assert_eq!((&verdict["leftovers"], &verdict["nothing_left"]), (&1.into(), &true.into()), "{verdict}");
    for forbidden in
        ["open('/proc/self/status')", "import socket; socket.socket()", "import os; os.kill(os.getppid(), 9)"]
    {
        let verdict = run(forbidden);
        assert!(verdict["stderr"].as_str().unwrap().contains("PermissionError"), "{verdict}");
    }
    let verdict = run("open('big', 'wb').write(b'x' * (64 << 20))");
    assert!(verdict["exit_code"] != 0, "{verdict}");
}

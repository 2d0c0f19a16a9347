//! The examples do what they say: a repository with configure, make and tests, of which one leaves a daemon.

mod support;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use support::{Run, Scratch, has_cgroup, has_program};

/// The example's program. Cargo builds it along with all tests, but not with this file alone.
fn example(name: &str) -> PathBuf {
    static BUILT: std::sync::Once = std::sync::Once::new();
    BUILT.call_once(|| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--all-features", "--examples"]).current_dir(support::PROJECT);
        assert!(cargo.status().unwrap().success());
    });
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.join("examples").join(name)
}

/// A repository as there are many. `test` is the script of its last test.
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

fn can_run() -> bool {
    has_cgroup() && has_program("git") && has_program("make") && has_program("cc")
}

fn ci(repository: &Path, directory: &Path) -> Run {
    // A file:// address, or --depth would be ignored with a warning.
    let address = format!("file://{}", repository.display());
    let mut run = Run::bare([example("ci_executor").as_os_str(), address.as_ref(), "hello".as_ref()]);
    run.command().current_dir(directory).stdin(Stdio::piped()).env_remove("PINFOLD_GUARD");
    run
}

#[test]
fn the_ci_executor_builds_tests_and_keeps_the_artefact() {
    if !can_run() {
        return;
    }
    let (good, directory) = (repository("echo fine\n"), Scratch::directory("artefacts"));
    let ran = ci(good.path(), directory.path()).run().assert_code(0);
    for line in
        ["[clone] passed", "[configure] checking for a compiler", "[build] passed", "[test] fine", "[test] passed"]
    {
        assert!(ran.stdout.contains(line), "{line} is not in {}", ran.stdout);
    }
    assert!(directory.path().join("hello").exists());

    // One that leaves a daemon, far away from its process group.
    let leaky = repository("setsid nohup sleep 4321 >/dev/null 2>&1 </dev/null &\nexit 0\n");
    let directory = Scratch::directory("artefacts");
    let ran = ci(leaky.path(), directory.path()).run().assert_code(1);
    assert!(ran.stdout.contains("[test] left behind, and ended now: "), "{}", ran.stdout);
    assert!(ran.stdout.contains("[build] passed") && !directory.path().join("hello").exists());
}

#[test]
fn the_cancel_button_works_in_the_middle() {
    if !can_run() {
        return;
    }
    let slow = repository("setsid sleep 4321 &\necho in the middle\nsleep 4321\n");
    let directory = Scratch::directory("artefacts");
    let mut running = ci(slow.path(), directory.path()).start();
    let mut out = BufReader::new(running.child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("in the middle") {
        line.clear();
        assert!(out.read_line(&mut line).unwrap() > 0, "it has ended");
    }
    writeln!(running.child.stdin.as_mut().unwrap(), "cancel").unwrap();
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut out, &mut rest).unwrap();
    // Which asserts that nothing is left.
    running.finish().assert_code(1);
    assert!(rest.contains("[test] failed, Stopped"), "{rest}");
}

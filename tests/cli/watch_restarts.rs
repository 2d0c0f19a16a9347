//! `pinfold watch`: one change causes one restart, and two runs never overlap.

use std::fs;
use std::net::TcpListener;
use std::process::Command;

use crate::support::messages::Messages;
use crate::support::pty::Pty;
use crate::support::watched::{DEBOUNCE, Watched, shell};
use crate::support::{PINFOLD, Run, Scratch, program};

#[test]
#[requires(cgroup)]
fn two_servers_never_run_at_once() {
    restart_a_server("cgroup");
}

#[test]
fn two_servers_never_run_at_once_without_a_cgroup() {
    restart_a_server("subreaper");
}

/// `PINFOLD_RESTARTS` sets how often (40 by default).
fn restart_a_server(containment: &str) {
    let count = std::env::var("PINFOLD_RESTARTS").ok().and_then(|text| text.parse().ok()).unwrap_or(40);
    let scratch = Scratch::directory("server");
    let lock = Scratch::new("lock");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let file = scratch.path().join("source.rs");
    fs::write(&file, "0").unwrap();
    let server = program("server");
    let command = [server.to_str().unwrap(), &port, lock.path().to_str().unwrap()];
    let options = ["--debounce", "0", "--grace", "5ms", "--quiet"];
    let watched = Watched::start_in(containment, scratch.path(), &options, &command);
    assert_eq!(watched.out(), "up");
    for restart in 0..count {
        fs::write(&file, restart.to_string()).unwrap();
        assert_eq!(watched.out(), "up", "restart {restart}");
        // A write causes more than one event; without a debounce that may cause more than one restart.
        while let Ok(line) = watched.stdout.try_recv() {
            assert_eq!(line, "up", "restart {restart}");
        }
    }
    watched.end();
}

/// However a file is written, it causes one restart, and pinfold prints its name.
#[test]
#[requires(cgroup, program("git"), program("rsync"), program("vim"))]
fn one_save_is_one_restart() {
    let scratch = Scratch::directory("saves");
    let other = Scratch::directory("other");
    let at = scratch.path();
    shell(at, "git init -q . && git config user.email t@example.org && git config user.name t && git config gc.auto 0
        echo one >file.rs; mkdir sub; for i in $(seq 1000); do echo $i >sub/$i.rs; done; printf '/ignored/\\n*.log\\n' >.gitignore
        mkdir ignored; git add -A; git commit -qm one; git checkout -qb other
        for i in $(seq 1000); do echo other >>sub/$i.rs; done; git commit -qam two; git checkout -q -");
    shell(other.path(), "for i in $(seq 200); do echo new >$i.rs; done");
    let watched = Watched::start(at, &["--debounce", DEBOUNCE], &["sh", "-c", "echo up; exec sleep 1000"]);
    assert_eq!(watched.out(), "up");
    let other = other.path().display();
    for (action, file) in [
        ("echo two >>file.rs", "file.rs"),
        ("vim -es -u NONE -N -c 'normal! ohello' -c 'wq' file.rs", "file.rs"),
        (
            "vim -es -u NONE -N --cmd 'set backup writebackup backupcopy=no' -c 'normal! ohello' -c 'wq' file.rs",
            "file.rs",
        ),
        ("sed -i s/two/three/ file.rs", "file.rs"),
        ("echo new >file.rs.tmp; mv file.rs.tmp file.rs", "file.rs"),
        ("git checkout -q other", "sub/"),
        ("git stash -q; git checkout -q -", " changed, and "),
        (&format!("rsync -a {other}/ ./copied/"), "copied/"),
        (&format!("rsync -a --ignore-times {other}/ ./copied/"), "copied/"),
        ("mkdir -p a/b/c && echo deep >a/b/c/deep.rs", "a/b/c/deep.rs"),
        ("echo deeper >>a/b/c/deep.rs", "a/b/c/deep.rs"),
        ("mv a moved", "moved/b/c/deep.rs"),
        ("echo there >>moved/b/c/deep.rs", "moved/b/c/deep.rs"),
        ("rm file.rs", "file.rs"),
        ("rm -r moved", "moved"),
    ] {
        shell(at, action);
        let said = watched.assert_one_restart(action);
        assert!(said.contains(file), "{action}: {said}");
        assert!(said.contains("SIGTERM"), "{said}");
    }
    // Changes to ignored files, and commands that only read.
    shell(
        at,
        "echo x >ignored/x; echo x >x.log; touch .git/x; echo x >.file.rs.swp; echo x >'sub/1.rs~'; cat sub/1.rs; ls sub; git status -s",
    );
    watched.assert_quiet();
    // pinfold reads the rules again.
    shell(at, "echo '/never/' >.gitignore");
    watched.assert_one_restart(".gitignore");
    shell(at, "echo y >ignored/x");
    assert!(watched.assert_one_restart("no longer ignored").contains("ignored/x"));
    watched.end();
}

#[test]
#[requires(cgroup)]
fn what_is_watched() {
    let scratch = Scratch::directory("what");
    let at = scratch.path();
    shell(at, "mkdir src doc; touch src/a.rs src/a.txt doc/a.rs one two");
    let options = ["-w", "src", "--watch", "one", "--ext", "rs,toml", "--ignore", "gen*", "--debounce", "50ms"];
    let watched = Watched::start(at, &options, &["sh", "-c", "echo up; exec sleep 1000"]);
    assert_eq!(watched.out(), "up");
    shell(at, "touch src/a.txt doc/a.rs two src/generated.rs; mkdir src/gen; touch src/gen/x.rs");
    watched.assert_quiet();
    for (action, file) in [
        ("touch src/a.rs", "src/a.rs"),
        ("touch src/Cargo.toml", "src/Cargo.toml"),
        ("touch new; mv new one", "one changed"),
    ] {
        shell(at, action);
        assert!(watched.assert_one_restart(action).contains(file), "{action}");
    }
    watched.end();
}

#[test]
#[requires(cgroup)]
fn changes_while_the_command_runs() {
    let scratch = Scratch::directory("busy");
    let file = scratch.path().join("file");
    // The command ends when a file that is not watched exists.
    let script = "echo up; until [ -e $END ]; do sleep 0.02; done; rm $END; echo ending; exit 3";
    let end = Scratch::new("end");
    for on_busy in ["queue", "ignore", "once-first"] {
        fs::write(&file, "0").unwrap();
        let script = format!("END={}; {script}", end.path().display());
        let options: &[&str] = if on_busy == "once-first" {
            &["--once-first", "--debounce", "50ms"]
        } else {
            &["--on-busy", on_busy, "--debounce", "50ms"]
        };
        let mut watched = Watched::start(scratch.path(), options, &["sh", "-c", &script]);
        assert_eq!(watched.out(), "up", "{on_busy}");
        fs::write(&file, "1").unwrap();
        watched.assert_quiet();
        fs::write(end.path(), "").unwrap();
        assert_eq!(watched.out(), "ending");
        if on_busy == "ignore" {
            assert_names(&watched.said(), &["sh", " 3 "]);
            watched.assert_quiet();
            fs::write(&file, "2").unwrap();
        }
        assert_eq!(watched.out(), "up", "{on_busy}");
        assert_names(&watched.said(), &["file", " 3 "]);
        if on_busy == "once-first" {
            fs::write(&file, "3").unwrap();
            assert_eq!(watched.out(), "up");
            assert_names(&watched.said(), &["file", "SIGTERM"]);
        }
        // A restart that the user requests by a key is not delayed.
        watched.keys("r\n");
        assert_eq!(watched.out(), "up", "{on_busy}");
        assert_names(&watched.said(), &["SIGTERM"]);
        watched.end();
    }
}

#[track_caller]
fn assert_names(message: &str, words: &[&str]) {
    assert!(words.iter().all(|word| message.contains(word)), "{words:?} are not all in {message}");
}

/// As with entr and watchexec, nothing runs before the first change.
#[test]
#[requires(cgroup)]
fn postponed() {
    let scratch = Scratch::directory("postponed");
    let options = ["--postpone", "--debounce", "50ms"];
    let watched = Watched::start(scratch.path(), &options, &["sh", "-c", "echo up; exec sleep 1000"]);
    let mut messages = Messages::default();
    messages.add("before the first change", &watched.said());
    watched.assert_quiet();
    fs::write(scratch.path().join("file"), "1").unwrap();
    assert_eq!(watched.out(), "up");
    messages.add("the first change", &watched.said());
    fs::write(scratch.path().join("file"), "2").unwrap();
    let said = watched.assert_one_restart("the second change");
    // The time follows, which differs from one run to another.
    messages.add("the second change", said.split(" after ").next().unwrap());
    insta::assert_snapshot!(messages);
    watched.end();
}

#[test]
#[requires(cgroup)]
fn commands_that_end_or_cannot_start() {
    let scratch = Scratch::directory("ends");
    let at = scratch.path();
    let watched = Watched::start(at, &["--debounce", "50ms"], &["./tool"]);
    assert_names(&watched.said(), &["'./tool'", "No such file or directory"]);
    shell(at, "printf '#!/bin/sh\\necho up; exit 4\\n' >.new; chmod +x .new; mv .new tool");
    assert_eq!(watched.out(), "up");
    assert_names(&watched.said(), &["tool"]);
    assert_names(&watched.said(), &["tool", " 4 "]);
    watched.assert_quiet();
    watched.end();
}

#[test]
#[requires(root, user_namespaces)]
fn what_cannot_be_watched() {
    let refused = |run: Run| {
        let ran = run.run().assert_code(125);
        ran.stderr
    };
    assert!(refused(Run::bare([PINFOLD, "watch", "-w", "/nosuch", "--", "true"])).contains("/nosuch"));
    let scratch = Scratch::directory("limits");
    shell(scratch.path(), "mkdir -p $(seq 20)");
    // The limits of a separate user namespace.
    for (limit, sysctl) in [("watches", "fs.inotify.max_user_watches"), ("instances", "fs.inotify.max_user_instances")]
    {
        let script = format!(
            "echo {} >/proc/sys/user/max_inotify_{limit}; exec \"$@\"",
            if limit == "watches" { 10 } else { 0 }
        );
        let mut run = Run::bare([
            "unshare",
            "--user",
            "--map-root-user",
            "bash",
            "-c",
            &script,
            "bash",
            PINFOLD,
            "watch",
            "--",
            "true",
        ]);
        run.command().current_dir(scratch.path());
        assert!(refused(run).contains(sysctl));
    }
}

/// Ctrl-C ends everything; the screen is cleared before each run; the keys are r and Enter.
#[test]
#[requires(cgroup)]
fn at_a_terminal() {
    let scratch = Scratch::directory("terminal");
    let mut command = Command::new(PINFOLD);
    command.args(["watch", "--clear", "--", "sh", "-c", "(setsid sleep 1000 &); echo up; exec sleep 1000"]);
    command.current_dir(scratch.path());
    let mut pty = Pty::start(command);
    pty.expect("\x1b[2J\x1b[3J\x1b[H");
    pty.expect("up");
    pty.send("r\n");
    pty.expect("\x1b[2J");
    pty.expect("restart requested; the last run was stopped");
    pty.expect("up");
    pty.send("\x03");
    let status = pty.wait();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGINT));
}

/// A debugger reads the typed keys and receives Ctrl-C. Afterwards pinfold restores the terminal settings that the
/// debugger has changed.
#[test]
#[requires(cgroup)]
fn a_command_with_the_terminal_as_standard_input() {
    let scratch = Scratch::directory("debugger");
    fs::write(scratch.path().join("file"), "").unwrap();
    let script = "trap 'echo interrupted' INT; stty -echo; echo up; read a; echo read it; read b; echo got $a $b; stty -a | grep -o '.echo '";
    let mut command = Command::new(PINFOLD);
    command.args(["watch", "--stdin", "inherit", "--debounce", "50ms", "--", "bash", "-c", script]);
    command.current_dir(scratch.path());
    let mut pty = Pty::start(command);
    pty.expect("up");
    pty.send("r\n");
    // An interrupt discards input that has not been read yet.
    pty.expect("read it");
    pty.send("\x03");
    pty.expect("interrupted");
    pty.send("text\n");
    pty.expect("got r text");
    pty.expect("-echo");
    pty.expect("exited with 0");
    // The settings are restored for the next run and for the user, and the command is stopped like any other command.
    pty.send("typed");
    pty.expect("typed");
    for _ in 0..2 {
        fs::write(scratch.path().join("file"), "1").unwrap();
        pty.expect("file changed");
        pty.expect("up");
    }
    assert!(Command::new("kill").arg(pty.pid().to_string()).status().unwrap().success());
    assert_eq!(pty.wait().code(), Some(143));

    // A command that does not handle Ctrl-C ends the watch.
    for (script, running) in [("echo up; exec sleep 1000", true), ("echo up", false)] {
        let mut command = Command::new(PINFOLD);
        command.args(["watch", "--stdin", "inherit", "--", "sh", "-c", script]).current_dir(scratch.path());
        let mut pty = Pty::start(command);
        pty.expect("up");
        if !running {
            pty.expect("waiting for a change");
        }
        pty.send("\x03");
        let status = pty.wait();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGINT), "{script}");
    }

    // A file as standard input is passed to the command too.
    let mut run = Run::bare([PINFOLD, "watch", "--stdin=inherit", "--", "sh", "-c", "cat; echo up; exec sleep 1000"]);
    run.command().current_dir(scratch.path());
    let mut watched = Watched::of(run);
    watched.keys("r\n");
    drop(watched.running.child.stdin.take());
    assert_eq!([watched.out(), watched.out()], ["r", "up"]);
    watched.end();
}

//! `pinfold init` under the names tini and dumb-init: it does what these programs do, and differs where they do.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use super::init::{NAMESPACE, OURS, child_of, path_of, send, state_of};
use crate::support::pty::Pty;
use crate::support::{PINFOLD, Run, Scratch, has, needs, wait_for};

/// As dumb-init does it: the command has its own session, the whole group receives signals, and SIGTSTP and similar
/// signals stop it and the init.
#[test]
#[requires(cgroup)]
fn by_the_name_dumb_init() {
    let by_name = Scratch::directory("by-name");
    for name in ["tini", "dumb-init"] {
        symlink(PINFOLD, by_name.path().join(name)).unwrap();
    }
    let named = |name: &str| by_name.path().join(name).to_str().unwrap().to_owned();
    let ids = "read pid x x ppid pgrp session rest </proc/self/stat; read pid x x ppid pgrp session rest </proc/$$/stat; echo $(($$ == pgrp)) $(($$ == session))";
    for (name, expected) in [("dumb-init", "1 1\n"), ("tini", "1 0\n")] {
        let ran = Run::bare(["setsid", "-w", &named(name), "--", "bash", "-c", ids]).run().assert_code(0);
        assert_eq!(ran.stdout, expected, "{name}");
    }

    // Its child receives the signal too, and a rewritten signal arrives as the signal that it was rewritten to.
    let script = format!("{} 3 & {} 3; wait", path_of("signals"), path_of("signals"));
    let mut running =
        Run::bare(["setsid", "-w", &named("dumb-init"), "-r", "15:3", "bash", "-c", &format!("trap : QUIT; {script}")])
            .start();
    assert_eq!([running.line(), running.line()], ["ready", "ready"]);
    let init = child_of(running.child.id());
    send(init, libc::SIGTERM);
    let ran = running.finish();
    assert_eq!(ran.stdout, "3\n3\n", "{ran:#?}");

    let mut running = Run::bare([&named("dumb-init"), &path_of("signals"), "15"]).start();
    assert_eq!(running.line(), "ready");
    let init = child_of(running.child.id());
    let children = std::fs::read_to_string(format!("/proc/{init}/task/{init}/children")).unwrap();
    let guard: u32 = children.split_whitespace().next().unwrap().parse().unwrap();
    // The guard may have one more process for a moment, while it starts a process.
    let command = wait_for(|| {
        let children = std::fs::read_to_string(format!("/proc/{guard}/task/{guard}/children")).ok()?;
        let is_command =
            |pid: &&str| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "signals\n");
        children.split_whitespace().find(is_command)?.parse().ok()
    });
    for signal in [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU] {
        send(init, signal);
        wait_for(|| (state_of(init) == 'T' && state_of(command) == 'T').then_some(()));
        send(init, libc::SIGCONT);
        assert_eq!(running.line(), "18");
        wait_for(|| (state_of(init) != 'T' && state_of(command) != 'T').then_some(()));
    }
    send(init, libc::SIGTERM);
    assert_eq!(running.line(), "15");
    running.finish().assert_code(0);
}

/// Makes a link to pinfold with the name of another init, in its own directory.
fn named(directory: &Scratch, name: &str) -> String {
    let link = directory.path().join(name);
    symlink(PINFOLD, &link).unwrap();
    link.to_str().unwrap().to_owned()
}

/// Under another init: the command's session gets the terminal that dumb-init gives up, as with the original dumb-init.
#[test]
#[requires(cgroup, program("python3"))]
fn the_session_of_the_command_has_the_terminal() {
    let links = Scratch::directory("terminal");
    let ours = named(&links, "dumb-init");
    let script = "trap 'echo interrupted' INT; (: </dev/tty) 2>/dev/null && echo terminal || echo none; echo prepared; read line; echo got $line";
    // Runs as leader of a session without a terminal, with a terminal as standard input.
    let give_up = "import fcntl, os, signal, sys, termios
signal.signal(signal.SIGHUP, signal.SIG_IGN); fcntl.ioctl(0, termios.TIOCNOTTY)
signal.signal(signal.SIGHUP, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])";
    let without_a_terminal = ["python3", "-c", give_up];
    // The session of the shell keeps the terminal, so the command has none.
    let below_a_shell = ["sh", "-c", "\"$@\"; exit $?", "sh"];
    for (caller, has_terminal) in [(&[][..], true), (&without_a_terminal, true), (&below_a_shell, false)] {
        for dumb_init in [ours.as_str(), "dumb-init"] {
            if !has(needs::program(dumb_init)) {
                continue;
            }
            let words: Vec<&str> = caller.iter().copied().chain([dumb_init, "bash", "-m", "-c", script]).collect();
            let mut command = Command::new(words[0]);
            command.args(&words[1..]);
            let mut pty = Pty::start(command);
            let before = pty.expect("prepared");
            let has_not = before.contains("none") || before.contains("no job control");
            assert_eq!(has_not, !has_terminal, "{words:?}: {before}");
            if has_terminal {
                pty.send("\x03");
                pty.expect("interrupted");
            }
            pty.send("typed\n");
            pty.expect("got typed");
            assert!(pty.wait().success(), "{words:?}");
        }
    }
}

/// Under the name dumb-init, also with `-c`: the signals that stop the command stop pinfold as well.
#[test]
#[requires(cgroup)]
fn dumb_init_stops_itself_with_its_command() {
    let links = Scratch::directory("stops");
    let ours = named(&links, "dumb-init");
    for dumb_init in [ours.as_str(), "dumb-init"].into_iter().filter(|name| has(needs::program(name))) {
        for options in [&["-c"][..], &["-c", "-r", "20:10"], &[]] {
            let words: Vec<&str> = [&[dumb_init][..], options].concat();
            let signals = path_of("signals");
            let mut running = Run::bare(words.iter().copied().chain([signals.as_str(), "15"])).start();
            assert_eq!(running.line(), "ready");
            let init = child_of(running.child.id());
            for signal in [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU] {
                send(init, signal);
                wait_for(|| (state_of(init) == 'T').then_some(()));
                // SIGCONT would discard a stop signal that the command has not received yet (signal(7)).
                match options {
                    [] => {}
                    [_] => assert_eq!(running.line(), signal.to_string()),
                    _ => assert_eq!(running.line(), if signal == libc::SIGTSTP { 10 } else { signal }.to_string()),
                }
                send(init, libc::SIGCONT);
                assert_eq!(running.line(), libc::SIGCONT.to_string(), "{words:?}");
                wait_for(|| (state_of(init) != 'T').then_some(()));
            }
            send(init, libc::SIGTERM);
            assert_eq!(running.line(), "15");
            running.finish().assert_code(0);
        }
    }
    // Under other names pinfold does not stop.
    let mut running = Run::bare([PINFOLD, "init", "--", &path_of("signals"), "15"]).start();
    assert_eq!(running.line(), "ready");
    let init = child_of(running.child.id());
    send(init, libc::SIGTSTP);
    assert_eq!(running.line(), libc::SIGTSTP.to_string());
    assert_ne!(state_of(init), 'T');
    send(init, libc::SIGTERM);
    running.finish().assert_code(0);
}

/// A shell's background jobs become children of init when the shell executes it.
#[test]
fn children_from_before_exec_are_reaped() {
    let links = Scratch::directory("children");
    let names = ["tini", "dumb-init"].map(|name| named(&links, name));
    let ours = [format!("{PINFOLD} init --"), format!("{} -g --", names[0]), names[1].clone()];
    let peers =
        ["tini --", "dumb-init"].into_iter().filter(|peer| has(needs::program(peer.split(' ').next().unwrap())));
    let init: Vec<(String, &str)> = ["cgroup", "subreaper"]
        .into_iter()
        .filter(|mode| *mode != "cgroup" || has(needs::cgroup()))
        .flat_map(|mode| ours.iter().map(move |init| (init.clone(), mode)))
        .chain(peers.map(|peer| (peer.to_owned(), "auto")))
        .collect();
    for (init, mode) in init {
        // One child has ended before, the others end while the command starts or later.
        let script = format!(
            "true & echo $!; sleep 0.3 & echo $!; sleep 0.6 & echo $!; mkfifo $D/end; exec 3<>$D/end; exec {init} sh -c 'echo up; read line <&3'"
        );
        let scratch = Scratch::directory("fifo");
        let mut run = Run::bare(["bash", "-c", &script]);
        run.command().env("D", scratch.path()).env("PINFOLD_CONTAINMENT", mode);
        let mut running = run.start();
        let children = [(); 3].map(|()| running.line().parse::<u32>().unwrap());
        assert_eq!(running.line(), "up");
        // A child that has ended stays in /proc until its parent has reaped it. The list of all children in /proc is no
        // proof: while a child is reaped, it can lack another one (proc_tid_children(5)).
        for pid in children {
            wait_for(|| (!Path::new(&format!("/proc/{pid}")).exists()).then_some(()));
        }
        std::fs::write(scratch.path().join("end"), "end\n").unwrap();
        running.finish().assert_code(0);
    }
}

/// Under the name dumb-init, the command starts with the default action for each signal. Under the other names ignored
/// signals stay ignored.
#[test]
fn dumb_init_resets_ignored_signals() {
    let links = Scratch::directory("reset");
    let [tini, dumb_init] = ["tini", "dumb-init"].map(|name| named(&links, name));
    // Ignored and blocked signals, as a hexadecimal mask: SIGHUP, SIGINT, SIGUSR1, SIGPIPE and SIGTSTP.
    let ignored = |init: &[&str], namespace: bool| {
        let script = "trap '' HUP INT USR1 PIPE TSTP; exec \"$@\" grep -E '^Sig(Ign|Blk)' /proc/self/status";
        let words: Vec<&str> = (if namespace { &NAMESPACE[..] } else { &[] }).iter().chain(init).copied().collect();
        let ran = Run::bare(["bash", "-c", script, "bash"].into_iter().chain(words)).run().assert_code(0);
        let mask = |name: &str| {
            let line = ran.stdout.lines().find(|line| line.starts_with(name)).unwrap().split('\t').next_back().unwrap();
            u64::from_str_radix(line, 16).unwrap()
        };
        (mask("SigIgn"), mask("SigBlk"))
    };
    let set = [libc::SIGHUP, libc::SIGINT, libc::SIGUSR1, libc::SIGPIPE, libc::SIGTSTP];
    let set = set.iter().fold(0, |set, signal| set | 1_u64 << (signal - 1));
    let namespaces: &[bool] = if has(needs::namespaces()) { &[false, true] } else { &[false] };
    for &namespace in namespaces {
        if !namespace && !has(needs::cgroup()) {
            continue;
        }
        for init in [&[dumb_init.as_str()][..], &[&dumb_init, "-c"], &["dumb-init"]] {
            if has(needs::program(init[0])) {
                let (ignored, blocked) = ignored(init, namespace);
                assert_eq!((ignored & set, blocked), (0, 0), "{init:?} {namespace}");
            }
        }
        for init in [&[tini.as_str(), "--"][..], OURS, &["tini", "--"]] {
            if has(needs::program(init[0])) {
                let (ignored, blocked) = ignored(init, namespace);
                assert_eq!((ignored & set, blocked), (set, 0), "{init:?} {namespace}");
            }
        }
    }
}

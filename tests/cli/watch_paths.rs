//! What `pinfold watch` notices: the given paths, directories that appear and disappear, and events that are no change.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use crate::support::messages::Messages;
use crate::support::watched::{REPEATS, Watched, shell};
use crate::support::{PublicCopy, Run, Scratch, has, needs};

const UP: [&str; 3] = ["sh", "-c", "echo up; exec sleep 1000"];
/// The debounce time is long enough for one command of the shell that is interrupted between two changes of one file.
const OPTIONS: [&str; 2] = ["--debounce", "200ms"];

/// Volumes of Kubernetes, the link `current` of a deployment, and a link that `-w` names.
#[test]
#[requires(cgroup)]
fn a_link_that_is_switched_is_a_change() {
    let scratch = Scratch::directory("links");
    let at = scratch.path();
    shell(at, "mkdir -p volume/..1 volume/..2 releases/1/src releases/2/src elsewhere/deep
        echo 1 >volume/..1/app.yaml; echo 2 >volume/..2/app.yaml; ln -s ..1 volume/..data; ln -s ..data/app.yaml volume/app.yaml
        ln -s releases/1 current; ln -s elsewhere/deep link; echo 1 >file; ln -s file named; echo 2 >other");
    for (watched, actions) in [
        // The file of each action has another name than the watched path.
        (
            "volume/app.yaml",
            &[
                "ln -s ..2 volume/..tmp; mv -T volume/..tmp volume/..data",
                "echo 3 >volume/..2/app.yaml",
                "rm -r volume/..1; mv volume volume2; cp -a volume2 volume",
            ][..],
        ),
        (
            "current/src",
            &[
                "ln -sfn releases/2 current",
                "echo 1 >releases/2/src/a",
                "ln -sfn releases/1 current",
                "echo 1 >current/src/b",
            ],
        ),
        (
            "link",
            &[
                "ln -sfn releases link",
                "touch releases/x",
                "rm link; ln -s elsewhere link",
                "mkdir elsewhere/deep/er; echo 1 >elsewhere/deep/er/x",
            ],
        ),
        ("named", &["ln -sf other named", "echo 3 >other", "rm named; echo 4 >named", "echo 5 >new; mv new named"]),
        // Inside a watched directory, under any name.
        ("volume", &["ln -s ..2 volume/..tmp; mv -T volume/..tmp volume/..data"]),
    ] {
        let options = if watched == "volume" { vec!["--ext", "yaml"] } else { vec![] };
        let watcher = Watched::start(at, &[&OPTIONS, &["-w", watched], &options[..]].concat(), &UP);
        assert_eq!(watcher.out(), "up");
        for action in actions {
            watcher.change_at_once(at, action);
            watcher.assert_one_restart(&format!("{watched}: {action}"));
        }
        watcher.end();
    }
    // A directory to which the link no longer leads does not count.
    let watcher = Watched::start(at, &[&OPTIONS[..], &["-w", "current"]].concat(), &UP);
    assert_eq!(watcher.out(), "up");
    watcher.change_at_once(at, "ln -sfn releases/2 current");
    watcher.assert_one_restart("switched");
    shell(at, "echo 9 >releases/1/src/a");
    watcher.assert_quiet();
    watcher.end();
}

#[test]
#[requires(cgroup)]
fn a_watched_directory_that_is_removed_and_made_again() {
    let scratch = Scratch::directory("again");
    let at = scratch.path();
    shell(at, "mkdir -p dist/sub parent/child; touch dist/a dist/sub/b parent/child/c single");
    let watcher =
        Watched::start(at, &[&OPTIONS[..], &["-w", "dist", "-w", "parent/child", "-w", "single"]].concat(), &UP);
    assert_eq!(watcher.out(), "up");
    let pid = watcher.running.pinfold_pid();
    for action in [
        "rm -r dist; mkdir dist",
        "echo 1 >dist/a",
        "rm -r dist",
        "mkdir -p dist/sub",
        "echo 1 >dist/sub/new",
        "mv dist gone; mkdir dist; rm -r gone",
        "echo 2 >dist/a",
        "rm -r parent",
        "mkdir parent parent/child",
        "echo 1 >parent/child/c",
        "mv parent elsewhere; mkdir -p parent/child; touch parent/child/x",
        "echo 2 >parent/child/c",
        "rm single",
        "touch single",
        // All of this happens while pinfold is stopped, before it looks.
        "kill -STOP $PINFOLD; mv parent late; mkdir -p parent/child; kill -CONT $PINFOLD",
        "echo 3 >parent/child/c",
        "kill -STOP $PINFOLD; mv dist late2; mkdir dist; kill -CONT $PINFOLD",
        "echo 3 >dist/c",
        "kill -STOP $PINFOLD; rm -r dist; mkdir -p dist/sub; kill -CONT $PINFOLD",
        "echo 3 >dist/sub/c",
    ] {
        shell(at, &format!("PINFOLD={pid}; {action}"));
        watcher.assert_restart(action);
        watcher.skip_restarts(action);
    }
    // The directory that was moved away is not watched any more.
    shell(at, "echo 1 >elsewhere/child/c");
    watcher.assert_quiet();
    watcher.end();
}

/// Directories are replaced by others while the kernel drops pinfold's events.
#[test]
#[requires(cgroup, root)]
fn directories_are_found_again_after_a_queue_overflow() {
    let scratch = Scratch::directory("overflow");
    let at = scratch.path();
    shell(at, "mkdir -p a/b c; touch a/b/x c/x");
    let watcher = Watched::start(at, &OPTIONS, &UP);
    assert_eq!(watcher.out(), "up");
    let pid = watcher.running.pinfold_pid();
    // pinfold is stopped, so that nothing empties its queue.
    let limit: usize = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse().unwrap();
    let send =
        |signal: &str| assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
    send("-STOP");
    for number in 0..limit {
        fs::write(at.join(if number % 2 == 0 { "even" } else { "odd" }), "x").unwrap();
    }
    shell(at, "rm -r a; mkdir -p a/b; mv c d; mkdir c");
    send("-CONT");
    watcher.assert_restart("the overflow");
    watcher.skip_restarts("the overflow");
    for action in ["echo 1 >a/b/x", "echo 1 >c/x", "echo 1 >d/x"] {
        shell(at, action);
        let said = watcher.assert_one_restart(action);
        assert!(said.contains(action.split('>').next_back().unwrap()), "{action}: {said}");
    }
    watcher.end();
}

/// pinfold skips the directory and reports that once; the command keeps running.
#[test]
#[requires(cgroup, root, program("setpriv"))]
fn an_unreadable_directory_does_not_end_the_watch() {
    let copy = PublicCopy::new("watch-unreadable");
    let scratch = std::path::PathBuf::from(format!("/tmp/pinfold-unreadable-{}", std::process::id()));
    fs::create_dir(&scratch).unwrap();
    fs::set_permissions(&scratch, fs::Permissions::from_mode(0o777)).unwrap();
    shell(&scratch, "mkdir first fine; touch fine/x; chmod 700 first; chmod 777 fine fine/x");
    let words = [
        "setpriv",
        "--reuid=64091",
        "--regid=64091",
        "--clear-groups",
        copy.path(),
        "watch",
        "--debounce",
        "200ms",
        "--",
    ];
    let mut run = Run::bare([&words[..], &UP].concat());
    run.command().current_dir(&scratch).env("PINFOLD_CONTAINMENT", "subreaper");
    let watcher = Watched::of(run);
    assert_eq!(watcher.out(), "up");
    assert!(watcher.said().contains("first"));
    // Another user makes a directory later, with more directories in it; the server keeps running.
    shell(&scratch, "mkdir -m 700 second; mkdir second/deep; touch second/deep/x");
    assert!(watcher.said().contains("second"));
    shell(&scratch, "touch second/deep/x first/x; echo 1 >second/deep/y; chmod 701 first");
    watcher.assert_quiet();
    // The user can enter this directory, but not list it.
    shell(&scratch, "mkdir -m 711 -p third/below; chmod 711 third");
    assert!(watcher.said().contains("third"));
    shell(&scratch, "echo 1 >fine/x");
    let said = watcher.assert_one_restart("a file beside it");
    assert!(said.contains("fine/x"), "{said}");
    // The directory is readable now.
    shell(&scratch, "chmod 755 first");
    watcher.assert_quiet();
    shell(&scratch, "echo 1 >first/new");
    assert!(watcher.assert_one_restart("in the first").contains("first/new"));
    watcher.end();
    fs::remove_dir_all(&scratch).unwrap();
}

#[test]
#[requires(cgroup)]
fn a_new_rule_applies_at_once_and_to_directories() {
    let scratch = Scratch::directory("rules");
    let at = scratch.path();
    shell(at, "mkdir -p .git/info build/deep src/sub; touch build/deep/x src/a.rs src/sub/b.rs");
    let watcher =
        Watched::start(at, &[&OPTIONS[..], &["--ext", "rs,x"]].concat(), &["sh", "-c", "echo up; exec sleep 1000"]);
    assert_eq!(watcher.out(), "up");
    shell(at, "touch build/x.rs");
    watcher.assert_one_restart("not ignored yet");
    for (rule, ignored, other) in [
        (
            "echo build/ >.gitignore",
            "echo 1 >build/x.rs; mkdir -p build/new; touch build/new/x.rs build/deep/x.rs",
            "src/a.rs",
        ),
        ("echo sub >src/.ignore", "echo 1 >src/sub/b.rs; touch src/sub/c.rs", "src/a.rs"),
        // A rule that only git knows, in a directory that is not watched.
        ("echo own.rs >.git/info/exclude", "touch own.rs src/own.rs", "src/a.rs"),
    ] {
        // The ignored file changes in the same burst as the rule, and again after it.
        shell(at, &format!("{rule}; {ignored}"));
        watcher.assert_quiet();
        shell(at, ignored);
        watcher.assert_quiet();
        shell(at, &format!("echo 1 >{other}"));
        watcher.assert_one_restart(rule);
    }
    shell(at, "rm .gitignore");
    watcher.assert_quiet();
    shell(at, "echo 1 >build/deep/x.rs");
    watcher.assert_one_restart("the rule is gone");
    watcher.end();

    // The rules above the watched directory apply in it too.
    let watcher = Watched::start(at, &[&OPTIONS[..], &["-w", "src"]].concat(), &UP);
    assert_eq!(watcher.out(), "up");
    shell(at, "echo '*.log' >.gitignore; touch src/x.log");
    watcher.assert_quiet();
    shell(at, "touch src/x.rs");
    watcher.assert_one_restart("another file");
    watcher.end();
}

#[test]
#[requires(cgroup)]
fn looking_and_permissions_and_files_of_editors_are_no_change() {
    let scratch = Scratch::directory("no-change");
    let at = scratch.path();
    shell(at, "mkdir sub; echo 1 >file; echo 1 >sub/x; sync .");
    let watcher = Watched::start(at, &OPTIONS, &UP);
    assert_eq!(watcher.out(), "up");
    for action in [
        "chmod +x file; chmod 700 sub; chmod u+s sub/x",
        "exec 3<>file; exec 3>&-; exec 3>>sub/x",
        "cat file sub/x; ls -R; flock file true",
        "! command -v setfattr || setfattr -n user.x -v y file || true",
        "touch '#file#' file~ .#file file___jb_tmp___ file___jb_old___ .~lock.file# .nfs000123 .DS_Store sub/.DS_Store",
        "rm -f '#file#' file~ .#file",
    ] {
        shell(at, action);
        watcher.assert_quiet();
    }
    for action in ["touch file", "echo 2 >>file", "truncate -s 0 sub/x", "mv file other", "ln other third", "rm third"]
    {
        shell(at, action);
        watcher.assert_one_restart(action);
    }
    shell(at, "chmod -x other");
    watcher.assert_quiet();
    // pinfold notices a write by mmap(2) when the file is closed.
    if has(needs::program("python3")) {
        shell(at, "python3 -c 'import mmap; f = open(\"other\", \"r+b\"); f.truncate(9)'");
        watcher.assert_one_restart("truncated");
        shell(
            at,
            "python3 -c 'import mmap; f = open(\"other\", \"r+b\"); m = mmap.mmap(f.fileno(), 9); m[0] = 65; m.close()'",
        );
        watcher.assert_one_restart("mapped");
    }
    watcher.end();
}

#[test]
#[requires(cgroup)]
fn extensions_as_people_write_them() {
    let mut messages = Messages::default();
    for wrong in ["--ext=", "--ext=r?", "--ext=rs,{a}", "--ignore=#x"] {
        let ran = Run::bare([crate::support::PINFOLD, "watch", wrong, "--", "true"]).run().assert_code(125);
        messages.add(wrong, &ran.stderr);
    }
    insta::assert_snapshot!(messages);
    let scratch = Scratch::directory("extensions");
    let at = scratch.path();
    for written in ["rs", ".rs", "*.rs", "RS", "toml, rs"] {
        let watcher = Watched::start(at, &[&OPTIONS[..], &["--ext", written]].concat(), &UP);
        assert_eq!(watcher.out(), "up", "{written}");
        shell(at, "echo 1 >a.txt; echo 1 >ors; echo 1 >a.rs.bak");
        watcher.assert_quiet();
        shell(at, "echo 1 >a.rs");
        watcher.assert_one_restart(written);
        watcher.end();
    }
}

/// pinfold reports it after the third time, with the file's name, and only once.
#[test]
#[requires(cgroup)]
fn a_command_that_writes_what_is_watched_is_reported() {
    for (script, on_busy, file) in [
        ("echo up; echo $$ >out.txt; exec sleep 1000", "restart", "out.txt"),
        ("echo up; echo $$ >log.$$", "queue", "log."),
        ("echo up; echo 1 >sub/state", "restart", "sub/state"),
    ] {
        let scratch = Scratch::directory("loop");
        fs::create_dir(scratch.path().join("sub")).unwrap();
        let options = [&OPTIONS[..], &["--on-busy", on_busy]].concat();
        let watcher = Watched::start(scratch.path(), &options, &["sh", "-c", script]);
        for _ in 0..8 {
            assert_eq!(watcher.out(), "up");
        }
        let mut said = Vec::new();
        while let Ok(line) = watcher.stderr.try_recv() {
            said.push(line);
        }
        let reports: Vec<_> = said.iter().enumerate().filter(|(_, line)| line.contains(REPEATS)).collect();
        let [(at, report)] = reports[..] else { panic!("{said:#?}") };
        assert!(report.contains(file), "{report}");
        let restarts = said[..at].iter().filter(|line| line.contains("starting again")).count();
        assert_eq!(restarts, 3, "{said:#?}");
        watcher.end();
    }
    // The command's own changes are ignored together with all changes that come while it runs.
    let scratch = Scratch::directory("loop");
    let options = [&OPTIONS[..], &["--on-busy", "ignore"]].concat();
    let watcher = Watched::start(scratch.path(), &options, &["sh", "-c", "echo up; echo $$ >out"]);
    assert_eq!(watcher.out(), "up");
    assert!(watcher.said().contains("exited with 0"));
    watcher.assert_quiet();
    watcher.end();
}

#[test]
fn a_dangling_link_is_refused_at_the_start() {
    let scratch = Scratch::directory("dangling");
    symlink("nothing", scratch.path().join("link")).unwrap();
    let mut run = Run::bare([crate::support::PINFOLD, "watch", "-w", "link", "--", "true"]);
    run.command().current_dir(scratch.path());
    let ran = run.run().assert_code(125);
    ran.assert_names("link");
    ran.assert_names("No such file or directory");
}

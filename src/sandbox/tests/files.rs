//! Attempts on files outside of the granted paths.

use std::fs::File;

use super::super::machine::Machine;
use super::super::policy::Sandbox;
use super::harness::Outside::{self, NotTried, Works};
use super::harness::{Run, Scratch, Table, program, users};

const EACCES: &str = "denied EACCES";
const EROFS: &str = "denied EROFS";
const ALLOWED: &str = "allowed";

/// Makes the attempts on a file that the job may not use. Each attempt has a directory of its own, and the job may only
/// write to "out" in this directory. `fresh` makes the arguments of an attempt from the directory.
fn differences(
    sandbox: &Sandbox,
    rows: &[(&str, &str, Outside)],
    fresh: impl Fn(&Scratch) -> Vec<String>,
) -> Vec<String> {
    let mut all = Vec::new();
    for row in rows {
        // The grants name the directory of this row.
        let scratch = Scratch::new();
        let out = scratch.directory("out");
        let readable = scratch.directory("readable");
        let mut sandbox = sandbox.clone();
        sandbox.write(out).read(readable);
        let rows = [*row];
        let table = Table { program: "files", sandbox, rows: &rows };
        all.extend(table.differences(|| {
            for name in ["secret", "out/link", "readable/file", "made", "out/mine"] {
                let _ = std::fs::remove_file(scratch.at(name));
                let _ = std::fs::remove_dir(scratch.at(name));
            }
            (fresh(&scratch), Box::new(super::harness::Nothing))
        }));
    }
    all
}

#[test]
fn a_secret_cannot_be_read_by_any_path() {
    let rows = [
        ("read_file", EACCES, Works),
        ("write_file", EACCES, Works),
        ("append_file", EACCES, Works),
        ("read_by_symlink", EACCES, Works),
        ("read_by_proc_root", EACCES, Works),
        ("read_by_proc_cwd", EACCES, Works),
        ("read_by_path_descriptor", EACCES, Works),
        ("truncate_on_open", EACCES, Works),
        ("truncate_by_path", EACCES, Works),
        ("remove_file", EACCES, Works),
        ("run_file", EACCES, NotTried),
    ];
    let secret = |scratch: &Scratch| vec![scratch.file("secret", 0o600), scratch.at("out/link")];
    let differences = differences(&Sandbox::new(), &rows, secret);
    assert!(differences.is_empty(), "{differences:#?}");
}

#[test]
fn a_secret_cannot_be_moved_to_where_it_can_be_read() {
    // For a link into another directory, the kernel returns EXDEV, as for another file system.
    let rows = [("read_by_hard_link", "denied EXDEV", Works), ("read_by_rename", "denied EACCES", Works)];
    let onto_another = [("read_by_exchange", EACCES, Works), ("copy_to_outside", EACCES, Works)];
    let secret = |scratch: &Scratch| {
        let secret = scratch.file("secret", 0o600);
        vec![secret, scratch.at("out/link")]
    };
    let with_other = |scratch: &Scratch| vec![scratch.file("secret", 0o600), scratch.file("out/link", 0o600)];
    let differences = differences(&Sandbox::new(), &rows, secret);
    assert!(differences.is_empty(), "{differences:#?}");
    let differences = self::differences(&Sandbox::new(), &onto_another, with_other);
    assert!(differences.is_empty(), "{differences:#?}");
    let by_dots = |scratch: &Scratch| vec![scratch.file("secret", 0o600), scratch.at("out")];
    let differences = self::differences(&Sandbox::new(), &[("read_by_dots", EACCES, Works)], by_dots);
    assert!(differences.is_empty(), "{differences:#?}");
}

#[test]
fn a_file_to_read_cannot_be_changed() {
    let rows = [
        ("read_file", ALLOWED, Works),
        ("write_file", EACCES, Works),
        ("append_file", EACCES, Works),
        ("truncate_on_open", EACCES, Works),
        ("truncate_by_path", EACCES, Works),
        ("remove_file", EACCES, Works),
    ];
    let readable = |scratch: &Scratch| vec![scratch.file("readable/file", 0o600), scratch.at("out/link")];
    let differences = differences(&Sandbox::new(), &rows, readable);
    assert!(differences.is_empty(), "{differences:#?}");
}

#[test]
fn nothing_is_made_outside_and_no_device_anywhere() {
    let rows = [
        ("create", EACCES, Works),
        ("make_directory", EACCES, Works),
        ("make_fifo", EACCES, Works),
        ("make_null", EACCES, NotTried),
        ("make_block", EACCES, NotTried),
    ];
    let differences = differences(&Sandbox::new(), &rows, |scratch| vec![scratch.at("made")]);
    assert!(differences.is_empty(), "{differences:#?}");
    let rows = [("make_null", EACCES, NotTried), ("make_block", EACCES, NotTried), ("create", ALLOWED, Works)];
    let differences = self::differences(&Sandbox::new(), &rows, |scratch| vec![scratch.at("out/mine")]);
    assert!(differences.is_empty(), "{differences:#?}");
    let differences = self::differences(&Sandbox::new(), &[("list", EACCES, Works)], |scratch| vec![scratch.at("")]);
    assert!(differences.is_empty(), "{differences:#?}");
}

#[test]
fn files_that_the_job_may_use_work() {
    let rows = ["self_write", "self_move", "self_null", "self_library"].map(|name| (name, ALLOWED, Works));
    let differences = differences(&Sandbox::new(), &rows, |scratch| vec![scratch.at("out/mine")]);
    assert!(differences.is_empty(), "{differences:#?}");
}

#[test]
fn an_inherited_descriptor_gives_what_it_was_opened_for() {
    let program = program("files");
    let scratch = Scratch::new();
    let path = scratch.file("input", 0o600);
    let mut sandbox = Sandbox::new();
    sandbox.read(&program);
    for user in users() {
        for (attempt, expected) in [
            ("reopen_for_writing", EACCES),
            ("inherited_truncate", "denied EINVAL"),
            ("leaked_descriptor", "denied EBADF"),
        ] {
            let mut run = Run::new([program.to_str().unwrap(), attempt]).within(&sandbox, user);
            run.stdin = Some(File::open(&path).unwrap());
            assert_eq!(run.run().line(), expected, "{attempt} as {user:?}");
        }
    }
    assert_eq!(std::fs::read_to_string(path).unwrap(), "a secret");
}

#[test]
fn a_strict_sandbox_keeps_metadata_outside_as_it_is() {
    if Machine::get().mounts().is_err() {
        eprintln!("SKIPPED: needs a mount namespace");
        return;
    }
    let metadata = ["change_mode", "change_times", "change_owner", "change_attribute"];
    let secret = |scratch: &Scratch| vec![scratch.file("secret", 0o600)];
    let mine = |scratch: &Scratch| vec![scratch.file("out/mine", 0o600)];
    // tmpfs has user attributes since Linux 6.6.
    let works = |name: &str| if name == "change_attribute" { NotTried } else { Works };
    let mut strict = Sandbox::new();
    strict.strict();
    let denied = metadata.map(|name| (name, EROFS, works(name)));
    assert_eq!(differences(&strict, &denied, secret), [""; 0]);
    let allowed = ["change_mode", "change_times", "change_owner"].map(|name| (name, ALLOWED, Works));
    assert_eq!(differences(&strict, &allowed, mine), [""; 0]);
    // Landlock alone does not promise this.
    assert_eq!(differences(&Sandbox::new(), &allowed, secret), [""; 0]);
    let rows = ["self_write", "self_move", "self_null", "self_library"].map(|name| (name, ALLOWED, Works));
    assert_eq!(differences(&strict, &rows, |scratch| vec![scratch.at("out/mine")]), [""; 0]);
}

#[test]
fn a_denied_path_below_a_granted_one_is_hidden() {
    if Machine::get().mounts().is_err() {
        eprintln!("SKIPPED: needs a mount namespace");
        return;
    }
    let program = program("files");
    let scratch = Scratch::new();
    let granted = scratch.directory("granted");
    let open = scratch.file("granted/open", 0o600);
    let secret = scratch.file("granted/secret", 0o600);
    let directory = scratch.directory("granted/directory");
    let inner = scratch.file("granted/directory/inner", 0o600);
    let mut sandbox = Sandbox::new();
    sandbox.read(&program).write(&granted).deny(&secret).deny(&directory);
    for user in users() {
        let line = |attempt: &str, path: &str| {
            Run::new([program.to_str().unwrap(), attempt, path]).within(&sandbox, user).run().line()
        };
        assert_eq!(line("read_file", &open), ALLOWED, "{user:?}");
        assert_eq!(line("read_file", &inner), "denied EACCES", "{user:?}");
        assert_eq!(line("list", &directory), "denied EACCES", "{user:?}");
        let cat = Run::new(["/bin/cat", &secret]).within(&sandbox, user).run();
        assert_eq!((cat.output.as_str(), cat.code), ("", Some(0)), "{user:?}: {cat:?}");
        assert_eq!(line("remove_file", &secret), "denied EBUSY", "{user:?}");
    }
    assert_eq!(std::fs::read_to_string(secret).unwrap(), "a secret");
}

#[test]
fn a_private_tmp_is_empty_limited_and_gone_afterwards() {
    if Machine::get().mounts().is_err() {
        eprintln!("SKIPPED: needs a mount namespace");
        return;
    }
    let mut sandbox = Sandbox::new();
    sandbox.private_tmp(Some(1 << 20));
    let script = "set -e; test -z \"$(ls -A /tmp)\"; echo x > /tmp/a; mkdir /tmp/d; mv /tmp/a /tmp/d/b; cat /tmp/d/b; \
                  head -c 4000000 /dev/zero > /tmp/big 2>/dev/null || echo full";
    for user in users() {
        let ran = Run::new(["/bin/sh", "-c", script]).within(&sandbox, user).run();
        assert_eq!(ran.output, "x\nfull\n", "{user:?}: {ran:?}");
    }
    assert!(!std::path::Path::new("/tmp/d/b").exists());
}

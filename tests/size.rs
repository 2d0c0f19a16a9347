//! Large environments, many arguments, any bytes: what execve(2) takes, pinfold takes.

mod support;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::symlink;

use support::{PINFOLD, Run, Scratch, has_cgroup};

#[test]
fn an_environment_of_a_megabyte() {
    if !has_cgroup() {
        return;
    }
    let mut run = Run::new(["cat", "/proc/self/environ"]);
    run.command().env_clear().env("PATH", "/usr/bin:/bin");
    let mut expected = vec!["PATH=/usr/bin:/bin".to_owned()];
    for number in 0..16 {
        let (key, value) = (format!("LARGE_{number:02}"), format!("{number:x}").repeat(65536));
        run.command().env(&key, &value);
        expected.push(format!("{key}={value}"));
    }
    let ran = run.run().assert_code(0);
    let mut entries: Vec<_> = ran.stdout.split_terminator('\0').collect();
    entries.sort_unstable();
    expected.sort_unstable();
    assert!(entries == expected, "{} bytes, not the {} that were given", ran.stdout.len(), expected.concat().len());
}

#[test]
fn a_hundred_thousand_arguments() {
    if !has_cgroup() {
        return;
    }
    let arguments: Vec<_> = (0..100_000).map(|number| format!("{number}")).collect();
    let ran = Run::new(["printf", "%s\\n"].map(str::to_owned).into_iter().chain(arguments.clone()));
    let ran = ran.run().assert_code(0);
    assert!(ran.stdout.lines().eq(&arguments), "{} lines", ran.stdout.lines().count());
    assert_eq!(ran.report["command"].as_array().unwrap().len(), 100_002);
}

/// The longest single string that the kernel takes: 128 KiB less its end.
#[test]
fn the_longest_argument() {
    if !has_cgroup() {
        return;
    }
    let longest = "x".repeat(131_071);
    assert_eq!(Run::new(["printf", "%s", &longest]).run().assert_code(0).stdout.len(), longest.len());
}

#[test]
fn any_bytes_in_arguments_environment_and_paths() {
    if !has_cgroup() {
        return;
    }
    let every_byte = OsString::from_vec((1..=255).collect());
    let in_a_name = OsString::from_vec((1..=255).filter(|&byte| byte != b'/').take(250).collect());
    let scratch = Scratch::directory("any-bytes");
    let directory = scratch.path().join(&in_a_name);
    std::fs::create_dir(&directory).unwrap();
    let program = directory.join(&in_a_name);
    symlink("/bin/sh", &program).unwrap();
    let (report, out) = (directory.join("report"), directory.join("out"));

    let mut run = Run::bare([OsStr::new(PINFOLD), "run".as_ref(), "--report".as_ref(), report.as_os_str()]);
    let script = r#"printf '%s' "$1" > "$2"; printf '%s' "$BYTES" >> "$2"; printf '%s' "$(pwd)x" >> "$2""#;
    run.command().arg("--env").arg(OsString::from_vec([b"BYTES=", every_byte.as_bytes()].concat()));
    run.command().arg("--cwd").arg(&directory).arg("--").arg(&program).args(["-c", script, "sh"]);
    run.command().arg(&every_byte).arg(&out);
    let ran = run.run().assert_code(0);
    assert_eq!(ran.stderr, "");
    let expected = [every_byte.as_bytes(), every_byte.as_bytes(), directory.as_os_str().as_bytes(), b"x"].concat();
    assert!(std::fs::read(&out).unwrap() == expected);
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    assert_eq!(report["exit_code"], 0);
}

/// As many descriptors as there may be: more than one message to the guard carries.
#[test]
fn a_thousand_inherited_descriptors() {
    if !has_cgroup() {
        return;
    }
    let setup = "ulimit -n 4096 || exit 77; for number in {20..1019}; do eval \"exec $number</dev/null\"; done";
    let given = support::assert_same_without_pinfold(setup, "", "");
    assert!(given.contains("fd 1019: "), "{given}");
}

//! Large environments, many arguments, any bytes: pinfold accepts everything that execve(2) accepts.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::symlink;

use crate::support::needs::need;
use crate::support::{PINFOLD, Run, Scratch, has};

#[test]
#[requires(cgroup)]
fn an_environment_of_a_megabyte() {
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
#[requires(cgroup)]
fn a_hundred_thousand_arguments() {
    let arguments: Vec<_> = (0..100_000).map(|number| format!("{number}")).collect();
    let ran = Run::new(["printf", "%s\\n"].map(str::to_owned).into_iter().chain(arguments.clone()));
    let ran = ran.run().assert_code(0);
    assert!(ran.stdout.lines().eq(&arguments), "{} lines", ran.stdout.lines().count());
    assert_eq!(ran.report["command"].as_array().unwrap().len(), 100_002);
}

/// The longest single string that the kernel accepts: 128 KiB minus its terminator.
#[test]
#[requires(cgroup)]
fn the_longest_argument() {
    let longest = "x".repeat(131_071);
    assert_eq!(Run::new(["printf", "%s", &longest]).run().assert_code(0).stdout.len(), longest.len());
}

#[test]
#[requires(cgroup)]
fn any_bytes_in_arguments_environment_and_paths() {
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

/// As many descriptors as the limit allows: more than one message to the guard can carry.
#[test]
#[requires(cgroup)]
fn a_thousand_inherited_descriptors() {
    let setup = "ulimit -n 4096 || exit 77; for number in {20..1019}; do eval \"exec $number</dev/null\"; done";
    let given = crate::support::assert_same_without_pinfold(setup, "", "");
    assert!(given.contains("fd 1019: "), "{given}");
}

/// Lengths around the limit up to which a specification is sent in the message itself (8 KiB), and around the longest
/// message.
#[test]
#[requires(cgroup)]
fn a_specification_of_any_length() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let supervisor = pinfold::Supervisor::builder().guard_program(PINFOLD).start().await.unwrap();
        // The rest of the specification, without the argument, takes less than 200 bytes.
        for length in (8192 - 200..8192 + 5).chain(16384 - 200..16384 + 5).chain([65535, 65536, 100_000]) {
            let mut command = pinfold::Command::new("/bin/sh");
            let argument = "x".repeat(length);
            command.args(["-c", "test ${#1} = $2", "sh", &argument, &length.to_string()]).env_clear();
            let report = supervisor.spawn(&command).await.unwrap().wait().await.unwrap();
            assert_eq!(report.exit_code, 0, "{length}");
        }
        supervisor.close().await;
    });
}

/// Numbers around the limit of one message (250, including the five that are always sent), with room for exactly the
/// needed descriptors: 300 of the job, and 24 of pinfold.
#[test]
#[requires(cgroup, root, program("setpriv"))]
fn hundreds_of_inherited_descriptors() {
    let open = "for number in $(seq 10 $((9 + COUNT))); do eval \"exec $number</dev/null\"; done";
    for count in [244, 245, 246, 247, 300, 494, 495, 496] {
        let setup = format!("COUNT={count}; ulimit -n 4096 || exit 77; {open}");
        let given = crate::support::assert_same_without_pinfold(&setup, "", "");
        assert_eq!(given.lines().filter(|line| line.starts_with("fd ")).count(), 3 + count);
    }
    // This user may not raise the limit again.
    let setup = format!("COUNT=300; ulimit -n 330; {open}");
    let given = crate::support::assert_same_without_pinfold(
        &setup,
        "setpriv --bounding-set -sys_resource --inh-caps -sys_resource",
        "",
    );
    assert!(
        given.contains("fd 309: ") && given.contains("Max open files            330                  330 "),
        "{given}"
    );
}

/// A descriptor number that the limit no longer allows: root's job still gets it, and other users get an error.
#[test]
#[requires(cgroup, root, program("setpriv"))]
fn a_descriptor_beyond_the_limit() {
    let setup = "exec 700</dev/null; ulimit -n 600";
    let raised = std::process::Command::new("bash").args(["-c", "ulimit -n 600; ulimit -n 700"]).output().unwrap();
    if has(need("sys_resource", raised.status.success(), "root may not raise its limits here")) {
        let given = crate::support::assert_same_without_pinfold(setup, "", "");
        assert!(given.contains("fd 700: "), "{given}");
    }
    let script = format!(r#"{setup}; exec setpriv --bounding-set -sys_resource --inh-caps -sys_resource "$@""#);
    let ran = Run::in_shell(&script, ["true"]).run().assert_code(125);
    ran.assert_names("ulimit -Hn");
}

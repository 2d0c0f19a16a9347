//! pinfold as the runner of tests, as cargo and cargo-nextest call it: `pinfold run -- TEST-BINARY TEST --exact`.
//! Processes that a test leaks end with the test. `scripts/nextest` runs this project's own suite in this way.

use std::process::{Command, Stdio};

use crate::support::events::wait_for_file;
use crate::support::{Canary, PINFOLD, Run, Scratch};

/// The variable through which the leaking test receives the name of the file for the daemon's pid.
const PID_FILE: &str = "PINFOLD_LEAK";

/// A common kind of faulty test: its daemon has its own session and streams, and no process waits for the daemon.
#[test]
#[ignore = "it leaks a daemon: to be run by pinfold, as the test below and scripts/nextest do"]
fn leaks_a_daemon() {
    let file = std::env::var(PID_FILE).expect("the file for the daemon's pid");
    let script = format!("setsid sh -c 'echo $$ >{file}.new; mv {file}.new {file}; exec sleep 1000' &");
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(shell.status().unwrap().success());
    wait_for_file(std::path::Path::new(&file));
}

/// A test that cannot run is reported as ignored, with the reason, and as failed where `PINFOLD_REQUIRE` promises that
/// it can.
#[test]
#[requires(root, program("unshare"))]
fn a_test_that_cannot_run_is_not_reported_as_passed() {
    let hidden = r#"mount -t tmpfs none /sys/fs/cgroup && exec "$@""#;
    let own = std::env::current_exe().unwrap();
    for promised in ["", "root,cgroup"] {
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "sh", "-c", hidden, "sh"]).arg(&own).env("PINFOLD_REQUIRE", promised);
        let ran = unshare
            .args(["--exact", "exit_codes::bad_usage_is_125", "run::everything_ends_at_the_deadline_and_is_named"])
            .output()
            .unwrap();
        let printed = String::from_utf8(ran.stdout).unwrap();
        let (code, result) = match promised {
            "" => (0, "1 passed; 0 failed; 1 ignored"),
            _ => (101, "1 passed; 1 failed; 0 ignored"),
        };
        assert!(ran.status.code() == Some(code) && printed.contains(result), "{printed}");
        assert!(printed.contains("ignored (needs cgroup: ") != promised.contains("cgroup"), "{printed}");
    }
}

#[test]
#[each_containment]
fn what_a_test_leaks_is_ended(containment: &str) {
    let canary = Canary::new();
    let pid_file = Scratch::new("leak");
    let own = std::env::current_exe().unwrap();
    let words = [PINFOLD, "run", "--containment", containment, "--", own.to_str().unwrap()];
    let mut run = Run::bare(words.into_iter().chain(["--exact", "runner::leaks_a_daemon", "--nocapture", "--ignored"]));
    run.command().env(PID_FILE, pid_file.path());
    // The warden has checked that no process is left.
    let ran = run.run().assert_code(0);
    let pid: u32 = pid_file.text().trim().parse().unwrap();
    assert!(ran.stdout.contains("test runner::leaks_a_daemon ... ok"), "{ran:#?}");
    assert!(ran.stderr.contains(" behind, ended now") && ran.stderr.contains(&format!("({pid} ")), "{ran:#?}");
    canary.assert_alive();
}

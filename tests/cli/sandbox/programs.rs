//! Programs that must work in a sandbox as they do without one, in each [`super::Way`].

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{USER, secret, text, ways};
use crate::support::own_cgroup::OwnCgroup;
use crate::support::{PINFOLD, PROJECT, Run, Scratch};

#[test]
#[requires(other_users, sandbox, namespaces, program("cargo"), program("cc"))]
fn cargo_builds_offline() {
    let (directory, _) = secret();
    let place = text(directory.path());
    let output = std::process::Command::new("rustc").args(["--print", "sysroot"]).output().unwrap();
    let toolchain = String::from_utf8(output.stdout).unwrap();
    // The user of the job may have no access to the directory of the toolchain, and cargo reads the configuration in
    // every directory above that of the crate. So the test mounts both elsewhere, in a mount namespace of its own.
    let setup = format!(
        "mount --bind {place} /mnt && mount --bind {} /mnt/toolchain && cd /mnt/crate && rm -rf target home",
        toolchain.trim_end()
    );
    for name in ["toolchain", "crate", "crate/src"] {
        std::fs::create_dir(directory.path().join(name)).unwrap();
    }
    let manifest = "[package]\nname = \"tiny\"\nversion = \"0.1.0\"\nedition = \"2021\"\n";
    std::fs::write(directory.path().join("crate/Cargo.toml"), manifest).unwrap();
    std::fs::write(directory.path().join("crate/src/main.rs"), "fn main() { println!(\"built\"); }\n").unwrap();
    let chown = ["-R", "65534:65534"].iter().map(Into::into).chain([directory.path().join("crate")]);
    assert!(std::process::Command::new("chown").args(chown).status().unwrap().success());
    let (read, write) = ("/mnt/toolchain", "/mnt/crate");
    let env = [
        format!("PATH={read}/bin:/usr/bin:/bin"),
        format!("HOME={write}"),
        format!("CARGO_HOME={write}/home"),
        format!("TMPDIR={write}"),
    ];
    let mut options = vec!["--sandbox", "--read", read, "--write", write, "--cwd", write];
    options.extend(env.iter().flat_map(|entry| ["--env", entry]));
    let command = ["sh", "-c", "cargo build --offline --quiet && target/debug/tiny"];
    for way in ways() {
        let cgroup = OwnCgroup::of(USER);
        let ran = way.prepare(&cgroup, &["unshare", "--mount"], &options, &setup, &command).run().assert_code(0);
        assert_eq!(ran.stdout, "built\n", "{way:?} {ran:#?}");
    }
}

#[test]
#[requires(other_users, sandbox, program("node"))]
fn node_has_workers_and_child_processes() {
    let script = "const {Worker} = require('worker_threads'); const worker = new Worker('', {eval: true}); \
                  worker.on('exit', () => process.stdout.write(require('child_process').execSync('echo child')))";
    for way in ways() {
        let ran = way.run(":", &[], &["node", "-e", script]).assert_code(0);
        assert_eq!(ran.stdout, "child\n", "{way:?} {ran:#?}");
    }
}

/// The pinfold inside reads /proc to find its descendants.
#[test]
#[requires(other_users, sandbox)]
fn pinfold_works_in_a_sandbox_of_pinfold() {
    let granted = ["--read", PINFOLD, "--read", "/proc"];
    for way in ways() {
        for inner in [&["run"][..], &["sandbox"]] {
            let leave = ["--", "sh", "-c", "setsid sleep 1000 & echo inner"];
            let command = [&[PINFOLD], inner, &leave].concat();
            let ran = way.run(":", &granted, &command).assert_code(0);
            assert_eq!(ran.stdout, "inner\n", "{way:?} {ran:#?}");
            assert!(ran.stderr.contains("left 1 process"), "{way:?} {ran:#?}");
        }
    }
}

#[test]
#[requires(other_users, sandbox)]
fn stop_signals_arrive() {
    let script = "trap 'echo stopped; exit 7' TERM; setsid sleep 1000 & echo ready; wait";
    for way in ways() {
        let cgroup = OwnCgroup::of(USER);
        let mut running = way.prepare(&cgroup, &[], &["--sandbox"], ":", &["sh", "-c", script]).start();
        assert_eq!(running.line(), "ready", "{way:?}");
        running.signal(libc::SIGTERM);
        let ran = running.finish().assert_code(7);
        assert_eq!(ran.stdout, "stopped\n", "{way:?} {ran:#?}");
    }
}

/// A judge of a programming contest runs submissions at the same time, each with a deadline and without network. If
/// this machine has the memory controller, each has a memory limit too.
#[test]
#[requires(other_users, sandbox, program("python3"))]
fn a_judge_runs_a_hundred_submissions() {
    const SUBMISSIONS: [(&str, &str, &[i64]); 5] = [
        ("right", "print(6 * 7)", &[0]),
        ("loop", "while True: pass", &[124]),
        ("network", "import socket; socket.socket()", &[1]),
        ("secret", "open('/proc/self/status')", &[1]),
        ("daemon", "import subprocess; subprocess.Popen(['setsid', 'sleep', '1000'])", &[0]),
    ];
    let (directory, _) = secret();
    let results = directory.path().join("results");
    let cgroup = OwnCgroup::of(USER);
    let has_memory = std::fs::read_to_string(cgroup.path.join("cgroup.controllers")).unwrap().contains("memory");
    let mut jobs = String::new();
    for number in 0..100 {
        let (name, code, _) = SUBMISSIONS[number % SUBMISSIONS.len()];
        let mut job = json!({"name": format!("{name} {number}"), "command": ["python3", "-c", code], "sandbox": {}});
        // Only the loop has a short deadline: the others must not reach it on a machine that is busy.
        job["timeout"] = json!(if name == "loop" { 0.5 } else { 60.0 });
        if has_memory {
            job["limits"] = json!({"memory": "256M", "pids": 64});
        }
        writeln!(jobs, "{job}").unwrap();
    }
    let input = Scratch::new("submissions");
    std::fs::write(input.path(), jobs).unwrap();
    let script = format!("{}; cd /; exec setpriv --reuid {USER} --regid {USER} --clear-groups \"$@\"", cgroup.enter());
    let words = ["bash", "-c", &script, "bash", PINFOLD, "pool", "--workers", "4", "--settle", "100ms"];
    let files = ["--jobs", text(input.path()), "--results", text(&results)];
    Run::bare([&words[..], &files].concat()).run().assert_code(1);
    let results = std::fs::read_to_string(&results).unwrap();
    assert_eq!(results.lines().count(), 100);
    for line in results.lines() {
        let result: Value = serde_json::from_str(line).unwrap();
        let report = &result["report"];
        let name = report["name"].as_str().unwrap();
        let (_, _, codes) = SUBMISSIONS.iter().find(|(kind, _, _)| name.starts_with(kind)).unwrap();
        assert!(codes.contains(&report["exit_code"].as_i64().unwrap()), "{name}: {report:#}");
        assert_eq!(report["sandbox"]["promises"].as_array().unwrap().len(), 8, "{report:#}");
        let left = report["leftovers"]["count"].as_u64().unwrap_or_default();
        assert_eq!(left > 0, name.starts_with("daemon"), "{report:#}");
    }
}

/// The recipe for Python: jobs of `pinfold serve`.
#[test]
#[requires(other_users, sandbox, program("python3"))]
fn python_runs_code_through_serve() {
    let example = format!("{PROJECT}/examples/python/sandboxed.py");
    let codes = ["print(6 * 7)", "import socket; socket.socket()", "open('/proc/self/status')", "while True: pass"];
    let mut words = vec!["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env"];
    let pinfold = format!("PINFOLD={PINFOLD}");
    words.extend([&pinfold, "/usr/bin/python3", &example]);
    words.extend(codes);
    let mut run = Run::bare(words);
    run.command().current_dir("/");
    let ran = run.run().assert_code(0);
    let results: Vec<Value> = ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let result = |code: &str| results.iter().find(|result| result["code"] == code).unwrap();
    assert_eq!(result(codes[0])["stdout"], "42\n", "{ran:#?}");
    for code in &codes[1..3] {
        assert!(result(code)["stderr"].as_str().unwrap().contains("PermissionError"), "{ran:#?}");
    }
    assert_eq!(result(codes[3])["report"]["reason"], "deadline", "{ran:#?}");
}

//! An extension module of Python that contains pinfold. maturin builds it, where maturin can be installed from PyPI.

use std::path::Path;
use std::process::{Command, Output};

use crate::support::needs::need;
use crate::support::{PINFOLD, PROJECT, Scratch, has};

/// The directory and the builds in it are kept for the next run. It is not the one that the tests have to leave empty.
const TMP: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/../python-tests");

/// Returns the Python that has the module, or `None` where it cannot be built here.
fn python() -> Option<String> {
    let venv = format!("{TMP}/python");
    let python = format!("{venv}/bin/python");
    let installed = || {
        let mut command = Command::new(&python);
        command.args(["-m", "pip", "--disable-pip-version-check", "install", "--quiet", "maturin>=1.9,<2"]);
        Path::new(&python).exists() && command.output().is_ok_and(|output| output.status.success())
    };
    if !installed() {
        let made = Command::new("python3").args(["-m", "venv", &venv]).output();
        let present = made.is_ok_and(|output| output.status.success()) && installed();
        if !has(need("maturin", present, "it can't be installed from PyPI")) {
            return None;
        }
    }
    let module = format!("{PROJECT}/tests/python_module");
    let fetched = Command::new("cargo").args(["fetch", "--locked", "--quiet"]).current_dir(&module).output();
    let said = fetched.as_ref().map(|output| String::from_utf8_lossy(&output.stderr)).unwrap_or_default();
    // No reason to skip the test: after a change of pinfold's dependencies, `cargo fetch` in this directory updates it.
    assert!(!said.contains("because --locked was passed"), "{module}/Cargo.lock is outdated: {said}");
    if !has(need("pyo3", fetched.is_ok_and(|output| output.status.success()), "the crate can't be fetched")) {
        return None;
    }
    let path = std::env::var("PATH").unwrap();
    let built = Command::new(format!("{venv}/bin/maturin"))
        .args(["develop", "--locked", "--quiet"])
        .current_dir(&module)
        .env("VIRTUAL_ENV", &venv)
        .env("PATH", format!("{venv}/bin:{path}"))
        .env("CARGO_TARGET_DIR", format!("{TMP}/python-module"))
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    Some(python)
}

/// Runs a script without any guard program in PATH.
fn run(python: &str, script: &str, prepare: impl FnOnce(&mut Command)) -> (Output, String) {
    let mut command = Command::new(python);
    command.args(["-c", script]).env("PATH", "/usr/bin:/bin").env_remove("PINFOLD_GUARD");
    prepare(&mut command);
    let output = command.output().unwrap();
    let said = [&output.stdout[..], &output.stderr].concat();
    (output, String::from_utf8_lossy(&said).into_owned())
}

const JOB: &str = r#"
import os, sys, threading
import pinfold_module
jobs = pinfold_module.Jobs(sys.argv[1] if len(sys.argv) > 1 else None)
script = "tr -d '\\0' < /proc/$PPID/environ; readlink /proc/$PPID/exe; sleep 999 & exit 7"
"#;

#[test]
#[requires(cgroup, program("python3"))]
fn an_extension_module_of_python_starts_jobs() {
    let Some(python) = python() else { return };
    // As documented: the caller has to call, name or install nothing.
    let (_, said) = run(&python, &format!("{JOB}print(jobs.run(script))"), |_| {});
    let own = std::fs::canonicalize(&python).unwrap();
    assert_eq!(said, format!("{}\n(7, 1)\n", own.display()), "the interpreter is its own guard program");

    let threads = format!(
        "{JOB}
def run(): sys.stdout.write(str(jobs.run('exit 5')) + '\\n')
threads = [threading.Thread(target=run) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()"
    );
    assert_eq!(run(&python, &threads, |_| {}).1, "(5, 0)\n".repeat(8));

    let forks = format!(
        "{JOB}
for _ in range(3):
    copy = os.fork()
    if copy == 0: sys.exit(3)
    assert os.waitpid(copy, 0)[1] == 3 << 8
print(jobs.run('exit 6'))"
    );
    assert_eq!(run(&python, &forks, |_| {}).1, "(6, 0)\n");

    // With a guard program that is shipped inside the module.
    let (_, said) = run(&python, &format!("{JOB}print(jobs.run(script))"), |command| {
        command.arg(PINFOLD);
    });
    assert!(said.starts_with("/memfd:pinfold-guard") && said.ends_with("(7, 1)\n"), "{said}");

    // The dynamic loader does not accept this path in its variables.
    let directory = Scratch::directory("with a space");
    let name = "import pinfold_module, os; print(os.path.dirname(pinfold_module.__file__))";
    let module = run(&python, name, |_| {}).1;
    let copied = Command::new("cp").args(["-r", module.trim_end()]).arg(directory.path()).status().unwrap();
    assert!(copied.success());
    let there = |command: &mut Command| {
        command.env("PYTHONPATH", directory.path());
    };
    let (output, said) = run(&python, JOB, there);
    assert!(!output.status.success() && said.contains(directory.path().to_str().unwrap()), "{said}");
    let (_, said) = run(&python, &format!("{JOB}print(jobs.run(script))"), |command| {
        there(command);
        command.env("PINFOLD_GUARD", PINFOLD);
    });
    assert_eq!(said, format!("{PINFOLD}\n(7, 1)\n"));
}

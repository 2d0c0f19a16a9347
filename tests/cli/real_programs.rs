//! Programs that people use: Go and Python programs with processes of their own, make, cargo.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use crate::support::{Canary, Run, Running, Scratch};

const GO: &str = r#"
package main

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
)

// Starts itself again, and that process starts "sleep 1000", in its own process group if requested.
func main() {
	child := exec.Command("sleep", "1000")
	if os.Args[1] == "outer" {
		child = exec.Command("/proc/self/exe", os.Args[2])
	} else if os.Args[1] == "own-group" {
		child.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	}
	child.Stdout = os.Stdout
	if err := child.Start(); err != nil {
		panic(err)
	}
	if os.Args[1] != "outer" {
		fmt.Println("ready")
	}
	if err := child.Wait(); err != nil {
		os.Exit(3)
	}
}
"#;

/// Built once for all tests of this file, in a directory that is removed with them.
fn go_program(place: &Scratch) -> String {
    static BUILDING: Mutex<()> = Mutex::new(());
    let _one = BUILDING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let source = place.path().join("main.go");
    std::fs::write(&source, GO).unwrap();
    let target = place.path().join("program");
    let mut build = Command::new("go");
    build.arg("build").arg("-o").arg(&target).arg(&source).current_dir(place.path());
    build
        .env("GOCACHE", place.path().join("cache"))
        .env("GO111MODULE", "off")
        .env("GOFLAGS", "")
        .env("CGO_ENABLED", "0");
    assert!(build.status().unwrap().success());
    target.to_str().unwrap().to_owned()
}

#[test]
#[requires(cgroup, program("go"))]
fn a_go_program_whose_child_starts_a_child() {
    let canary = Canary::new();
    let place = Scratch::directory("go");
    let program = go_program(&place);
    for kind in ["same-group", "own-group"] {
        let ran = Run::new(["--timeout", "1s", &program, "outer", kind]).run().assert_code(124);
        assert!((1.0..3.0).contains(&ran.elapsed.as_secs_f64()), "{ran:#?}");
        assert_eq!(ran.report["stopped"]["count"], 3, "{ran:#?}");
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            let mut running = Run::in_shell(r#"exec setsid "$@""#, [&program, "outer", kind]).start();
            assert_eq!(running.line(), "ready");
            running.signal(signal);
            let ran = running.finish();
            assert_eq!((&ran.report["reason"], &ran.report["stopped"]["count"]), (&"stopped".into(), &3.into()));
            assert!(ran.elapsed.as_secs_f64() < 5.0, "no grace period was needed: {ran:#?}");
        }
    }
    canary.assert_alive();
}

/// Starts a Python script from its own file, because multiprocessing imports it again.
fn python(options: &[&str], script: &str) -> (Scratch, Running) {
    let place = Scratch::directory("python");
    let file = place.path().join("script.py");
    std::fs::write(&file, script).unwrap();
    let file = file.to_str().unwrap();
    let words = [options, &["python3", file]].concat();
    (place, Run::in_shell(r#"exec setsid "$@""#, words).start())
}

#[test]
#[requires(cgroup, program("python3"))]
fn a_python_pool_is_over_at_its_deadline() {
    let canary = Canary::new();
    let script = r#"
import time
from concurrent.futures import ProcessPoolExecutor
if __name__ == "__main__":
    with ProcessPoolExecutor(max_workers=2) as pool:
        for future in [pool.submit(time.sleep, 100) for _ in range(5)]:
            future.result()
"#;
    let ran = python(&["--timeout", "3s"], script).1.finish().assert_code(124);
    assert!((3.0..5.0).contains(&ran.elapsed.as_secs_f64()), "{ran:#?}");
    assert!(ran.report["stopped"]["count"].as_u64() >= Some(3), "{ran:#?}");
    canary.assert_alive();
}

#[test]
#[requires(cgroup, program("python3"))]
fn python_processes_end_as_python_ends_them() {
    let script = r#"
import multiprocessing, sys, time
def work(event):
    event.set()
    time.sleep(100)
def leave(code):
    sys.exit(code)
if __name__ == "__main__":
    codes = []
    for end in ("terminate", "kill"):
        event = multiprocessing.Event()
        process = multiprocessing.Process(target=work, args=(event,))
        process.start()
        event.wait()
        getattr(process, end)()
        process.join()
        codes.append(process.exitcode)
    process = multiprocessing.Process(target=leave, args=(5,))
    process.start()
    process.join()
    codes.append(process.exitcode)
    print(codes)
    sys.exit(42)
"#;
    let ran = python(&["--timeout", "60s"], script).1.finish().assert_code(42);
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("[-15, -9, 5]\n", ""));
    assert_eq!(ran.report["leftovers"]["count"], 0);
    // A forgotten process: multiprocessing waits for it, and the deadline does not.
    let script = r#"
import multiprocessing, time
if __name__ == "__main__":
    multiprocessing.Process(target=time.sleep, args=(100,)).start()
"#;
    python(&["--timeout", "1s"], script).1.finish().assert_code(124);
}

#[test]
#[requires(cgroup, program("python3"))]
fn python_cleans_up_within_the_grace_period() {
    let script = r#"
import atexit, time
atexit.register(lambda: print("at exit", flush=True))
try:
    print("ready", flush=True)
    time.sleep(1000)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    raise SystemExit(9)
finally:
    time.sleep(0.2)
    print("finally", flush=True)
"#;
    let canary = Canary::new();
    let (_place, mut running) = python(&["--stop-signal", "INT", "--grace", "20s"], script);
    assert_eq!(running.line(), "ready");
    running.signal(libc::SIGTERM);
    let ran = running.finish().assert_code(9);
    assert_eq!(ran.stdout, "interrupted\nfinally\nat exit\n");
    assert_eq!((&ran.report["killed"], &ran.report["reason"]), (&false.into(), &"stopped".into()));
    canary.assert_alive();
}

/// Makes a C project of 50 files; with `broken`, one of them does not compile.
fn c_project(broken: bool) -> Scratch {
    let place = Scratch::directory("make");
    let path = |name: &str| place.path().join(name);
    for number in 0..50 {
        let bad = if broken && number == 25 { "this is no C" } else { "" };
        let text = format!("int f{number}(int x) {{ return x + {number}; }}\n{bad}\n");
        std::fs::write(path(&format!("f{number}.c")), text).unwrap();
    }
    let calls: String = (0..50).map(|number| format!(" + f{number}(1)")).collect();
    let declarations: String = (0..50).map(|number| format!("int f{number}(int);\n")).collect();
    let main =
        format!("#include <stdio.h>\n{declarations}int main(void) {{ printf(\"%d\\n\", 0{calls}); return 0; }}\n");
    std::fs::write(path("main.c"), main).unwrap();
    let makefile = "OBJECTS = main.o $(patsubst %,f%.o,$(shell seq 0 49))\nprogram: $(OBJECTS)\n\tcc -o $@ $^\n\
                    %.o: %.c\n\tcc -O0 -c -o $@ $<\nclean:\n\trm -f *.o program\n";
    std::fs::write(path("Makefile"), makefile).unwrap();
    place
}

/// Sorts the lines, because the order of the output of a parallel build is undefined.
fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    lines
}

#[test]
#[requires(cgroup, program("make"))]
fn make_builds_as_without_pinfold() {
    for broken in [false, true] {
        let (with, without) = (c_project(broken), c_project(broken));
        // With -k, the set of files that are built beside a failure does not depend on the order.
        let words = ["make", "-j2", "-k"];
        let mut plain = Command::new(words[0]);
        plain.args(&words[1..]).current_dir(without.path()).stdin(Stdio::null());
        let plain = plain.env("LC_ALL", "C").output().unwrap();
        let mut run = Run::new(words);
        run.command().current_dir(with.path()).env("LC_ALL", "C");
        let ran = run.run().assert_code(plain.status.code().unwrap());
        assert_eq!(ran.code == 0, !broken);
        let (output, errors) = (String::from_utf8_lossy(&plain.stdout), String::from_utf8_lossy(&plain.stderr));
        assert_eq!(sorted(&ran.stdout), sorted(&output));
        assert_eq!(sorted(&ran.stderr), sorted(&errors));
        assert_eq!(ran.report["leftovers"]["count"], 0);
        assert_eq!(built(with.path()), built(without.path()));
    }
}

fn built(directory: &Path) -> Vec<String> {
    let names = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.ends_with(".o") || name == "program").collect();
    names.sort_unstable();
    names
}

/// make's job server: the tokens come through descriptors that pinfold passes to the command.
#[test]
#[requires(cgroup, program("make"))]
fn a_make_that_calls_pinfold_shares_its_job_server() {
    let place = c_project(false);
    let outer = place.path().join("Outer.mk");
    std::fs::write(&outer, format!("all:\n\t+{} run -- $(MAKE)\n", crate::support::PINFOLD)).unwrap();
    let mut run = Run::bare(["make", "-j2", "-f", "Outer.mk"]);
    run.command().current_dir(place.path()).env("LC_ALL", "C");
    let ran = run.run().assert_code(0);
    assert!(!ran.stderr.contains("jobserver"), "{ran:#?}");
}

#[test]
#[requires(cgroup, program("cargo"))]
fn cargo_builds() {
    let place = Scratch::directory("cargo");
    let path = |name: &str| place.path().join(name);
    std::fs::create_dir(path("src")).unwrap();
    let manifest = "[package]\nname = \"tiny\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[workspace]\n";
    std::fs::write(path("Cargo.toml"), manifest).unwrap();
    std::fs::write(path("build.rs"), "fn main() { println!(\"cargo::rustc-env=WORD=built\"); }").unwrap();
    let good = "fn main() { println!(\"{}\", env!(\"WORD\")); std::process::exit(6) }";
    for (source, arguments, code) in [(good, "build", 0), (good, "run", 6), ("fn main() { nonsense }", "build", 101)] {
        std::fs::write(path("src/main.rs"), source).unwrap();
        let mut run = Run::new(["cargo", arguments, "--offline", "--quiet"]);
        // Removes the variables that cargo has set for these tests themselves.
        for name in
            ["CARGO_TARGET_DIR", "CARGO_BUILD_TARGET_DIR", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_MAKEFLAGS"]
        {
            run.command().env_remove(name);
        }
        run.command().current_dir(place.path());
        let ran = run.run().assert_code(code);
        assert_eq!(ran.stdout, if code == 6 { "built\n" } else { "" });
        assert_eq!(ran.report["leftovers"]["count"], 0, "{ran:#?}");
    }
}

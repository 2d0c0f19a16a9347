//! Ordinary programs work in a sandbox.

use super::super::policy::Sandbox;
use super::harness::{As, Run, Scratch, users};

fn has(program: &str) -> bool {
    let found = std::path::Path::new(program).exists();
    if !found {
        eprintln!("SKIPPED: needs {program}");
    }
    found
}

/// Runs a shell script with a directory that it may write, and returns its output.
fn script(sandbox: &Sandbox, user: As, text: &str) -> String {
    let scratch = Scratch::new();
    let mut sandbox = sandbox.clone();
    sandbox.write(scratch.path());
    let mut run = Run::new(["/bin/sh", "-c", text]).within(&sandbox, user);
    run.cwd = std::ffi::CString::new(scratch.path().to_str().unwrap()).unwrap();
    let directory = std::ffi::CString::new(format!("TMPDIR={}", scratch.path().display())).unwrap();
    let home = std::ffi::CString::new(format!("HOME={}", scratch.path().display())).unwrap();
    run.env.extend([directory, home]);
    run.env.retain(|entry| !entry.as_bytes().ends_with(b"/nonexistent"));
    let ran = run.run();
    assert_eq!((ran.code, ran.failed), (Some(0), None), "{text}: {ran:?}");
    ran.output
}

fn check(program: &str, text: &str, expected: &str) {
    if has(program) {
        for user in users() {
            let output = script(&Sandbox::new(), user, text);
            assert!(output.contains(expected), "{text}: {output}");
        }
    }
}

#[test]
fn shells_and_filters() {
    check("/bin/bash", "bash -c 'set -e; cat <(echo a | sort) > out; ulimit -c 0; nice -n 5 cat out'", "a");
    check("/usr/bin/taskset", "ionice -c 3 taskset -c 0 setsid echo pinned", "pinned");
}

#[test]
fn python() {
    let text = "import subprocess, threading, tempfile, os, socket, asyncio, ssl, sqlite3\n\
                t = threading.Thread(target=lambda: None); t.start(); t.join()\n\
                print(subprocess.run(['echo', 'child'], capture_output=True, text=True).stdout)\n\
                f = tempfile.NamedTemporaryFile(); os.sched_setaffinity(0, os.sched_getaffinity(0))\n\
                asyncio.run(asyncio.sleep(0)); sqlite3.connect('x.db').execute('create table t (a)')\n\
                try: socket.socket(); print('network')\n\
                except PermissionError: print('no network')";
    check("/usr/bin/python3", &format!("/usr/bin/python3 -c \"{text}\""), "child\n\nno network");
}

#[test]
fn compilers() {
    check("/usr/bin/gcc", "echo 'int main(void){return 7;}' > a.c; gcc -pipe a.c -o a; ./a; echo $?", "7");
}

#[test]
fn version_control() {
    let text = "git init -q . && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m first && \
                git status && git log --oneline && git gc -q";
    check("/usr/bin/git", text, "nothing to commit");
}

#[test]
fn javascript() {
    let text = "node -e \"const {Worker}=require('worker_threads'); const w=new Worker('',{eval:true}); \
                w.on('exit',()=>console.log(require('child_process').execSync('echo child').toString(), \
                require('os').cpus().length>0))\"";
    check("/usr/bin/node", text, "child");
}

//! `--explain-denials`: pinfold names each call that a sandbox refuses, with the option that would grant it, and no
//! other call.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};

use super::sandbox::{USER, Way, secret, text, ways};
use crate::support::own_cgroup::OwnCgroup;
use crate::support::{PINFOLD, Ran, Run, Scratch};

/// Runs a command in a sandbox that explains its denials, and returns the denials. Leaves out denied reads of other
/// files than the secret one: which files the libraries and the interpreter of the command try depends on the machine.
fn denials(way: Way, options: &[&str], command: &[&str]) -> (Ran, Vec<Value>) {
    let (ran, mut denials) = all_denials(way, options, command);
    denials.retain(|denial| denial["kind"] != "read" || denial["object"].as_str().unwrap().contains("/secret-"));
    (ran, denials)
}

/// Does the same, and returns all denials.
fn all_denials(way: Way, options: &[&str], command: &[&str]) -> (Ran, Vec<Value>) {
    let directory = Scratch::directory("denials");
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let report = directory.path().join("report");
    let ran = way.run(":", &[&["--explain-denials", "--report", text(&report)], options].concat(), command);
    let report: Value = serde_json::from_str(&std::fs::read_to_string(report).unwrap()).unwrap();
    let denials = report["sandbox"]["denials"].as_array().cloned().unwrap_or_default();
    assert!(report["error"].is_null() || denials.is_empty(), "{way:?} {report:#}");
    (ran, denials)
}

/// Returns the kind, the object and the options of each denial.
fn named(denials: &[Value]) -> Vec<(&str, &str, Vec<&str>)> {
    fn one(denial: &Value) -> (&str, &str, Vec<&str>) {
        let options = denial["granted_by"].as_array().unwrap().iter().map(|option| option.as_str().unwrap());
        (denial["kind"].as_str().unwrap(), denial["object"].as_str().unwrap(), options.collect())
    }
    denials.iter().map(one).collect()
}

/// A Python program that makes one call of each kind that a sandbox can refuse, and prints the errno of each call.
const ATTEMPTS: &str = r"
import ctypes, os, socket, subprocess, sys
place, supervisor = sys.argv[1], int(os.environ['SUPERVISOR'])
libc = ctypes.CDLL(None, use_errno=True)
def at(name): return os.path.join(place, name)
def attempt(call, *arguments):
    try: call(*arguments)
    except OSError as error: print(error.errno)
    else: print('allowed', call, arguments)
def unshare(flags):
    if libc.unshare(flags): raise OSError(ctypes.get_errno(), '')
def trace(process):
    if libc.ptrace(16, process, 0, 0): raise OSError(ctypes.get_errno(), '')
for _ in range(3): attempt(open, at('file'))
attempt(open, at('file'), 'r+')
attempt(os.truncate, at('file'), 1)
attempt(os.listdir, place)
attempt(subprocess.call, [at('program')])
attempt(open, at('new'), 'w')
attempt(os.mkdir, at('made'))
attempt(os.mkfifo, at('fifo'))
attempt(os.symlink, 'x', at('symlink'))
attempt(os.link, at('file'), at('second'))
attempt(os.rename, at('file'), at('other'))
attempt(os.unlink, at('file'))
attempt(os.rmdir, at('empty'))
attempt(socket.socket, socket.AF_INET, socket.SOCK_STREAM)
attempt(socket.socket, socket.AF_INET6, socket.SOCK_DGRAM)
attempt(socket.socket, socket.AF_UNIX, socket.SOCK_STREAM)
attempt(unshare, 0x10000000)
# These fail without a sandbox too.
attempt(open, at('missing'))
attempt(open, at('closed'))
attempt(os.mkdir, at('empty'))
attempt(os.unlink, at('missing'))
attempt(os.kill, supervisor, 0)
attempt(trace, supervisor)
";

/// Makes the other files and directories that [`ATTEMPTS`] uses, beside the secret file, which has the mode 666.
fn prepare(place: &Path) {
    let mode = |name: &str, mode| {
        std::fs::set_permissions(place.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    std::fs::write(place.join("program"), "#!/bin/sh\n").unwrap();
    std::fs::write(place.join("closed"), "").unwrap();
    std::fs::create_dir(place.join("empty")).unwrap();
    std::os::unix::fs::chown(place.join("empty"), Some(USER), Some(USER)).unwrap();
    mode("program", 0o755);
    mode("closed", 0o600);
}

#[test]
#[requires(other_users, sandbox, program("python3"))]
fn each_kind_of_denial_is_named() {
    let (directory, file) = secret();
    let place = text(directory.path());
    prepare(directory.path());
    let at = |name: &str| format!("{place}/{name}");
    let (write, write_file) = (format!("--write {place}"), format!("--write {file}"));
    let (read, run, list) = (format!("--read {file}"), format!("--read {}", at("program")), format!("--read {place}"));
    let names = ["new", "made", "fifo", "symlink", "second", "empty", "program"].map(at);
    let [new, made, fifo, symlink, second, empty, program] = names.each_ref().map(String::as_str);
    let ports = vec!["--connect-tcp PORT", "--listen-tcp PORT", "--network host"];
    let mut expected = vec![
        ("read", file.as_str(), vec![read.as_str()]),
        ("write", &file, vec![&write_file]),
        ("write", &file, vec![&write_file]),
        ("read", place, vec![&list]),
        ("execute", program, vec![&run]),
        ("create", new, vec![&write]),
        ("create", made, vec![&write]),
        ("create", fifo, vec![&write]),
        ("create", symlink, vec![&write]),
        ("rename", second, vec![&write]),
        ("rename", &file, vec![&write]),
        ("remove", &file, vec![&write]),
        ("remove", empty, vec![&write]),
        ("socket", "AF_INET, SOCK_STREAM", ports),
        ("socket", "AF_INET6, SOCK_DGRAM", vec!["--network host"]),
        ("socket", "AF_UNIX, SOCK_STREAM", vec!["--unix own"]),
        ("call", "CLONE_NEWUSER", vec![]),
    ];
    let files = expected.len();
    for way in ways() {
        let (ran, denials) = denials(way, &[], &["python3", "-c", ATTEMPTS, place]);
        let ran = ran.assert_code(0);
        // EACCES for files, EPERM for the other calls, and then the errors of the calls that fail without a sandbox
        // too.
        let errors = ["13"; 15].iter().chain(&["1"; 4]).chain(&["2", "13", "17", "2", "1", "1"]).copied();
        assert_eq!(ran.stdout.lines().collect::<Vec<_>>(), errors.collect::<Vec<_>>(), "{way:?} {ran:#?}");
        let named = named(&denials);
        // A job cannot send a signal to a supervisor of another user without a sandbox either.
        let processes: Vec<_> = named.iter().skip(files).map(|(kind, ..)| *kind).collect();
        let is_own: &[&str] = if way.as_root { &[] } else { &["signal", "trace"] };
        assert_eq!(processes, is_own, "{way:?}");
        expected.truncate(files);
        assert_eq!(named[..files], expected, "{way:?} {named:#?}");
        assert_eq!(denials[0]["count"], 3);
        let line = format!("pinfold: the sandbox refused: read {file} (openat, 3 times); grant it with {read}\n");
        assert!(ran.stderr.contains(&line), "{way:?} {ran:#?}");
    }
}

#[test]
#[requires(other_users, sandbox)]
fn the_option_that_a_denial_names_grants_it() {
    let (directory, file) = secret();
    let script = format!("cat {file} && echo x >{}/new", directory.path().display());
    for way in ways() {
        let _ = std::fs::remove_file(directory.path().join("new"));
        let mut options: Vec<String> = Vec::new();
        for _ in 0..2 {
            let words: Vec<&str> = options.iter().map(String::as_str).collect();
            let (ran, denials) = denials(way, &words, &["sh", "-c", &script]);
            assert!(ran.code != 0 && denials.len() == 1, "{way:?} {ran:#?}");
            let option = denials[0]["granted_by"][0].as_str().unwrap();
            options.extend(option.split(' ').map(str::to_owned));
        }
        let words: Vec<&str> = options.iter().map(String::as_str).collect();
        let (ran, denials) = denials(way, &words, &["sh", "-c", &script]);
        assert_eq!(denials, [Value::Null; 0], "{way:?}");
        assert_eq!(ran.assert_code(0).stdout, "a secret\n");
    }
}

#[test]
#[requires(other_users, sandbox, program("python3"))]
fn ports_are_named() {
    let script = "
import socket
def attempt(what, port):
    try: getattr(socket.socket(), what)(('127.0.0.1', port))
    except OSError as error: print(error.errno)
attempt('connect', 8081)
attempt('connect', 8082)
attempt('bind', 8083)
";
    for way in ways() {
        let (ran, denials) = denials(way, &["--connect-tcp", "8081"], &["python3", "-c", script]);
        if ran.code == 125 {
            // The kernel has no rules for ports.
            assert!(ran.stderr.contains("network"), "{ran:#?}");
            continue;
        }
        // ECONNREFUSED: nothing listens there.
        assert_eq!(ran.assert_code(0).stdout, "111\n13\n13\n", "{way:?}");
        let expected = [
            ("connect", "TCP port 8082", vec!["--connect-tcp 8082"]),
            ("listen", "TCP port 8083", vec!["--listen-tcp 8083"]),
        ];
        assert_eq!(named(&denials), expected, "{way:?}");
    }
}

/// Runs ordinary programs. For each file that pinfold reports as denied, a second program checks that the kernel indeed
/// refuses to open it.
#[test]
#[requires(other_users, sandbox, program("python3"), program("gcc"), program("git"))]
fn ordinary_programs_cause_no_false_denials() {
    let (directory, _) = secret();
    let place = text(directory.path());
    let build = "echo 'int main(void) { return 7; }' >a.c && gcc -o a.out a.c && { ./a.out; test $? = 7; } && rm a.*";
    let git = "git init -q r && git -C r status >/dev/null && rm -rf r";
    let node = "command -v node >/dev/null || exit 0; node -e 'require(\"fs\").readFileSync(\"/etc/passwd\")'";
    let python = "python3 -c 'import json, ssl, subprocess; subprocess.run([\"true\"])'";
    let confirm = "
import os, sys
for path in sys.argv[1:]:
    try: (os.listdir if os.path.isdir(path) else open)(path)
    except PermissionError: pass
    else: print(path)
";
    for way in ways() {
        let (temporary, home) = (format!("TMPDIR={place}"), format!("HOME={place}"));
        let granted = ["--write", place, "--cwd", place, "--env", &temporary, "--env", &home];
        for script in [build, git, node, python] {
            let (ran, denials) = all_denials(way, &granted, &["sh", "-c", script]);
            ran.assert_code(0);
            let named = named(&denials);
            eprintln!("{way:?} {script}: {named:?}");
            assert!(named.iter().all(|(kind, ..)| ["read", "socket"].contains(kind)), "{way:?} {named:#?}");
            let paths = named.iter().filter(|(kind, ..)| *kind == "read").map(|(_, path, _)| *path);
            let command: Vec<&str> = ["python3", "-c", confirm].into_iter().chain(paths).collect();
            assert_eq!(way.run(":", &granted, &command).assert_code(0).stdout, "", "{way:?} {named:#?}");
        }
    }
}

#[test]
#[requires(other_users, sandbox, program("python3"))]
fn threads_and_many_calls_are_counted_exactly() {
    let (_directory, file) = secret();
    let script = "
import os, sys, threading
def work():
    for number in range(2000):
        os.close(os.open('/etc/passwd', os.O_RDONLY))
        try: os.open(sys.argv[1], os.O_RDONLY)
        except PermissionError: pass
        else: os.abort()
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
for number in range(150):
    try: os.mkdir(f'{os.path.dirname(sys.argv[1])}/{number}')
    except PermissionError: pass
";
    let (ran, denials) = denials(ways()[2], &[], &["python3", "-c", script, &file]);
    let ran = ran.assert_code(0);
    assert_eq!((&denials[0]["object"], &denials[0]["count"]), (&json!(file), &json!(8000)));
    // The report lists at most 100 different denials, and pinfold prints 20 of them.
    assert!((97..=100).contains(&denials.len()), "{}", denials.len());
    assert_eq!(ran.stderr.lines().count(), 21, "{}", ran.stderr);
    assert!(
        ran.stderr.contains(" more calls; the report (--report) lists up to 100 different denials"),
        "{}",
        ran.stderr
    );
}

/// A job whose threads make refused calls without a pause ends as any other job does. This is also true if the job is
/// frozen for a moment, or if pinfold, which answers the calls, is killed.
#[test]
#[requires(other_users, sandbox, program("python3"))]
fn a_job_that_floods_ends() {
    let (directory, file) = secret();
    let fifo = directory.path().join("fifo");
    let flood = "
import os, sys, threading
def work():
    while True:
        try: os.open(sys.argv[1], os.O_RDONLY)
        except OSError: pass
for _ in range(3): threading.Thread(target=work).start()
print('ready', flush=True)
work()
";
    let freeze = "for leaf in $CGROUP/pinfold-*/*/; do echo 1 >$leaf/cgroup.freeze; \
                  until [ ! -e $leaf ] || grep -q 'frozen 1' $leaf/cgroup.events; do :; done; \
                  echo 0 >$leaf/cgroup.freeze; done; kill -TERM $pid";
    for containment in ["cgroup", "subreaper"] {
        for (ending, options, code) in
            [("kill -KILL $pid", "", 137), ("kill -TERM $pid", "", 143), (":", "--timeout 5s", 124), (freeze, "", 143)]
        {
            let cgroup = OwnCgroup::of(USER);
            let ending = if containment == "subreaper" { ending.rsplit("; ").next().unwrap() } else { ending };
            let script = format!(
                r#"{}; CGROUP={}; rm -f {fifo}; mkfifo {fifo}; cd /; chmod 666 {fifo}
                (exec setpriv --reuid {USER} --regid {USER} --clear-groups "$@" >{fifo}) & pid=$!
                exec 5<{fifo}; read line <&5; read guard </proc/$pid/task/$pid/children; {ending}; wait $pid
                echo $line $?; cat <&5; echo gone; while [ -e /proc/$guard/exe ]; do :; done"#,
                cgroup.enter(),
                cgroup.path.display(),
                fifo = fifo.display(),
            );
            let mut words = vec!["bash", "-c", &script, "bash", PINFOLD, "sandbox", "--explain-denials"];
            words.extend(["--containment", containment]);
            words.extend(options.split_whitespace());
            words.extend(["--", "python3", "-c", flood, &file]);
            let ran = Run::bare(words).run().assert_code(0);
            assert_eq!(ran.stdout, format!("ready {code}\ngone\n"), "{containment} {ending} {ran:#?}");
        }
    }
}

#[test]
#[requires(other_users, sandbox)]
fn a_command_that_the_sandbox_refuses_is_named() {
    let (directory, _) = secret();
    prepare(directory.path());
    let program = directory.path().join("program");
    let program = text(&program);
    for way in ways() {
        let ran = way.run(":", &["--explain-denials"], &[program]).assert_code(126);
        let refused = format!("(the sandbox refused: execute {program} (execve); grant it with --read {program})");
        assert!(ran.stderr.contains(&refused), "{way:?} {ran:#?}");
        let hint = "pinfold: to see what the sandbox refused, add --explain-denials\n";
        assert!(way.run(":", &[], &[program]).assert_code(126).stderr.contains(hint), "{way:?}");
        let failed = way.run(":", &[], &["cat", program]).assert_code(1);
        assert!(failed.stderr.contains(hint), "{way:?} {failed:#?}");
        assert!(!way.run(":", &["-q"], &["cat", program]).assert_code(1).stderr.contains("pinfold:"), "{way:?}");
        assert!(!way.run(":", &[], &["true"]).assert_code(0).stderr.contains("pinfold:"), "{way:?}");
    }
    // The dynamic linker of a program, which --no-system takes away.
    let without_system = ["--explain-denials", "--no-system", "--read", "/usr/bin"];
    let ran = ways()[2].run(":", &without_system, &["true"]);
    assert!(ran.code == 126 && ran.stderr.contains("the sandbox refused: execute /usr/lib"), "{ran:#?}");
}

#[test]
#[requires(other_users, sandbox)]
fn the_results_of_a_pool_have_the_denials_of_each_job() {
    let (directory, file) = secret();
    let results = directory.path().join("results");
    let script = format!(
        r#"cd /; exec setpriv --reuid {USER} --regid {USER} --clear-groups "$@" <<END
{{"command": ["cat", "{file}"], "sandbox": {{"explain_denials": true}}}}
{{"command": ["cat", "{file}"], "sandbox": {{}}}}
END"#
    );
    let words = ["bash", "-c", &script, "bash", PINFOLD, "pool", "--workers", "1", "--results", text(&results)];
    Run::bare(words).run().assert_code(1);
    let lines = std::fs::read_to_string(results).unwrap();
    let denials = |line: &str| serde_json::from_str::<Value>(line).unwrap()["report"]["sandbox"]["denials"].clone();
    let denials: Vec<Value> = lines.lines().map(denials).collect();
    let is_named = denials[0].as_array().unwrap().iter().any(|denial| denial["object"] == json!(file));
    assert!(is_named && denials[1].is_null(), "{lines}");
}

#[test]
#[requires(other_users, sandbox, user_namespaces)]
fn a_strict_sandbox_explains_denied_changes_of_attributes() {
    let (directory, file) = secret();
    std::os::unix::fs::chown(&file, Some(USER), Some(USER)).unwrap();
    for way in ways() {
        let options = ["--sandbox=strict", "--read", text(directory.path())];
        let (ran, denials) = denials(way, &options, &["sh", "-c", &format!("chmod 600 {file}; echo x >{file}")]);
        assert!(ran.code != 0, "{way:?} {ran:#?}");
        let grant = format!("--write {file}");
        let expected = [("attributes", file.as_str(), vec![grant.as_str()]), ("write", &file, vec![&grant])];
        assert_eq!(named(&denials), expected, "{way:?}");
    }
}

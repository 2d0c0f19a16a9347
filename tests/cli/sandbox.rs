//! `pinfold run --sandbox`: what a job can't touch, and what still works. Each case runs as root with `--user` and as an
//! ordinary user, in a cgroup and with the subreaper.

mod attack_tables;
mod attacks;
mod leaf;
mod programs;
mod siblings;
mod tmp_attacks;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;

use crate::support::own_cgroup::OwnCgroup;
use crate::support::{PINFOLD, Ran, Run, Scratch, program};

pub(super) const USER: u32 = 65534;

/// How the job is run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    /// Root runs the job as another user; otherwise an ordinary user runs it.
    pub(super) as_root: bool,
    pub(super) containment: &'static str,
}

pub(super) fn ways() -> [Way; 4] {
    [(true, "cgroup"), (true, "subreaper"), (false, "cgroup"), (false, "subreaper")]
        .map(|(as_root, containment)| Way { as_root, containment })
}

impl Way {
    /// Runs a sandbox from a shell whose pid becomes pinfold's. Asserts that nothing is left.
    pub(super) fn run(self, setup: &str, options: &[&str], command: &[&str]) -> Ran {
        self.run_with(&[&["--sandbox"], options].concat(), setup, command)
    }

    /// The same with or without a sandbox.
    fn run_with(self, options: &[&str], setup: &str, command: &[&str]) -> Ran {
        let cgroup = OwnCgroup::of(USER);
        self.prepare(&cgroup, &[], options, setup, command).run()
    }

    /// Returns a run of `pinfold run OPTIONS -- COMMAND` from a shell in this cgroup, which runs the setup as the user of
    /// the tests. `prefix` executes that shell.
    fn prepare(self, cgroup: &OwnCgroup, prefix: &[&str], options: &[&str], setup: &str, command: &[&str]) -> Run {
        let user = format!("setpriv --reuid {USER} --regid {USER} --clear-groups");
        let user = if self.as_root { "" } else { &user };
        let script = format!(
            r#"{}; export SUPERVISOR=$$; cd /; {setup}; exec {user} "$@" --env SUPERVISOR {} "${{COMMAND[@]}}""#,
            cgroup.enter(),
            if self.as_root { "--user 65534 --" } else { "--" },
        );
        // The options come before the command, which is in the array.
        let words: Vec<_> = command.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect();
        let script = format!("COMMAND=({}); {script}", words.join(" "));
        let mut run = [prefix, &["bash", "-c", &script, "bash", PINFOLD, "run"]].concat();
        run.extend(["--containment", self.containment]);
        run.extend(options);
        Run::bare(run)
    }
}

/// A directory that everyone may use, with a file in it.
pub(super) fn secret() -> (Scratch, String) {
    let directory = Scratch::directory("secret");
    let file = directory.path().join("file");
    std::fs::write(&file, "a secret\n").unwrap();
    for (path, mode) in [(directory.path(), 0o777), (file.as_path(), 0o666)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let file = file.to_str().unwrap().to_owned();
    (directory, file)
}

pub(super) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
#[requires(other_users, sandbox)]
fn a_file_is_read_only_where_it_is_granted() {
    let (directory, file) = secret();
    for way in ways() {
        let denied = way.run(":", &[], &["cat", &file]).assert_code(1);
        assert!(denied.stderr.contains("Permission denied"), "{way:?} {denied:#?}");
        let written = way.run(":", &[], &["sh", "-c", &format!("echo x >>{file}")]).assert_code(2);
        assert!(written.stderr.contains("Permission denied"), "{way:?} {written:#?}");
        let granted = way.run(":", &["--read", text(directory.path())], &["cat", &file]).assert_code(0);
        assert_eq!(granted.stdout, "a secret\n", "{way:?}");
        let read_only = ["--read", text(directory.path())];
        way.run(":", &read_only, &["sh", "-c", &format!("echo x >>{file}")]).assert_code(2);
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "a secret\n");
}

#[test]
#[requires(other_users, sandbox)]
fn guard_and_supervisor_are_out_of_reach() {
    const ATTEMPTS: &str = "kill_kill kill_stop kill_group tkill_kill tgkill_kill queue_kill pidfd_kill trace_attach \
                            trace_seize memory_file vm_read vm_write descriptor limit_cpu limit_files";
    let attack = program("sandbox/processes");
    let script = format!(
        "for pid in $PPID $SUPERVISOR; do for attempt in {ATTEMPTS}; do echo $attempt $({} $attempt $pid); done; done\n\
         setsid sleep 1000 & exit 3",
        text(&attack)
    );
    for way in ways() {
        let ran = way.run(":", &["--read", text(&attack), "--read", "/proc"], &["sh", "-c", &script]).assert_code(3);
        let denied = ran.stdout.lines().filter(|line| line.contains(" denied ")).count();
        assert_eq!((denied, ran.stdout.lines().count()), (30, 30), "{way:?} {ran:#?}");
        assert!(ran.stderr.contains("left 1 process"), "{way:?} {ran:#?}");
    }
}

#[test]
#[requires(other_users, sandbox, program("python3"))]
fn there_is_no_network_but_what_is_granted() {
    let listen = "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(); \
                  socket.create_connection(s.getsockname()); print('connected')";
    for way in ways() {
        let none = way.run(":", &[], &["python3", "-c", listen]).assert_code(1);
        assert!(none.stderr.contains("PermissionError"), "{way:?} {none:#?}");
        let host = way.run(":", &["--network", "host"], &["python3", "-c", listen]).assert_code(0);
        assert_eq!(host.stdout, "connected\n", "{way:?}");
        let port = way.run(":", &["--connect-tcp", "443"], &["python3", "-c", listen]);
        // Refused before the start where the kernel has no rules for ports.
        assert!(port.code == 1 && port.stderr.contains("PermissionError") || port.code == 125, "{way:?} {port:#?}");
    }
}

#[test]
#[requires(other_users, sandbox, program("python3"), program("gcc"), program("git"))]
fn ordinary_programs_work() {
    let (directory, _) = secret();
    let place = text(directory.path());
    let build =
        "echo 'int main(void) { return 7; }' >a.c && gcc -o a.out a.c && { ./a.out; test $? = 7; } && rm -f a.out a.c";
    let git = "git init -q r && git -C r status >/dev/null && rm -rf r";
    for way in ways() {
        let python = way.run(":", &[], &["python3", "-c", "import json, os; print(os.getsid(0) == os.getpid())"]);
        assert_eq!(python.assert_code(0).stdout, "True\n", "{way:?}");
        let (temporary, home) = (format!("TMPDIR={place}"), format!("HOME={place}"));
        let granted = ["--write", place, "--cwd", place, "--env", &temporary, "--env", &home];
        way.run(":", &granted, &["sh", "-c", &format!("{build} && {git}")]).assert_code(0);
    }
}

#[test]
#[requires(other_users, sandbox)]
fn environment_and_descriptors_are_clean() {
    let (_directory, file) = secret();
    let setup = format!("export SECRET=1 KEPT=2; exec 7<{file} 8<{file}");
    let script = "echo $SECRET$KEPT; cat <&7; cat <&8; ulimit -c";
    for way in ways() {
        let ran = way.run(&setup, &["--inherit-fd", "7", "--env", "KEPT"], &["sh", "-c", script]);
        assert!(ran.stdout.starts_with("2\na secret\n") && ran.stderr.contains("8"), "{way:?} {ran:#?}");
    }
}

#[test]
#[requires(other_users, sandbox, user_namespaces)]
fn a_strict_sandbox_protects_modes_and_hides_paths() {
    let (directory, file) = secret();
    let place = text(directory.path());
    std::os::unix::fs::chown(&file, Some(USER), Some(USER)).unwrap();
    for way in ways() {
        let plain = way.run(":", &["--read", place], &["sh", "-c", &format!("chmod 666 {file}")]);
        plain.assert_code(0);
        let strict = ["--sandbox=strict", "--read", place];
        let ran = way.run(":", &strict, &["sh", "-c", &format!("chmod 600 {file}")]).assert_code(1);
        assert!(ran.stderr.contains("Read-only file system"), "{way:?} {ran:#?}");
        let hidden = ["--read", place, "--deny", &file];
        let ran = way.run(":", &hidden, &["cat", &file]);
        assert!(!ran.stdout.contains("secret"), "{way:?} {ran:#?}");
        let tmp = "echo x >/tmp/x && ls -A /tmp";
        assert_eq!(way.run(":", &["--private-tmp=1M"], &["sh", "-c", tmp]).assert_code(0).stdout, "x\n", "{way:?}");
    }
}

#[test]
#[requires(other_users, sandbox)]
fn a_filter_of_the_caller_forbids_more() {
    // struct sock_filter: load the number of the call; if it is uname(2), return EPERM; else allow.
    let program: [(u16, u8, u8, u32); 4] = [
        (0x20, 0, 0, 0),
        (0x15, 0, 1, libc::SYS_uname as u32),
        (0x06, 0, 0, 0x0005_0000 | libc::EPERM as u32),
        (0x06, 0, 0, 0x7fff_0000),
    ];
    let instruction = |(code, if_true, if_false, constant): (u16, u8, u8, u32)| {
        [&code.to_ne_bytes()[..], &[if_true, if_false], &constant.to_ne_bytes()].concat()
    };
    let (_directory, file) = secret();
    std::fs::write(&file, program.map(instruction).concat()).unwrap();
    for way in ways() {
        way.run(":", &["--seccomp", "default"], &["uname"]).assert_code(0);
        let ran = way.run(":", &["--seccomp", &file], &["uname"]).assert_code(1);
        assert!(ran.stderr.contains("Operation not permitted"), "{way:?} {ran:#?}");
    }
}

#[test]
#[requires(other_users, sandbox)]
fn refusals_name_the_fix_and_start_nothing() {
    let (directory, file) = secret();
    let (mark, place) = (directory.path().join("mark"), text(directory.path()));
    let no_program = ["--seccomp", file.as_str()];
    let cases: [(&[&str], &[&str]); 9] = [
        (&["--user", "65534", "--read", "/no/such"], &["path to read '/no/such'", "does not exist"]),
        (&["--user", "65534", "--write", "/no/such"], &["path to write '/no/such'"]),
        (&["--user", "65534", "--connect-tcp", "70000"], &["70000", "--connect-tcp"]),
        (&["--user", "65534", "--network", "host", "--connect-tcp", "80"], &["network 'host'", "none"]),
        (&["--user", "65534", "--inherit-fd", "77"], &["descriptor to inherit '77'", "open"]),
        (&["--user", "65534", "--waive", "luck"], &["luck", "privileges, kernel"]),
        (&["--user", "65534", "--unix", "none", "--unix", "own"], &["--unix"]),
        (&["--user", "65534", no_program[0], no_program[1]], &["seccomp filter", "no BPF program"]),
        (&[], &["root", "--user"]),
    ];
    let start = format!("echo ran >{}", mark.display());
    for (options, parts) in cases {
        let mut words = vec![PINFOLD, "sandbox", "--write", place];
        words.extend(options);
        words.extend(["--", "sh", "-c", &start]);
        let ran = Run::bare(words).run().assert_code(125);
        assert!(parts.iter().all(|part| ran.stderr.contains(part)), "{options:?} {ran:#?}");
        assert!(!mark.exists(), "{options:?}");
    }
    // A mount namespace is needed, and refused.
    let refuse = crate::support::program("refuse");
    let words =
        [text(&refuse), "unshare", "1", PINFOLD, "sandbox", "--user", "65534", "--write", place, "--deny", &file];
    let ran = Run::bare([&words[..], &["--", "sh", "-c", &start]].concat()).run().assert_code(125);
    for part in [&format!("path to deny '{file}'"), "mount namespace", "grant smaller paths"] {
        assert!(ran.stderr.contains(part), "{ran:#?}");
    }
    assert!(!mark.exists(), "{ran:#?}");
    // The same in JSON: the pool starts none of its jobs.
    for (sandbox, parts) in [
        (r#"{"connect_tcp": [70000]}"#, ["70000", "65535"]),
        (r#"{"read": ["/no/such"]}"#, ["/no/such", "does not exist"]),
        (r#"{"reed": ["/usr"]}"#, ["reed", "read"]),
        (r#"{"waive": ["luck"]}"#, ["luck", "privileges"]),
    ] {
        let job = format!(r#"{{"command": ["sh", "-c", "{start}"], "sandbox": {sandbox}}}"#);
        let script = format!("cd /; echo '{job}' | setpriv --reuid {USER} --regid {USER} --clear-groups \"$@\"");
        let ran = Run::bare(["bash", "-c", &script, "bash", PINFOLD, "pool"]).run();
        assert!(ran.code != 0 && parts.iter().all(|part| ran.stderr.contains(part)), "{sandbox} {ran:#?}");
        assert!(!mark.exists(), "{sandbox}");
    }
    let ran = Run::bare([PINFOLD, "run", "--read", "/usr", "--", "true"]).run().assert_code(125);
    assert!(ran.stderr.contains("--sandbox"), "{ran:#?}");
}

#[test]
#[requires(other_users, sandbox)]
fn the_report_says_what_held_each_promise() {
    let run = |options: &[&str]| {
        let words = ["--sandbox", "--user", "65534"].iter().chain(options).chain(&["true"]).copied();
        let ran = Run::new(words.collect::<Vec<_>>()).run().assert_code(0);
        ran.report["sandbox"].clone()
    };
    let state = |sandbox: &Value, promise: &str| {
        let promises = sandbox["promises"].as_array().unwrap();
        promises.iter().find(|one| one["promise"] == promise).unwrap()["state"].clone()
    };
    let plain = run(&[]);
    assert_eq!((&plain["profile"], plain["promises"].as_array().unwrap().len()), (&"default".into(), 8));
    assert_eq!(state(&plain, "network")["held"]["by"], "seccomp");
    assert!(state(&plain, "metadata")["not_promised"]["reason"].is_string());
    assert!(plain["filter_hash"].as_str().unwrap().starts_with("fnv1a:"));
    // Where the kernel has no rules for the paths of sockets, these are waived.
    let waived = run(&["--unix", "own", "--waive", "unix", "--waive", "leaf"]);
    let unix = state(&waived, "unix");
    assert!(unix["held"]["by"].is_string() || unix["waived"]["reason"].is_string(), "{waived}");
    assert_ne!(waived["filter_hash"], plain["filter_hash"]);
    assert_eq!(Run::new(["true"]).run().assert_code(0).report["sandbox"], Value::Null);
}

#[test]
#[requires(other_users, sandbox)]
fn jobs_of_a_pool_have_sandboxes() {
    let (directory, file) = secret();
    let script = format!(
        r#"cd /; exec setpriv --reuid {USER} --regid {USER} --clear-groups "$@" <<END
{{"command": ["cat", "{file}"], "sandbox": {{"read": ["{}"]}}}}
{{"command": ["cat", "{file}"], "sandbox": {{}}}}
END"#,
        directory.path().display()
    );
    let ran = Run::bare(["bash", "-c", &script, "bash", PINFOLD, "pool", "--workers", "1"]).run().assert_code(1);
    assert_eq!(ran.stdout.matches("a secret").count(), 1, "{ran:#?}");
    assert!(format!("{}{}", ran.stdout, ran.stderr).contains("Permission denied"), "{ran:#?}");
}

/// The commands in README.md and docs/sandbox.md print what these files show.
#[test]
#[requires(other_users, sandbox, program("python3"))]
fn the_examples_of_the_documentation_run() {
    let readme = include_str!("../../README.md").split("\n## Sandbox\n").nth(1).unwrap();
    let readme = readme.split("\n## ").next().unwrap();
    let bin = Path::new(PINFOLD).parent().unwrap().display();
    for text in [readme, include_str!("../../docs/sandbox.md")] {
        let (directory, _) = secret();
        for example in text.split("```console\n").skip(1).map(|rest| rest.split("```").next().unwrap()) {
            if example.contains("npm")
                && (crate::support::needs::program("npm").is_err() || attacks::tcp_ports().is_err())
            {
                continue;
            }
            let mut printed = String::new();
            for command in example.lines().filter_map(|line| line.strip_prefix("$ ")) {
                let place = directory.path().display();
                let script = format!("cd {place}; export PATH={bin}:$PATH; {{ {command}; }} 2>&1");
                let user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "bash", "-c", &script];
                printed += &format!("$ {command}\n{}", Run::bare(user).run().stdout);
            }
            assert_eq!(printed, example);
        }
    }
}

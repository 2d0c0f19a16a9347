//! `--private-tmp`: a directory of the job's own where the job has no mount namespace, and nothing is left of it.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::support::{PINFOLD, Ran, Run, Scratch, program, wait_for};

const USER: &str = "65534";

/// Where the private tmps of the jobs are, and whether root runs the jobs as another user.
struct Place {
    as_root: bool,
    tmp: Scratch,
}

impl Place {
    /// An ordinary user uses TMPDIR. Root with another user for the job uses /tmp.
    fn both() -> [Self; 2] {
        [true, false].map(|as_root| {
            let tmp = Scratch::directory("private-tmp");
            std::fs::set_permissions(tmp.path(), PermissionsExt::from_mode(0o777)).unwrap();
            std::fs::write(tmp.path().join("outside"), "kept").unwrap();
            std::fs::set_permissions(tmp.path().join("outside"), PermissionsExt::from_mode(0o666)).unwrap();
            Self { as_root, tmp }
        })
    }

    /// Returns the words that run pinfold where the kernel makes no namespaces.
    fn words(&self, command: &str, options: &[&str]) -> Vec<String> {
        let refuse = program("refuse");
        let mut words = vec![refuse.to_str().unwrap(), "unshare", "1"];
        if !self.as_root {
            words.extend(["setpriv", "--reuid", USER, "--regid", USER, "--clear-groups"]);
        }
        words.extend([PINFOLD, command]);
        words.extend(options);
        if self.as_root {
            words.extend(["--user", USER]);
        }
        words.iter().map(ToString::to_string).collect()
    }

    fn run(&self, options: &[&str], script: &str) -> Ran {
        let scratch = Scratch::directory("private-tmp-report");
        std::fs::set_permissions(scratch.path(), PermissionsExt::from_mode(0o777)).unwrap();
        let report = scratch.path().join("report");
        let options = [&["--report", report.to_str().unwrap()], options].concat();
        let mut words = self.words("sandbox", &options);
        words.extend(["--", "bash", "-c", script].map(str::to_owned));
        let mut run = Run::bare(words);
        run.command().env("TMPDIR", self.tmp.path()).current_dir("/");
        let mut ran = run.run();
        ran.report = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
        ran
    }

    /// Starts a job that prints its TMPDIR, makes a file there, and does not end.
    fn start(&self) -> (Child, PathBuf) {
        let mut words = self.words("sandbox", &["--private-tmp"]);
        let script = "mkdir -p $TMPDIR/a/b; touch $TMPDIR/a/b/c; chmod 0 $TMPDIR/a; echo $TMPDIR; exec sleep 1000";
        words.extend(["--", "bash", "-c", script].map(str::to_owned));
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env("TMPDIR", self.tmp.path()).current_dir("/").stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        (child, line.trim_end().into())
    }

    /// Returns the directory of the supervisor for the private tmps of its jobs.
    fn parent(&self, tmp: &Path) -> PathBuf {
        let parent = tmp.parent().unwrap();
        let place = if self.as_root { Path::new("/tmp") } else { self.tmp.path() };
        assert_eq!(parent.parent().unwrap(), place.canonicalize().unwrap());
        parent.to_owned()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(std::fs::read_to_string(self.tmp.path().join("outside")).unwrap(), "kept");
            assert_eq!(std::fs::read_dir(self.tmp.path()).unwrap().count(), 1);
        }
    }
}

#[test]
#[requires(other_users, sandbox)]
fn a_directory_is_made_and_removed() {
    for place in Place::both() {
        let script = "stat -c '%a %u' $TMPDIR; head -c 100000 /dev/zero >$TMPDIR/file; ls $TMPDIR; echo $TMPDIR";
        let ran = place.run(&["--private-tmp"], script).assert_code(0);
        let lines: Vec<_> = ran.stdout.lines().collect();
        assert_eq!(lines[..2], ["700 65534", "file"], "{ran:#?}");
        assert!(!place.parent(Path::new(lines[2])).exists(), "{ran:#?}");
        let bytes = &ran.report["sandbox"]["private_tmp_bytes"];
        assert!((100_000..200_000).contains(&bytes["value"].as_u64().unwrap()), "{bytes}");
        assert_eq!(ran.report["not_removed"], serde_json::json!([]));
        // TMPDIR of the caller does not come through.
        let ran = place.run(&["--private-tmp", "--env", "TMPDIR=/usr"], "echo $TMPDIR; rm -d $TMPDIR/x; true");
        assert!(!ran.assert_code(0).stdout.starts_with("/usr"));
        let without = place.run(&[], "echo ${TMPDIR-unset}").assert_code(0);
        assert_eq!((without.stdout.as_str(), &without.report["sandbox"]["private_tmp_bytes"]), ("unset\n", &().into()));
    }
}

#[test]
#[requires(other_users, sandbox)]
fn whatever_the_job_leaves_in_it_is_removed_and_nothing_else() {
    for place in Place::both() {
        let outside = place.tmp.path().join("outside");
        let script = format!(
            "cd $TMPDIR; ln -s {0} link; ln -s {1} links; mkdir -p a/b; ln -s {1} a/b/c; for i in {{1..60}}; do mkdir \
             d$i; echo x >d$i/file; done; chmod 0 d1?; mkdir -p deep; cd deep; for i in {{1..150}}; do mkdir -m 700 \
             long-name-0123456789 && cd -P long-name-0123456789; done 2>/dev/null; cd $TMPDIR; chmod 0 deep a/b; chmod 0 $TMPDIR",
            outside.display(),
            place.tmp.path().display(),
        );
        let ran = place.run(&["--private-tmp"], &script).assert_code(0);
        assert_eq!((ran.stderr.as_str(), &ran.report["not_removed"]), ("", &serde_json::json!([])), "{ran:#?}");
    }
}

#[test]
#[requires(other_users, sandbox)]
fn a_size_needs_a_mount_namespace() {
    for place in Place::both() {
        let ran = place.run(&["--private-tmp=1M"], "true").assert_code(125);
        for part in ["size of the private tmp", "1048576", "mount namespace", "give no size"] {
            assert!(ran.stderr.contains(part), "{ran:#?}");
        }
    }
}

#[test]
#[requires(other_users, sandbox)]
fn the_guard_removes_it_when_the_supervisor_is_killed() {
    for place in Place::both() {
        let (mut pinfold, tmp) = place.start();
        let parent = place.parent(&tmp);
        assert!(tmp.join("a").exists() || place.as_root);
        pinfold.kill().unwrap();
        pinfold.wait().unwrap();
        wait_for(|| (!parent.exists()).then_some(()));
    }
}

#[test]
#[requires(other_users, sandbox)]
fn a_later_pinfold_removes_it_when_both_are_killed() {
    for place in Place::both() {
        for sweep in [false, true] {
            let (mut pinfold, tmp) = place.start();
            let parent = place.parent(&tmp);
            let pid = pinfold.id() as i32;
            let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
            let guard = Pid::from_raw(children.trim().parse().unwrap()).unwrap();
            let ended = pidfd_open(guard, PidfdFlags::empty()).unwrap();
            kill_process(Pid::from_raw(pid).unwrap(), Signal::STOP).unwrap();
            kill_process(guard, Signal::KILL).unwrap();
            pinfold.kill().unwrap();
            pinfold.wait().unwrap();
            rustix::event::poll(&mut [rustix::event::PollFd::new(&ended, rustix::event::PollFlags::IN)], None).unwrap();
            assert!(parent.exists());
            if sweep {
                let mut words = place.words("sweep", &["--json"]);
                words.retain(|word| word != "--user" && (word != USER || !place.as_root));
                let mut run = Command::new(&words[0]);
                let output = run.args(&words[1..]).env("TMPDIR", place.tmp.path()).output().unwrap();
                let output = String::from_utf8(output.stdout).unwrap();
                assert!(output.contains(parent.to_str().unwrap()), "{output}");
            } else {
                place.run(&["--private-tmp"], "true").assert_code(0);
            }
            assert!(!parent.exists());
        }
    }
}

#[test]
#[requires(other_users, sandbox, user_namespaces)]
fn a_tmp_in_memory_is_measured() {
    for as_user in [["--user", USER].as_slice(), &[]] {
        let mut words = Vec::new();
        if as_user.is_empty() {
            words.extend(["setpriv", "--reuid", USER, "--regid", USER, "--clear-groups"]);
        }
        words.extend([PINFOLD, "sandbox", "--private-tmp=1M", "--report", "/dev/stderr"]);
        words.extend(as_user);
        words.extend(["--", "bash", "-c", "echo $TMPDIR; cd $TMPDIR; head -c 300000 /dev/zero >file"]);
        let mut run = Run::bare(words);
        run.command().current_dir("/").env("TMPDIR", "/nowhere");
        let ran = run.run().assert_code(0);
        assert_eq!(ran.stdout, "/tmp\n");
        let report: serde_json::Value = serde_json::from_str(&ran.stderr).unwrap();
        let bytes = &report["sandbox"]["private_tmp_bytes"];
        assert_eq!((&bytes["value"], &bytes["source"]), (&303_104.into(), &"statfs".into()), "{report:#}");
    }
}

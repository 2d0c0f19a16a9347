//! Promise 1, immediately after the return: everything that the job held is free, and its cgroup is gone.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::needs::need;
use crate::support::{PINFOLD, Run, has, own_cgroup, program, wait_for};

#[test]
#[requires(cgroup)]
fn the_port_is_free_and_the_leaf_is_gone_a_thousand_times() {
    const LEFT_SOMETHING: i32 = 123;
    // Only this test uses this address, so no other process can take the port meanwhile.
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let address = format!("127.77.{high}.{low}");
    let port = TcpListener::bind((&*address, 0)).unwrap().local_addr().unwrap().port();
    for time in 1..=1000 {
        let ran = Command::new(PINFOLD)
            .args(["run", "--quiet", "--fail-on-leftovers", "--settle", "0", "--report", "-", "--"])
            .arg(program("port"))
            .args([&address, &port.to_string()])
            .output()
            .unwrap();
        let listener = TcpListener::bind((&*address, port));
        let report: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap_or_default();
        let left = report["containment"]["cgroup"].as_str().map(|leaf| Path::new(leaf).exists());
        // A child of the main process still held the port when the main process exited.
        assert_eq!(ran.status.code(), Some(LEFT_SOMETHING), "run {time}: {ran:?}");
        assert!(listener.is_ok(), "run {time}: {listener:?}, {report:#}");
        assert_eq!(left, Some(false), "run {time}: {report:#}");
    }
}

/// A cgroup that was killed while it was empty.
struct KilledCgroup(PathBuf);

impl KilledCgroup {
    fn make(name: &str) -> std::io::Result<Self> {
        let path = own_cgroup().join(format!("{name}-{}", std::process::id()));
        fs::create_dir(&path)?;
        let made = Self(path);
        fs::write(made.0.join("cgroup.kill"), "1")?;
        Ok(made)
    }

    /// Starts the command in this cgroup, and so also everything that the command starts.
    fn hold(&self, command: &mut Command) {
        let procs = fs::OpenOptions::new().write(true).open(self.0.join("cgroup.procs")).unwrap();
        // SAFETY: makes one write(2) between fork and exec.
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(move || std::io::Write::write_all(&mut &procs, b"0"))
        };
    }

    /// Removes the cgroup, in which nothing is left. A process can keep it busy for a moment after its end (since Linux
    /// 6.19).
    fn remove(&self) {
        wait_for(|| fs::remove_dir(&self.0).ok());
    }
}

impl Drop for KilledCgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// The kernel's kill-sequence bug (6.14 to 7.2): the guard cannot clone into a leaf if the guard's own cgroup was ever
/// killed.
#[test]
#[requires(cgroup, root)]
fn inside_a_cgroup_that_was_killed_before() {
    let cgroup = KilledCgroup::make("killed-before");
    if !has(need("cgroup.kill", cgroup.is_ok(), "a kernel before 5.14, or a cgroup without it")) {
        return;
    }
    let cgroup = cgroup.unwrap();
    let affected = Command::new(program("kill_sequence")).arg(&cgroup.0).output().unwrap();
    let born = match &*affected.stdout {
        b"killed\n" => "joined",
        b"lived\n" => "cloned",
        _ => panic!("{affected:?}"),
    };

    let mut run = Run::new(["--", "true"]);
    cgroup.hold(run.command());
    let ran = run.run().assert_code(0);
    assert_eq!(ran.report["containment"]["born"], born, "{ran:#?}");
    let leaf = ran.report["containment"]["cgroup"].as_str().unwrap();
    assert_eq!(Path::new(leaf).parent(), Some(&*cgroup.0));

    // `exec` starts its command in the leaf of a job too.
    let name = format!("killed-before-{}", std::process::id());
    let mut job = Command::new(PINFOLD);
    job.args(["run", "--name", &name, "-q", "--", "sh", "-c", "echo up; exec sleep 999"]).stdout(Stdio::piped());
    cgroup.hold(&mut job);
    let mut job = job.spawn().unwrap();
    BufReader::new(job.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
    let script = "cat /proc/self/cgroup; exit 7";
    let inside = Command::new(PINFOLD).args(["exec", &name, "--", "sh", "-c", script]).output().unwrap();
    let main = Command::new(PINFOLD).args(["exec", &name, "--", "cat", "/no/such/file"]).output().unwrap();
    let stopped = Command::new(PINFOLD).args(["kill", &name]).output().unwrap();
    job.wait().unwrap();
    assert_eq!(inside.status.code(), Some(7), "{inside:?}");
    let below = cgroup.0.file_name().unwrap().to_str().unwrap();
    assert!(String::from_utf8_lossy(&inside.stdout).contains(below), "{inside:?}");
    assert_eq!(main.status.code(), Some(1), "{main:?}");
    assert_eq!(stopped.status.code(), Some(0), "{stopped:?}");

    // A job that is started by the fallback is contained as well.
    let escape = program("escape_kin");
    let mut run = Run::new(["--".as_ref(), escape.as_path(), "exit".as_ref(), "double-fork".as_ref()]);
    cgroup.hold(run.command());
    let ran = run.run().assert_code(0);
    assert_eq!(ran.report["containment"]["born"], born, "{ran:#?}");
    assert_eq!(ran.report["leftovers"]["count"], 1, "{ran:#?}");
    cgroup.remove();
}

/// A job can stop its guard, which is its parent. No other job may have to wait for that.
#[test]
#[each_containment]
fn a_guard_that_the_job_has_stopped(containment: &str) {
    let run = |timeout: &str, script: &str| {
        let options = ["--containment", containment, "--timeout", timeout, "--", "sh", "-c", script];
        Run::new(options).run()
    };
    let ran = run("1h", "kill -STOP $PPID; exit 3").assert_code(3);
    assert_eq!(ran.report["reason"], "exited", "{ran:#?}");
    let ran = run("500ms", "kill -STOP $PPID; setsid sleep 1000 & exec sleep 1000").assert_code(124);
    assert_eq!(
        (&ran.report["reason"], &ran.report["main"]["signalled"]["name"]),
        (&"deadline".into(), &"SIGTERM".into()),
        "{ran:#?}"
    );
}

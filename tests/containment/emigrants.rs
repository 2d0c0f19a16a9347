//! Processes that leave the job's cgroup: to which of several jobs they belong, and what pinfold reports where it may
//! not kill them.

use std::os::fd::OwnedFd;
use std::time::Duration;

use pinfold::{Command, Job, Supervisor};

use crate::support::needs::need;
use crate::support::own_cgroup::OwnCgroup;
use crate::support::{PINFOLD, PublicCopy, Run, Scratch, has, own_cgroup, program, wait_for};

/// Returns whether the process exists and is not a zombie.
fn lives(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

/// A job that sends one more process out of its cgroup for each line that it reads, and prints the pid of that process.
struct Emigration {
    job: Job,
    give: std::io::PipeWriter,
    said: std::io::PipeReader,
}

impl Emigration {
    async fn start(supervisor: &Supervisor) -> Self {
        let script = "while read -r line; do sleep 999 & echo $! >$0/cgroup.procs; echo $!; done";
        let ((input, give), (said, output)) = (std::io::pipe().unwrap(), std::io::pipe().unwrap());
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg(own_cgroup()).stdin(OwnedFd::from(input)).stdout(OwnedFd::from(output));
        Self { job: supervisor.spawn(&command).await.unwrap(), give, said }
    }

    async fn emigrate(&mut self) -> i32 {
        std::io::Write::write_all(&mut self.give, b"go\n").unwrap();
        let mut said = self.said.try_clone().unwrap();
        // Reads in another thread, so that the runtime stays free for the job.
        let read = move || {
            let (mut line, mut byte) = (String::new(), [0]);
            while std::io::Read::read(&mut said, &mut byte).unwrap() == 1 && byte != *b"\n" {
                line.push(byte[0].into());
            }
            line
        };
        tokio::task::spawn_blocking(read).await.unwrap().parse().unwrap()
    }

    /// Ends the job and returns the emigrants that ended with it.
    async fn end(mut self) -> Vec<i32> {
        drop(self.give);
        let report = self.job.wait().await.unwrap();
        assert_eq!((report.exit_code, report.leftovers.len(), report.is_gone()), (0, 0, true), "{report:#?}");
        let listed: Vec<_> = report.emigrants.processes.iter().map(|process| process.pid).collect();
        assert_eq!(report.emigrants.count, listed.len() as u64, "{report:#?}");
        listed
    }
}

/// Waits for the next clock tick. The kernel reports start times in ticks, so two processes that start within one tick
/// have no known order.
fn next_tick() {
    let begun = std::time::Instant::now();
    wait_for(|| (begun.elapsed() > Duration::from_millis(30)).then_some(()));
}

/// An emigrant that left while several jobs were alive may belong to any of these. It ends with the last of them, and
/// not with a job that started later.
#[test]
#[requires(cgroup, root)]
fn an_emigrant_of_several_jobs_ends_with_the_last_of_them() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let supervisor = Supervisor::builder().guard_program(PINFOLD).start().await.unwrap();
        let mut first = Emigration::start(&supervisor).await;
        let early = first.emigrate().await;
        next_tick();
        let second = Emigration::start(&supervisor).await;
        let late = first.emigrate().await;
        next_tick();
        let third = Emigration::start(&supervisor).await;
        // The emigrant that existed before the second job can only belong to the first one.
        assert_eq!(first.end().await, [early]);
        assert!(!lives(early) && lives(late));
        assert_eq!(third.end().await, [0; 0]);
        assert!(lives(late), "it existed before the third job, so it must live");
        assert_eq!(second.end().await, [late]);
        assert!(!lives(late));
        supervisor.close().await;
    });
}

/// The emigrant's guard is killed. The emigrant then becomes a descendant of the outer guard.
#[test]
#[requires(cgroup, root)]
fn an_emigrant_of_a_killed_guard_is_ended() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let supervisor = Supervisor::builder().guard_program(PINFOLD).start().await.unwrap();
        let mut emigration = Emigration::start(&supervisor).await;
        let emigrant = emigration.emigrate().await;
        let status = std::fs::read_to_string(format!("/proc/{}/status", emigration.job.pid())).unwrap();
        let guard = status.lines().find_map(|line| line.strip_prefix("PPid:\t")).unwrap().parse().unwrap();
        // SAFETY: this is a guard of ours, which is not reaped while its job runs.
        #[allow(unsafe_code)]
        let killed = unsafe { libc::kill(guard, libc::SIGKILL) };
        assert_eq!(killed, 0);
        let report = emigration.job.wait().await.unwrap();
        assert_eq!((report.reason, report.is_gone()), (pinfold::report::Reason::GuardLost, true), "{report:#?}");
        assert!(!lives(emigrant));
        supervisor.close().await;
    });
}

/// What `su` and pam_systemd do with an ordinary user's job: the process leaves the cgroup and runs as root. pinfold
/// reports it by name, and not as killed.
#[test]
#[requires(cgroup, root, program("setpriv"), program("unshare"))]
fn an_emigrant_that_may_not_be_killed_is_reported() {
    let (directory, report) = (Scratch::directory("suid"), Scratch::new("report"));
    let suid = directory.path().join("become-root");
    std::fs::copy(program("become_root"), &suid).unwrap();
    std::fs::set_permissions(&suid, std::os::unix::fs::PermissionsExt::from_mode(0o4755)).unwrap();
    let (pinfold, given) = (PublicCopy::new("emigrant"), OwnCgroup::of(65534));
    // The end of the PID namespace ends the process that pinfold cannot end.
    let script = format!(
        r#"{}
        exec 30>"$REPORT"
        setpriv --reuid=65534 --regid=65534 --clear-groups "$PINFOLD" run --require cgroup --report fd:30 \
            --timeout 300ms --grace 100ms -- sh -c '"$@" & wait' sh "$SUID" "$OUTSIDE""#,
        given.enter()
    );
    let mut run = Run::bare(["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", &script]);
    run.command()
        .env("REPORT", report.path())
        .env("PINFOLD", pinfold.path())
        .env("SUID", &suid)
        .env("OUTSIDE", own_cgroup().join("cgroup.procs"));
    let ran = run.run();
    if ran.stdout != "in place\n" {
        has(need("suid", false, "the file system of the target directory is mounted nosuid"));
        return;
    }
    let reported: serde_json::Value = serde_json::from_str(&report.text()).unwrap();
    assert_eq!(ran.code, 122, "{ran:#?}");
    let (emigrants, unkillable) = (&reported["emigrants"], &reported["unkillable"]);
    assert_eq!((&emigrants["count"], &unkillable["count"]), (&1.into(), &1.into()), "{reported:#}");
    let (emigrant, left) = (&emigrants["processes"][0], &unkillable["processes"][0]);
    assert_eq!((&emigrant["pid"], &emigrant["command_line"]), (&left["pid"], &left["command_line"]), "{reported:#}");
    assert!(left["command_line"].as_str().unwrap().contains("become-root"), "{reported:#}");
    ran.assert_names(left["pid"].to_string());
}

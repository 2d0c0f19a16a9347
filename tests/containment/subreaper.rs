//! Containment without a cgroup: pinfold chooses it where no cgroup is available, it is as strong as possible, and the
//! report states its limits.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use pinfold::report::{ContainmentKind, MainEnd, Reason};
use pinfold::{Report, Supervisor};

use crate::support::needs::{Need, need};
use crate::support::{Canary, PINFOLD, Run, Scratch, has, program};

/// Builds a job that escapes in three ways, and prints "ready" when it has.
fn tree() -> std::path::PathBuf {
    program("tree")
}

#[test]
fn it_can_be_requested() {
    let canary = Canary::new();
    let options = ["--containment", "subreaper", "--timeout", "300ms", "--grace", "200ms"];
    let mut run = Run::new(options);
    run.command().arg(tree());
    let ran = run.run().assert_code(124);
    assert_eq!(ran.report["containment"]["kind"], "subreaper");
    assert_eq!(ran.report["containment"]["cgroup"], serde_json::Value::Null);
    assert_eq!((&ran.report["killed"], &ran.report["unkillable"]["count"]), (&true.into(), &0.into()), "{ran:#?}");
    // The usage covers all processes, including orphans, as their own rusage.
    let source = ran.report["usage"]["cpu_user_microseconds"]["source"].as_str().unwrap();
    assert!(source.contains("reaped"), "{source}");
    let ran = Run::new(["--containment", "subreaper", "--require", "cgroup", "true"]).run();
    assert!(ran.report.is_null() || ran.report["containment"]["kind"] == "cgroup", "{ran:#?}");
    canary.assert_alive();
}

/// Where no cgroup is available, pinfold chooses it, and the report contains the reason.
#[test]
#[requires(root, program("unshare"))]
fn it_is_chosen_where_there_is_no_cgroup() {
    let hide = "mount -t tmpfs none /sys/fs/cgroup";
    let read_only =
        "for point in $(findmnt -rn -t cgroup2 -o TARGET); do mount -o remount,bind,ro $point || exit 9; done";
    for (name, set_up) in [("absent", hide), ("read-only", read_only)] {
        let report = Scratch::new("report");
        let script = format!("{set_up}\nexec \"$@\"");
        let words = ["unshare", "--mount", "sh", "-c", &script, "sh", PINFOLD, "run", "--report"].map(Into::into);
        let rest = ["--timeout", "300ms", "--grace", "200ms", "--"].map(Into::into);
        let words = words.into_iter().chain([report.path().into()]).chain(rest).chain([tree()]);
        let ran = Run::bare(words).run().assert_code(124);
        let reported: serde_json::Value = serde_json::from_str(&report.text()).unwrap();
        assert_eq!(reported["containment"]["kind"], "subreaper", "{name}: {ran:#?}");
        let refused = reported["containment"]["refused"].as_array().unwrap();
        assert!(!refused.is_empty() && refused.iter().all(|refusal| refusal["advice"] != ""), "{name}: {refused:?}");
        // With --require cgroup, the missing cgroup is an error.
        let words = ["unshare", "--mount", "sh", "-c", &script, "sh", PINFOLD, "run", "--require", "cgroup", "true"];
        let ran = Run::bare(words).run().assert_code(125);
        // The message lists each attempt in a line of its own.
        assert!(ran.stderr.lines().count() > 1, "{ran:#?}");
    }
}

/// Without /proc no process can be found: pinfold reports that before anything starts.
#[test]
#[requires(root, program("unshare"))]
fn it_needs_proc() {
    let started = Scratch::new("started");
    let script = "mount -t tmpfs none /proc\nexec \"$@\"";
    let words = ["unshare", "--mount", "sh", "-c", script, "sh", PINFOLD, "run", "--containment", "subreaper", "touch"];
    let ran = Run::bare(words.map(Into::into).into_iter().chain([started.path().to_owned()])).run().assert_code(125);
    ran.assert_names("/proc");
    assert!(!started.path().exists());
}

/// As an ordinary user without write access to any cgroup.
#[test]
#[requires(root, program("setpriv"))]
fn an_ordinary_user() {
    let user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let rest = [PINFOLD, "run", "--timeout", "300ms", "--grace", "200ms", "--"];
    let words = user.into_iter().chain(rest).map(Into::into).chain([tree()]);
    Run::bare(words).run().assert_code(124);
}

/// pinfold names each process that it may not signal.
#[test]
#[requires(root, program("setpriv"), program("unshare"))]
fn processes_of_another_user_are_reported() {
    let directory = Scratch::directory("suid");
    let suid = directory.path().join("become-root");
    std::fs::copy(program("become_root"), &suid).unwrap();
    std::fs::set_permissions(&suid, std::fs::Permissions::from_mode(0o4755)).unwrap();
    let report = Scratch::new("report");
    std::fs::write(report.path(), "").unwrap();
    std::fs::set_permissions(report.path(), std::fs::Permissions::from_mode(0o666)).unwrap();
    // The end of the PID namespace ends the process that pinfold cannot end.
    let words = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let rest = [PINFOLD, "run", "--containment", "subreaper", "--timeout", "300ms", "--grace", "100ms", "--report"];
    let words = words.into_iter().chain(user).chain(rest).map(Into::into).chain([report.path().into(), suid]);
    let ran = Run::bare(words).run();
    let reported: serde_json::Value = serde_json::from_str(&report.text()).unwrap();
    if ran.stdout != "in place\n" {
        has(need("suid", false, "the file system of the target directory is mounted nosuid"));
        return;
    }
    assert_eq!(reported["unkillable"]["count"], 1, "{reported:#}");
    let line = reported["unkillable"]["processes"][0]["command_line"].as_str().unwrap();
    assert_eq!((ran.code, &reported["exit_code"]), (122, &124.into()), "{reported:#}");
    // The report shows the executed command line, not only the name in brackets.
    assert!(line.ends_with("/become-root"), "{reported:#}");
    assert_eq!(reported["unkillable"]["processes"][0]["user"], 0, "{reported:#}");
    ran.assert_names("/become-root");
    ran.assert_names(reported["unkillable"]["processes"][0]["pid"].to_string());
}

/// An ordinary user's fork storm under a limit ends at the first attempt; `PINFOLD_STORMS` repeats it.
#[test]
#[requires(root, program("setpriv"))]
fn a_fork_storm() {
    let storms = std::env::var("PINFOLD_STORMS").map_or(5, |storms| storms.parse().unwrap());
    let canary = Canary::new();
    for _ in 0..storms {
        let limited = r#"ulimit -u 500; exec setpriv --reuid=65532 --regid=65532 --clear-groups "$@""#;
        let options = ["--containment", "subreaper", "--timeout", "300ms", "--grace", "0"];
        let storm = ["trap '' TERM; :(){ while :; do (:) & (setsid sh -c : &) ; done; }; : & : & : & :"];
        let mut run = Run::bare(["bash", "-c", limited, "bash", PINFOLD, "run", "--report", "fd:30"]);
        let report = Scratch::new("report");
        let file = std::fs::File::create(report.path()).unwrap();
        hand_down(run.command(), file, 30);
        run.command().args(options).args(["bash", "-c"]).args(storm);
        run.run().assert_code(124);
        let reported: serde_json::Value = serde_json::from_str(&report.text()).unwrap();
        let at = |phase: &str| reported["phases"][phase].as_f64().unwrap();
        assert!(at("gone") - at("killing") < 1.0, "{reported:#}");
        assert_eq!(reported["unkillable"]["count"], 0, "{reported:#}");
    }
    canary.assert_alive();
}

/// Each process lives for less than 0.1 ms and starts a child that continues. All are ended within a second;
/// `PINFOLD_RELAYS` repeats each kind.
#[test]
fn relays() {
    let rounds = std::env::var("PINFOLD_RELAYS").map_or(5, |rounds| rounds.parse().unwrap());
    let canary = Canary::new();
    for mode in ["relay", "relays-in-sessions", "relay-in-shared-memory"] {
        let mut longest: f64 = 0.0;
        for _ in 0..rounds {
            let mut run = Run::new(["--containment", "subreaper", "--timeout", "100ms", "--grace", "0"]);
            run.command().arg(program("escape_kin")).args(["stay", mode]);
            let ran = run.run().assert_code(124);
            let at = |phase: &str| ran.report["phases"][phase].as_f64();
            // A relay has ended before SIGKILL if its last process received SIGTERM before it could start the next one.
            let begun = at("killing").or(at("stopping")).expect("pinfold stopped the job");
            let time = at("gone").expect("the job is gone") - begun;
            longest = longest.max(time);
            assert!(time < 1.0 * crate::support::slowness(), "{mode}: {ran:#?}");
            assert_eq!(ran.report["unkillable"]["count"], 0, "{mode}: {ran:#?}");
        }
        println!("{mode}: {rounds} times, ended within {:.1} ms", longest * 1e3);
    }
    canary.assert_alive();
}

/// Passes `file` to a command as descriptor `number`.
fn hand_down(command: &mut Command, file: std::fs::File, number: i32) {
    use std::os::fd::AsRawFd;
    use std::os::unix::process::CommandExt;
    // SAFETY: makes one system call between fork and exec.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(move || match libc::dup2(file.as_raw_fd(), number) {
            -1 => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        })
    };
}

/// A PID namespace with its own `pid_max`.
fn pid_max_of_a_namespace() -> Need {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    need("pid_max", version >= (6, 14), "before Linux 6.14 pid_max is the whole machine's")
}

/// The kernel reuses pids and process groups while jobs are stopped and killed: pinfold never signals a process that
/// got such a pid. `PINFOLD_RECYCLED` is the number of rounds.
#[test]
#[requires(root, program("unshare"), pid_max_of_a_namespace)]
fn recycled_pids_are_safe() {
    let rounds = std::env::var("PINFOLD_RECYCLED").map_or(200, |rounds| rounds.parse().unwrap());
    let script = format!(
        r#"echo 400 >/proc/sys/kernel/pid_max || exit 9
        mkfifo "$FIFO"; "$STRANGER" <"$FIFO" & exec 9>"$FIFO"
        round=0
        while [ $round -lt {rounds} ]; do
            case $((round % 4)) in
                0) options='--containment subreaper --timeout 4ms --grace 0' ;;
                1) options='--containment subreaper --timeout 3ms --grace 2ms' ;;
                2) options='--timeout 3ms --grace 2ms' ;;
                3) options='--containment subreaper --timeout 5ms --signal-to main --grace 1ms' ;;
            esac
            "$PINFOLD" run -q $options -- "$RACE" storm >/dev/null
            code=$?; [ $code = 124 ] || {{ echo "round $round: $code"; exit 1; }}
            round=$((round + 1))
        done
        exec 9>&-; wait $!"#
    );
    let directory = Scratch::directory("recycled");
    let mut run = Run::bare(["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", &script]);
    run.command()
        .env("FIFO", directory.path().join("fifo"))
        .env("STRANGER", program("stranger"))
        .env("RACE", program("race"))
        .env("PINFOLD", PINFOLD);
    let ran = run.run().assert_code(0);
    let strangers: u64 = ran.stdout.trim().parse().unwrap_or_else(|_| panic!("{ran:#?}"));
    // Many pids were reused.
    assert!(strangers > 400, "{ran:#?}");
    println!("{rounds} rounds, {strangers} strangers");
}

/// A library host, which executes a guard and an outer guard around it for each job.
mod library {
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    async fn supervisor() -> Supervisor {
        let builder = Supervisor::builder().containment(ContainmentKind::Subreaper).guard_program(PINFOLD);
        builder.start().await.unwrap()
    }

    fn parent_of(pid: i32) -> i32 {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        status.lines().find_map(|line| line.strip_prefix("PPid:\t")).unwrap().parse().unwrap()
    }

    /// Starts a job, and returns when its tree runs.
    async fn ready(supervisor: &Supervisor) -> (pinfold::Job, std::io::PipeReader) {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut command = pinfold::Command::new(tree());
        command.stdout(writer).grace(std::time::Duration::ZERO);
        let job = supervisor.spawn(&command).await.unwrap();
        let mut said = [0; 6];
        std::io::Read::read_exact(&mut reader, &mut said).unwrap();
        assert_eq!(&said, b"ready\n");
        (job, reader)
    }

    /// Checks that no process of the job holds the pipe any more.
    async fn assert_ended(mut pipe: std::io::PipeReader) {
        let end = tokio::task::spawn_blocking(move || std::io::Read::read(&mut pipe, &mut [0]).unwrap());
        assert_eq!(end.await.unwrap(), 0);
    }

    fn assert_gone(report: &Report) {
        assert!(report.is_gone() && report.error.is_none(), "{report:#?}");
        assert_eq!((report.containment.kind, &report.containment.cgroup), (Some(ContainmentKind::Subreaper), &None));
    }

    #[test]
    fn a_guard_for_each_job() {
        runtime().block_on(async {
            let supervisor = supervisor().await;
            let (mut first, first_pipe) = ready(&supervisor).await;
            let (mut second, second_pipe) = ready(&supervisor).await;
            assert_ne!(parent_of(first.pid()), parent_of(second.pid()));
            first.start_kill().unwrap();
            assert_gone(&first.wait().await.unwrap());
            assert_ended(first_pipe).await;
            second.start_stop().unwrap();
            let report = second.wait().await.unwrap();
            assert_gone(&report);
            assert_eq!((report.reason, report.killed), (Reason::Stopped, true));
            assert_ended(second_pipe).await;
            let mut job = supervisor.spawn(pinfold::Command::new("sh").args(["-c", "exit 7"])).await.unwrap();
            let report = job.wait().await.unwrap();
            assert_eq!((&report.main, report.exit_code), (&Some(MainEnd::Exited(7)), 7));
            supervisor.close().await;
        });
    }

    /// Either guard is killed: the other one ends the job.
    #[test]
    fn a_killed_guard() {
        for outer in [false, true] {
            runtime().block_on(async {
                let supervisor = supervisor().await;
                let (mut job, pipe) = ready(&supervisor).await;
                let mut guard = parent_of(job.pid());
                if outer {
                    guard = parent_of(guard);
                }
                // SAFETY: signals a guard of ours, which is not reaped while its job runs.
                #[allow(unsafe_code)]
                let killed = unsafe { libc::kill(guard, libc::SIGKILL) };
                assert_eq!(killed, 0);
                let report = job.wait().await.unwrap();
                assert_eq!(report.reason, Reason::GuardLost);
                assert_gone(&report);
                assert_ended(pipe).await;
                supervisor.close().await;
            });
        }
    }

    #[test]
    fn closed_while_a_job_runs() {
        runtime().block_on(async {
            let supervisor = supervisor().await;
            let (job, pipe) = ready(&supervisor).await;
            supervisor.close().await;
            assert_ended(pipe).await;
            drop(job);
        });
    }

    #[test]
    fn dropped() {
        runtime().block_on(async {
            let supervisor = supervisor().await;
            let (job, pipe) = ready(&supervisor).await;
            let guard = rustix::process::Pid::from_raw(parent_of(job.pid())).unwrap();
            let guard = rustix::process::pidfd_open(guard, rustix::process::PidfdFlags::empty()).unwrap();
            drop(job);
            assert_ended(pipe).await;
            // The handle that could report the end is dropped. The guard ends only after all processes of the job.
            let ended = move || {
                let mut fds = [rustix::event::PollFd::new(&guard, rustix::event::PollFlags::IN)];
                rustix::event::poll(&mut fds, None).unwrap()
            };
            assert_eq!(tokio::task::spawn_blocking(ended).await.unwrap(), 1);
            supervisor.close().await;
        });
    }
}

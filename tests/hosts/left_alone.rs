//! The host is left alone (promise 5): everything that a host can observe about itself is the same with jobs and
//! without.

use std::path::PathBuf;

use pinfold::Supervisor;
use pinfold::report::MainEnd;

use crate::inside::{descriptors, guard_of, runtime, talker, wait_any};
use crate::outside::children;

/// The state that a host can observe and that must not change.
#[derive(Debug, PartialEq)]
struct State {
    /// Signals pending, blocked, ignored and caught; umask, threads, identity.
    status: Vec<String>,
    actions: Vec<(usize, i32)>,
    subreaper: i32,
    death_signal: i32,
    environment: Vec<(std::ffi::OsString, std::ffi::OsString)>,
    directory: PathBuf,
    group_and_session: (i32, i32),
    limits: String,
    cgroups: String,
    children: Vec<i32>,
}

impl State {
    fn now() -> Self {
        let read = |file: &str| std::fs::read_to_string(file).unwrap();
        let kept = ["Sig", "Shd", "Umask", "Threads", "Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp"];
        let status = read("/proc/thread-self/status");
        let status = status.lines().filter(|line| kept.iter().any(|kept| line.starts_with(kept)));
        // SAFETY: each call only fills in the structure that it receives.
        unsafe {
            let actions = (1..65).filter(|number| !(32..34).contains(number)).map(|number| {
                let mut action: libc::sigaction = std::mem::zeroed();
                assert_eq!(libc::sigaction(number, std::ptr::null(), &raw mut action), 0);
                (action.sa_sigaction, action.sa_flags)
            });
            let actions = actions.collect();
            let (mut subreaper, mut death_signal) = (-1, -1);
            assert_eq!(libc::prctl(libc::PR_GET_CHILD_SUBREAPER, &raw mut subreaper), 0);
            assert_eq!(libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut death_signal), 0);
            Self {
                status: status.filter(|line| !line.starts_with("SigQ")).map(str::to_owned).collect(),
                actions,
                subreaper,
                death_signal,
                environment: std::env::vars_os().collect(),
                directory: std::env::current_dir().unwrap(),
                group_and_session: (libc::getpgid(0), libc::getsid(0)),
                limits: read("/proc/self/limits"),
                cgroups: read("/proc/self/cgroup"),
                children: children(),
            }
        }
    }
}

/// Forks a child of the host itself, which exits at once.
fn fork_own(code: i32) -> i32 {
    // SAFETY: there is one thread, and the child only exits.
    match unsafe { libc::fork() } {
        // SAFETY: ends this process.
        0 => unsafe { libc::_exit(code) },
        child => child,
    }
}

pub fn left_alone() {
    let runtime = runtime();
    let (state, before) = (State::now(), descriptors());
    for _ in 0..2 {
        let early = fork_own(11);
        let with_child = State { children: vec![early], ..State::now() };
        // Its end is visible only to the code that waits for it.
        let (command, mut talker) = talker();
        runtime.block_on(async {
            let supervisor = Supervisor::start().await.unwrap();
            let mut job = supervisor.spawn(&command).await.unwrap();
            let guard = guard_of(&job);
            assert_eq!(
                std::fs::read_link(format!("/proc/{guard}/exe")).unwrap(),
                std::env::current_exe().unwrap(),
                "the guard program is the host's own"
            );
            talker.assert_answers();
            assert_eq!(State::now(), with_child);
            let late = fork_own(12);
            drop(talker);
            // The command still holds the job's own input.
            drop(command);
            assert_eq!(job.wait().await.unwrap().exit_code, 7);
            assert_eq!(children(), [early, late]);
            supervisor.close().await;
            let mut ended = [wait_any().unwrap(), wait_any().unwrap()];
            ended.sort_by_key(|(_, code)| *code);
            assert_eq!(ended, [(early, 11), (late, 12)]);
            assert_eq!(wait_any(), None, "the host has no child that it did not make itself");
        });
        assert_eq!(State::now(), state);
        assert_eq!(descriptors(), before);
    }
}

extern "C" fn handler(_: i32) {}

pub fn left_alone_with_unusual_signals() {
    // SAFETY: sets signal actions and a mask of this process, which has one thread.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::signal(libc::SIGUSR1, handler as *const () as usize);
        let mut blocked: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&raw mut blocked, libc::SIGTERM);
        libc::sigaddset(&raw mut blocked, libc::SIGRTMIN() + 1);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const blocked, std::ptr::null_mut());
    }
    let runtime = runtime();
    let (state, before) = (State::now(), descriptors());
    let (command, mut talker) = talker();
    runtime.block_on(async {
        let supervisor = Supervisor::start().await.unwrap();
        let mut job = supervisor.spawn(&command).await.unwrap();
        talker.assert_answers();
        assert_eq!(State::now(), state);
        drop(talker);
        drop(command);
        assert_eq!(job.wait().await.unwrap().main, Some(MainEnd::Exited(7)), "although SIGCHLD is ignored");
        supervisor.close().await;
    });
    assert_eq!(State::now(), state);
    assert_eq!(descriptors(), before);
}

//! The part of each case that runs outside the host: it acts on the host and observes it.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::support::{self, Canary};
use crate::{BOUND, HOST};

/// Starts the host of the running test, with no other guard program than itself.
fn start_host() -> Child {
    std::process::Command::new(std::env::current_exe().unwrap())
        .args([HOST, support::harness::running()])
        .env("PATH", "/usr/bin:/bin")
        .env_remove("PINFOLD_GUARD")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

pub fn ends_well() {
    let canary = Canary::new();
    let mut host = start_host();
    let mut said = String::new();
    host.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    let status = host.wait().unwrap();
    assert!(status.success(), "{status}: {said}");
    // The host has closed its supervisors, so nothing needs to be waited for.
    gone(host.id(), &[canary.pid() as i32]).unwrap();
    canary.assert_alive();
}

pub fn killed_host() {
    let canary = Canary::new();
    for _ in 0..5 {
        let mut host = start_host();
        ready(&mut host);
        kill(host.id() as i32);
        gone(host.id(), &[canary.pid() as i32]).unwrap();
    }
    canary.assert_alive();
}

/// Kills the host at any instant of its start, and of the start of its guard.
pub fn killed_early() {
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
    let seed = u64::from(nanos);
    println!("seed {seed}");
    for round in 0..30 {
        // The instants are evenly spread, and each run begins at a different point.
        let delay = Duration::from_micros((seed / 1000 + round * 1009) % 30_000);
        let mut host = start_host();
        let begun = Instant::now();
        while begun.elapsed() < delay {
            std::hint::spin_loop();
        }
        kill(host.id() as i32);
        host.wait().unwrap();
        gone(host.id(), &[]).unwrap_or_else(|left| panic!("killed {} us after its start: {left}", delay.as_micros()));
    }
}

/// The copy keeps the socket to the guard and the lock of the base open.
pub fn killed_host_with_a_copy() {
    let mut host = start_host();
    let copy = ready(&mut host).strip_prefix("copy ").unwrap().parse().unwrap();
    kill(host.id() as i32);
    gone(host.id(), &[copy]).unwrap();
    // The copy is orphaned, so it is our child by now.
    kill(copy);
    gone(host.id(), &[]).unwrap();
}

/// Returns the host's first line, which the host writes when it has reached the state that the case needs.
fn ready(host: &mut Child) -> String {
    let mut line = String::new();
    BufReader::new(host.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_ne!(line, "", "the host ended early");
    line.trim_end().to_owned()
}

pub fn kill(child: i32) {
    // SAFETY: signals our own child, not reaped yet.
    assert_eq!(unsafe { libc::kill(child, libc::SIGKILL) }, 0);
}

/// Checks that within the bound every child of ours is gone, except those in `stay`, and every directory of that host
/// too.
fn gone(host: u32, stay: &[i32]) -> Result<(), String> {
    let begun = Instant::now();
    let prefix = format!("pinfold-{host}-");
    loop {
        let mut children = children();
        children.retain(|child| !stay.contains(child));
        for &child in &children {
            // SAFETY: reaps our own child. The standard library does not know this child, or has already waited for it.
            unsafe { libc::waitpid(child, std::ptr::null_mut(), libc::__WALL | libc::WNOHANG) };
        }
        let directories: Vec<PathBuf> = std::fs::read_dir(support::own_cgroup())
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
            .map(|entry| entry.path())
            .collect();
        if children.is_empty() && directories.is_empty() {
            return Ok(());
        }
        if begun.elapsed() > BOUND {
            return Err(format!("left after 1 s: children {children:?}, directories {directories:?}"));
        }
        std::thread::yield_now();
    }
}

/// Returns the children of this process, which has one thread.
pub fn children() -> Vec<i32> {
    let text = std::fs::read_to_string("/proc/thread-self/children").unwrap();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// Ends all children, so that a failed case leaves nothing either.
pub fn end_children() {
    loop {
        let children = children();
        if children.is_empty() {
            return;
        }
        for child in children {
            kill(child);
            // SAFETY: waits for our own child, which is ending.
            unsafe { libc::waitpid(child, std::ptr::null_mut(), libc::__WALL) };
        }
    }
}

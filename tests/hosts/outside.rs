//! What is done to the hosts, and looked at, from outside.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::support::{self, Canary};
use crate::{BOUND, CASE, HOST};

/// The host of the case that runs, without any other guard program than itself.
fn start_host() -> Child {
    std::process::Command::new(std::env::current_exe().unwrap())
        .args([HOST, *CASE.lock().unwrap()])
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
    // The host has closed its supervisors, so there is nothing to wait for.
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

/// At any instant of its start, and of its guard's.
pub fn killed_early() {
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
    let seed = u64::from(nanos);
    println!("seed {seed}");
    for round in 0..30 {
        // Evenly spread, from a point that is another one in each run.
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
    // Orphaned and so our child by now.
    kill(copy);
    gone(host.id(), &[]).unwrap();
}

/// The host's first line, which it writes when it is where the case wants it.
fn ready(host: &mut Child) -> String {
    let mut line = String::new();
    BufReader::new(host.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_ne!(line, "", "the host ended early");
    line.trim_end().to_owned()
}

pub fn kill(child: i32) {
    // SAFETY: our own child, not reaped yet.
    assert_eq!(unsafe { libc::kill(child, libc::SIGKILL) }, 0);
}

/// Within the bound every child of ours is gone but those that `stay`, and so is every directory of that host.
fn gone(host: u32, stay: &[i32]) -> Result<(), String> {
    let begun = Instant::now();
    let prefix = format!("pinfold-{host}-");
    loop {
        let mut children = children();
        children.retain(|child| !stay.contains(child));
        for &child in &children {
            // SAFETY: reaps our own child; the standard library does not know of it, or has been told by now.
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

/// The children of this process, which has one thread.
pub fn children() -> Vec<i32> {
    let text = std::fs::read_to_string("/proc/thread-self/children").unwrap();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// A case that failed leaves nothing either.
pub fn end_children() {
    loop {
        let children = children();
        if children.is_empty() {
            return;
        }
        for child in children {
            kill(child);
            // SAFETY: our own child, which is ending.
            unsafe { libc::waitpid(child, std::ptr::null_mut(), libc::__WALL) };
        }
    }
}

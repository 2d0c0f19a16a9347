//! A host changes after its supervisor was started: its rights, other attributes that exec inherits, or its
//! descriptors.

use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pinfold::report::ContainmentKind;
use pinfold::{Command, Error, Stdio, Supervisor};

use crate::support::Scratch;
use crate::support::alone::{alone, case};
use crate::support::host::shell;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Returns what a job prints, or why it was not started.
async fn said(supervisor: &Supervisor, command: &mut Command) -> pinfold::Result<String> {
    let mut job = supervisor.spawn(command.stdin(Stdio::bytes("")).stdout(Stdio::piped())).await?;
    let output = job.wait_with_output().await?;
    assert_eq!(output.status.exit_code, 0);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

const NOBODY: u32 = 65534;

/// Changes the rights of this process in one way.
fn change_rights(how: &str) {
    // SAFETY: each call changes this process only, and reads memory that outlives the call.
    let done = unsafe {
        match how {
            "user" => libc::setresuid(NOBODY, NOBODY, NOBODY),
            "effective user" => libc::seteuid(NOBODY),
            "group" => libc::setresgid(NOBODY, NOBODY, NOBODY),
            "groups" => libc::setgroups(1, &NOBODY),
            "root directory" => libc::chroot(c"/proc".as_ptr()),
            "capabilities" => {
                let header = [0x2008_0522_u32, 0];
                libc::syscall(libc::SYS_capset, header.as_ptr(), [[0_u32; 3]; 2].as_ptr()) as i32
            }
            other => panic!("{other}"),
        }
    };
    assert_eq!(done, 0, "{how}");
}

/// The guard still has the old rights, and so would its jobs.
#[test]
#[requires(root, cgroup)]
fn a_host_that_gave_up_rights_starts_no_job_with_the_old_ones() {
    if let Some(case) = case() {
        let (how, kind) = case.split_once(',').unwrap();
        runtime().block_on(async {
            let kind = if kind == "cgroup" { ContainmentKind::Cgroup } else { ContainmentKind::Subreaper };
            let supervisor = Supervisor::builder().containment(kind).start().await.unwrap();
            let script = "id -u; id -g; grep -E '^(CapEff|Groups):' /proc/self/status";
            let before = said(&supervisor, &mut shell(script)).await.unwrap();
            change_rights(how);
            match said(&supervisor, &mut shell(script)).await {
                Ok(after) => {
                    let alone = std::process::Command::new("sh").args(["-c", script]).output().unwrap();
                    assert_eq!(after, String::from_utf8(alone.stdout).unwrap(), "as without pinfold");
                    assert_eq!(kind, ContainmentKind::Subreaper);
                    // A shell drops an effective user that differs from the real one, and root regains its capabilities
                    // at exec.
                    assert!(after != before || matches!(how, "effective user" | "capabilities"));
                    println!("the job has the new rights");
                }
                Err(Error::HostChanged { what, .. }) => {
                    println!("refused: {what}");
                    if how == "user" {
                        // A new supervisor starts jobs again.
                        let supervisor = Supervisor::start().await.unwrap();
                        assert!(said(&supervisor, &mut shell(script)).await.unwrap().starts_with("65534\n"));
                        supervisor.close().await;
                    }
                }
                Err(other) => println!("not started: {other}"),
            }
            supervisor.close().await;
        });
        return println!("closed");
    }
    for (how, named) in [
        ("user", "user ids"),
        ("effective user", "user ids"),
        ("group", "group ids"),
        ("groups", "supplementary groups"),
        ("capabilities", "capabilities"),
        ("root directory", "root directory"),
    ] {
        let out = alone(&format!("{how},cgroup"), |_| {});
        assert!(out.contains("refused: ") && out.contains(named) && out.contains("closed"), "{how}: {out}");
        let out = alone(&format!("{how},subreaper"), |_| {});
        let new = out.contains("the job has the new rights") || how == "root directory" && out.contains("not started");
        assert!(new && out.contains("closed"), "{how}: {out}");
    }
}

/// A write beyond RLIMIT_FSIZE ends a process by SIGXFSZ, also a write to a file in memory (setrlimit(2)).
#[test]
fn a_low_limit_on_file_sizes_does_not_end_the_host() {
    if case().is_some() {
        let limit = libc::rlimit { rlim_cur: 16, rlim_max: 16 };
        // SAFETY: the structure outlives the call, which changes this process only.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &limit) }, 0);
        runtime().block_on(async {
            let supervisor = Supervisor::builder().containment(ContainmentKind::Subreaper).start().await.unwrap();
            let report = Command::new("true").status(&supervisor).await.unwrap();
            let error = Command::new("true").arg("x".repeat(100_000)).status(&supervisor).await.unwrap_err();
            println!("{report}; {error}");
            supervisor.close().await;
        });
        return;
    }
    let out = alone("limited", |_| {});
    assert!(out.contains("exit status: 0; ") && out.contains("ulimit -f"), "{out}");
}

/// A job also gets the changed value of every attribute that fork and exec inherit, although its supervisor was started
/// before.
#[test]
#[requires(cgroup)]
fn what_a_host_changes_later_reaches_later_jobs() {
    if case().is_some() {
        let script = "umask; cut -d ' ' -f 19 /proc/self/stat; grep -E '^(NoNewPrivs|Cpus_allowed):' /proc/self/status
            cat /proc/self/limits";
        let alone = || {
            let output = std::process::Command::new("sh").args(["-c", script]).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        runtime().block_on(async {
            let supervisor = Supervisor::start().await.unwrap();
            let mut before = alone();
            assert_eq!(said(&supervisor, &mut shell(script)).await.unwrap(), before);
            type Change = (&'static str, fn() -> i32);
            // SAFETY: each call changes this process only, and reads memory that outlives the call.
            #[allow(clippy::undocumented_unsafe_blocks)] // One comment for all of them.
            let changes: [Change; 6] = [
                ("umask", || {
                    unsafe { libc::umask(0o27) };
                    0
                }),
                ("nice", || unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 7) }),
                ("affinity", || unsafe {
                    let mut mask: libc::cpu_set_t = std::mem::zeroed();
                    libc::sched_getaffinity(0, size_of_val(&mask), &raw mut mask);
                    let first = (0..1024).find(|&cpu| libc::CPU_ISSET(cpu, &mask)).unwrap();
                    mask = std::mem::zeroed();
                    libc::CPU_SET(first, &mut mask);
                    libc::sched_setaffinity(0, size_of_val(&mask), &raw const mask)
                }),
                ("no_new_privs", || unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }),
                ("core size", || unsafe {
                    libc::setrlimit(libc::RLIMIT_CORE, &libc::rlimit { rlim_cur: 4096, rlim_max: 8192 })
                }),
                ("open files", || unsafe {
                    libc::setrlimit(libc::RLIMIT_NOFILE, &libc::rlimit { rlim_cur: 99, rlim_max: 199 })
                }),
            ];
            for (what, change) in changes {
                assert_eq!(change(), 0, "{what}");
                let expected = alone();
                // On a machine with one CPU the affinity cannot change.
                assert!(expected != before || what == "affinity", "{what}");
                assert_eq!(said(&supervisor, &mut shell(script)).await.unwrap(), expected, "{what}");
                before = expected;
            }
            // The settings of the command take precedence.
            let mut command = shell("cut -d ' ' -f 19 /proc/self/stat");
            let limits = pinfold::Limits::new().nice(9);
            command.limits(limits);
            assert_eq!(said(&supervisor, &mut command).await.unwrap(), "9\n");
            supervisor.close().await;
        });
        return println!("they did");
    }
    let out = alone("1", |_| {});
    assert!(out.contains("they did"), "{out}");
}

/// A descriptor number that the host passes to its jobs, and at other times a private file with this number.
const NUMBER: i32 = 77;

/// Opens a file under this number, in one step with closing the file that had the number before.
fn put(file: &std::fs::File, flags: i32) {
    // SAFETY: nothing in this process owns the number.
    assert_eq!(unsafe { libc::dup3(file.as_raw_fd(), NUMBER, flags) }, NUMBER);
}

/// Another thread uses the number for other files meanwhile.
#[test]
#[requires(cgroup)]
fn a_descriptor_that_exec_closes_reaches_no_job() {
    if case().is_some() {
        let (secret, shared) = (Scratch::new("secret"), Scratch::new("shared"));
        let open = |scratch: &Scratch| std::fs::File::create(scratch.path()).unwrap();
        let (secret_file, shared_file) = (open(&secret), open(&shared));
        let name = |scratch: &Scratch| format!("{}\n", scratch.path().display());
        let mut command = shell(&format!("readlink /proc/self/fd/{NUMBER} || echo none"));
        command.inherit_descriptors(true).stdin(Stdio::null()).stdout(Stdio::piped());
        runtime().block_on(async {
            let supervisor = Supervisor::start().await.unwrap();
            let output =
                async |spawn: std::pin::Pin<Box<dyn Future<Output = pinfold::Result<pinfold::Job>> + Send>>| {
                    String::from_utf8(spawn.await.unwrap().wait_with_output().await.unwrap().stdout).unwrap()
                };
            // The descriptors at the time of the call count, not those at the time when the future is polled.
            put(&shared_file, 0);
            let spawn = Box::pin(supervisor.spawn(&command));
            put(&secret_file, libc::O_CLOEXEC);
            assert_eq!(output(spawn).await, name(&shared));
            let spawn = Box::pin(supervisor.spawn(&command));
            put(&shared_file, 0);
            assert_eq!(output(spawn).await, "none\n");

            let over = Arc::new(AtomicBool::new(false));
            let until = over.clone();
            let other_thread = std::thread::spawn(move || {
                while !until.load(Ordering::Relaxed) {
                    put(&secret_file, libc::O_CLOEXEC);
                    put(&shared_file, 0);
                }
            });
            for _ in 0..20 {
                let spawns: Vec<_> = (0..20).map(|_| Box::pin(supervisor.spawn(&command))).collect();
                for spawn in spawns {
                    let printed = output(spawn).await;
                    assert!(printed == name(&shared) || printed == "none\n", "{printed}");
                }
            }
            over.store(true, Ordering::Relaxed);
            other_thread.join().unwrap();
            supervisor.close().await;
        });
        return println!("none did");
    }
    let out = alone("1", |_| {});
    assert!(out.contains("none did"), "{out}");
}

/// The same holds for a standard stream of the host: the job gets the stream that the host had at the call.
#[test]
#[requires(cgroup)]
fn a_stream_that_is_replaced_after_the_call() {
    if case().is_some() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let (other_reader, other) = std::io::pipe().unwrap();
        runtime().block_on(async {
            let supervisor = Supervisor::start().await.unwrap();
            let replace = |writer: &std::io::PipeWriter| {
                // SAFETY: standard input has no owner in this process; its copies are closed below.
                assert_eq!(unsafe { libc::dup2(writer.as_raw_fd(), 0) }, 0);
            };
            replace(&writer);
            let mut command = Command::new("sh");
            command.args(["-c", "echo here >&0"]).stdout(Stdio::null());
            let spawn = supervisor.spawn(&command);
            replace(&other);
            drop(writer);
            assert!(spawn.await.unwrap().wait().await.unwrap().success());
            supervisor.close().await;
        });
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "here\n");
        drop((OwnedFd::from(other_reader), other));
        return println!("it was");
    }
    let out = alone("1", |_| {});
    assert!(out.contains("it was"), "{out}");
}

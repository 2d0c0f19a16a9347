//! A process supervisor for Linux: runs commands, and **nothing that they started can outlive them**.
//!
//! A [`Command`] says what to run. A [`Supervisor`] starts it as a [`Job`]: one process and every process descended
//! from it. Each job has a cgroup v2 of its own, or, if no cgroup is available, a guard process of its own. pinfold
//! ends the whole job when the main process exits, when a deadline is reached, when a stop is requested, and also when
//! your program is killed with SIGKILL. A [`Report`] describes how the job ended.
//!
//! # Example
//!
//! The command below exits at once and leaves a process in a session of its own, which a signal to the command's
//! process group does not reach. pinfold ends this process before [`Job::wait`] returns.
//!
//! ```rust,standalone_crate
//! use std::time::Duration;
//!
//! use pinfold::{Command, Supervisor};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
//!     runtime.block_on(async {
//!         let supervisor = Supervisor::start().await?;
//!         let mut command = Command::new("sh");
//!         command.args(["-c", "setsid sleep 999 & exit 3"]).timeout(Duration::from_secs(60));
//!         let mut job = command.spawn(&supervisor).await?;
//!         let report = job.wait().await?;
//!
//!         assert_eq!(report.exit_code, 3);
//!         assert_eq!(report.leftovers.len(), 1); // Found after the exit of the shell, and ended.
//!         assert!(report.is_gone()); // No process and no cgroup of the job is left.
//!         supervisor.close().await;
//!         Ok(())
//!     })
//! }
//! ```
//!
//! # How to embed it
//!
//! The parent of the jobs is not your program but the *guard*: a small process with one thread, which ends all jobs
//! when your program is gone, for whatever reason it ended. [`Supervisor::start`] starts it. What you do for that
//! depends on your program:
//!
//! | your program | what you do |
//! | --- | --- |
//! | has a `main`, also one of `#[tokio::main]`, or is a test that `cargo test` runs | nothing: the guard is your program, executed again, and never reaches `main` |
//! | is a shared library (`cdylib`), such as a module of Python or Node | nothing if the host is dynamically linked; otherwise [`SupervisorBuilder::guard_program_bytes`] |
//! | runs in a tokio runtime | enable its I/O and time drivers; one thread is enough |
//! | has another executor, such as smol | nothing: [`Supervisor::start`] starts a thread with a runtime of its own |
//! | has no executor | use [`blocking`], which has the same names |
//! | runs setuid or with file capabilities | nothing, or [`SupervisorBuilder::guard_program`]: neither variables nor `PATH` are used |
//!
//! The library changes nothing in your program: it sets no subreaper flag, does not handle SIGCHLD, installs no signal
//! handler, and reaps only its own children. Call [`Supervisor::close`] at the end, so that no guard is left when your
//! program ends.
//!
//! # The guard
//!
//! The guard is a child subreaper (`PR_SET_CHILD_SUBREAPER`, Linux 3.4). When the guard is killed, the library in your
//! program ends the jobs. [`Supervisor::start`] never forks a program that may have threads. It executes the first of
//! these programs that is available:
//!
//! 1. the program that you give to [`SupervisorBuilder::guard_program`] or
//!    [`SupervisorBuilder::guard_program_bytes`];
//! 2. the program that the environment variable `PINFOLD_GUARD` names;
//! 3. your program. A constructor of the library (in `.init_array`) runs before `main` and becomes the guard;
//! 4. if this library is part of a shared library: your program, which then loads that shared library first
//!    (`LD_PRELOAD`, ld.so(8)). The path of the shared library must have no space or colon;
//! 5. the command `pinfold` from `PATH`.
//!
//! In a set-user-ID program, or in a program with file capabilities, the library uses neither the environment variable
//! nor `PATH` nor `LD_PRELOAD` (AT_SECURE, getauxval(3)).
//!
//! An extension module that has to work everywhere, even in a root directory without a dynamic loader, must contain a
//! guard program. Build the `pinfold` command statically (`--target x86_64-unknown-linux-musl`), embed it in your
//! module, and pass its bytes to [`SupervisorBuilder::guard_program_bytes`].
//!
//! If no guard starts, the error is [`Error::GuardStart`], which contains the cause and what you can do. A program can
//! also fork the guard itself with [`Guard::fork`], before it starts any thread, and pass it to
//! [`SupervisorBuilder::guard`].
//!
//! # What a job inherits
//!
//! As with fork and exec, a job inherits from the thread that calls [`Supervisor::spawn`], at the time of the call: the
//! environment, the working directory, the umask, the niceness, the CPU affinity, `no_new_privs`, the resource limits,
//! and the descriptors that the [`Command`] inherits.
//!
//! It inherits from the guard, because the guard starts the job: the OOM score adjustment (`/proc/self/oom_score_adj`),
//! the scheduling policy and the I/O priority, the capability bounding set, the securebits, seccomp filters and
//! Landlock rules, the keyrings, and the namespaces. Their values are those at the start of the *supervisor*; later
//! changes in your program do not affect them. The signal mask and the ignored signals are those from the start of the
//! program.
//!
//! A guard that was forked ([`Guard::fork`]) gives the jobs the state that your program had at the fork, except for the
//! environment, the working directory, the descriptors and the limit on open files.
//!
//! A job must not get other rights than its caller has. If the caller's user, group or supplementary ids, capabilities
//! or root directory differ from those of the guard, the spawn fails with [`Error::HostChanged`]. So a program that
//! gives up rights should do that before it starts its supervisor, or start another supervisor afterwards.
//!
//! # What a report contains
//!
//! [`Report`] is one type for the library and for `pinfold run --report` (as JSON, see [`Report::to_json`]). It
//! contains:
//!
//! - the command, and what held the job;
//! - how the main process ended ([`report::MainEnd`]), and why the job ended ([`report::Reason`]);
//! - the time of each phase ([`report::Phases`], in seconds);
//! - what the whole job used, including processes that have ended: each figure with its source, or with the reason why
//!   it is not available ([`report::Usage`]);
//! - the processes that were left over, that received the stop signal, that had left the cgroup, or that pinfold could
//!   not end ([`report::ProcessList`]).
//!
//! A command that fails is not an error: its report contains the failure. An [`Error`] means that pinfold could not do
//! what you requested.
//!
//! # What pinfold does not reach
//!
//! Work that the command gives to another daemon (dockerd, systemd, cron, a D-Bus service) is not a descendant, and
//! pinfold does not reach it. pinfold also does not contain a *hostile* program that runs with the same user id: such a
//! program can kill the guard and the supervisor first. Use other users and namespaces against hostile programs.
//!
//! # Requirements
//!
//! - Linux 5.7 (`CLONE_INTO_CGROUP`, clone(2)); `cgroup.kill` is used from 5.14 on (cgroups(7) names the files,
//!   the kernel's `admin-guide/cgroup-v2.rst` describes them). Tested on 5.10, 6.1, 6.12, 6.18 and 7.2.
//! - A cgroup v2 in which your program can make a directory. A user other than root often has one only from systemd,
//!   which pinfold asks with the feature `systemd`. Without a cgroup, the guard holds its one job as a child
//!   subreaper, and the report contains the reason ([`report::Containment`]); this needs `/proc`.
//!   [`SupervisorBuilder::containment`] requires one of the two.
//!
//! # Processes that fork
//!
//! A supervisor, its jobs and its pools belong to the process that made them. In a forked copy of this process
//! (fork(2), Python's `os.fork`), dropping them does nothing, and a spawn fails: start another supervisor in the copy.
//!
//! # Features
//!
//! No feature is on by default: `cargo add pinfold` adds the library alone.
//!
//! - `systemd`: if your program's own cgroup can't hold or limit jobs, pinfold asks systemd for another one (a scope).
//!   Depends on zbus.
//! - `services`: [`services`], for jobs that are kept running. Depends on toml.
//! - `schema`: `schemars::JsonSchema` for [`Report`].
//! - `full`: the `pinfold` command with all of its parts (`cargo install pinfold --features full`). `cli` is the command
//!   without `services`, `systemd` and `watch`; `watch` is `pinfold watch`.

#![deny(unsafe_code)]
#![deny(missing_docs)]
// The command needs more of the rooms than the public interface does.
#![cfg_attr(not(feature = "full"), allow(dead_code))]

pub mod blocking;
mod cgroup;
/// The `pinfold` command. Not a part of the library's interface.
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
pub mod doctor;
mod error;
mod guard;
mod job;
mod kernel;
pub mod pool;
pub mod report;
pub mod sandbox;
#[cfg(feature = "services")]
pub mod services;
mod subreaper;
mod supervisor;

pub use cgroup::limits::{Controller, IoMax, Limits};
pub use error::{ContainmentErrorKind, Error, HangingStart, Result, SpawnError, SpawnStage};
pub use guard::{Guard, init};
pub use job::command::{Command, ProcessGroup, Spawner, Stdio};
pub use job::ready::Readiness;
pub use job::stop::{Leftovers, SignalTo};
pub use job::{Job, JobHandle, output};
pub use kernel::pty::Pty;
pub use kernel::rlimit::Rlimit;
pub use kernel::signal::Signal;
pub use kernel::size::Size;
pub use kernel::user::User;
pub use pool::Pool;
pub use report::Report;
pub use sandbox::Sandbox;
pub use supervisor::{Supervisor, SupervisorBuilder, events, sweep};

//! A process supervisor for Linux: runs commands, and **nothing that they started can outlive them**.
//!
//! A [`Command`] says what to run. A [`Supervisor`] starts it as a [`Job`]: one process and every process descended from
//! it, held in a cgroup v2 of its own, or without one by its guard. Whether the main process exits, a deadline is reached, a stop is asked for or this
//! very program is killed with SIGKILL: the whole job is ended. A [`Report`] says how.
//!
//! # Example
//!
//! The command below exits at once and leaves a process in a session of its own, out of the reach of a signal to its
//! process group. It is ended before [`Job::wait`] returns.
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
//!         let mut job = supervisor.spawn(&command).await?;
//!         let report = job.wait().await?;
//!
//!         assert_eq!(report.exit_code, 3);
//!         assert_eq!(report.leftovers.count, 1); // Found when the shell had exited, and ended.
//!         assert!(report.is_gone()); // No process and no cgroup of it is left.
//!         supervisor.close().await;
//!         Ok(())
//!     })
//! }
//! ```
//!
//! # The guard
//!
//! The parent of the jobs is not this process but the *guard*: a small process with one thread, a child subreaper
//! (`PR_SET_CHILD_SUBREAPER`, Linux 3.4). It ends all jobs when this process is gone, by whatever end; when the guard is
//! killed, this process ends them. So the host program is left alone: no subreaper flag, no SIGCHLD handling, no signal
//! handler, no reaping of children that are not pinfold's.
//!
//! [`Supervisor::start`] executes a guard program; it never forks a program that may have threads. The program is, in
//! this order:
//!
//! 1. the one that was given to [`Builder::guard_program`] or [`Builder::guard_program_bytes`];
//! 2. the one that the environment variable `PINFOLD_GUARD` names;
//! 3. this program, executed again. Nothing has to be called for that: the library is asked before `main`
//!    (a constructor, in `.init_array`), and in the guard `main` is never reached. So it works in a `main` made by `#[tokio::main]`,
//!    and in a test that `cargo test` runs;
//! 4. where this library is in a shared library, an extension module of Python or Node for example: the same program, which
//!    loads that shared library first (`LD_PRELOAD`, ld.so(8));
//! 5. the command `pinfold` from `PATH`.
//!
//! In a set-user-ID program, or one with file capabilities, neither the environment variable nor `PATH` nor `LD_PRELOAD` is used
//! (AT_SECURE, getauxval(3)).
//!
//! An extension module needs nothing more where its host is dynamically linked and the module's path has no space or colon. Where it is
//! to work everywhere, also in a root directory without the dynamic loader, it carries a guard along: build the `pinfold` command statically
//! (`--target x86_64-unknown-linux-musl`), and pass its bytes to [`Builder::guard_program_bytes`].
//!
//! Where no guard starts, the error is [`Error::GuardStart`], with the cause and the ways out. A program without threads can
//! also fork the guard at its very start, with [`Guard::fork`], and hand it to [`Builder::guard`].
//!
//! # What a job inherits
//!
//! As with fork and exec, from the thread that calls [`Supervisor::spawn`], as it is then: the environment, the working directory, the umask, the
//! niceness, the CPU affinity, `no_new_privs`, the resource limits, and the descriptors that the [`Command`] inherits. The guard starts the
//! job, and so these stay as they were when the *supervisor* was started, whatever this process changes later: the OOM score adjustment
//! (`/proc/self/oom_score_adj`), the scheduling policy and the I/O priority, the capability bounding set, the securebits, seccomp filters and
//! Landlock rules, the keyrings, and the namespaces. Signal mask and ignored signals are those from the start of the
//! program. A guard that was forked ([`Guard::fork`]) hands down what this process was at the fork, but for environment, working directory,
//! descriptors and the limit on open files.
//!
//! A job never has other rights than its caller: where user, group or supplementary ids, capabilities or the root directory
//! are not those of the guard, the spawn is refused ([`Error::HostChanged`]). A program that gives up rights does so
//! before it starts its supervisor, or starts another supervisor afterwards.
//!
//! # What a report tells
//!
//! [`Report`] is one type for the library and for `pinfold run --report` (as JSON, see [`Report::to_json`]): what ran and
//! what held it; how the main process ended ([`report::MainEnd`]) and why the job ended ([`report::Reason`]); when what
//! happened ([`report::Phases`], seconds); what the whole job used, ended processes included, each figure with its source
//! or the reason why there is none ([`report::Usage`]); and which processes were left over, were sent the stop signal, had
//! left the cgroup, or could not be ended ([`report::ProcessList`]). A command that fails is not an error: its report says
//! so. An [`Error`] means that pinfold could not do what it was asked for.
//!
//! # What it does not reach
//!
//! Work handed to another daemon (dockerd, systemd, cron, a D-Bus service) is not a descendant, and is not reached. Nor
//! is a *hostile* program with this user's own id: it can kill guard and supervisor first. For those there are users and
//! namespaces.
//!
//! # Requirements
//!
//! - Linux 5.7 (`CLONE_INTO_CGROUP`, clone(2)); `cgroup.kill` is used from 5.14 on (cgroups(7) names the files,
//!   the kernel's `admin-guide/cgroup-v2.rst` describes them). Tested on 5.10, 6.1, 6.12 and 6.18.
//! - A cgroup v2 in which this process can make a directory. Otherwise the guard holds its one job as a child subreaper, and
//!   the report says why ([`report::Containment`]); `/proc` is needed then. [`Builder::containment`] insists on one of them.
//! - Inside of a tokio runtime: its I/O and time drivers enabled; one thread is enough. Outside of one (smol, another executor, or none with
//!   [`blocking`]), [`Builder::start`] starts a thread with a runtime of its own, and everything works in whatever executor.
//!
//! # Processes that fork
//!
//! A supervisor, its jobs and its pools belong to the process that made them. In a forked copy (fork(2), `os.fork` of Python) to drop them does
//! nothing, and a spawn is refused: start another supervisor there.
//!
//! # Features
//!
//! - `cli` (on by default): the `pinfold` command. A library user takes `default-features = false`, and gets neither clap
//!   nor anyhow.
//! - `watch` (on by default, brings `cli`): `pinfold watch`, with notify and ignore.
//! - `systemd` (on by default): a scope of systemd's where this process's own cgroup can't hold or limit jobs. Brings zbus.
//! - `schema`: `schemars::JsonSchema` for [`Report`].

#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod blocking;
mod cgroup;
pub mod doctor;
mod error;
mod guard;
mod job;
mod kernel;
pub mod pool;
pub mod report;
mod subreaper;
mod supervisor;

/// Signals by name and number, and those of this process as a queue.
pub mod signal {
    pub use crate::kernel::signal::*;
    pub use crate::supervisor::SignalStream;
}

pub use cgroup::limits::{Controller, IoMax, Limits};
pub use error::{Error, HangingStart, Result, SpawnError, SpawnStage};
pub use guard::{Guard, init, init_with};
pub use job::command::{Command, ProcessGroup, Stdio};
pub use job::ready::Readiness;
#[doc(hidden)]
pub use job::settle;
pub use job::stop::{Leftovers, SignalTo};
pub use job::{Job, JobHandle, output};
pub use kernel::inherited::{adopt_descriptor, raise_own_limits, was_closed};
pub use kernel::pidfd;
pub use kernel::pty::Pty;
pub use kernel::rlimit::Rlimit;
pub use kernel::signal::Signal;
pub use kernel::size::Size;
pub use kernel::user::User;
pub use pool::Pool;
pub use report::Report;
pub use report::text;
pub use supervisor::{Builder, Supervisor, events, sweep};

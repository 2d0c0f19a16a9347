//! `pinfold up`, which runs the services of a file, and `down`, `restart` and `logs`, which send requests to it.

mod client;
mod control;
mod file;
mod log_files;
mod message;
mod printer;
mod session;
mod socket;

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::environment;
use super::runtime::with_supervisor;
use super::terminal::Terminal;
pub use client::{DownArgs, LogsArgs, RestartArgs, down, logs, restart};
use file::Operands;
use session::Session;
use socket::Socket;

use crate::Guard;
use crate::kernel::inherited;
use crate::kernel::own_signals::SignalQueue;
use crate::report::SupervisorKind;
use crate::services::{Service, ServiceFile};

/// Run the services of a Procfile or of pinfold.toml, and end them with everything that they started
///
/// Services start in the order of their dependencies, and stop in the reverse order: after Ctrl-C, SIGTERM or pinfold
/// down, or when one of them has failed for good. A second Ctrl-C kills them. pinfold prints each line of their output
/// with the name of the service. When pinfold itself is killed, no process of the services is left.
///
/// Exit code: 0 after a stop that was requested; 1 when a service failed for good; 122 when a process could not be
/// ended; 124 when a service did not become ready; with --wait the exit code of the command; 125 when pinfold itself
/// failed.
///
/// docs/services.md describes pinfold.toml.
#[derive(clap::Args)]
pub struct Args {
    /// Start the services, wait until all are ready, run the command after --, then stop the services
    #[arg(long, requires = "command")]
    wait: bool,

    /// Print no output of the services, and no messages about them except failures and notes
    #[arg(long, short)]
    quiet: bool,

    /// The cgroup v2 directory in which pinfold creates the services' cgroups, instead of in pinfold's own cgroup [env:
    /// PINFOLD_CGROUP]
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,

    #[command(flatten)]
    operands: Operands,

    /// The command of --wait
    #[arg(last = true, value_name = "COMMAND", requires = "wait")]
    command: Vec<OsString>,
}

/// Runs the services until they have ended, and returns the exit code.
pub fn run(args: &Args) -> Result<u8> {
    let (path, names) = args.operands.resolve()?;
    let services = ServiceFile::read(&path)?.select(&names)?;
    let signals = SignalQueue::block_all()?;
    // `Terminal::open` must run before the guard exists (`Terminal::orphaned`).
    let terminal = if args.wait { Terminal::open() } else { None };
    let guard = Guard::fork()?;
    // The guard exists before this lock, so it has no copy of the lock.
    let socket = Socket::bind(&path)?;
    enough_descriptors(services.len())?;
    let controllers: Vec<_> = services.iter().flat_map(Service::controllers).collect();
    let builder = environment::supervisor(args.cgroup.as_deref(), None)?.guard(guard).kind(SupervisorKind::Up);
    let exit = with_supervisor(builder.controllers(controllers), signals, async |supervisor, signals| {
        Session::new(args, services, &socket, terminal.as_ref())?.run(supervisor, signals).await
    });
    if let Some(terminal) = &terminal {
        terminal.restore(true);
    }
    drop(socket);
    Ok(exit?.code())
}

/// Raises the limit on open files, and checks that it is enough for this number of services.
fn enough_descriptors(services: usize) -> Result<()> {
    /// The open files of one service: its containment, its pipe, its log file, its start. `FIXED` are those of pinfold:
    /// the runtime, the guard, the base, the control socket and its connections.
    const PER_SERVICE: usize = 12;
    const FIXED: usize = 64;
    let Some(limit) = inherited::raise_own_limits().and_then(|limit| usize::try_from(limit).ok()) else {
        return Ok(());
    };
    let needed = services.saturating_mul(PER_SERVICE).saturating_add(FIXED);
    ensure!(
        needed <= limit,
        "{services} services need {needed} open files, but the limit is {limit} (ulimit -Hn): raise it"
    );
    Ok(())
}

/// Returns the path without its symbolic links.
fn canonical(path: &std::path::Path) -> Result<PathBuf> {
    path.canonicalize().with_context(|| format!("cannot find {}", crate::report::text::printable_path(path)))
}

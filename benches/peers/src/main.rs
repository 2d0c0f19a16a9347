//! Compares pinfold's library with other crates on the same work: start a small program and wait for its end, one after
//! another, on a runtime with one thread. `scripts/bench --peers` runs it.
//!
//! The crates give different guarantees: tokio::process and process-wrap report that the main process has ended,
//! processkit holds each job in a cgroup of its own, and pinfold also proves that this cgroup is empty and removes it
//! before it reports the end.

#[path = "../../support/mod.rs"]
mod support;

use process_wrap::tokio::{CommandWrap, KillOnDrop, ProcessGroup};
use processkit::StdioMode;
use support::{Worker, compare};

const PEERS: [&str; 4] = ["tokio::process", "pinfold", "process-wrap", "processkit"];

fn main() {

    if let Some((peer, program)) = support::worker_arguments() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return be_worker(&runtime, &peer, &program);
    }
    support::print_load();
    println!("processkit holds its jobs by {:?}", processkit::host_containment());
    for (megabytes, rounds) in [(10, 10), (512, 5), (2048, 3)] {
        let workers = || PEERS.map(|peer| Worker::own(peer, megabytes));
        compare(&format!("start + wait, host of {megabytes} MB"), workers, 4, rounds, 20);
    }
    support::print_load();
}

fn be_worker(runtime: &tokio::runtime::Runtime, peer: &str, program: &str) {
    match peer {
        "pinfold" => {
            let supervisor = runtime.block_on(pinfold::Supervisor::start()).unwrap();
            let command = pinfold::Command::new(program);
            each(runtime, async || {
                let report = supervisor.spawn(&command).await.unwrap().wait().await.unwrap();
                report.exit_code == 0 && report.is_gone()
            });
            runtime.block_on(supervisor.close());
        }
        "tokio::process" => each(runtime, async || {
            let mut command = tokio::process::Command::new(program);
            command.kill_on_drop(true).status().await.unwrap().success()
        }),
        "process-wrap" => each(runtime, async || {
            let mut command = CommandWrap::with_new(program, |_| {});
            let mut child = command.wrap(ProcessGroup::leader()).wrap(KillOnDrop).spawn().unwrap();
            child.wait().await.unwrap().success()
        }),
        "processkit" => each(runtime, async || {
            let command = processkit::Command::new(program).stdout(StdioMode::Inherit).stderr(StdioMode::Inherit);
            command.start().await.unwrap().wait().await.unwrap().code() == Some(0)
        }),
        _ => panic!("no such peer: {peer}"),
    }
}

/// Handles requests with a job that returns whether it succeeded.
fn each(runtime: &tokio::runtime::Runtime, job: impl AsyncFn() -> bool) {
    support::serve(|jobs| {
        runtime.block_on(async {
            for _ in 0..jobs {
                assert!(job().await);
            }
        });
    });
}

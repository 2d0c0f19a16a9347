//! A program that uses the library.

use pinfold::{Builder, Command, Stdio, Supervisor};

use super::{PINFOLD, has_cgroup};

/// Runs it with a supervisor whose jobs have cgroups, in a runtime of its own, as each host has one.
pub fn with_supervisor(host: impl AsyncFnOnce(&Supervisor)) {
    if has_cgroup() {
        with(Supervisor::builder(), host).unwrap();
    }
}

/// The same with the supervisor that is built so; an error where none can be had.
pub fn with<T>(builder: Builder, host: impl AsyncFnOnce(&Supervisor) -> T) -> pinfold::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let supervisor = builder.guard_program(PINFOLD).start().await?;
        let done = host(&supervisor).await;
        supervisor.close().await;
        Ok(done)
    })
}

/// A script that is given nothing.
pub fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]).stdin(Stdio::Null);
    command
}

/// One whose streams are read by the host.
pub fn heard(script: &str) -> Command {
    let mut command = shell(script);
    command.stdout(Stdio::Piped).stderr(Stdio::Piped);
    command
}

//! A program that uses the library.

use pinfold::{Command, Stdio, Supervisor, SupervisorBuilder};

use super::PINFOLD;

/// Runs `host` with a supervisor whose jobs have cgroups, which the test must require, in a runtime of its own.
pub fn with_supervisor(host: impl AsyncFnOnce(&Supervisor)) {
    with(Supervisor::builder(), host).unwrap();
}

/// The same with a supervisor from this builder; an error where the builder cannot start one.
pub fn with<T>(builder: SupervisorBuilder, host: impl AsyncFnOnce(&Supervisor) -> T) -> pinfold::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let supervisor = builder.guard_program(PINFOLD).start().await?;
        let done = host(&supervisor).await;
        supervisor.close().await;
        Ok(done)
    })
}

/// Returns a script that gets no input.
pub fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]).stdin(Stdio::null());
    command
}

/// Returns a script whose output the host reads.
pub fn piped(script: &str) -> Command {
    let mut command = shell(script);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

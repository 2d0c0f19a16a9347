//! A runner for code that you did not write, for example code of a language model. It reads a program from standard
//! input, runs it in a sandbox with tight limits, and prints the result as JSON.
//!
//!     cargo run --example sandbox_runner -- [INTERPRETER ARG...]
//!
//! The interpreter reads the program from its standard input; the default is `python3 -`.
//!
//! The runner limits the program's time, memory, processes and output, and no process of the program is left
//! afterwards. The program can read the system's programs and libraries, and write its own directory. It has no other
//! files and no network, and can't signal the runner (docs/sandbox.md). Where the kernel can't hold that, the runner
//! starts nothing and prints the reason.

use std::error::Error;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use pinfold::output::CaptureLimit;
use pinfold::{Command, Controller, Limits, Sandbox, Stdio, Supervisor, User};

const MEMORY: u64 = 256 << 20;
const PROCESSES: u64 = 64;
const TIME: Duration = Duration::from_secs(10);

/// A directory that is removed at the end of the run.
struct Workspace(PathBuf);

impl Drop for Workspace {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut words: Vec<_> = std::env::args_os().skip(1).collect();
    if words.is_empty() {
        words = vec!["python3".into(), "-".into()];
    }
    let mut code = Vec::new();
    std::io::stdin().lock().read_to_end(&mut code)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    println!("{}", runtime.block_on(run(words, code))?);
    Ok(())
}

/// Starts a supervisor with the kernel's cgroup controllers if they are available. Otherwise the limits apply to each
/// process separately, and the verdict says so.
async fn supervisor() -> Result<(Supervisor, Limits, &'static str), pinfold::Error> {
    // Files of at most 16 MiB, no core dumps, at most 64 open files.
    let mut limits = Limits::new();
    for limit in ["fsize=16777216", "core=0", "nofile=64"] {
        limits = limits.rlimit(limit.parse()?);
    }
    let builder = Supervisor::builder().controllers([Controller::Memory, Controller::Pids]);
    match builder.start().await {
        Ok(supervisor) => {
            limits = limits.memory(MEMORY).pids(PROCESSES);
            Ok((supervisor, limits, "memory and processes of the whole job"))
        }
        Err(_) => {
            limits = limits.rlimit(format!("as={}", 4 * MEMORY).parse()?);
            limits = limits.rlimit(format!("cpu={}", TIME.as_secs()).parse()?);
            Ok((Supervisor::start().await?, limits, "address space and CPU time of each process"))
        }
    }
}

async fn run(words: Vec<std::ffi::OsString>, code: Vec<u8>) -> Result<serde_json::Value, Box<dyn Error>> {
    let (supervisor, limits, enforced) = supervisor().await?;
    let workspace = Workspace(std::env::temp_dir().join(format!("sandbox-{}", std::process::id())));
    std::fs::create_dir(&workspace.0)?;
    let mut words = words.into_iter();
    let mut command = Command::new(words.next().unwrap_or_default());
    let mut sandbox = Sandbox::new();
    sandbox.write(&workspace.0);
    command
        .args(words)
        .current_dir(&workspace.0)
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", &workspace.0)
        .sandbox(sandbox);
    command
        .stdin(Stdio::bytes(code))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .capture(CaptureLimit::ends(4096, 4096));
    command.timeout(TIME).grace(Duration::from_millis(500)).limits(limits);
    // If the runner is root, the program runs as another user, because a sandbox cannot restrict root.
    if let Ok(nobody) = User::look_up("nobody")
        && std::os::unix::fs::chown(&workspace.0, Some(65534), Some(65534)).is_ok()
    {
        command.user(nobody);
    }
    let verdict = match supervisor.spawn(&command).await {
        Ok(mut job) => {
            let output = job.wait_with_output().await?;
            let report = &output.status;
            serde_json::json!({
                "reason": report.reason, "exit_code": report.exit_code, "limits": enforced,
                "stdout": String::from_utf8_lossy(&output.stdout), "stderr": String::from_utf8_lossy(&output.stderr),
                "left_out_bytes": output.stdout_dropped + output.stderr_dropped,
                "seconds": report.phases.gone, "cpu_user_microseconds": report.usage.cpu_user_microseconds.value,
                "leftovers": report.leftovers.len(), "nothing_left": report.is_gone(),
            })
        }
        Err(error) => serde_json::json!({ "reason": "spawn_failed", "error": error.to_string() }),
    };
    supervisor.close().await;
    Ok(verdict)
}

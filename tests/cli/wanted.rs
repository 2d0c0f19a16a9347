//! A process that must outlive a job is started outside it: the recipe in README.md, with a real agent. If a job starts
//! it, the report names the process that was ended.

use std::path::Path;

use crate::support::{Run, Scratch};

/// Runs `ssh-add -l` as a job: it exits with 1 if the agent answers that it has no keys, and with 2 if there is no
/// agent.
fn asks_the_agent(socket: &Path) -> Run {
    let mut run = Run::new(["--", "ssh-add", "-l"]);
    run.command().env("SSH_AUTH_SOCK", socket);
    run
}

#[test]
#[requires(program("ssh-agent"), program("ssh-add"))]
fn an_agent_for_several_jobs_has_a_pinfold_of_its_own() {
    let directory = Scratch::directory("agent");
    let socket = directory.path().join("socket");

    // Started inside, by a job that wants the agent to stay: pinfold ends it with the job, and names it.
    let mut job = Run::new(["--fail-on-leftovers", "--", "sh", "-c"]);
    job.command().arg(r#"ssh-agent -a "$SSH_AUTH_SOCK" && ssh-add -l; [ $? = 1 ]"#).env("SSH_AUTH_SOCK", &socket);
    let ran = job.run().assert_code(123);
    assert_eq!(ran.listed("leftovers"), format!("ssh-agent -a {}\n", socket.display()), "{ran:#?}");
    let _ = std::fs::remove_file(&socket);
    asks_the_agent(&socket).run().assert_code(2);

    // Started outside: it outlives the jobs, but not its own pinfold.
    let mut agent = Run::new(["--name", "agent", "--", "ssh-agent", "-D", "-a"]);
    agent.command().arg(&socket);
    let mut agent = agent.start();
    // The agent prints this line when its socket accepts connections.
    assert!(agent.line().starts_with("SSH_AUTH_SOCK="));
    for _ in 0..2 {
        let ran = asks_the_agent(&socket).run().assert_code(1);
        assert_eq!(ran.report["leftovers"]["count"], 0, "{ran:#?}");
    }
    agent.signal(libc::SIGTERM);
    let ran = agent.finish();
    assert_eq!((&ran.report["name"], &ran.report["reason"]), (&"agent".into(), &"stopped".into()), "{ran:#?}");
    asks_the_agent(&socket).run().assert_code(2);
}

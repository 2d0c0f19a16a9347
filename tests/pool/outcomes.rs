//! What the outcome of a task keeps, and the notice of slow tasks.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use pinfold::pool::{Pool, Shutdown, Task};
use pinfold::{Command, Stdio};

use crate::support::Scratch;
use crate::support::host::with_supervisor;

/// Returns a command that runs until it is ended.
fn long() -> Command {
    let mut command = Command::new("sleep");
    command.arg("100");
    command
}

/// A test runner shows the output of each attempt, and what the attempt belongs to.
#[test]
#[requires(cgroup)]
fn an_outcome_keeps_the_data_and_each_failed_attempt() {
    with_supervisor(async |supervisor| {
        let pool = Pool::builder().workers(1).start(supervisor).unwrap();
        let scratch = Scratch::new("attempts");
        let script = r#"echo >>"$0"; set -- $(wc -l <"$0"); echo "attempt $1"; echo "error $1" >&2; [ "$1" = 3 ]"#;
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg(scratch.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let task = Task::new(command).retries(4, Duration::ZERO).data(("a test", 7));
        let outcome = pool.submit(task).await.unwrap().wait().await;
        assert!(outcome.success() && outcome.attempts == 3, "{outcome:#?}");
        assert_eq!(outcome.stdout.text(), "attempt 3\n");
        let earlier: Vec<_> = outcome.earlier.iter().map(|one| (one.stdout.text(), one.stderr.text())).collect();
        let attempt = |number: u8| (format!("attempt {number}\n"), format!("error {number}\n"));
        assert_eq!(earlier, [attempt(1), attempt(2)]);
        assert!(outcome.earlier.iter().all(|one| one.report.exit_code == 1 && one.report.is_gone()));
        assert_eq!(outcome.data::<(&str, i32)>(), Some(&("a test", 7)));
        assert!(outcome.data::<String>().is_none());
        // A cancelled task also keeps its data.
        let handle = pool.submit(Task::new(long()).data(String::from("second"))).await.unwrap();
        handle.cancel();
        assert_eq!(handle.wait().await.data::<String>().unwrap(), "second");
        pool.shutdown(Shutdown::Drain).await;
    });
}

#[test]
#[requires(cgroup)]
fn only_slow_tasks_are_announced() {
    with_supervisor(async |supervisor| {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (record, slow) = (seen.clone(), Arc::new(tokio::sync::Notify::new()));
        let notify = slow.clone();
        let pool = Pool::builder().workers(2).on_slow(Duration::from_millis(300), move |task| {
            assert!(task.running >= Duration::from_millis(300));
            record.lock().unwrap().push((task.id, task.attempt, task.data::<u8>().copied()));
            notify.notify_one();
        });
        let pool = pool.start(supervisor).unwrap();
        let quick = pool.submit(Command::new("true")).await.unwrap();
        let long = pool.submit(Task::new(long()).data(9_u8)).await.unwrap();
        quick.wait().await;
        slow.notified().await;
        long.cancel();
        long.wait().await;
        pool.shutdown(Shutdown::Drain).await;
        let seen = seen.lock().unwrap();
        assert!(!seen.is_empty() && seen.iter().all(|slow| *slow == (long.id(), 1, Some(9))), "{seen:?}");
    });
}

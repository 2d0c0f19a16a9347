//! Races of the control commands with the jobs' own start and end.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::support::random::{Random, setting};
use crate::support::{Canary, PINFOLD, Run, Scratch};

/// Shells start jobs that end by themselves, and meanwhile `ps` lists them. Each listing is valid JSON, contains no job
/// twice, and contains no other job.
#[test]
fn listings_are_right_while_jobs_start_and_end() {
    let rounds = setting("PINFOLD_PS_ROUNDS", 60);
    let shells = setting("PINFOLD_PS_SHELLS", 12);
    let prefix = Scratch::new("ps").path().file_name().unwrap().to_str().unwrap().to_owned();
    let enough = Scratch::new("enough");
    let script = format!(
        "i=0; while [ ! -e {} ]; do i=$((i + 1)); {PINFOLD} run -q --containment $C --name {prefix}-$0-$i -- sleep 0.0$((i % 5)) || exit; done",
        enough.path().display()
    );
    let start = |number: u64| {
        let containment = if number.is_multiple_of(3) { "subreaper" } else { "auto" };
        let mut run = Run::bare(["sh", "-c", &script, &number.to_string()]);
        run.command().env("C", containment).stderr(Stdio::null());
        run.start()
    };
    let running: Vec<_> = (0..shells).map(start).collect();
    // One job that runs all the time is in each listing.
    let mut steady = Run::new(["--name", &format!("{prefix}-steady"), "--", "sh", "-c", "echo up; sleep 999"]).start();
    assert_eq!(steady.line(), "up");
    for _ in 0..rounds {
        let output = Command::new(PINFOLD).args(["ps", "--json"]).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        let listing: Value = serde_json::from_slice(&output.stdout).unwrap();
        let jobs =
            listing["supervisors"].as_array().unwrap().iter().flat_map(|found| found["jobs"].as_array().unwrap());
        let mut names: Vec<_> =
            jobs.filter_map(|job| job["name"].as_str()).filter(|name| name.starts_with(&prefix)).collect();
        assert!(names.contains(&format!("{prefix}-steady").as_str()), "{names:?}");
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(count, names.len(), "{names:?}");
        assert!(count as u64 <= shells + 1, "{names:?}");
    }
    std::fs::write(enough.path(), "").unwrap();
    for shell in running {
        shell.finish().assert_code(0);
    }
    steady.signal(libc::SIGTERM);
    steady.finish().assert_code(143);
}

/// Requests race with each other, with the end of the job, and with SIGKILL to the supervisor. Each request returns, no
/// process of the job is left afterwards, and no other process has received a signal.
#[test]
fn requests_race_with_the_end_of_the_job_and_of_its_supervisor() {
    let rounds = setting("PINFOLD_CONTROL_ROUNDS", 40);
    let (mut random, seed) = Random::new("requests race", "PINFOLD_CONTROL_SEED");
    let canary = Canary::new();
    for round in 0..rounds {
        let name = Scratch::new("race").path().file_name().unwrap().to_str().unwrap().to_owned();
        let containment = ["auto", "subreaper"][random.below(2) as usize];
        let life = format!("0.{:03}", random.below(60));
        // Half of the jobs end by themselves. Of the others, some ignore SIGTERM.
        let script = match random.below(4) {
            0 => format!("trap '' TERM; echo up; sleep {life}; sleep 999"),
            1 => "echo up; sleep 999 & wait".to_owned(),
            _ => format!("echo up; sleep {life}"),
        };
        let options = ["--containment", containment, "--name", &name, "--grace", "20ms", "-q", "--"];
        let mut pinfold = Command::new(PINFOLD)
            .arg("run")
            .args(options)
            .args(["sh", "-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(pinfold.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, "up\n");
        let dies = random.below(4) == 0;
        let requests: Vec<Child> = (0..=random.below(2))
            .map(|_| {
                let verb = ["stop", "kill", "wait"][random.below(if dies { 3 } else { 2 }) as usize];
                Command::new(PINFOLD).args([verb, &name]).stderr(Stdio::piped()).spawn().unwrap()
            })
            .collect();
        if dies {
            pinfold.kill().unwrap();
        }
        let last = Command::new(PINFOLD).args(["kill", &name]).stderr(Stdio::piped()).output().unwrap();
        let context = format!("round {round} of seed {seed}: {script}, {containment}, {last:?}");
        for request in requests {
            let output = request.wait_with_output().unwrap();
            // 125: the job was gone when the request looked for it.
            assert!(matches!(output.status.code(), Some(0 | 125)), "{context}: {output:?}");
        }
        assert!(matches!(last.status.code(), Some(0 | 125)), "{context}");
        // The end of the output shows that no process of the job is left. The supervisor, and after its death the guard and
        // its launcher, can hold the output for a moment after the end of the job.
        line.clear();
        output.read_to_string(&mut line).unwrap();
        let status = pinfold.wait().unwrap();
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap());
        assert!([0, 137, 143].contains(&code), "{context}: {code}");
    }
    canary.assert_alive();
}

//! `pinfold serve` with many jobs, with clients that cancel all of them, and with clients that are killed.
//! `PINFOLD_SERVE_JOBS` sets the number of jobs.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::served::{Served, shell};
use crate::support::events::Process;
use crate::support::random::Random;
use crate::support::{PINFOLD, Scratch, wait_for};

fn jobs() -> usize {
    std::env::var("PINFOLD_SERVE_JOBS").map_or(200, |jobs| jobs.parse().unwrap())
}

/// Returns the events. Reads them in large pieces, and not byte by byte.
fn reader(served: &mut Served) -> impl Iterator<Item = Value> + use<> {
    let stdout = served.running.child.stdout.take().unwrap();
    BufReader::new(stdout).lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap())
}

/// Many jobs run at once; each receives its own input and sends its own output.
#[test]
#[requires(cgroup)]
fn many_jobs_at_once() {
    let count = jobs();
    let mut served = Served::start(&["-j", "max"]);
    let mut events = reader(&mut served);
    for number in 0..count {
        let mut job = shell(&number.to_string(), "echo ready; read -r word; echo $word");
        job.as_object_mut().unwrap().extend([("stdin".into(), json!("stream")), ("data".into(), json!(number))]);
        served.send(&job);
    }
    // All of them run before the first one ends.
    let mut ready = 0;
    while ready < count {
        let event = events.next().unwrap();
        ready += usize::from(event["event"] == "output" && event["line"] == "ready");
        assert_ne!(event["event"], "done", "{event}");
    }
    for number in 0..count {
        served.send(&json!({"op": "stdin", "id": number.to_string(), "text": format!("word {number}\n")}));
    }
    let (mut answers, mut done) = (HashMap::new(), 0);
    while done < count {
        let event = events.next().unwrap();
        let id = event["id"].as_str().unwrap().to_owned();
        match event["event"].as_str().unwrap() {
            "output" => assert_eq!(answers.insert(id, event["line"].clone()), None),
            "done" => {
                assert_eq!((&event["success"], event["data"].to_string()), (&json!(true), id.clone()), "{event}");
                assert_eq!(answers[&id], format!("word {id}"));
                done += 1;
            }
            "error" => panic!("{event}"),
            _ => {}
        }
    }
    served.close();
}

/// A storm of requests that end jobs, at any moment of their lives: each job has one `done`, and each request that fails
/// one error.
#[test]
#[requires(cgroup)]
fn a_storm_of_cancels() {
    let count = jobs();
    let (mut random, _) = Random::new("a storm of cancels", "PINFOLD_SERVE_SEED");
    let mut served = Served::start(&["-j", "50"]);
    let mut events = reader(&mut served);
    let mut stdin = served.stdin.take().unwrap();
    // The requests are written beside the reader, so that neither side waits for the other.
    let writing = std::thread::spawn(move || {
        for number in 0..count {
            let id = number.to_string();
            let script = if random.below(2) == 0 { "setsid sleep 1000 & exec sleep 1000" } else { "exit 0" };
            writeln!(stdin, "{}", shell(&id, script)).unwrap();
            for _ in 0..random.below(4) {
                let other = random.below(number as u64 + 1).to_string();
                let request = match random.below(5) {
                    0 => json!({"op": "signal", "id": other, "signal": "KILL", "to": "all"}),
                    1 => json!({"op": "cancel", "id": other, "kill": true}),
                    _ => json!({"op": "cancel", "id": other}),
                };
                writeln!(stdin, "{request}").unwrap();
            }
        }
        for number in 0..count {
            writeln!(stdin, "{}", json!({"op": "cancel", "id": number.to_string(), "kill": true})).unwrap();
        }
        stdin
    });
    let mut done = vec![0; count];
    while done.contains(&0) {
        let event = events.next().unwrap();
        match event["event"].as_str().unwrap() {
            "done" => done[event["id"].as_str().unwrap().parse::<usize>().unwrap()] += 1,
            "error" => {
                let code = event["code"].as_str().unwrap();
                assert!(["no_such_job", "not_started", "failed"].contains(&code), "{event}");
            }
            _ => {}
        }
    }
    assert!(done.iter().all(|&done| done == 1));
    served.stdin = Some(writing.join().unwrap());
    served.close();
}

/// When the client is killed, no process of its jobs is left.
#[test]
#[requires(cgroup, program("python3"))]
fn a_client_that_is_killed() {
    const CLIENT: &str = "
import json, subprocess, sys
serve = subprocess.Popen([sys.argv[1], 'serve', '--stdio', '-j', '20'], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
print(serve.pid, flush=True)
for number in range(20):
    script = 'trap \"\" TERM; setsid sleep 1000 & echo $$ $! >>' + sys.argv[2] + '; exec sleep 1000'
    job = {'op': 'submit', 'id': str(number), 'job': {'command': ['sh', '-c', script]}}
    serve.stdin.write(json.dumps(job).encode() + b'\\n')
serve.stdin.flush()
spawned = 0
for line in serve.stdout:
    spawned += b'spawned' in line
    if spawned == 20:
        print('ready', flush=True)
";
    let pids = Scratch::new("pids");
    let words = ["-c", CLIENT, PINFOLD, pids.path().to_str().unwrap()];
    let mut client = Command::new("python3").args(words).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(client.stdout.take().unwrap()).lines();
    let serve: i32 = lines.next().unwrap().unwrap().parse().unwrap();
    let serve = Process::of(serve);
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    let text = wait_for(|| {
        let text = read(pids.path());
        (text.lines().count() == 20 && text.ends_with('\n')).then_some(text)
    });
    let ends: Vec<_> = text.split_whitespace().map(|pid| Process::of(pid.parse().unwrap())).collect();
    client.kill().unwrap();
    client.wait().unwrap();
    serve.wait_for_end();
    ends.iter().for_each(Process::wait_for_end);
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

//! The limits of jobs in JSON, with controllers that enforce them: `pinfold pool` and `pinfold serve`. As with
//! `resources.rs`, `scripts/vm-test` runs these tests on machines with controllers, and requires the controllers
//! there.

use std::io::Write as _;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::needs::{Need, need};
use crate::support::pool::{lines, pool, text};
use crate::support::{PINFOLD, Run, Scratch, program};

fn memory_and_pids() -> Need {
    let words = ["run", "--memory", "max", "--pids", "1000", "--", "true"];
    let output = std::process::Command::new(PINFOLD).args(words).output().unwrap();
    let reason = String::from_utf8_lossy(&output.stderr);
    need("memory", output.status.success(), &reason)?;
    need("pids", output.status.success(), &reason)
}

/// Prints the files of the job's own cgroup as the kernel shows them.
const SHOW_LIMITS: &str =
    r#"cd "/sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)" && cat memory.max memory.swap.max pids.max"#;

fn used(mode: &[&str]) -> Value {
    let program = program("use");
    std::iter::once(text(&program)).chain(mode.iter().copied()).collect()
}

#[test]
#[requires(memory_and_pids)]
fn each_job_of_a_pool_has_its_own() {
    let (results, printed) = (Scratch::new("results"), Scratch::new("told"));
    let show = format!("{SHOW_LIMITS} >'{}'", text(printed.path()));
    let jobs = [
        json!({"command": used(&["hog", "1000000000"]), "limits": {"memory": "64M"}}),
        json!({"command": used(&["storm"]), "timeout": "2s", "limits": {"pids": 20}}),
        json!({"command": ["sh", "-c", show], "limits": {"memory": 33554432, "swap": "4M", "pids": 7}}),
        json!({"command": ["sh", "-c", "ulimit -n; nice; exit 3"], "limits": {"rlimit": ["nofile=64"], "nice": 5}}),
        json!({"command": used(&["hog", "100000000"]), "timeout": "2s"}),
    ];
    let jobs: String = jobs.iter().map(|job| format!("{job}\n")).collect();
    let ran = pool(&["-j", "2", "--results", text(results.path())], &jobs);
    assert_eq!(ran.code, 1, "{ran:#?}");
    let mut reports = lines(results.path());
    reports.sort_by_key(|result| result["line"].as_u64());
    let [hog, storm, teller, limited, free] = &reports[..] else { panic!("{reports:#?}") };
    assert_eq!(hog["report"]["reason"], "oom", "{hog:#}");
    assert_eq!(storm["report"]["reason"], "deadline", "{storm:#}");
    assert!(storm["report"]["usage"]["forks_refused"]["value"].as_u64().unwrap() > 0, "{storm:#}");
    assert_eq!(teller["report"]["exit_code"], 0, "{teller:#}");
    // Without swap accounting this file does not exist, and swap cannot be limited.
    let files = printed.text();
    assert!(files.starts_with("33554432\n") && files.ends_with("\n7\n"), "{files}");
    assert!(files.contains("\n4194304\n"), "{files}");
    assert_eq!(limited["report"]["exit_code"], 3, "{limited:#}");
    assert!(ran.stdout.contains("64") && ran.stdout.contains('5'), "{ran:#?}");
    // The limits of the other jobs do not apply to a job without limits.
    assert_eq!(free["report"]["reason"], "deadline", "{free:#}");
    assert!(free["report"]["oom"].is_null() && ran.stdout.contains("holds"), "{free:#}");
}

#[test]
#[requires(memory_and_pids)]
fn each_job_that_is_submitted_has_its_own() {
    let mut run = Run::bare([PINFOLD, "serve", "--stdio", "--controllers", "memory,pids", "-j", "1"]);
    run.command().stdin(Stdio::piped());
    let mut running = run.start();
    let mut stdin = running.child.stdin.take().unwrap();
    let submit = |id: &str, job: Value| json!({"op": "submit", "id": id, "job": job});
    let requests = [
        submit("hog", json!({"command": used(&["hog", "1000000000"]), "limits": {"memory": "64M"}})),
        submit(
            "show",
            json!({"command": ["sh", "-c", SHOW_LIMITS], "limits": {"memory": "32M", "swap": "4M", "pids": 7}}),
        ),
        submit("free", json!({"command": ["sh", "-c", SHOW_LIMITS]})),
        submit("weight", json!({"command": ["true"], "limits": {"cpu_weight": 50}})),
    ];
    for request in &requests {
        writeln!(stdin, "{request}").unwrap();
    }
    let (mut done, mut refused, mut printed) = (std::collections::BTreeMap::new(), Value::Null, Vec::new());
    while done.len() < 3 || refused.is_null() {
        let event: Value = serde_json::from_str(&running.line()).unwrap();
        match event["event"].as_str().unwrap() {
            "done" => _ = done.insert(event["id"].as_str().unwrap().to_owned(), event["report"].clone()),
            "error" => refused = event,
            "output" => printed.push(format!("{}: {}", event["id"].as_str().unwrap(), event["line"].as_str().unwrap())),
            _ => {}
        }
    }
    drop(stdin);
    running.finish().assert_code(0);
    assert_eq!(done["hog"]["reason"], "oom", "{done:#?}");
    let expected = ["show: 33554432", "show: 4194304", "show: 7", "free: max", "free: max", "free: max"];
    assert_eq!(printed, expected, "{done:#?}");
    // pinfold refuses a limit for which it was not started, and reports the reason.
    assert_eq!(refused["id"], "weight");
    assert!(refused["message"].as_str().unwrap().contains("--controllers cpu"), "{refused:#}");
}

/// A small container that its job fills with processes. The OOM killer kills some of these, and not pinfold, which must
/// end the rest and write a report.
#[test]
#[requires(memory_and_pids, root)]
fn a_full_container_keeps_pinfold_and_its_guard() {
    let own = crate::support::own_cgroup().join("full");
    let inner = own.join("all");
    let job = "for n in $(seq 400); do sleep 1000 & done; wait";
    // The caller may lower its oom_score_adj (CAP_SYS_RESOURCE) in one run, and may not in the other. The job keeps the
    // value of the caller.
    for containment in ["cgroup", "subreaper"] {
        for drop in ["", "setpriv --bounding-set=-sys_resource --inh-caps=-sys_resource"] {
            let script = format!(
                r#"set -e; mkdir -p {all}; echo 16M >{own}/memory.max; echo 0 >{own}/memory.swap.max || :
                (echo 0 >{all}/cgroup.procs; exec {drop} "$@"); code=$?; rmdir {all} {own}; exit $code"#,
                own = text(&own),
                all = text(&inner),
            );
            let words = ["--containment", containment, "-t", "20", "--grace", "0", "--", "sh", "-c", job];
            let mut run = Run::in_shell(&script.replace("set -e; ", ""), words);
            run.command().env_remove("PINFOLD_CGROUP");
            let ran = run.run();
            assert_eq!((ran.survivors.as_str(), &ran.report["version"]), ("", &1.into()), "{ran:#?}");
            assert!(ran.report["main"].is_object() && !own.exists(), "{ran:#?}");
        }
    }
}

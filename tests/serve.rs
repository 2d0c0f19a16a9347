//! `pinfold serve`: what it says is what its protocol says, and nothing outlives who it serves.

#[path = "serve/served.rs"]
mod served;
mod support;

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;
use served::{Served, shell};
use support::{PINFOLD, PROJECT, Run, has, has_cgroup};

#[test]
fn a_job_from_beginning_to_end() {
    if !has_cgroup() {
        return;
    }
    let mut served = Served::start(&[]);
    let mut job = shell("a", "cat; printf 'e\\377' >&2; exit $CODE");
    job["job"]["stdin"] = "given\nlast".into();
    job["job"]["env"] = json!({"CODE": "3"});
    served.say(&job);
    let events = served.hear_until("done");
    let lines: Vec<_> = events.iter().filter(|event| event["event"] == "output").map(|event| &event["line"]).collect();
    assert_eq!(lines, ["given", "last"]);
    let bytes = events.iter().find(|event| event["event"] == "output_bytes").unwrap();
    assert_eq!((&bytes["bytes"], &bytes["stream"]), (&json!([101, 255]), &json!("stderr")));
    let told: Vec<_> =
        events.iter().filter(|event| event["event"] == "job").map(|event| &event["what"]["event"]).collect();
    assert_eq!(told, ["spawned", "main_exited", "empty", "gone"]);
    let done = &events[events.len() - 1];
    assert_eq!((&done["success"], &done["report"]["exit_code"]), (&json!(false), &json!(3)));
    served.close();
}

#[test]
fn cancel_signal_and_processes() {
    if !has_cgroup() {
        return;
    }
    let mut served = Served::start(&["-j", "1"]);
    served.say(&shell("a", "trap 'echo got it; exit 0' USR1; setsid sleep 100 & echo ready; while :; do wait; done"));
    served.say(&shell("b", "exit 0"));
    served.hear_until("output");
    served.say(&json!({"op": "processes", "id": "a"}));
    let processes = served.hear_until("processes").pop().unwrap();
    assert_eq!(processes["processes"].as_array().unwrap().len(), 2, "{processes}");
    // One that waits has no process, and never will.
    served.say(&json!({"op": "signal", "id": "b", "signal": "TERM"}));
    assert_eq!(served.hear_until("error").pop().unwrap()["message"], "it has not been started");
    served.say(&json!({"op": "cancel", "id": "b"}));
    let done = served.hear_until("done").pop().unwrap();
    assert_eq!((&done["id"], &done["report"]["reason"]), (&json!("b"), &json!("cancelled")));
    served.say(&json!({"op": "signal", "id": "a", "signal": "USR1"}));
    let events = served.hear_until("done");
    assert!(events.iter().any(|event| event["line"] == "got it"), "{events:#?}");
    assert_eq!(events[events.len() - 1]["report"]["leftovers"]["count"], 1);

    served.say(&shell("c", "setsid sleep 100 & echo ready; wait"));
    served.hear_until("output");
    served.say(&json!({"op": "cancel", "id": "c"}));
    let done = served.hear_until("done").pop().unwrap();
    assert_eq!((&done["cancelled"], &done["report"]["reason"]), (&json!(true), &json!("stopped")));
    served.close();
}

#[test]
fn freeze_thaw_and_usage() {
    if !has_cgroup() {
        return;
    }
    let mut served = Served::start(&[]);
    served.say(&shell("a", "trap 'echo told; exit 0' TERM; echo ready; while :; do sleep 0.01; done"));
    served.hear_until("output");
    served.say(&json!({"op": "freeze", "id": "a"}));
    assert_eq!(served.hear_until("frozen").pop().unwrap()["id"], "a");
    served.say(&json!({"op": "usage", "id": "a"}));
    let usage = served.hear_until("usage").pop().unwrap();
    assert!(usage["usage"]["cpu_user_microseconds"]["value"].is_u64(), "{usage}");
    served.say(&json!({"op": "thaw", "id": "a"}));
    served.say(&json!({"op": "freeze", "id": "a"}));
    served.hear_until("frozen");
    // A cancel thaws it: it sees the stop signal.
    served.say(&json!({"op": "cancel", "id": "a"}));
    let events = served.hear_until("done");
    assert!(events.iter().any(|event| event["line"] == "told"), "{events:#?}");
    served.say(&json!({"op": "usage", "id": "a"}));
    served.hear_until("error");
    served.close();
}

#[test]
fn limits_of_jobs() {
    if !has_cgroup() {
        return;
    }
    let mut served = Served::start(&[]);
    let mut job = shell("a", "ulimit -n");
    job["job"]["limits"] = json!({"rlimit": ["nofile=17:18"]});
    served.say(&job);
    assert!(served.hear_until("done").iter().any(|event| event["line"] == "17"));
    // One whose controller was not asked for is not started.
    job["job"]["limits"] = json!({"pids": 10});
    served.say(&job);
    let error = served.hear();
    assert!(error["message"].as_str().unwrap().contains("--controllers pids"), "{error}");
    served.close();

    // One that can't be had is told at once, with the reason.
    let mut run = Run::bare([PINFOLD, "serve", "--stdio", "--controllers", "pids"]);
    run.command().stdin(Stdio::null());
    let ran = run.run();
    if ran.code != 0 {
        assert!(ran.code == 125 && ran.stderr.contains("pids"), "{ran:#?}");
        has("pids", false, &ran.stderr);
        return;
    }
    let mut served = Served::start(&["--controllers", "pids"]);
    served.say(&job);
    let done = served.hear_until("done").pop().unwrap();
    assert!(done["report"]["usage"]["processes_peak"]["value"].is_u64(), "{done}");
    served.close();
}

#[test]
fn wrong_requests_hurt_nobody() {
    if !has_cgroup() {
        return;
    }
    let mut served = Served::start(&[]);
    for (text, said) in [
        ("nonsense", "expected"),
        ("{}", "op"),
        (r#"{"op": "dance", "id": "a"}"#, "dance"),
        (r#"{"op": "submit", "id": "a", "job": {"command": []}}"#, "empty"),
        (r#"{"op": "submit", "id": "a", "job": {"command": ["a"], "shell": true}}"#, "shell"),
        (r#"{"op": "submit", "id": "a", "job": {"command": ["a\u0000"]}}"#, "NUL"),
        (r#"{"op": "submit", "id": "a", "job": {"command": ["a"], "limits": {"memory": "much"}}}"#, "much"),
        (r#"{"op": "submit", "id": "a", "job": {"command": ["a"], "limits": {"memroy": 1}}}"#, "memroy"),
        (r#"{"op": "freeze", "id": "a"}"#, "no such job"),
        (r#"{"op": "cancel", "id": "a"}"#, "no such job"),
        (r#"{"op": "signal", "id": "a", "signal": "NONE"}"#, "NONE"),
    ] {
        served.say_text(text);
        let error = served.hear();
        let message = error["message"].as_str().unwrap_or_default();
        assert!(error["event"] == "error" && message.contains(said), "{text}: {error}");
    }
    served.say(&shell("a", "exit 0"));
    assert_eq!(served.hear_until("done").pop().unwrap()["success"], true);
    served.close();
}

#[test]
fn the_end_of_its_input_is_the_end_of_all() {
    if !has_cgroup() {
        return;
    }
    let mut served = Served::start(&["-j", "3"]);
    for id in ["a", "b", "c", "d"] {
        served.say(&shell(id, "trap '' TERM; setsid sleep 100 & echo ready; while :; do wait; done"));
    }
    let mut ready = 0;
    while ready < 3 {
        ready += u32::from(served.hear()["event"] == "output");
    }
    served.close();
}

/// `examples/python`, against programs that hang.
#[test]
fn the_python_executor() {
    let python = |args: &[&str]| {
        let mut python = Command::new("python3");
        python.args(args).current_dir(PROJECT).env("PINFOLD", PINFOLD).env("PYTHONDONTWRITEBYTECODE", "1");
        python.output()
    };
    let present = python(&["-c", "import pytest"]).is_ok_and(|ran| ran.status.success());
    if !has_cgroup() || !has("pytest", present, "python3 -m pip install pytest") {
        return;
    }
    assert!(Path::new(PROJECT).join("examples/python").is_dir());
    let ran = python(&["-m", "pytest", "-q", "-p", "no:cacheprovider", "examples/python"]).unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stdout));
}

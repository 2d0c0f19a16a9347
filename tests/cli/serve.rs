//! `pinfold serve`: its output follows its protocol, and no job outlives the client.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::json;

use super::served::{Served, shell};
use crate::support::messages::Messages;
use crate::support::needs::{Need, need};
use crate::support::{PINFOLD, PROJECT, Run, has};

#[test]
#[requires(cgroup)]
fn a_job_from_beginning_to_end() {
    let mut served = Served::start(&[]);
    let mut job = shell("a", "cat; printf 'e\\377' >&2; exit $CODE");
    job["job"]["stdin"] = "given\nlast".into();
    job["job"]["env"] = json!({"CODE": "3"});
    served.send(&job);
    let events = served.events_until("done");
    let lines: Vec<_> = events.iter().filter(|event| event["event"] == "output").map(|event| &event["line"]).collect();
    assert_eq!(lines, ["given", "last"]);
    let bytes = events.iter().find(|event| event["event"] == "output_bytes").unwrap();
    assert_eq!((&bytes["bytes"], &bytes["stream"]), (&json!([101, 255]), &json!("stderr")));
    let kinds: Vec<_> =
        events.iter().filter(|event| event["event"] == "job").map(|event| &event["what"]["event"]).collect();
    assert_eq!(kinds, ["spawned", "main_exited", "empty", "gone"]);
    let done = &events[events.len() - 1];
    assert_eq!((&done["success"], &done["report"]["exit_code"]), (&json!(false), &json!(3)));
    served.close();
}

#[test]
#[requires(cgroup)]
fn cancel_signal_and_processes() {
    let mut served = Served::start(&["-j", "1"]);
    served.send(&shell("a", "trap 'echo got it; exit 0' USR1; setsid sleep 100 & echo ready; while :; do wait; done"));
    served.send(&shell("b", "exit 0"));
    served.events_until("output");
    served.send(&json!({"op": "processes", "id": "a"}));
    let processes = served.events_until("processes").pop().unwrap();
    assert_eq!(processes["processes"].as_array().unwrap().len(), 2, "{processes}");
    // A job that waits for a worker has no process that could receive a signal.
    served.send(&json!({"op": "signal", "id": "b", "signal": "TERM"}));
    assert_eq!(served.events_until("error").pop().unwrap()["code"], "not_started");
    served.send(&json!({"op": "cancel", "id": "b"}));
    let done = served.events_until("done").pop().unwrap();
    assert_eq!((&done["id"], &done["report"]["reason"]), (&json!("b"), &json!("cancelled")));
    served.send(&json!({"op": "signal", "id": "a", "signal": "USR1"}));
    let events = served.events_until("done");
    assert!(events.iter().any(|event| event["line"] == "got it"), "{events:#?}");
    assert_eq!(events[events.len() - 1]["report"]["leftovers"]["count"], 1);

    served.send(&shell("c", "setsid sleep 100 & echo ready; wait"));
    served.events_until("output");
    served.send(&json!({"op": "cancel", "id": "c"}));
    let done = served.events_until("done").pop().unwrap();
    assert_eq!((&done["cancelled"], &done["report"]["reason"]), (&json!(true), &json!("stopped")));
    served.close();
}

#[test]
#[requires(cgroup)]
fn freeze_thaw_and_usage() {
    let mut served = Served::start(&[]);
    served.send(&shell("a", "trap 'echo stopping; exit 0' TERM; echo ready; while :; do sleep 0.01; done"));
    served.events_until("output");
    served.send(&json!({"op": "freeze", "id": "a"}));
    assert_eq!(served.events_until("frozen").pop().unwrap()["id"], "a");
    served.send(&json!({"op": "usage", "id": "a"}));
    let usage = served.events_until("usage").pop().unwrap();
    assert!(usage["usage"]["cpu_user_microseconds"]["value"].is_u64(), "{usage}");
    served.send(&json!({"op": "thaw", "id": "a"}));
    served.send(&json!({"op": "freeze", "id": "a"}));
    served.events_until("frozen");
    // A cancel thaws the job, so that the job receives the stop signal.
    served.send(&json!({"op": "cancel", "id": "a"}));
    let events = served.events_until("done");
    assert!(events.iter().any(|event| event["line"] == "stopping"), "{events:#?}");
    served.send(&json!({"op": "usage", "id": "a"}));
    served.events_until("error");
    served.close();
}

#[test]
#[requires(other_users, sandbox)]
fn a_job_of_another_user_in_a_sandbox() {
    let mut served = Served::start(&[]);
    let mut job = shell("a", "id -u; ls / >/dev/null && echo seen");
    job["job"]["user"] = "65534:65534".into();
    job["job"]["sandbox"] = json!({});
    served.send(&job);
    let events = served.events_until("done");
    let lines: Vec<_> = events.iter().filter(|event| event["stream"] == "stdout").map(|event| &event["line"]).collect();
    assert_eq!(lines, ["65534"]);
    job["job"]["user"] = "no-such-user".into();
    served.send(&job);
    let error = served.next_event();
    assert!(error["message"].as_str().unwrap().contains("no-such-user"), "{error}");
    served.close();
}

#[test]
#[requires(cgroup)]
fn limits_of_jobs() {
    let mut served = Served::start(&[]);
    let mut job = shell("a", "ulimit -n");
    job["job"]["limits"] = json!({"rlimit": ["nofile=17:18"]});
    served.send(&job);
    assert!(served.events_until("done").iter().any(|event| event["line"] == "17"));
    // A job whose controller was not requested is not started.
    job["job"]["limits"] = json!({"pids": 10});
    served.send(&job);
    let error = served.next_event();
    assert!(error["message"].as_str().unwrap().contains("--controllers pids"), "{error}");
    served.close();

    // If a controller is not available, pinfold reports this at once, with the reason.
    let mut run = Run::bare([PINFOLD, "serve", "--stdio", "--controllers", "pids"]);
    run.command().stdin(Stdio::null());
    let ran = run.run();
    if ran.code != 0 {
        ran.assert_names("pids");
        let ran = ran.assert_code(125);
        has(need("pids", false, &ran.stderr));
        return;
    }
    let mut served = Served::start(&["--controllers", "pids"]);
    served.send(&job);
    let done = served.events_until("done").pop().unwrap();
    assert!(done["report"]["usage"]["processes_peak"]["value"].is_u64(), "{done}");
    served.close();
}

#[test]
#[requires(cgroup)]
fn invalid_requests_affect_no_other_request() {
    let mut served = Served::start(&[]);
    let mut messages = Messages::default();
    for text in [
        "nonsense",
        "{}",
        r#"{"op": "dance", "id": "a"}"#,
        r#"{"op": "submit", "id": "a", "job": {"command": []}}"#,
        r#"{"op": "submit", "id": "a", "job": {"command": ["a"], "shell": true}}"#,
        r#"{"op": "submit", "id": "a", "job": {"command": ["a\u0000"]}}"#,
        r#"{"op": "submit", "id": "a", "job": {"command": ["a"], "limits": {"memory": "much"}}}"#,
        r#"{"op": "submit", "id": "a", "job": {"command": ["a"], "limits": {"memroy": 1}}}"#,
        r#"{"op": "freeze", "id": "a"}"#,
        r#"{"op": "cancel", "id": "a"}"#,
        r#"{"op": "signal", "id": "a", "signal": "NONE"}"#,
    ] {
        served.send_text(text);
        let error = served.next_event();
        assert_eq!(error["event"], "error", "{text}: {error}");
        messages.add(text, error["message"].as_str().unwrap());
    }
    insta::assert_snapshot!(messages);
    served.send(&shell("a", "exit 0"));
    assert_eq!(served.events_until("done").pop().unwrap()["success"], true);
    served.close();
}

#[test]
#[requires(cgroup)]
fn the_end_of_its_input_ends_all_jobs() {
    let mut served = Served::start(&["-j", "3"]);
    for id in ["a", "b", "c", "d"] {
        served.send(&shell(id, "trap '' TERM; setsid sleep 100 & echo ready; while :; do wait; done"));
    }
    let mut ready = 0;
    while ready < 3 {
        ready += u32::from(served.next_event()["event"] == "output");
    }
    served.close();
}

/// Each answer has the number of the line that it belongs to, and its id, whatever the error in the line is.
#[test]
#[requires(cgroup)]
fn every_answer_names_its_request() {
    let mut served = Served::start(&[]);
    let job = |timeout: &str| format!(r#"{{"op":"submit","id":"a","job":{{"command":["true"],"timeout":{timeout}}}}}"#);
    let (negative, nan, no_time) = (job("-1"), job("NaN"), job("[1]"));
    let (long, unended) = ("x".repeat(300), r#"{"op":"submit","id":"a","job":{"comm"#);
    let mut number = 0;
    for (text, id) in [
        (r#"{"op":"dance","id":"a"}"#, json!("a")),
        (r#"{"op":"signal","id":"a"}"#, json!("a")),
        (r#"{"op":"cancel","id":"a","now":true}"#, json!("a")),
        (r#"{"op":"submit","id":"a","job":{"command":["a"],"shell":true}}"#, json!("a")),
        (r#"{"op":"submit","id":"a","job":{"command":"echo x"}}"#, json!("a")),
        (r#"{"id":"a"}"#, json!("a")),
        (&negative, json!("a")),
        (&nan, json!("a")),
        (&no_time, json!("a")),
        (unended, json!("a")),
        (r#"{"op":"cancel","id":7}"#, json!(7)),
        (r#"{"op":"cancel","id":null}"#, json!(null)),
        (r#"{"op":"cancel"}"#, json!(null)),
        (r#"{"op":"usage","id":"none"}"#, json!("none")),
        ("nonsense", json!(null)),
        (&long, json!(null)),
    ] {
        served.send_text(text);
        // A blank line has a number too, but gets no answer.
        served.send_text("");
        number += 2;
        let error = served.next_event();
        assert_eq!(error["event"], "error", "{text}: {error}");
        assert_eq!((&error["request"], &error["id"]), (&json!(number - 1), &id), "{text}: {error}");
    }
    // Answers that are not errors.
    served.send(&shell("a", "echo ready; read never"));
    let mut job = shell("b", "echo ready; sleep 1000");
    job["job"]["name"] = "second".into();
    served.send(&job);
    let (first, second) = (number + 1, number + 2);
    let done = served.events_until("done").pop().unwrap();
    assert_eq!((&done["request"], &done["id"]), (&json!(first), &json!("a")));
    for (request, event) in [("processes", "processes"), ("freeze", "frozen"), ("usage", "usage")] {
        served.send(&json!({"op": request, "id": "b"}));
        let answer = served.events_until(event).pop().unwrap();
        number = answer["request"].as_u64().unwrap();
        assert_eq!(answer["id"], "b");
    }
    assert_eq!(number, second + 3);
    // This id belongs to a running job. The error answers the new request, and not the request of that job.
    served.send(&shell("b", "exit 0"));
    let error = served.events_until("error").pop().unwrap();
    assert_eq!((&error["request"], &error["id"]), (&json!(second + 4), &json!("b")));
    served.send(&json!({"op": "cancel", "id": "b"}));
    let done = served.events_until("done").pop().unwrap();
    assert_eq!((&done["request"], &done["report"]["name"]), (&json!(second), &json!("second")));
    served.close();
}

/// An endless line does not fill the memory: pinfold refuses it and reads the next line.
#[test]
#[requires(cgroup)]
fn an_endless_request_is_refused() {
    let mut served = Served::start(&[]);
    let mut stdin = served.stdin.take().unwrap();
    stdin.write_all(br#"{"op":"submit","id":"endless","job":{"command":["a"],"stdin":""#).unwrap();
    let writing = std::thread::spawn(move || {
        let piece = vec![b'x'; 1024 * 1024];
        (0..257).for_each(|_| stdin.write_all(&piece).unwrap());
        stdin
    });
    // The error comes before the end of the line.
    let error = served.next_event();
    assert_eq!((&error["event"], &error["request"], &error["id"]), (&json!("error"), &json!(1), &json!("endless")));
    served.stdin = Some(writing.join().unwrap());
    served.send_text("");
    served.send(&shell("a", "exit 0"));
    let done = served.events_until("done").pop().unwrap();
    assert_eq!((&done["request"], &done["success"]), (&json!(2), &json!(true)));
    served.close();
}

/// pinfold splits a long line of UTF-8 between characters. A line that is not UTF-8 comes as bytes.
#[test]
#[requires(cgroup)]
fn a_long_line_is_not_cut_within_a_character() {
    let mut served = Served::start(&[]);
    for (number, character) in ["x", "ä", "€", "𝄞"].iter().enumerate() {
        for shift in 0..4 {
            let id = format!("{number} {shift}");
            let text = "y".repeat(shift) + &character.repeat(100_000 / character.len());
            let mut job = shell(&id, "cat");
            job["job"]["stdin"] = text.as_str().into();
            served.send(&job);
            let events = served.events_until("done");
            let lines = events.iter().filter(|event| event["event"] == "output");
            let all: String = lines.map(|event| event["line"].as_str().unwrap()).collect();
            assert!(all == text, "{character} {shift}: {} of {} bytes", all.len(), text.len());
            assert!(!events.iter().any(|event| event["event"] == "output_bytes"), "{character} {shift}");
        }
    }
    served.send(&shell("bytes", "head -c 100000 /dev/zero | tr '\\0' '\\377'"));
    let events = served.events_until("done");
    let pieces = events.iter().filter(|event| event["event"] == "output_bytes");
    assert_eq!(pieces.map(|event| event["bytes"].as_array().unwrap().len()).sum::<usize>(), 100_000);
    served.close();
}

/// Many lines that arrive in one read are one event each, in order, whatever bytes they contain.
#[test]
#[requires(cgroup)]
fn many_short_lines_are_events_in_order() {
    let mut served = Served::start(&[]);
    served.send(&shell("a", r"seq 10000; printf '\377\n\n\303\244'"));
    let events = served.events_until("done");
    let lines: Vec<_> = events.iter().filter(|event| event["line"].is_string() || event["bytes"].is_array()).collect();
    assert_eq!(lines.len(), 10_003);
    for (number, event) in (1..=10_000).zip(&lines) {
        let line = event["line"].as_str().and_then(|line| line.parse().ok());
        assert!(line == Some(number) && event["complete"] == true, "{number}: {event}");
    }
    assert_eq!(lines[10_000]["event"], "output_bytes");
    assert_eq!((&lines[10_001]["line"], &lines[10_001]["complete"]), (&json!(""), &json!(true)));
    assert_eq!((&lines[10_002]["line"], &lines[10_002]["complete"]), (&json!("ä"), &json!(false)));
    served.close();
}

#[test]
#[requires(cgroup)]
fn merged_streams_keep_their_order() {
    let mut served = Served::start(&[]);
    let script = "for i in 1 2 3 4 5; do echo out $i; echo err $i >&2; done";
    let mut job = shell("a", script);
    job["job"]["stderr"] = "merged".into();
    served.send(&job);
    let events = served.events_until("done");
    let lines: Vec<_> = events.iter().filter_map(|event| event["line"].as_str()).collect();
    let expected: Vec<_> = (1..=5).flat_map(|i| [format!("out {i}"), format!("err {i}")]).collect();
    assert_eq!(lines, expected);
    job["job"]["stderr"] = "separate".into();
    served.send(&job);
    let events = served.events_until("done");
    assert_eq!(events.iter().filter(|event| event["stream"] == "stderr").count(), 5);
    served.close();
}

fn python(args: &[&str]) -> std::io::Result<Output> {
    let mut python = Command::new("python3");
    python.args(args).current_dir(PROJECT).env("PINFOLD", PINFOLD).env("PYTHONDONTWRITEBYTECODE", "1");
    python.output()
}

fn pytest() -> Need {
    let present = python(&["-c", "import pytest"]).is_ok_and(|ran| ran.status.success());
    need("pytest", present, "python3 -m pip install pytest")
}

/// `examples/python` works, even with programs that hang.
#[test]
#[requires(cgroup, pytest)]
fn the_python_executor() {
    assert!(Path::new(PROJECT).join("examples/python").is_dir());
    let ran = python(&["-m", "pytest", "-q", "-p", "no:cacheprovider", "examples/python"]).unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stdout));
}

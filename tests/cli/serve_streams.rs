//! `pinfold serve`: streamed input, binary output, flow control and terminals.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::served::{Served, shell};

/// Returns the bytes of the events `data` of one stream, in their order.
fn bytes_of(events: &[Value], stream: &str) -> Vec<u8> {
    let pieces = events.iter().filter(|event| event["event"] == "data" && event["stream"] == stream);
    pieces
        .flat_map(|event| match (event["text"].as_str(), event["base64"].as_str()) {
            (Some(text), None) => text.as_bytes().to_vec(),
            (None, Some(text)) => STANDARD.decode(text).unwrap(),
            _ => panic!("{event}"),
        })
        .collect()
}

/// Returns a `submit` request with more fields.
fn submit(id: &str, script: &str, more: Value) -> Value {
    let mut request = shell(id, script);
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    request
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().filter_map(|event| event["event"].as_str()).collect()
}

#[test]
#[requires(cgroup)]
fn hello_names_the_capabilities() {
    let served = Served::start(&["-j", "3"]);
    let names: Vec<_> = served.hello["capabilities"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(names.is_sorted(), "{names:?}");
    for name in ["close", "credit", "output", "pty", "stdin", "user_data"] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert_eq!((&served.hello["protocol"], &served.hello["workers"]), (&json!(1), &json!(3)));
    served.close();

    let served = Served::start(&["-j", "max"]);
    assert!(served.hello["workers"].as_u64().unwrap() > 50, "{}", served.hello);
    served.close();
}

/// Every byte arrives as it is, and text arrives as text.
#[test]
#[requires(cgroup)]
fn any_bytes_arrive() {
    let mut served = Served::start(&[]);
    let all: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    served.send(&submit(
        "a",
        "cat; printf 'w\\303\\244 >\\t\\033[0m' >&2",
        json!({"stdin": "stream", "output": "data"}),
    ));
    for piece in all.chunks(50_000) {
        served.send(&json!({"op": "stdin", "id": "a", "base64": STANDARD.encode(piece)}));
    }
    served.send(&json!({"op": "close", "id": "a", "stream": "stdin"}));
    let events = served.events_until("done");
    assert!(bytes_of(&events, "stdout") == all);
    let text = events.iter().find(|event| event["stream"] == "stderr" && event["event"] == "data").unwrap();
    assert_eq!(text["text"], "wä >\t\u{1b}[0m");
    let written = events.iter().filter(|event| event["event"] == "stdin");
    assert_eq!(written.map(|event| event["bytes"].as_u64().unwrap()).sum::<u64>(), all.len() as u64);
    // Each output has one end, after all of its data.
    for stream in ["stdout", "stderr"] {
        let of_stream: Vec<_> = events.iter().filter(|event| event["stream"] == stream).cloned().collect();
        let kinds = kinds(&of_stream);
        assert_eq!(kinds.iter().position(|kind| *kind == "eof"), Some(kinds.len() - 1), "{kinds:?}");
    }
    served.close();
}

/// A conversation: pinfold sends each piece at once, without waiting for the end of a line or of a character.
#[test]
#[requires(cgroup)]
fn a_conversation() {
    let mut served = Served::start(&[]);
    let script = "printf '\\303'; head -c 3 | od -An -c; printf x; cat";
    served.send(&submit("a", script, json!({"stdin": "stream", "output": "data", "data": {"any": [1, null]}})));
    let mut before = served.events_until("data");
    let first = before.pop().unwrap();
    // The start is announced before the first output.
    assert!(before.iter().any(|event| event["what"]["event"] == "spawned"), "{before:#?}");
    assert_eq!(first["base64"], STANDARD.encode(b"\xc3"));
    served.send(&json!({"op": "stdin", "id": "a", "text": "ä\n"}));
    let mut received = Vec::new();
    while !bytes_of(&received, "stdout").ends_with(b"x") {
        received.append(&mut served.events_until("data"));
    }
    assert_eq!(bytes_of(&received, "stdout"), b" 303 244  \\n\nx");
    served.send(&json!({"op": "close", "id": "a", "stream": "stdin"}));
    let done = served.events_until("done").pop().unwrap();
    assert_eq!((&done["success"], &done["data"]), (&json!(true), &json!({"any": [1, null]})));
    served.close();
}

/// Each `stdin` request has one answer, whenever the job ends.
#[test]
#[requires(cgroup)]
fn input_that_is_not_read() {
    // A descendant may take a tenth of the settle time to read, after the main process has exited.
    let mut served = Served::start(&["-j", "1", "--settle", "200s"]);
    let stream = json!({"stdin": "stream", "output": "data"});
    let is_closed = |event: &Value| event["event"] == "error" && event["code"] == "stdin_closed";
    let piece = |id: &str, length: usize| json!({"op": "stdin", "id": id, "text": "x".repeat(length)});
    // The main process closes its input and continues to run.
    served.send(&submit("a", "exec <&-; echo ready; exec sleep 1000", stream.clone()));
    served.events_until("data");
    served.send(&piece("a", 10));
    let error = served.events_until("error").pop().unwrap();
    assert!(is_closed(&error) && error["request"] == 2, "{error}");
    served.send(&piece("a", 10));
    assert!(is_closed(&served.events_until("error").pop().unwrap()));
    served.send(&json!({"op": "cancel", "id": "a", "kill": true}));
    let done = served.events_until("done").pop().unwrap();
    assert_eq!((&done["cancelled"], &done["report"]["killed"]), (&json!(true), &json!(true)));
    served.send(&piece("a", 10));
    assert_eq!(served.next_event()["code"], "no_such_job");

    // The main process has exited, and a descendant still reads.
    served.send(&submit("b", "exec 3<&0; { cat <&3 >&2; } & echo ready", stream.clone()));
    served.events_until("data");
    served.send(&piece("b", 3));
    served.send(&json!({"op": "close", "id": "b", "stream": "stdin"}));
    let events = served.events_until("done");
    assert_eq!(bytes_of(&events, "stderr"), b"xxx");

    // A job that never reads: the window is the limit, and pinfold answers the rest at the end of the job.
    served.send(&submit("c", "echo ready; exec sleep 1000", stream.clone()));
    served.events_until("data");
    let window = served.hello["stdin_window"].as_u64().unwrap() as usize;
    served.send(&piece("c", window + 70_000));
    served.send(&piece("c", 1));
    let full = served.events_until("error").pop().unwrap();
    assert_eq!(full["code"], "stdin_full", "{full}");
    served.send(&json!({"op": "cancel", "id": "c"}));
    let events = served.events_until("done");
    assert_eq!(events.iter().filter(|event| is_closed(event)).count(), 1, "{events:#?}");

    // A job that is never started.
    served.send(&submit("d", "exec sleep 1000", json!({})));
    served.send(&submit("e", "cat", stream.clone()));
    served.send(&piece("e", 5));
    served.send(&json!({"op": "cancel", "id": "e"}));
    let events = served.events_until("done");
    assert_eq!(events[events.len() - 1]["id"], "e");
    assert_eq!(events.iter().filter(|event| is_closed(event)).count(), 1, "{events:#?}");
    served.close();
}

/// pinfold reads no more of an output than the caller allows, and the other output and the other jobs continue.
#[test]
#[requires(cgroup)]
fn credit_limits_one_output() {
    let mut served = Served::start(&["-j", "2"]);
    let limited = json!({"output": "data", "credit": 1000});
    served.send(&submit("slow", "seq 100000; echo end >&2", limited));
    let mut events = Vec::new();
    while bytes_of(&events, "stdout").len() < 1000 {
        events.append(&mut served.events_until("data"));
    }
    // Another job writes much more.
    served.send(&submit("fast", "seq 100000", json!({"output": "data"})));
    let others = served.events_until("done");
    assert_eq!(others[others.len() - 1]["id"], "fast");
    assert!(!others.iter().any(|event| event["id"] == "slow" && event["event"] == "data"), "more than the credit");
    served.send(&json!({"op": "credit", "id": "slow", "stream": "stdout", "bytes": 500}));
    while bytes_of(&events, "stdout").len() < 1500 {
        events.append(&mut served.events_until("data"));
    }
    served.send(&json!({"op": "credit", "id": "slow", "stream": "stdout", "bytes": 10_000_000}));
    events.append(&mut served.events_until("done"));
    let expected: String = (1..=100_000).map(|number| format!("{number}\n")).collect();
    assert!(bytes_of(&events, "stdout") == expected.as_bytes());
    assert_eq!(bytes_of(&events, "stderr"), b"end\n");

    // Without credit, pinfold does not send `done`. At the end of its standard input it sends the rest of the output.
    served.send(&submit("rest", "echo rest", json!({"output": "data", "credit": 0})));
    while served.next_event()["what"]["event"] != "gone" {}
    drop(served.stdin.take());
    let events = served.events_until("done");
    assert_eq!(bytes_of(&events, "stdout"), b"rest\n");
    served.close();
}

/// A closed output is closed for the job too.
#[test]
#[requires(cgroup)]
fn a_closed_output() {
    let mut served = Served::start(&[]);
    for output in ["data", "lines"] {
        served.send(&submit(
            "a",
            "trap 'exit 3' TERM; echo ready >&2; while :; do echo line; sleep 0.01; done",
            json!({"output": output}),
        ));
        served.events_until(if output == "data" { "data" } else { "output" });
        served.send(&json!({"op": "close", "id": "a", "stream": "stdout"}));
        let done = served.events_until("done").pop().unwrap();
        assert_eq!((&done["report"]["reason"], &done["report"]["exit_code"]), (&json!("exited"), &json!(128 + 13)));
    }
    served.send(&submit("a", "echo yes; echo no >&2", json!({"output": {"stdout": "data", "stderr": "none"}})));
    let events = served.events_until("done");
    assert_eq!((bytes_of(&events, "stdout"), bytes_of(&events, "stderr")), (b"yes\n".to_vec(), Vec::new()));
    served.send(&submit("b", "echo no; echo no >&2", json!({"output": "none"})));
    let events = served.events_until("done");
    assert!(!kinds(&events).iter().any(|kind| ["data", "output", "eof"].contains(kind)), "{events:#?}");
    served.close();
}

#[test]
#[requires(cgroup)]
fn a_terminal_and_its_size() {
    let mut served = Served::start(&[]);
    let script = "stty size; trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.05; done";
    let pty = json!({"pty": {"rows": 10, "columns": 20, "echo": false}, "output": "data", "stdin": "stream"});
    served.send(&submit("a", script, pty.clone()));
    let mut events = Vec::new();
    while !bytes_of(&events, "stdout").ends_with(b"ready\r\n") {
        events.append(&mut served.events_until("data"));
    }
    assert_eq!(bytes_of(&events, "stdout"), b"10 20\r\nready\r\n");
    served.send(&json!({"op": "resize", "id": "a", "rows": 30, "columns": 40}));
    assert_eq!(bytes_of(&served.events_until("done"), "stdout"), b"30 40\r\n");

    // The job reads typed keys, and then the end of the input.
    served.send(&submit("b", "echo ready; read -r word; echo got $word; cat; echo end", pty));
    served.events_until("data");
    served.send(&json!({"op": "stdin", "id": "b", "text": "a word\n"}));
    served.send(&json!({"op": "close", "id": "b", "stream": "stdin"}));
    let printed = bytes_of(&served.events_until("done"), "stdout");
    assert_eq!(String::from_utf8_lossy(&printed), "got a word\r\nend\r\n");
    served.send(&submit("c", "echo ready; sleep 1000", json!({})));
    served.events_until("output");
    served.send(&json!({"op": "resize", "id": "c", "rows": 1, "columns": 1}));
    assert_eq!(served.events_until("error").pop().unwrap()["code"], "invalid");
    served.close();
}

/// Settings of one job: its environment, how it is stopped, and which processes receive a signal.
#[test]
#[requires(cgroup)]
fn settings_of_one_job() {
    let mut served = Served::start(&[]);
    let mut job = shell("a", "trap '' TERM; env; echo ready; while :; do sleep 0.05; done");
    job["job"]["clear_env"] = json!(true);
    job["job"]["env"] = json!({"PATH": std::env::var("PATH").unwrap(), "ONLY": "1"});
    job["job"]["stop_signal"] = json!("TERM");
    job["job"]["grace"] = json!(0.05);
    served.send(&job);
    let mut lines = Vec::new();
    while lines.last().is_none_or(|line| line != "ready") {
        lines.push(served.events_until("output").pop().unwrap()["line"].as_str().unwrap().to_owned());
    }
    assert!(lines.contains(&"ONLY=1".to_owned()) && !lines.iter().any(|line| line.starts_with("HOME=")), "{lines:?}");
    served.send(&json!({"op": "cancel", "id": "a"}));
    assert_eq!(served.events_until("done").pop().unwrap()["report"]["killed"], true);

    let both = "trap 'echo two; got=1' USR1
        sh -c 'trap \"echo one; exit\" USR1; echo ready; while :; do sleep 0.05; done' &
        while [ -z \"$got\" ]; do sleep 0.05; done; wait";
    served.send(&shell("b", both));
    served.events_until("output");
    served.send(&json!({"op": "signal", "id": "b", "signal": "USR1", "to": "all"}));
    let events = served.events_until("done");
    let stdout = events.iter().filter(|event| event["stream"] == "stdout");
    let mut lines: Vec<_> = stdout.filter_map(|event| event["line"].as_str()).collect();
    lines.sort_unstable();
    assert_eq!(lines, ["one", "two"]);
    served.close();
}

#[test]
#[requires(cgroup)]
fn settings_that_contradict_each_other() {
    let mut served = Served::start(&[]);
    let pty = json!({"rows": 1, "columns": 1});
    for (more, job) in [
        (json!({"stdin": "stream"}), json!({"stdin": "text"})),
        (json!({"stdin": "stream"}), json!({"retries": 1})),
        (json!({"credit": 1}), json!({})),
        (json!({"pty": pty, "output": "none"}), json!({})),
        (json!({"pty": pty}), json!({"stdin": "text"})),
    ] {
        let mut request = submit("a", "true", more);
        request["job"].as_object_mut().unwrap().extend(job.as_object().unwrap().clone());
        served.send(&request);
        let error = served.next_event();
        assert_eq!((&error["event"], &error["code"]), (&json!("error"), &json!("invalid")), "{error}");
    }
    for text in [
        r#"{"op": "stdin", "id": "a", "text": "x", "base64": "eA=="}"#,
        r#"{"op": "stdin", "id": "a"}"#,
        r#"{"op": "stdin", "id": "a", "base64": "?"}"#,
        r#"{"op": "submit", "id": "a", "job": {"command": ["true"]}, "pty": {"rows": 70000, "columns": 1}}"#,
        r#"{"op": "submit", "id": "a", "job": {"command": ["true"]}, "ouput": "data"}"#,
    ] {
        served.send_text(text);
        let error = served.next_event();
        assert_eq!((&error["event"], &error["code"]), (&json!("error"), &json!("invalid")), "{text}: {error}");
        if text.contains("ouput") {
            assert!(error["message"].as_str().unwrap().contains("did you mean `output`?"), "{error}");
        }
    }
    served.send(&submit("a", "exec sleep 1000", json!({})));
    served.send(&json!({"op": "stdin", "id": "a", "text": "x"}));
    assert_eq!(served.events_until("error").pop().unwrap()["code"], "invalid");
    served.send(&json!({"op": "credit", "id": "a", "stream": "stdout", "bytes": 1}));
    assert_eq!(served.events_until("error").pop().unwrap()["code"], "invalid");
    served.close();
}

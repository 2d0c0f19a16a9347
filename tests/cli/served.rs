//! `pinfold serve` in tests.

use std::io::Write;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::{PINFOLD, PROJECT, Run, Running};

/// A `pinfold serve` under the warden.
pub struct Served {
    pub running: Running,
    pub stdin: Option<std::process::ChildStdin>,
    /// The first event.
    pub hello: Value,
    schema: jsonschema::Validator,
}

impl Served {
    pub fn start(args: &[&str]) -> Self {
        let mut run = Run::bare([PINFOLD, "serve", "--stdio"].iter().chain(args));
        run.command().stdin(Stdio::piped());
        let mut running = run.start();
        let stdin = running.child.stdin.take();
        let schema = std::fs::read_to_string(format!("{PROJECT}/docs/serve.schema.json")).unwrap();
        let schema: Value = serde_json::from_str(&schema).unwrap();
        let schema = jsonschema::validator_for(&schema).unwrap();
        let mut served = Self { running, stdin, hello: Value::Null, schema };
        served.hello = served.next_event();
        assert_eq!(served.hello["event"], "hello");
        served
    }

    pub fn send(&mut self, request: &Value) {
        assert!(self.schema.is_valid(request), "{request}");
        self.send_text(&request.to_string());
    }

    pub fn send_text(&mut self, text: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{text}").unwrap();
    }

    /// Returns the next event, after checking that it matches the schema.
    pub fn next_event(&mut self) -> Value {
        let line = self.running.line();
        let event: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(self.schema.is_valid(&event), "{event}");
        event
    }

    /// Returns all events up to the first event of this kind, which is the last one returned.
    pub fn events_until(&mut self, kind: &str) -> Vec<Value> {
        let mut events = vec![self.next_event()];
        while events[events.len() - 1]["event"] != kind {
            events.push(self.next_event());
        }
        events
    }

    /// Closes its standard input. The warden asserts that nothing is left.
    pub fn close(mut self) {
        drop(self.stdin.take());
        self.running.finish().assert_code(0);
    }
}

pub fn shell(id: &str, script: &str) -> Value {
    json!({"op": "submit", "id": id, "job": {"command": ["sh", "-c", script]}})
}

//! A job in JSON, as `pinfold pool` and `pinfold serve` read it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};

use crate::cli::duration;
use crate::pool::Task;
use crate::{Command, Controller, Limits, Sandbox, Stdio, User};

/// A job in JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobLine {
    #[serde(deserialize_with = "deserialize_command")]
    command: Vec<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    cwd: Option<PathBuf>,
    #[serde(default)]
    env: BTreeMap<String, Option<String>>,
    #[serde(default, deserialize_with = "deserialize_duration")]
    timeout: Option<Duration>,
    #[serde(default, deserialize_with = "deserialize_bytes")]
    stdin: Option<Stdio>,
    #[serde(default)]
    stderr: Option<StderrArg>,
    #[serde(default)]
    priority: i32,
    #[serde(default)]
    retries: Option<u32>,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    sandbox: Option<Sandbox>,
    #[serde(default, deserialize_with = "deserialize_user")]
    user: Option<User>,
}

/// Where standard error goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum StderrArg {
    /// To standard output, as one stream: the output of the job keeps its order
    Merged,
    /// To a separate stream
    Separate,
}

impl JobLine {
    /// Returns whether the job's standard error goes to its standard output. `default` applies if the job does not
    /// specify this.
    pub fn merges_stderr(&self, default: bool) -> bool {
        self.stderr.map_or(default, |stderr| stderr == StderrArg::Merged)
    }

    /// Returns whether the job specifies its standard input.
    pub fn has_stdin(&self) -> bool {
        self.stdin.is_some()
    }

    /// Checks what [`Command::check`] does not check.
    ///
    /// # Errors
    /// What is wrong with the job.
    pub fn check(&self) -> Result<(), String> {
        match self.command.first() {
            None => Err("its command is empty".into()),
            Some(program) if program.is_empty() => Err("the name of its program is empty".into()),
            Some(_) => self.limits.check().map_err(|error| error.to_string()),
        }
    }

    /// Returns the controllers that its limits need.
    pub fn controllers(&self) -> Vec<Controller> {
        self.limits.controllers()
    }

    /// Returns the command. Its standard output and standard error are those of the supervisor.
    pub fn command(&self) -> Command {
        let mut words = self.command.iter();
        let mut command = Command::new(words.next().cloned().unwrap_or_default());
        command.args(words.cloned());
        for (key, value) in &self.env {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        if let Some(cwd) = &self.cwd {
            command.current_dir(cwd);
        }
        if let Some(name) = &self.name {
            command.name(name);
        }
        if let Some(timeout) = self.timeout {
            command.timeout(timeout);
        }
        command.limits(self.limits.clone());
        if let Some(sandbox) = &self.sandbox {
            command.sandbox(sandbox.clone());
        }
        if let Some(user) = &self.user {
            command.user(user.clone());
        }
        command.stdin(self.stdin.clone().unwrap_or(Stdio::null()));
        command
    }

    /// Returns the task with which a pool runs the command.
    pub fn task(&self, command: Command, retries: u32, backoff: Duration) -> Task {
        Task::new(command).priority(self.priority).retries(self.retries.unwrap_or(retries), backoff)
    }
}

/// Reads a text, which may be long. It is stored once, even if several commands are made from it.
fn deserialize_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Stdio>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.map(Stdio::bytes))
}

/// Looks a user up. Each name is looked up once, because the lookup runs a program.
fn deserialize_user<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<User>, D::Error> {
    static KNOWN: Mutex<BTreeMap<String, User>> = Mutex::new(BTreeMap::new());
    let Some(name) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(user) = known.get(&name) {
        return Ok(Some(user.clone()));
    }
    let user = User::look_up(&name).map_err(D::Error::custom)?;
    known.insert(name, user.clone());
    Ok(Some(user))
}

/// Reads a number of seconds, or a text in the format of `--timeout`.
fn deserialize_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a duration: seconds, or a text like \"1m30s\"")]
    enum Value {
        Seconds(f64),
        Text(String),
    }
    match Option::<Value>::deserialize(deserializer)? {
        None => Ok(None),
        Some(Value::Seconds(0.0)) => Ok(Some(Duration::MAX)),
        Some(Value::Seconds(seconds)) if seconds < 0.0 => duration::limit("-1").map(Some).map_err(D::Error::custom),
        Some(Value::Seconds(seconds)) => Ok(Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))),
        Some(Value::Text(text)) => duration::limit(&text).map(Some).map_err(D::Error::custom),
    }
}

/// Reads a list of words. Where the value is a text, the error says what to write instead.
fn deserialize_command<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct Words;
    impl<'de> Visitor<'de> for Words {
        type Value = Vec<String>;

        fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            formatter.write_str(r#"a list of the command's words, like ["cc", "-c", "a.c"]"#)
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Vec<String>, E> {
            let words: Vec<_> = text.split_ascii_whitespace().collect();
            let list = serde_json::json!(words);
            let script = serde_json::json!(["sh", "-c", text]);
            Err(E::custom(format!(
                "\"command\" is a list of words: write \"command\": {list}, or \"command\": {script} for a script"
            )))
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<String>, A::Error> {
            let mut words = Vec::new();
            while let Some(word) = list.next_element()? {
                words.push(word);
            }
            Ok(words)
        }
    }
    deserializer.deserialize_any(Words)
}

/// Returns a message that explains why a line is not valid JSON. Where the line is not UTF-8, the message shows the
/// bytes.
pub fn explain(line: &[u8], error: &serde_json::Error) -> String {
    /// The number of bytes that the message shows on each side of the mistake.
    const AROUND: usize = 20;
    if let Err(invalid) = std::str::from_utf8(line) {
        let at = invalid.valid_up_to();
        let (from, to) = (at.saturating_sub(AROUND), line.len().min(at + AROUND));
        let part = line[from..to].escape_ascii();
        return format!("byte {} is not UTF-8, in \"{part}\": JSON must be UTF-8", at + 1);
    }
    error.to_string().replace(" at line 1 column", " at column")
}

//! A job in JSON, as `pinfold pool` and `pinfold serve` read it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};

use crate::cli::duration;
use crate::cli::limits::LimitArgs;
use crate::pool::Task;
use crate::{Command, Controller, Sandbox, Signal, Stdio, User};

/// A job in JSON.
#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(rename = "job"))]
#[serde(deny_unknown_fields)]
pub struct JobLine {
    /// The program and its arguments.
    #[serde(deserialize_with = "deserialize_command")]
    #[cfg_attr(feature = "schema", schemars(length(min = 1)))]
    command: Vec<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    cwd: Option<PathBuf>,
    /// Environment variables; null removes one.
    #[serde(default)]
    env: BTreeMap<String, Option<String>>,
    /// Stops the job after this time.
    #[serde(default, deserialize_with = "deserialize_duration")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<Time>"))]
    timeout: Option<Duration>,
    /// What the job reads from its standard input. Without it, the input is empty.
    #[serde(default, deserialize_with = "deserialize_bytes")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>"))]
    stdin: Option<Stdio>,
    #[serde(default)]
    stderr: Option<StderrArg>,
    /// Jobs with a higher priority start first.
    #[serde(default)]
    priority: i32,
    /// How many times, at most, pinfold runs the job again after it has failed.
    #[serde(default)]
    retries: Option<u32>,
    #[serde(default)]
    limits: LimitArgs,
    #[serde(default)]
    sandbox: Option<Sandbox>,
    /// The user that the job runs as: `NAME`, `UID`, `NAME:GID` or `UID:GID`. Only root can do this.
    #[serde(default, deserialize_with = "deserialize_user")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>"))]
    user: Option<User>,
    /// Starts the job with an empty environment; `env` still adds variables.
    #[serde(default)]
    clear_env: bool,
    /// Kills the job this long after the stop signal.
    #[serde(default, deserialize_with = "deserialize_grace")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<Time>"))]
    grace: Option<Duration>,
    /// The signal that stops the job: a name or a number.
    #[serde(default, deserialize_with = "deserialize_signal")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>"))]
    stop_signal: Option<Signal>,
}

/// Where standard error goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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

    /// Returns how many times, at most, the job is run again.
    pub fn retries(&self) -> u32 {
        self.retries.unwrap_or(0)
    }

    /// Sets how pinfold stops the job, if the job specifies this.
    pub fn set_stop(&self, command: &mut Command) {
        if let Some(grace) = self.grace {
            command.grace(grace);
        }
        if let Some(signal) = self.stop_signal {
            command.stop_signal(signal);
        }
    }

    /// Checks what [`Command::check`] does not check.
    ///
    /// # Errors
    /// What is wrong with the job.
    pub fn check(&self) -> Result<(), String> {
        match self.command.first() {
            None => Err("its command is empty".into()),
            Some(program) if program.is_empty() => Err("the name of its program is empty".into()),
            Some(_) => self.limits.to_limits().check().map_err(|error| error.to_string()),
        }
    }

    /// Returns the controllers that its limits need.
    pub fn controllers(&self) -> Vec<Controller> {
        self.limits.to_limits().controllers()
    }

    /// Returns the command. Its standard output and standard error are those of the supervisor.
    pub fn command(&self) -> Command {
        let mut words = self.command.iter();
        let mut command = Command::new(words.next().cloned().unwrap_or_default());
        command.args(words.cloned());
        if self.clear_env {
            command.env_clear();
        }
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
        command.limits(self.limits.to_limits());
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

/// A duration: a number of seconds, or a text like `1m30s`.
#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(rename = "time"))]
#[serde(untagged, expecting = "a duration: seconds, or a text like \"1m30s\"")]
enum Time {
    Seconds(#[cfg_attr(feature = "schema", schemars(range(min = 0)))] f64),
    Text(String),
}

impl Time {
    fn parse(self) -> Result<Duration, String> {
        match self {
            Self::Seconds(seconds) if seconds < 0.0 => duration::parse("-1"),
            Self::Seconds(seconds) => Ok(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)),
            Self::Text(text) => duration::parse(&text),
        }
    }
}

/// Reads a grace period.
fn deserialize_grace<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    Option::<Time>::deserialize(deserializer)?.map(Time::parse).transpose().map_err(D::Error::custom)
}

/// Reads a limit on time. 0 is no limit, as with `--timeout`.
fn deserialize_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let limit = deserialize_grace(deserializer)?;
    Ok(limit.map(|limit| if limit.is_zero() { Duration::MAX } else { limit }))
}

/// Reads the name or the number of a signal.
fn deserialize_signal<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Signal>, D::Error> {
    let signal = Option::<String>::deserialize(deserializer)?;
    signal.map(|signal| signal.parse().map_err(D::Error::custom)).transpose()
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
    let message = error.to_string().replace(" at line 1 column", " at column");
    match nearest(&message) {
        Some(known) => format!("did you mean `{known}`? {message}"),
        None => message,
    }
}

/// Returns the known name that is most similar to the unknown one. `message` is the message of serde, which quotes the
/// unknown name first and then the known ones: unknown field `memroy`, expected one of `memory`, `pids`.
fn nearest(message: &str) -> Option<&str> {
    let unknown = ["unknown field `", "unknown variant `"].into_iter().any(|start| message.starts_with(start));
    let mut names = message.split('`').skip(1).step_by(2);
    let wrong = names.next().filter(|_| unknown)?;
    let distance = |name: &&str| strsim::damerau_levenshtein(wrong, name);
    let known = names.min_by_key(distance)?;
    // At a larger distance, the unknown name is probably another word, and not a typing error.
    (distance(&known) <= (wrong.len() / 3).max(1)).then_some(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name() {
        for (unknown, known) in [("memroy", Some("memory")), ("pid", Some("pids")), ("pids", None), ("shell", None)] {
            let json = format!(r#"{{"command": ["a"], "limits": {{"{unknown}": 1}}}}"#);
            let message = serde_json::from_str::<JobLine>(&json).err().map(|error| error.to_string());
            assert_eq!(message.as_deref().and_then(nearest), known, "{message:?}");
        }
    }
}

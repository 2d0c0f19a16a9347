//! Reads `pinfold.toml`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Source;
use super::fields::{Field, Fields};
use super::ready;
use crate::error::Result;
use crate::job::command::Command;
use crate::kernel::size::Size;
use crate::kernel::user::User;
use crate::services::config::{Condition, Dependency, Restart, RestartPolicy, Service};
use crate::services::env_file;
use crate::services::graph::did_you_mean;
use crate::services::listen::Listen;
use crate::services::log::LogFile;

/// The keys of a service.
const KEYS: [&str; 19] = [
    "command",
    "cwd",
    "depends_on",
    "env",
    "env_file",
    "grace",
    "limits",
    "listen",
    "log",
    "notify",
    "one_shot",
    "ready",
    "restart",
    "sandbox",
    "settle",
    "stop_signal",
    "ready_timeout",
    "user",
    "watchdog",
];

/// Reads the services of a file, in its order.
///
/// # Errors
/// [`Error::Config`] for the first mistake.
pub(super) fn services(source: &Source<'_>) -> Result<Vec<Service>> {
    let table = DeTable::parse(source.text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        source.at(at).error(error.message().trim_end().replace('\n', ", "))
    })?;
    let mut top = Fields::of(source, table.into_inner());
    top.check(&["services"])?;
    let Some(services) = top.take("services") else { return Ok(Vec::new()) };
    let place = services.place.clone();
    let mut services = services
        .table()
        .map_err(|_| place.error("write a table for each service, such as [services.web]".to_owned()))?;
    let mut all = Vec::new();
    while let Some(field) = services.next() {
        all.push(service(source, field)?);
    }
    Ok(all)
}

fn service(source: &Source<'_>, field: Field<'_>) -> Result<Service> {
    let (name, place) = (field.key.clone(), field.place.clone());
    let mut fields = field.table().map_err(|field| field.error(format!("write a table: [services.{name}]")))?;
    fields.check(&KEYS)?;
    let command = fields.take("command").ok_or_else(|| place.error(format!("{name} has no command")))?;
    let mut command = words(command)?;
    let cwd: Option<String> = fields.read("cwd")?;
    command.current_dir(source.path(cwd.unwrap_or_default()));
    if let Some(files) = fields.take("env_file") {
        let place = files.place.clone();
        for file in files.read::<OneOrMany>()?.into_list() {
            let variables = env_file::read(&source.path(file)).map_err(|error| place.error(error.to_string()))?;
            command.envs(variables);
        }
    }
    for (key, value) in fields.read::<BTreeMap<String, String>>("env")?.unwrap_or_default() {
        command.env(key, value);
    }
    if let Some(limits) = fields.take("limits") {
        command.limits(super::limits::limits(limits)?);
    }
    if let Some(sandbox) = fields.read("sandbox")? {
        command.sandbox(sandbox);
    }
    if let Some(user) = fields.parse("user", User::look_up)? {
        command.user(user);
    }
    if let Some(signal) = fields.parse("stop_signal", str::parse)? {
        command.stop_signal(signal);
    }
    if let Some(grace) = duration(fields.take("grace"))? {
        command.grace(grace);
    }
    if let Some(settle) = duration(fields.take("settle"))? {
        command.settle(settle);
    }
    let ready = fields.take("ready").map(|ready| ready::ready(ready, &command)).transpose()?;
    let mut service = Service::new(&name, command);
    service.ready = ready;
    service.place = Some(place);
    if let Some(one_shot) = fields.read("one_shot")? {
        service.one_shot = one_shot;
    }
    if let Some(timeout) = duration(fields.take("ready_timeout"))? {
        service.ready_timeout = timeout;
    }
    service.listen = listen(source, fields.take("listen"))?;
    service.notify = fields.read("notify")?.unwrap_or_default();
    service.watchdog = duration(fields.take("watchdog"))?;
    service.log = fields.take("log").map(log).transpose()?;
    if let Some(restart) = fields.take("restart") {
        service.restart = self::restart(restart)?;
    }
    if let Some(needs) = fields.take("depends_on") {
        service.depends_on = depends_on(needs)?;
    }
    Ok(service)
}

/// Reads a command: a list of words, or a text for the shell.
pub(super) fn words(field: Field<'_>) -> Result<Command> {
    let place = field.place.clone();
    let words = field.read::<OneOrMany>()?;
    let (program, rest) = match words {
        OneOrMany::One(text) if text.trim().is_empty() => return Err(place.error("the command is empty")),
        OneOrMany::One(text) => return Ok(shell(&text)),
        OneOrMany::Many(words) => {
            let mut words = words.into_iter();
            match words.next().filter(|program| !program.is_empty()) {
                Some(program) => (program, words),
                None => return Err(place.error("the command is empty")),
            }
        }
    };
    let mut command = Command::new(program);
    command.args(rest);
    Ok(command)
}

/// Returns a command that runs this text in a shell.
pub(in crate::services) fn shell(text: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", text]);
    command
}

/// Reads the addresses to listen on.
fn listen(source: &Source<'_>, field: Option<Field<'_>>) -> Result<Vec<Listen>> {
    let Some(field) = field else { return Ok(Vec::new()) };
    let place = field.place.clone();
    let all = field.read::<OneOrMany>()?.into_list();
    let listen = |text: String| match text.parse::<Listen>() {
        Ok(listen) => Ok(listen.relative_to(&source.directory)),
        Err(error) => Err(place.error(format!("listen: {error}"))),
    };
    all.into_iter().map(listen).collect()
}

/// Reads the log file: a path, or a table.
fn log(field: Field<'_>) -> Result<LogFile> {
    let source = field.source;
    let place = field.place.clone();
    let mut files = LogFile::new(PathBuf::new());
    let mut table = match field.table() {
        Ok(table) => table,
        Err(field) => {
            files.path = source.path(field.read::<String>()?);
            return Ok(files);
        }
    };
    table.check(&["file", "size", "count", "time"])?;
    let path: String = table.read("file")?.ok_or_else(|| place.error("log: write file = \"PATH\""))?;
    files.path = source.path(path);
    let size = table.parse("size", |text| match text.parse() {
        Ok(Size::Bytes(bytes)) if bytes > 0 => Ok(bytes),
        _ => Err("write bytes, 512K or 10M"),
    })?;
    files.max_size = size.unwrap_or(files.max_size);
    files.keep = table.read("count")?.unwrap_or(files.keep);
    files.with_time = table.read("time")?.unwrap_or_default();
    Ok(files)
}

fn restart(field: Field<'_>) -> Result<Restart> {
    let mut table = match field.table() {
        Ok(table) => table,
        Err(field) => return policy(field).map(Restart::new),
    };
    table.check(&["policy", "backoff", "max_backoff", "limit", "within"])?;
    let mut restart = Restart::new(match table.take("policy") {
        Some(field) => policy(field)?,
        None => RestartPolicy::OnFailure,
    });
    if let Some(backoff) = duration(table.take("backoff"))? {
        restart.backoff = backoff;
        restart.max_backoff = restart.max_backoff.max(backoff);
    }
    if let Some(max) = duration(table.take("max_backoff"))? {
        restart.max_backoff = max;
    }
    if let Some(limit) = table.read("limit")? {
        restart.limit = limit;
    }
    if let Some(within) = duration(table.take("within"))? {
        restart.within = within;
    }
    Ok(restart)
}

fn policy(field: Field<'_>) -> Result<RestartPolicy> {
    let known =
        [("never", RestartPolicy::Never), ("on-failure", RestartPolicy::OnFailure), ("always", RestartPolicy::Always)];
    one_of(field, &known)
}

fn condition(field: Field<'_>) -> Result<Condition> {
    one_of(field, &[Condition::Started, Condition::Ready, Condition::Finished].map(|known| (known.name(), known)))
}

/// Reads one of these words.
fn one_of<T: Copy>(field: Field<'_>, known: &[(&str, T)]) -> Result<T> {
    let (place, key) = (field.place.clone(), field.key.clone());
    let text: String = field.read()?;
    let plain = text.replace('_', "-");
    match known.iter().find(|(word, _)| *word == plain) {
        Some((_, value)) => Ok(*value),
        None => {
            let words: Vec<_> = known.iter().map(|(word, _)| *word).collect();
            let nearest = did_you_mean(&text, words.iter().copied());
            Err(place.error(format!("{key}: '{text}' is not one of {}{nearest}", words.join(", "))))
        }
    }
}

/// Reads the dependencies: a list of services that must be ready, or a table with a condition for each service.
fn depends_on(field: Field<'_>) -> Result<Vec<Dependency>> {
    let source = field.source;
    let dependency = |name: String, condition, place| Dependency { name: name.into(), condition, place: Some(place) };
    match field.table() {
        Ok(mut table) => {
            let mut all = Vec::new();
            while let Some(field) = table.next() {
                let (name, place) = (field.key.clone(), field.place.clone());
                all.push(dependency(name, condition(field)?, place));
            }
            Ok(all)
        }
        Err(field) => {
            let names: Vec<Spanned<String>> = field.read()?;
            let all = names.into_iter().map(|name| {
                let place = source.at(name.span().start);
                dependency(name.into_inner(), Condition::Ready, place)
            });
            Ok(all.collect())
        }
    }
}

/// Reads a duration: a number of seconds, or a text such as "1m 30s".
pub(super) fn duration(field: Option<Field<'_>>) -> Result<Option<Duration>> {
    let Some(field) = field else { return Ok(None) };
    let wrong = |field: &Field<'_>| field.error("write a duration: seconds, or a text like \"500ms\" or \"1m 30s\"");
    let read = match field.value.get_ref() {
        DeValue::Integer(number) => number.as_str().replace('_', "").parse::<u64>().ok().map(Duration::from_secs),
        DeValue::Float(number) => {
            number.as_str().replace('_', "").parse().ok().and_then(|number| Duration::try_from_secs_f64(number).ok())
        }
        // humantime reads M as months.
        DeValue::String(text) if !text.contains('M') => humantime::parse_duration(text).ok(),
        _ => None,
    };
    read.map(Some).ok_or_else(|| wrong(&field))
}

impl OneOrMany {
    fn into_list(self) -> Vec<String> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// A text, or a list of texts.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a text, or a list of texts")]
pub(super) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

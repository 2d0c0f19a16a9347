//! The key `ready`: when a service is ready.

use std::net::SocketAddr;

use super::fields::Field;
use super::read::words;
use crate::error::Result;
use crate::job::command::Command;
use crate::job::ready::Readiness;
use crate::services::ready_by::Ready;

/// The kinds of conditions, which are the keys of the table. As a string, a condition is one of the first three kinds
/// with a colon and a value, or a URL, or `notify`.
const KINDS: [&str; 6] = ["line", "port", "file", "http", "command", "notify"];

/// Reads `ready = "line:listening on"`, or a table with one kind: `ready = { http = "http://…", status = 204 }`. `of` is
/// the command of the service.
pub(super) fn ready(field: Field<'_>, of: &Command) -> Result<Ready> {
    let (source, place) = (field.source, field.place.clone());
    let wrong = || {
        place.error(
            "ready: write \"line:TEXT\", \"port:PORT\", \"file:PATH\", \"http://…\" or \"notify\", or a table such as \
             { command = \"…\" }",
        )
    };
    let file = |path: &str| Ready::from(Readiness::file(source.path(path)));
    let http = |url: &str, status| Ready::http(url, status).map_err(|error| place.error(format!("ready: {error}")));
    let port = |text: &str| {
        port(text)
            .map(Ready::from)
            .ok_or_else(|| place.error("ready: write a port like 8080, or 192.0.2.1:8080, [::1]:8080, localhost:8080"))
    };
    let line = |text: &str| match text {
        "" => Err(place.error("ready: the line is empty")),
        text if text.contains('\n') => Err(place.error("ready: a line contains no newline")),
        text => Ok(Ready::from(Readiness::line(text))),
    };
    let mut table = match field.table() {
        Ok(table) => table,
        Err(field) => {
            let text: String = field.read()?;
            return match text.split_once(':') {
                Some(("line", text)) => line(text),
                Some(("port", text)) => port(text),
                Some(("file", path)) if !path.is_empty() => Ok(file(path)),
                Some(("http" | "https", _)) => http(&text, None),
                None if text == "notify" => Ok(Ready::notify()),
                _ => Err(wrong()),
            };
        }
    };
    table.check(&[&KINDS[..], &["status"]].concat())?;
    let mut kinds: Vec<_> = KINDS.iter().filter_map(|kind| table.take(kind)).collect();
    let status: Option<u16> = table.read("status")?;
    let (Some(field), true) = (kinds.pop(), kinds.is_empty()) else {
        return Err(place.error(format!("ready: write one of {}", KINDS.join(", "))));
    };
    if status.is_some() && field.key != "http" {
        return Err(place.error("ready: only http has a status"));
    }
    match field.key.as_str() {
        "command" => {
            let mut check = words(field)?;
            for (key, value) in of.get_envs() {
                match value {
                    Some(value) => check.env(key, value),
                    None => check.env_remove(key),
                };
            }
            if let Some(directory) = of.get_current_dir() {
                check.current_dir(directory);
            }
            (check.user, check.sandbox) = (of.user.clone(), of.sandbox.clone());
            Ok(Ready::command(check))
        }
        "notify" => match field.read()? {
            true => Ok(Ready::notify()),
            false => Err(wrong()),
        },
        "port" => match field.value.get_ref() {
            toml::de::DeValue::Integer(number) => port(number.as_str()),
            _ => port(&field.read::<String>()?),
        },
        key => {
            let key = key.to_owned();
            let text: String = field.read()?;
            match key.as_str() {
                "line" => line(&text),
                "file" => Ok(file(&text)),
                _ => http(&text, status),
            }
        }
    }
}

/// Parses `8080`, `192.0.2.1:8080`, `[::1]:8080` or `db.example:5432`.
fn port(text: &str) -> Option<Readiness> {
    match (text.parse::<u16>(), text.parse::<SocketAddr>()) {
        (Ok(port @ 1..), _) => Some(Readiness::local_port(port)),
        (_, Ok(address)) if address.port() > 0 => Some(Readiness::port(address)),
        (Err(_), Err(_)) => {
            let (host, port) = text.rsplit_once(':')?;
            let port = port.parse().ok().filter(|port| *port > 0)?;
            let named = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
            (!host.is_empty() && host.bytes().all(named)).then(|| Readiness::host_port(host, port))
        }
        _ => None,
    }
}

//! Reads a Procfile, as foreman and honcho do: one service in each line, as `NAME: COMMAND`.
//!
//! As these tools do, pinfold reads variables from the file `.env` beside the Procfile, and sets `PORT`. The first
//! service gets the `PORT` of `.env`, or else of the environment, or else 5000. The port of each further service is
//! higher by 100 than the one before.

use crate::error::Result;
use crate::services::config::Service;
use crate::services::env_file;
use crate::services::file::{Source, shell};

/// The port of the first service.
const FIRST_PORT: u32 = 5000;

/// Reads the services of a Procfile, in its order.
///
/// # Errors
/// [`Error::Config`](crate::Error::Config) for a line that is neither a service nor a comment.
pub(super) fn services(source: &Source<'_>) -> Result<Vec<Service>> {
    let env = source.path(".env");
    let variables = if env.exists() { env_file::read(&env)? } else { Vec::new() };
    let configured = variables.iter().rev().find(|(key, _)| key == "PORT").map(|(_, value)| value.clone());
    let first = configured
        .or_else(|| std::env::var("PORT").ok())
        .and_then(|port| port.trim().parse::<u32>().ok())
        .unwrap_or(FIRST_PORT);
    let mut services = Vec::new();
    for (number, line) in source.text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let place = source.line(number + 1);
        let (name, text) = match line.split_once(':') {
            Some((name, text)) if !name.contains(char::is_whitespace) => (name, text.trim()),
            _ => return Err(place.error("write NAME: COMMAND, or # before a comment")),
        };
        if text.is_empty() {
            return Err(place.error(format!("{name} has no command")));
        }
        let mut command = shell(text);
        command.current_dir(&source.directory);
        command.envs(variables.iter().map(|(key, value)| (key, value)));
        let port = first.saturating_add(100 * u32::try_from(services.len()).unwrap_or(0));
        command.env("PORT", port.to_string());
        let mut service = Service::new(name, command);
        service.place = Some(place);
        services.push(service);
    }
    Ok(services)
}

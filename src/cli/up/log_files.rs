//! `pinfold logs` while the services are not up: the last lines of their log files.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};

use crate::cli::print_message;
use crate::report::text::printable_path;
use crate::services::ServiceFile;

/// Prints the last lines of the log files of these services. Without names, prints those of all services.
///
/// # Errors
/// `not_up` if no log file of these services has a line, or an error of the file of services, of a log file or of
/// standard output.
pub fn print(file: &Path, names: &[String], lines: usize, not_up: anyhow::Error) -> Result<()> {
    let services = ServiceFile::read(file)?;
    let mut text = Vec::new();
    let wanted = services.services().iter().filter(|service| {
        service.log_file().is_some() && (names.is_empty() || names.iter().any(|name| name == service.name()))
    });
    let wanted: Vec<_> = wanted.collect();
    let width = wanted.iter().map(|service| service.name().len()).max().unwrap_or(0);
    for service in wanted {
        let Some(log) = service.log_file() else { continue };
        let last = log.last_lines(lines).with_context(|| format!("cannot read {}", printable_path(log.path())))?;
        for line in last.split_inclusive(|&byte| byte == b'\n') {
            text.extend_from_slice(format!("{:width$} | ", service.name()).as_bytes());
            text.extend_from_slice(line);
        }
    }
    if text.is_empty() {
        return Err(not_up);
    }
    print_message(&format!("{not_up}; the following lines are from the log files"));
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&text).and_then(|()| stdout.flush()).context("cannot write to standard output")
}

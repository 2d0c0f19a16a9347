//! `pinfold down`, `restart` and `logs`: they send requests to the control socket of a running `pinfold up`.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::file::{Operands, file_or_default};
use super::log_files;
use super::message::{Answer, Request};
use super::socket::connect;
use crate::cli::print_message;
use crate::cli::write;
use crate::report::text::counted;

/// Stop the services that pinfold up runs, in the reverse order of their dependencies, and end pinfold up
///
/// Returns when no process of the services is left.
///
/// Exit code: 0; 125 when the services are not up.
#[derive(clap::Args)]
pub struct DownArgs {
    /// Kill the services at once
    #[arg(long)]
    kill: bool,

    /// The file of the services [default: pinfold.toml, or else Procfile]
    file: Option<PathBuf>,
}

/// Restart services that pinfold up runs
///
/// Each service is stopped, and started again when no process of it is left. Returns when it is ready. Services that
/// depend on it continue to run.
///
/// Exit code: 0; 125 when a service is not up or did not become ready.
#[derive(clap::Args)]
pub struct RestartArgs {
    #[command(flatten)]
    operands: Operands,
}

/// Print the output of services that pinfold up runs
///
/// If they are not up, prints the last lines of their log files (the key `log`).
///
/// Exit code: 0; 125 when the services are not up and have no log file.
#[derive(clap::Args)]
pub struct LogsArgs {
    /// Also print each new line, until the services are stopped
    #[arg(long, short)]
    follow: bool,

    /// How many of the last lines of each service to print
    #[arg(long, short = 'n', value_name = "N", default_value = "100")]
    lines: usize,

    #[command(flatten)]
    operands: Operands,
}

pub fn down(args: &DownArgs) -> Result<u8> {
    let file = file_or_default(args.file.clone())?;
    let request = if args.kill { Request::Kill } else { Request::Down };
    let mut client = Client::connect(&file)?;
    client.send(&request)?;
    // First the answer arrives. Then the connection ends, because `up` has ended.
    while let Some(answer) = client.next()? {
        if let Answer::Error { message, .. } = answer {
            bail!("{message}");
        }
    }
    Ok(0)
}

pub fn restart(args: &RestartArgs) -> Result<u8> {
    let (file, names) = args.operands.resolve()?;
    let mut client = Client::connect(&file)?;
    let names = if names.is_empty() { client.services.clone() } else { names };
    client.send(&Request::Restart { names })?;
    match client.until_done(|_| Ok(()))? {
        true => Ok(0),
        false => bail!("pinfold up has ended before the services were ready again"),
    }
}

pub fn logs(args: &LogsArgs) -> Result<u8> {
    let (file, names) = args.operands.resolve()?;
    let mut client = match Client::connect(&file) {
        Err(error) if !args.follow => return log_files::print(&file, &names, args.lines, error).map(|()| 0),
        client => client?,
    };
    let shown = if names.is_empty() { client.services.clone() } else { names.clone() };
    let width = shown.iter().map(String::len).max().unwrap_or(0);
    client.send(&Request::Logs { names, lines: args.lines, follow: args.follow })?;
    let printed = client.until_done(|answer| {
        let (service, bytes): (&str, &[u8]) = match &answer {
            Answer::Output { service, line, .. } => (service, line.as_bytes()),
            Answer::OutputBytes { service, bytes, .. } => (service, bytes),
            Answer::Missed { lines, .. } => {
                let lines = counted(usize::try_from(*lines).unwrap_or(usize::MAX), "line");
                print_message(&format!("{lines} are missing here: the service prints faster than this command"));
                return Ok(());
            }
            _ => return Ok(()),
        };
        let mut text = format!("{service:width$} | ").into_bytes();
        text.extend_from_slice(bytes);
        text.push(b'\n');
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(&text).and_then(|()| stdout.flush()).map_err(Into::into)
    });
    match printed {
        // The reader of standard output has closed it.
        Err(error) if is_broken_pipe(&error) => Ok(0),
        Err(error) => Err(error),
        // `--follow` ends with `up`.
        Ok(_) => write::print("").map(|()| 0).context("cannot write to standard output"),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// A connection to `pinfold up`.
struct Client {
    stream: UnixStream,
    reader: BufReader<UnixStream>,
    /// The line that was read last.
    line: Vec<u8>,
    /// The names of the services that are up.
    services: Vec<String>,
}

impl Client {
    fn connect(file: &std::path::Path) -> Result<Self> {
        let stream = connect(file)?;
        let reader = BufReader::new(stream.try_clone().context("cannot copy the connection")?);
        let mut client = Self { stream, reader, line: Vec::new(), services: Vec::new() };
        match client.next()? {
            Some(Answer::Hello { services, .. }) => client.services = services,
            _ => bail!("pinfold up does not answer: it is ending, or belongs to another user"),
        }
        Ok(client)
    }

    fn send(&mut self, request: &Request) -> Result<()> {
        let mut line = serde_json::to_vec(request).context("cannot write the request")?;
        line.push(b'\n');
        self.stream.write_all(&line).context("cannot send the request to pinfold up")
    }

    /// Waits for the next answer; `None` at the end of the connection.
    fn next(&mut self) -> Result<Option<Answer<'static>>> {
        self.line.clear();
        let read = self.reader.read_until(b'\n', &mut self.line);
        match read {
            Ok(0) => Ok(None),
            Ok(_) => serde_json::from_slice::<Answer<'_>>(&self.line)
                .map(|answer| Some(answer.into_owned()))
                .context("cannot understand the answer of pinfold up: it may be another version of pinfold"),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(None),
            Err(error) => Err(error).context("cannot read from pinfold up"),
        }
    }

    /// Handles answers until the request is done. Returns `false` if `up` has ended before that.
    fn until_done(&mut self, mut handle: impl FnMut(Answer<'_>) -> Result<()>) -> Result<bool> {
        loop {
            match self.next()? {
                None => return Ok(false),
                Some(Answer::Done { .. }) => return Ok(true),
                Some(Answer::Error { message, .. }) => bail!("{message}"),
                Some(answer) => handle(answer)?,
            }
        }
    }
}

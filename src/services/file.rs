//! The file that describes services: `pinfold.toml`, or a Procfile.

mod fields;
mod limits;
mod read;
mod ready;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::services::config::{Place, Service};
use crate::services::{graph, procfile};
pub(super) use read::shell;

/// The names that [`ServiceFile::find`] looks for, in this order.
const NAMES: [&str; 2] = ["pinfold.toml", "Procfile"];

/// The services that a file describes. `docs/services.md` describes the format of `pinfold.toml`. Every other file is a
/// Procfile: one service in each line, as `NAME: COMMAND`, where a shell (`sh -c`) runs the command.
///
/// ```
/// use pinfold::services::ServiceFile;
///
/// let text = "db: redis-server --port 6400\nweb: ./serve\n";
/// let file = ServiceFile::parse("Procfile", text)?;
/// assert!(file.services().iter().map(|service| service.name()).eq(["db", "web"]));
/// let wrong = ServiceFile::parse("pinfold.toml", "[services.web]\ncomand = 'true'").unwrap_err();
/// assert_eq!(wrong.to_string(), "pinfold.toml:2: unknown key 'comand' (did you mean 'command'?)");
/// # Ok::<(), pinfold::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ServiceFile {
    path: PathBuf,
    services: Vec<Service>,
}

impl ServiceFile {
    /// Returns the path of the file of services in a directory: `pinfold.toml`, or else `Procfile`. Returns `None` if
    /// the directory has neither.
    #[must_use]
    pub fn find(directory: impl AsRef<Path>) -> Option<PathBuf> {
        NAMES.iter().map(|name| directory.as_ref().join(name)).find(|path| path.exists())
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::System`] if the file can't be read, and the errors of [`parse`](Self::parse).
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::ILSEQ);
            let advice = if errno == Errno::ILSEQ { "a file of services is UTF-8 text" } else { "" };
            Error::system("read", path.display().to_string(), errno, advice)
        })?;
        Self::parse(path, &text)
    }

    /// Parses the text of a file. The name of the file decides the format, and its directory is the working directory
    /// of the services.
    ///
    /// # Errors
    /// [`Error::Config`] for the first mistake, with the name of the file and the line: wrong syntax, an unknown key, a
    /// wrong value, two services with the same name, an unknown dependency, a cycle of dependencies. [`Error::System`]
    /// if a file of variables can't be read.
    pub fn parse(path: impl Into<PathBuf>, text: &str) -> Result<Self> {
        let path = path.into();
        let source = Source { name: path.display().to_string().into(), directory: directory_of(&path), text };
        let is_toml = path.extension().is_some_and(|extension| extension == "toml");
        let services = if is_toml { read::services(&source)? } else { procfile::services(&source)? };
        if services.is_empty() {
            return Err(source.at(0).error("it describes no service"));
        }
        graph::Graph::of(&services)?;
        Ok(Self { path, services })
    }

    /// Returns the path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the services, in the order of the file.
    pub fn services(&self) -> &[Service] {
        &self.services
    }

    /// Returns the services with these names, and all that they depend on. Without names, returns all services.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name that no service has.
    pub fn select(&self, names: &[String]) -> Result<Vec<Service>> {
        graph::select(self.services.clone(), names)
    }
}

/// Returns the directory of a file, as a path that is not empty.
fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// The file that pinfold reads.
pub(super) struct Source<'a> {
    pub name: Arc<str>,
    pub directory: PathBuf,
    pub text: &'a str,
}

impl Source<'_> {
    /// Returns the place of a byte of the text.
    pub fn at(&self, byte: usize) -> Place {
        let before = &self.text.as_bytes()[..byte.min(self.text.len())];
        Place { file: self.name.clone(), line: 1 + before.iter().filter(|&&byte| byte == b'\n').count() }
    }

    /// Returns the place of a line, counted from 1.
    pub fn line(&self, line: usize) -> Place {
        Place { file: self.name.clone(), line }
    }

    /// Resolves a path that the file contains: it is relative to the directory of the file.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.directory.join(path)
    }
}

#[cfg(test)]
mod tests;

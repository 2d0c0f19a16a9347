//! Finds the file of services that a command line names.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::report::text::printable_os;
use crate::services::ServiceFile;

/// The file and the services
#[derive(clap::Args)]
pub struct Operands {
    /// The file of services, instead of the first operand
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,

    /// The file of services [default: pinfold.toml, or else Procfile], and names of services [default: all]. The first
    /// operand is the file if it contains a /, ends in .toml or is an existing file. pinfold up also starts the
    /// services that the named ones depend on
    #[arg(value_name = "[FILE] [NAME]")]
    operands: Vec<OsString>,
}

impl Operands {
    /// Returns the path of the file, and the names of the services.
    ///
    /// # Errors
    /// If there is no file, or if a name is not UTF-8.
    pub fn resolve(&self) -> Result<(PathBuf, Vec<String>)> {
        let mut names = &self.operands[..];
        let mut file = self.file.clone();
        if let ([first, rest @ ..], None) = (names, &file)
            && is_file(first)
        {
            file = Some(first.into());
            names = rest;
        }
        let names = names.iter().map(|name| match name.to_str() {
            Some(name) => Ok(name.to_owned()),
            None => bail!("'{}' is not the name of a service: a name is ASCII text", printable_os(name)),
        });
        Ok((file_or_default(file)?, names.collect::<Result<_>>()?))
    }
}

/// Returns this path, or else the path of the file of services in the working directory.
///
/// # Errors
/// If `file` is `None`, and the working directory has no file of services.
pub fn file_or_default(file: Option<PathBuf>) -> Result<PathBuf> {
    let found = file.or_else(|| ServiceFile::find("."));
    found.context("there is no pinfold.toml and no Procfile here: write one, or name a file")
}

/// Returns whether an operand is the file, and not the name of a service.
fn is_file(word: &OsStr) -> bool {
    let path = Path::new(word);
    path.components().count() > 1 || path.extension().is_some_and(|extension| extension == "toml") || path.is_file()
}

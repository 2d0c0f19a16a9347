//! The sandbox options of `pinfold run`.

use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::ValueEnum;

use crate::report::Promise;
use crate::sandbox::{Network, Unix};
use crate::{Sandbox, Size};

/// What the job may touch
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Sandbox")]
pub struct SandboxArgs {
    /// Restrict what the job may touch: it reads the system's programs and libraries, and nothing else; strict also
    /// protects the modes, owners and times of files
    #[arg(
        long = "sandbox",
        value_name = "PROFILE",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "default",
        overrides_with = "profile"
    )]
    profile: Option<ProfileArg>,

    /// Let the job read and execute this file, or all files below this directory (repeatable)
    #[arg(long, value_name = "PATH", requires = "profile")]
    read: Vec<PathBuf>,

    /// Like --read, but it is no error if the path does not exist (repeatable)
    #[arg(long, value_name = "PATH", requires = "profile")]
    read_if_exists: Vec<PathBuf>,

    /// Let the job read, write and execute this file, or all files below this directory (repeatable)
    #[arg(long, value_name = "PATH", requires = "profile")]
    write: Vec<PathBuf>,

    /// Do not let the job read the system's programs and libraries
    #[arg(long, requires = "profile")]
    no_system: bool,

    /// Hide a path that lies below a readable one; needs a mount namespace (repeatable)
    #[arg(long, value_name = "PATH", requires = "profile")]
    deny: Vec<PathBuf>,

    /// The network of the job [default: none]
    #[arg(long, value_name = "WHICH", requires = "profile")]
    network: Option<NetworkArg>,

    /// Let the job connect to this TCP port, on any host (repeatable)
    #[arg(long, value_name = "PORT", requires = "profile")]
    connect_tcp: Vec<u16>,

    /// Let the job listen on this TCP port (repeatable)
    #[arg(long, value_name = "PORT", requires = "profile")]
    listen_tcp: Vec<u16>,

    /// The Unix sockets that the job may use: none, those that it makes itself (own), or also the one at this path
    /// (repeatable) [default: none]
    #[arg(long, value_name = "none|own|PATH", requires = "profile")]
    unix: Vec<PathBuf>,

    /// Give the job a directory of its own for temporary files, in TMPDIR, and remove it at the end; a size needs a mount
    /// namespace
    #[arg(long, value_name = "SIZE", num_args = 0..=1, require_equals = true, requires = "profile", value_parser = parse_bytes)]
    private_tmp: Option<Option<u64>>,

    /// Add the seccomp filter in this file (a compiled BPF program) to pinfold's own (repeatable: the last one counts)
    #[arg(long, value_name = "default|FILE", requires = "profile", overrides_with = "seccomp")]
    seccomp: Option<PathBuf>,

    /// Pass this descriptor on to the job (repeatable)
    #[arg(long, value_name = "N", requires = "profile")]
    inherit_fd: Vec<RawFd>,

    /// List at the end what the sandbox refused, with the options that would grant it; also in the report. Slower
    #[arg(long, requires = "profile")]
    pub explain_denials: bool,

    /// Start the job even if nothing on this machine holds this promise (repeatable)
    #[arg(long, value_name = "PROMISE", requires = "profile", value_parser = parse_promise)]
    waive: Vec<Promise>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ProfileArg {
    /// Every promise except for modes, owners and times of files
    Default,
    /// Every promise; needs a mount namespace
    Strict,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum NetworkArg {
    /// No network, except for the ports of --connect-tcp and --listen-tcp
    None,
    /// A loopback device of its own
    Own,
    /// The network of the host
    Host,
}

fn parse_promise(text: &str) -> Result<Promise, String> {
    text.parse().map_err(|error: crate::Error| match error {
        crate::Error::Invalid { advice, .. } => advice,
        error => error.to_string(),
    })
}

fn parse_bytes(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(Size::Bytes(bytes)) if bytes > 0 => Ok(bytes),
        _ => Err("write bytes, 512M or 1.5G (K, M, G, T: powers of 1024)".into()),
    }
}

impl SandboxArgs {
    /// Returns whether the job has a sandbox.
    pub fn is_on(&self) -> bool {
        self.profile.is_some()
    }

    /// Returns the policy; `None` for a job without a sandbox.
    ///
    /// # Errors
    /// If the options contradict each other.
    pub fn to_sandbox(&self) -> crate::Result<Option<Sandbox>> {
        let Some(profile) = self.profile else { return Ok(None) };
        let mut sandbox = Sandbox::new();
        sandbox.name_options();
        if profile == ProfileArg::Strict {
            sandbox.strict();
        }
        if self.no_system {
            sandbox.no_system();
        }
        for path in &self.read {
            sandbox.read(path);
        }
        for path in &self.read_if_exists {
            sandbox.read_if_exists(path);
        }
        for path in &self.write {
            sandbox.write(path);
        }
        for path in &self.deny {
            sandbox.deny(path);
        }
        for port in &self.connect_tcp {
            sandbox.connect_tcp(*port);
        }
        for port in &self.listen_tcp {
            sandbox.listen_tcp(*port);
        }
        for number in &self.inherit_fd {
            sandbox.inherit_fd(*number);
        }
        if self.explain_denials {
            sandbox.explain_denials(true);
        }
        for promise in &self.waive {
            sandbox.waive(*promise);
        }
        if let Some(network) = self.network {
            sandbox.network(match network {
                NetworkArg::None => Network::None,
                NetworkArg::Own => Network::Own,
                NetworkArg::Host => Network::Host,
            });
        }
        if let Some(size) = self.private_tmp {
            sandbox.private_tmp(size);
        }
        if let Some(file) = self.seccomp.as_ref().filter(|file| file.as_os_str() != "default") {
            sandbox.seccomp(file);
        }
        sandbox.unix(self.to_unix()?);
        Ok(Some(sandbox))
    }

    fn to_unix(&self) -> crate::Result<Unix> {
        let words = ["none", "own"];
        let (words, paths): (Vec<_>, Vec<_>) =
            self.unix.iter().cloned().partition(|path| words.iter().any(|word| path.as_os_str() == *word));
        match (&words[..], paths.is_empty()) {
            ([], true) => Ok(Unix::None),
            ([], false) => Ok(Unix::Paths(paths)),
            (words, true) if words.iter().all(|word| word.as_os_str() == "none") => Ok(Unix::None),
            (words, is_empty) if words.iter().all(|word| word.as_os_str() == "own") => {
                Ok(if is_empty { Unix::Own } else { Unix::Paths(paths) })
            }
            _ => Err(crate::Error::Invalid {
                what: "value of --unix",
                value: "none".into(),
                advice: "it contradicts another --unix; for a socket with the path 'none', write ./none".into(),
            }),
        }
    }
}

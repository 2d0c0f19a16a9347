//! The guard program: which program is executed and how, and the cause if that fails.

use std::ffi::{CStr, OsStr, OsString};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use rustix::fs::{Access, MemfdFlags, SealFlags, access, fcntl_add_seals};
use rustix::io::Errno;

use super::{NAME, OWN_PROGRAM_ONLY, protocol};
use crate::error::{Error, Result, short_of_descriptors};
use crate::guard::startup;
use crate::guard::startup::LibraryLocation;
use crate::kernel::memfd;

/// The environment variable that names the guard program of a library host.
const VARIABLE: &str = "PINFOLD_GUARD";

/// The name of the memfd with an embedded guard program.
const FILE_NAME: &CStr = c"pinfold-guard";

/// The link itself is executed, not its target, because it still works after a new version has replaced the file.
const OWN: &str = "/proc/self/exe";

/// The beginning of the argument with which pinfold starts a program as a guard. The argument is an option, so a
/// program that is not a guard program refuses it.
const ARGUMENT: &str = "--pinfold-guard=";

/// The suffix of this argument if an outer guard is to run around the guard.
const NESTED: &str = ",nested";

/// A guard program that the host has chosen.
#[derive(Debug)]
pub(crate) enum Program {
    Path(PathBuf),
    Embedded(Embedded),
}

/// A guard program that is embedded in the host.
pub(crate) struct Embedded {
    bytes: &'static [u8],
    /// An executable, sealed copy of the program; made once.
    memfd: OnceLock<Arc<OwnedFd>>,
}

impl std::fmt::Debug for Embedded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Embedded({} bytes)", self.bytes.len())
    }
}

impl Embedded {
    pub fn new(bytes: &'static [u8]) -> Self {
        Self { bytes, memfd: OnceLock::new() }
    }

    fn memfd(&self) -> Result<Arc<OwnedFd>> {
        if let Some(memfd) = self.memfd.get() {
            return Ok(memfd.clone());
        }
        let made = self.make().map_err(|errno| {
            Error::system("memfd_create", "the embedded guard program", errno, short_of_descriptors(errno))
        })?;
        Ok(self.memfd.get_or_init(|| Arc::new(made)).clone())
    }

    fn make(&self) -> rustix::io::Result<OwnedFd> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // MFD_EXEC came with Linux 6.3. Older kernels refuse the flag, and make every memfd executable
        // (memfd_create(2)).
        let make = |flags| memfd::containing(FILE_NAME, flags, self.bytes);
        let memfd = make(flags | MemfdFlags::EXEC).or_else(|_| make(flags))?;
        fcntl_add_seals(&memfd, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(memfd)
    }
}

/// A program to execute as the guard.
#[derive(Debug)]
pub(super) struct Executable {
    path: PathBuf,
    /// The name for messages.
    pub name: String,
    /// The shared library that the program loads first (LD_PRELOAD). Its constructor turns the process into a guard.
    preload: Option<PathBuf>,
    _kept: Option<Arc<OwnedFd>>,
}

impl Executable {
    fn new(path: impl Into<PathBuf>, origin: &str) -> Self {
        let path = path.into();
        let name = match origin {
            "" => path.display().to_string(),
            origin => format!("{} ({origin})", path.display()),
        };
        Self { path, name, preload: None, _kept: None }
    }

    fn own() -> Self {
        let mut own = Self::new(OWN, "");
        own.name = match std::fs::read_link(OWN) {
            Ok(target) => format!("{}, this program", target.display()),
            Err(_) => "this program".into(),
        };
        own
    }

    /// Executes the program with `socket` as its standard input, and an empty environment.
    pub fn execute(&self, socket: OwnedFd, nested: bool) -> Result<Child> {
        let mut command = std::process::Command::new(&self.path);
        command
            .arg0(NAME)
            .arg(format!("{ARGUMENT}{}{}", protocol::VERSION, if nested { NESTED } else { "" }))
            .env_clear()
            .stdin(Stdio::from(socket))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        // The dynamic loader needs these variables to find the program's libraries (ld.so(8)). The guard overwrites
        // both.
        if let Some(path) = std::env::var_os(LIBRARY_PATH).filter(|path| !path.is_empty()) {
            command.env(LIBRARY_PATH, path);
        }
        if let Some(library) = &self.preload {
            command.env("LD_PRELOAD", library);
        }
        command.spawn().map_err(|error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            Error::GuardStart(format!("cannot execute {}: {errno}{}", self.name, self.reason(errno)))
        })
    }

    /// Returns the reason why an exec failed, and what the user can do about it.
    fn reason(&self, errno: Errno) -> String {
        let is_there = || access(&self.path, Access::EXISTS).is_ok();
        match errno {
            Errno::NOENT if self.path.starts_with("/proc") && !is_there() => no_proc(),
            Errno::NOENT if is_there() => format!(
                " (the file exists, but its dynamic loader or its interpreter does not exist in this root directory, as \
                 after a chroot: {})",
                "use a statically linked guard program"
            ),
            Errno::ACCESS => format!(
                " (it is a directory, not executable for this user, or on a file system mounted noexec; {})",
                ways_to_provide()
            ),
            Errno::PERM | Errno::NOEXEC | Errno::NOENT | Errno::NOTDIR | Errno::LOOP => {
                format!(" ({})", ways_to_provide())
            }
            Errno::AGAIN => " (a limit on processes is reached: see ulimit -u and pids.max)".into(),
            errno => match short_of_descriptors(errno) {
                "" => String::new(),
                advice => format!(" ({advice})"),
            },
        }
    }
}

const LIBRARY_PATH: &str = "LD_LIBRARY_PATH";

fn no_proc() -> String {
    let reason = if access("/proc/version", Access::EXISTS).is_ok() {
        "/proc belongs to another PID namespace: mount the /proc of this namespace, as unshare --mount-proc does"
    } else {
        "/proc is not mounted: mount it"
    };
    format!(" ({reason}, or name a guard program in the builder)")
}

/// Returns the ways to provide a guard program, for messages.
pub(crate) fn ways_to_provide() -> String {
    format!(
        "install the pinfold command of this version in PATH, name a guard program in {VARIABLE} or with \
         SupervisorBuilder::guard_program, or embed one with SupervisorBuilder::guard_program_bytes"
    )
}

/// Finds the guard program: the host's choice, else the one that the environment names, else this program, else
/// `pinfold`.
pub(super) fn find(program: Option<&Program>) -> Result<Executable> {
    if startup::has_guards_stdin() {
        return Err(Error::GuardStart(
            "this process was itself started as a guard program, by a program that did not pass on its arguments: a \
             script that serves as the guard program must pass them on, as in exec pinfold \"$@\""
                .into(),
        ));
    }
    match program {
        Some(Program::Path(path)) => return Ok(Executable::new(path, "")),
        Some(Program::Embedded(embedded)) => {
            let memfd = embedded.memfd()?;
            let path = format!("/proc/self/fd/{}", memfd.as_raw_fd());
            return Ok(Executable {
                path: path.into(),
                name: "the embedded guard program".into(),
                preload: None,
                _kept: Some(memfd),
            });
        }
        None => {}
    }
    // In a privileged process, the environment may come from another user.
    let trusts_environment = !startup::is_privileged();
    if trusts_environment
        && !OWN_PROGRAM_ONLY.load(Ordering::Relaxed)
        && let Some(program) = std::env::var_os(VARIABLE).filter(|program| !program.is_empty())
    {
        return Ok(Executable::new(program, &format!("named by {VARIABLE}")));
    }
    let why_not_own = match startup::library_location() {
        LibraryLocation::Program => return Ok(Executable::own()),
        LibraryLocation::Library { path, dynamic } => match can_preload(&path, dynamic && trusts_environment) {
            Ok(()) => {
                let name = format!("{}, with {} loaded first", Executable::own().name, path.display());
                return Ok(Executable { preload: Some(path), name, ..Executable::own() });
            }
            Err(why) => format!("pinfold is in the library {}, {why}", path.display()),
        },
        LibraryLocation::NoConstructor => "the functions of this program's .init_array did not run".to_owned(),
    };
    let path = if trusts_environment { std::env::var_os("PATH").unwrap_or_default() } else { OsString::new() };
    std::env::split_paths(&path)
        .map(|directory| directory.join("pinfold"))
        .find(|candidate| access(candidate, Access::EXEC_OK).is_ok())
        .map(|found| Executable::new(found, "found in PATH"))
        .ok_or_else(|| {
            let environment = if trusts_environment {
                "there is no pinfold command in PATH"
            } else {
                "the environment of a set-user-ID program is not used"
            };
            Error::GuardStart(format!(
                "no guard program was found: {why_not_own}; {environment} ({})",
                ways_to_provide()
            ))
        })
}

/// Checks whether the program can load this library before it runs (LD_PRELOAD, ld.so(8)), and returns the reason if it
/// cannot. If the loader did not load the library, the program's `main` would run instead of a guard.
fn can_preload(library: &Path, has_loader: bool) -> std::result::Result<(), &'static str> {
    if !has_loader {
        return Err("which this program can't load first: it is statically linked, or a set-user-ID program");
    }
    if library.as_os_str().as_bytes().iter().any(|byte| matches!(byte, b':' | b' ' | b'\t' | b'\n')) {
        return Err("whose path has a space or a colon, which is a separator in LD_PRELOAD");
    }
    if !library.is_absolute() || access(library, Access::READ_OK).is_err() {
        return Err("which is no longer there under that path");
    }
    Ok(())
}

/// The request in the last argument.
pub(super) enum Request {
    /// A guard, with or without an outer guard.
    Guard { nested: bool },
    /// A guard for a supervisor that speaks another version of the protocol.
    OtherVersion,
}

pub(super) fn requested(last: &[u8]) -> Option<Request> {
    let rest = last.strip_prefix(ARGUMENT.as_bytes())?;
    let (version, nested) = match rest.strip_suffix(NESTED.as_bytes()) {
        Some(version) => (version, true),
        None => (rest, false),
    };
    Some(match OsStr::from_bytes(version).to_str().and_then(|version| version.parse().ok()) {
        Some(protocol::VERSION) => Request::Guard { nested },
        _ => Request::OtherVersion,
    })
}

/// Returns the error for an executed guard that is gone. `status` is the exit status of the process that should have
/// started it; `None` while that process still runs.
pub(crate) fn ended(name: &str, status: Option<ExitStatus>) -> Error {
    let (what, likely) = match status {
        None => ("has closed its standard input".to_owned(), "it is not a guard program"),
        Some(status) => match (status.code(), status.signal()) {
            (Some(0), _) => ("ended with exit code 0".to_owned(), "it is not a guard program"),
            (Some(127), _) => (
                "ended with exit code 127".to_owned(),
                "its dynamic loader did not find a library or a symbol, or it is not a guard program",
            ),
            (Some(code), _) => {
                (format!("ended with exit code {code}"), "it is not a guard program, or a pinfold of another version")
            }
            (None, Some(libc::SIGSYS)) => ("was ended by SIGSYS".to_owned(), "a seccomp filter refuses what it needs"),
            (None, Some(libc::SIGKILL)) => {
                ("was killed".to_owned(), "the machine is short of memory, or a user killed it")
            }
            (None, signal) => (format!("was ended by signal {}", signal.unwrap_or(0)), "please report this"),
        },
    };
    Error::GuardStart(format!("{name} {what} before it answered: {likely} ({})", ways_to_provide()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guard_of_another_version_is_not_started() {
        let version = protocol::VERSION;
        let ask = |text: &str| requested(text.as_bytes());
        assert!(matches!(ask(&format!("{ARGUMENT}{version}")), Some(Request::Guard { nested: false })));
        assert!(matches!(ask(&format!("{ARGUMENT}{version}{NESTED}")), Some(Request::Guard { nested: true })));
        for other in
            [format!("{ARGUMENT}{}", version + 1), ARGUMENT.to_owned(), format!("{ARGUMENT}{version}0{NESTED}")]
        {
            assert!(matches!(ask(&other), Some(Request::OtherVersion)), "{other}");
        }
        for none in ["", "run", "--pinfold-guard", "pinfold-guard"] {
            assert!(ask(none).is_none(), "{none}");
        }
    }

    #[test]
    fn a_library_is_preloaded_only_where_the_loader_finds_it() {
        let own = std::env::current_exe().unwrap();
        assert!(can_preload(&own, true).is_ok());
        assert!(can_preload(&own, false).is_err());
        for path in ["/no/such/library.so", "library.so", "/tmp/a b.so", "/tmp/a:b.so"] {
            assert!(can_preload(Path::new(path), true).is_err(), "{path}");
        }
    }
}

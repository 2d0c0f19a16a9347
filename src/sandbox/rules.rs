//! The Landlock ruleset of a policy.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath, RulesetCreated,
    RulesetCreatedAttr, RulesetError,
};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::io::Errno;

use super::machine::Machine;
use super::policy::{Network, Sandbox, Unix};
use crate::error::{Error, Result, short_of_descriptors};
use crate::kernel::landlock::{Handled, descriptor};

/// The paths that every job may read and execute, unless the policy says otherwise. Paths that do not exist are
/// ignored.
const SYSTEM: [&str; 27] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    // NixOS and Guix keep all programs here.
    "/nix/store",
    "/gnu/store",
    "/etc/alternatives",
    "/etc/group",
    "/etc/gai.conf",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/ld.so.preload",
    "/etc/locale.alias",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/resolv.conf",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/ca-certificates",
    "/etc/pki/tls/certs",
];

/// Devices that every job may use.
const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

/// An opened path with the rights that are granted on it.
type Grant = (OwnedFd, BitFlags<AccessFs>);

/// The device and the inode number of a granted file or directory, with the rights on it.
pub type Place = ((u64, u64), BitFlags<AccessFs>);

/// Returns the rights on files that the ruleset takes away; an empty set if this kernel's Landlock can't take them
/// away.
fn handled_files(sandbox: &Sandbox, machine: &Machine) -> Handled {
    let mut handled = match (&machine.files, &machine.files_but_truncate) {
        (Ok(()), _) => Handled::files(),
        // The kernel can't restrict truncate(2) and the promise is waived. The ruleset still takes away all other
        // rights.
        (Err(_), Ok(())) => Handled::files_but_truncate(),
        _ => return Handled::default(),
    };
    if machine.devices.is_ok() {
        handled = handled.and(Handled::devices());
    }
    if machine.unix_paths.is_ok() && sandbox.unix != Unix::None {
        handled = handled.and(Handled::unix_paths());
    }
    handled
}

/// Returns everything that the ruleset takes away.
pub fn handled(sandbox: &Sandbox, machine: &Machine) -> Handled {
    let mut handled = handled_files(sandbox, machine);
    if machine.ports.is_ok() && sandbox.network == Network::None {
        handled = handled.and(Handled::ports());
    }
    if machine.signals.is_ok() {
        handled = handled.and(Handled::signals());
    }
    if machine.abstract_sockets.is_ok() {
        handled = handled.and(Handled::abstract_sockets());
    }
    handled
}

/// Makes the ruleset; `None` if the kernel supports nothing that it would contain. Each path is opened with the
/// caller's rights. `tmp` is one more directory to write to, besides those of the policy.
///
/// # Errors
/// [`Error::Invalid`] for a path that can't be opened; [`Error::System`] if the kernel refuses the ruleset.
pub fn ruleset(sandbox: &Sandbox, machine: &Machine, tmp: Option<BorrowedFd<'_>>) -> Result<Option<OwnedFd>> {
    let mut grants = grants(sandbox)?;
    if let Some(tmp) = tmp {
        let copy = tmp.try_clone_to_owned().map_err(|error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            Error::system("duplicate", "the descriptor of the private tmp", errno, short_of_descriptors(errno))
        });
        grants.push((copy?, writing()));
    }
    let handled = handled(sandbox, machine);
    if handled == Handled::default() {
        return Ok(None);
    }
    let made = make(handled, grants, sandbox);
    let ruleset = made.map_err(|error| Error::invalid("sandbox", "Landlock ruleset", error.to_string()))?;
    let descriptor = descriptor(ruleset);
    descriptor.map(Some).map_err(|errno| Error::system("landlock_create_ruleset", "for the job", errno, ""))
}

fn make(handled: Handled, grants: Vec<Grant>, sandbox: &Sandbox) -> std::result::Result<RulesetCreated, RulesetError> {
    let mut ruleset = handled.create()?.set_compatibility(CompatLevel::HardRequirement);
    for (path, rights) in grants {
        let rights = rights & handled.files;
        if !rights.is_empty() {
            ruleset = ruleset.add_rule(PathBeneath::new(path, rights))?;
        }
    }
    if !handled.ports.is_empty() {
        for port in &sandbox.connect_tcp {
            ruleset = ruleset.add_rule(NetPort::new(*port, AccessNet::ConnectTcp))?;
        }
        for port in &sandbox.listen_tcp {
            ruleset = ruleset.add_rule(NetPort::new(*port, AccessNet::BindTcp))?;
        }
    }
    Ok(ruleset)
}

/// Opens all granted paths.
fn grants(sandbox: &Sandbox) -> Result<Vec<Grant>> {
    let reading = AccessFs::from_read(ABI::V1);
    let mut grants = Vec::new();
    let system: &[&str] = if sandbox.no_system { &[] } else { &SYSTEM };
    for path in system.iter().map(Path::new).chain(sandbox.read_if_exists.iter().map(PathBuf::as_path)) {
        match granted(path, reading) {
            // If this user can't reach the path, the job can't reach it either, so it needs no rule.
            Err((_, Errno::NOENT | Errno::NOTDIR | Errno::ACCESS)) => {}
            other => grants.push(other.map_err(|(path, errno)| unusable("path to read", path, errno))?),
        }
    }
    if !sandbox.no_system {
        for path in DEVICES.map(Path::new) {
            match granted(path, reading | AccessFs::WriteFile) {
                Err((_, Errno::NOENT | Errno::NOTDIR | Errno::ACCESS)) => {}
                other => grants.push(other.map_err(|(path, errno)| unusable("device", path, errno))?),
            }
        }
    }
    for path in &sandbox.read {
        grants.push(granted(path, reading).map_err(|(path, errno)| unusable("path to read", path, errno))?);
    }
    for path in &sandbox.write {
        grants.push(granted(path, writing()).map_err(|(path, errno)| unusable("path to write", path, errno))?);
    }
    if let Unix::Paths(paths) = &sandbox.unix {
        for path in paths {
            let rights = AccessFs::ResolveUnix.into();
            grants.push(granted(path, rights).map_err(|(path, errno)| unusable("Unix socket", path, errno))?);
        }
    }
    Ok(grants)
}

/// Returns the granted files and directories, to work out what the ruleset refuses.
///
/// # Errors
/// [`Error::Invalid`] for a path that can't be opened.
#[allow(clippy::unnecessary_cast)] // The types differ between architectures.
pub fn places(sandbox: &Sandbox, tmp: Option<BorrowedFd<'_>>) -> Result<Vec<Place>> {
    let place = |file: BorrowedFd<'_>, rights| {
        let stat = fstat(file).map_err(|errno| Error::system("stat", "a granted path", errno, ""))?;
        Ok(((stat.st_dev as u64, stat.st_ino as u64), rights))
    };
    let granted = grants(sandbox)?;
    let granted = granted.iter().map(|(file, rights)| (file.as_fd(), *rights)).chain(tmp.map(|tmp| (tmp, writing())));
    granted.map(|(file, rights)| place(file, rights)).collect()
}

/// Returns all rights except to make devices and to connect to sockets of other processes.
pub fn writing() -> BitFlags<AccessFs> {
    AccessFs::from_all(ABI::V3) & !(AccessFs::MakeChar | AccessFs::MakeBlock)
}

/// Opens a path, and returns it with those rights that apply to this kind of file.
fn granted(path: &Path, rights: BitFlags<AccessFs>) -> std::result::Result<Grant, (&Path, Errno)> {
    let file = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| (path, errno))?;
    let kind = FileType::from_raw_mode(fstat(file.as_fd()).map_err(|errno| (path, errno))?.st_mode);
    let rights = match kind {
        FileType::Directory => rights,
        // If the policy names a device, the job needs ioctl(2) to use it.
        FileType::CharacterDevice | FileType::BlockDevice if rights.contains(AccessFs::Truncate) => {
            rights & AccessFs::from_file(ABI::V9) | AccessFs::IoctlDev
        }
        _ => rights & AccessFs::from_file(ABI::V9),
    };
    Ok((file, rights))
}

fn unusable(what: &'static str, path: &Path, errno: Errno) -> Error {
    let advice = match errno {
        Errno::NOENT if what == "path to read" => "it does not exist; for a path that may be missing: read_if_exists",
        Errno::NOENT => "it does not exist",
        Errno::ACCESS => "this user can't reach it",
        _ => return Error::system("open", path.to_string_lossy(), errno, what),
    };
    Error::invalid(what, path.to_string_lossy(), advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_cannot_be_opened_is_an_error() {
        let machine = Machine::get();
        let message = |sandbox: &Sandbox| ruleset(sandbox, machine, None).unwrap_err().to_string();
        assert!(message(Sandbox::new().read("/no/such/path")).contains("path to read '/no/such/path' is not valid"));
        assert!(message(Sandbox::new().read("/no/such/path")).contains("does not exist"));
        assert!(message(Sandbox::new().write("/dev/null/x")).contains("/dev/null/x"));
        assert!(message(Sandbox::new().unix(Unix::Paths(vec!["/no/socket".into()]))).contains("Unix socket"));
        ruleset(Sandbox::new().read_if_exists("/no/such/path"), machine, None).unwrap();
    }
}

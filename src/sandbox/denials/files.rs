//! Finds out whether Landlock refuses a call on a file (landlock(7); security/landlock/fs.c in the kernel).

use std::path::PathBuf;

use landlock::{AccessFs, BitFlags, make_bitflags};
use rustix::fs::{Access, FileType};

use super::caller::Caller;
use super::calls::PathArguments;
use super::lookup::{Found, Identity, Object, find};
use super::text::{path_option, to_text};
use crate::report::{Denial, DenialKind};

/// The rules of a policy about files.
#[derive(Debug)]
pub struct FileRules {
    /// The rights that the ruleset takes away, except where a rule grants them.
    pub handled: BitFlags<AccessFs>,
    /// The granted files and directories, with the rights on each.
    pub grants: Vec<(Identity, BitFlags<AccessFs>)>,
    /// The mount point of the file system that the job mounts, if it mounts one, and the rights below it.
    pub mounted: Option<(PathBuf, BitFlags<AccessFs>)>,
}

/// A system call that waits for the answer.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    pub caller: &'a Caller,
    pub name: &'a str,
    pub arguments: &'a [u64; 6],
}

impl Call<'_> {
    /// Looks up the path of the call. Returns `None` if the look-up fails.
    pub fn find(&self, at: PathArguments, follow: bool) -> Option<Found> {
        find(self.caller, at, self.arguments, follow).ok()
    }

    /// Returns a path as text for the report. `/proc/self` replaces the caller's own directory in /proc, so that equal
    /// denials of several processes are counted together.
    fn displayed(&self, path: &[u8]) -> String {
        let own = || format!("/proc/{}/", self.caller.pid());
        match path.starts_with(b"/proc/").then(|| path.strip_prefix(own().as_bytes())).flatten() {
            Some(rest) => format!("/proc/self/{}", to_text(rest)),
            None => to_text(path),
        }
    }
}

/// The methods that return a [`Denial`] return `None` if the sandbox allows the call, or if the call would also fail
/// without a sandbox.
impl FileRules {
    /// Returns the rights among `wanted` that the rules do not grant. `directories` are those from the root to
    /// `object`.
    fn missing_rights(
        &self,
        caller: &Caller,
        directories: &[Identity],
        object: Option<&Object>,
        wanted: BitFlags<AccessFs>,
    ) -> BitFlags<AccessFs> {
        let mut missing = wanted & self.handled;
        if missing.is_empty() {
            return missing;
        }
        let mounted = self.mounted.as_ref().and_then(|(path, rights)| {
            let root = caller.root().ok()?;
            let path = path.strip_prefix("/").ok()?;
            let stat = rustix::fs::statat(root, path, rustix::fs::AtFlags::empty()).ok()?;
            #[allow(clippy::unnecessary_cast)] // The types differ between architectures.
            Some(((stat.st_dev as u64, stat.st_ino as u64), *rights))
        });
        for one in directories.iter().copied().chain(object.map(Object::identity)) {
            for (identity, rights) in self.grants.iter().chain(&mounted) {
                if *identity == one {
                    missing &= !*rights;
                }
            }
        }
        missing
    }

    /// Returns whether the rules grant these rights on the result of a look-up.
    pub fn allow(&self, caller: &Caller, found: &Found, rights: BitFlags<AccessFs>) -> bool {
        self.missing_rights(caller, &found.directories, found.object.as_ref(), rights).is_empty()
    }

    /// Checks open(2) with these flags.
    pub fn open(&self, call: Call<'_>, at: PathArguments, flags: i32) -> Option<Denial> {
        let caller = call.caller;
        let has = |flag: i32| flags & flag == flag;
        let is_exclusive = has(libc::O_CREAT | libc::O_EXCL);
        if has(libc::O_PATH) {
            return None;
        }
        let found = call.find(at, !has(libc::O_NOFOLLOW) && !is_exclusive)?;
        let (reads, writes) = match flags & libc::O_ACCMODE {
            libc::O_RDONLY => (true, false),
            libc::O_WRONLY => (false, true),
            libc::O_RDWR => (true, true),
            _ => return None,
        };
        let mut wanted = BitFlags::<AccessFs>::empty();
        let Some(object) = &found.object else {
            if !has(libc::O_CREAT) || !caller.may_change_entries(&found.parent) {
                return None;
            }
            wanted |= AccessFs::MakeReg;
            wanted |= rights_to_access(reads, writes);
            let missing = self.missing_rights(caller, &found.directories, None, wanted);
            return (!missing.is_empty()).then(|| creation_denial(call, &found));
        };
        if is_exclusive {
            return None;
        }
        let makes_unnamed_file = has(libc::O_TMPFILE);
        match object.kind() {
            FileType::Directory if makes_unnamed_file => wanted |= rights_to_access(reads, writes),
            FileType::Directory if writes || has(libc::O_CREAT) => return None,
            FileType::Directory => wanted |= AccessFs::ReadDir,
            FileType::Symlink | FileType::Socket => return None,
            _ if has(libc::O_DIRECTORY) => return None,
            kind => {
                wanted |= rights_to_access(reads, writes);
                if has(libc::O_TRUNC) && kind == FileType::RegularFile {
                    wanted |= AccessFs::Truncate;
                }
            }
        }
        let is_allowed_without_sandbox = match makes_unnamed_file {
            true => caller.may_change_entries(object),
            false => [(reads, Access::READ_OK), (writes || wanted.contains(AccessFs::Truncate), Access::WRITE_OK)]
                .into_iter()
                .all(|(needs, access)| !needs || caller.may_access(object, access)),
        };
        let missing = self.missing_rights(caller, &found.directories, Some(object), wanted);
        if !is_allowed_without_sandbox || missing.is_empty() {
            return None;
        }
        let changes = !(missing & make_bitflags!(AccessFs::{WriteFile | Truncate})).is_empty() || makes_unnamed_file;
        let path = found.path()?;
        let (kind, option) = if changes { (DenialKind::Write, "--write") } else { (DenialKind::Read, "--read") };
        Some(Denial::new(kind, call.displayed(&path), call.name, vec![path_option(option, &path)]))
    }

    /// Checks the execution of one program by execve(2).
    pub fn execute(&self, call: Call<'_>, found: &Found) -> Option<Denial> {
        let object = found.object.as_ref().filter(|object| call.caller.may_execute(object))?;
        let missing = self.missing_rights(call.caller, &found.directories, Some(object), AccessFs::Execute.into());
        if missing.is_empty() {
            return None;
        }
        let path = found.path()?;
        Some(Denial::new(DenialKind::Execute, call.displayed(&path), call.name, vec![path_option("--read", &path)]))
    }

    /// Checks truncate(2).
    pub fn truncate(&self, call: Call<'_>, at: PathArguments) -> Option<Denial> {
        let found = call.find(at, true)?;
        let object = found.object.as_ref().filter(|object| object.kind() == FileType::RegularFile)?;
        let missing = self.missing_rights(call.caller, &found.directories, Some(object), AccessFs::Truncate.into());
        if missing.is_empty() || !call.caller.may_access(object, Access::WRITE_OK) {
            return None;
        }
        let path = found.path()?;
        Some(Denial::new(DenialKind::Write, call.displayed(&path), call.name, vec![path_option("--write", &path)]))
    }

    /// Checks a call that makes a new file, such as mkdir(2). Landlock requires `right` for it.
    pub fn make(&self, call: Call<'_>, at: PathArguments, right: AccessFs) -> Option<Denial> {
        let found = call.find(at, false)?;
        self.make_at(call, &found, right.into())
    }

    /// Does the same as [`make`](Self::make) for a path that has been looked up.
    pub fn make_at(&self, call: Call<'_>, found: &Found, right: BitFlags<AccessFs>) -> Option<Denial> {
        if found.object.is_some() {
            return None;
        }
        let missing = self.missing_rights(call.caller, &found.directories, None, right);
        (!missing.is_empty() && call.caller.may_change_entries(&found.parent)).then(|| creation_denial(call, found))
    }

    /// Checks rmdir(2) if `directory` is true, otherwise unlink(2).
    pub fn remove(&self, call: Call<'_>, at: PathArguments, directory: bool) -> Option<Denial> {
        let found = call.find(at, false)?;
        let (parent, object) = (&found.parent, found.object.as_ref()?);
        if found.name.is_empty() || (object.kind() == FileType::Directory) != directory {
            return None;
        }
        let missing = self.missing_rights(call.caller, &found.directories, None, right_to_remove(object));
        if missing.is_empty() || !call.caller.may_remove(parent, object) {
            return None;
        }
        let grant = path_option("--write", &parent.path()?);
        Some(Denial::new(DenialKind::Remove, call.displayed(&found.path()?), call.name, vec![grant]))
    }

    /// Checks renameat2(2) with these flags.
    pub fn rename(&self, call: Call<'_>, from: PathArguments, to: PathArguments, flags: u32) -> Option<Denial> {
        let caller = call.caller;
        let (from, to) = (call.find(from, false)?, call.find(to, false)?);
        let (source, target) = (&from.parent, &to.parent);
        let object = from.object.as_ref()?;
        let exchanges = flags & libc::RENAME_EXCHANGE != 0;
        let fails_without_sandbox = match &to.object {
            Some(_) if flags & libc::RENAME_NOREPLACE != 0 => true,
            Some(replaced) => !caller.may_remove(target, replaced),
            None => exchanges || !caller.may_change_entries(target),
        };
        if fails_without_sandbox || !caller.may_remove(source, object) {
            return None;
        }
        let refer = right_to_refer(source, target);
        let mut needed_in_source = right_to_remove(object) | refer;
        let mut needed_in_target = refer | right_to_make(object.kind());
        if let Some(replaced) = &to.object {
            needed_in_target |= right_to_remove(replaced);
            if exchanges {
                needed_in_source |= right_to_make(replaced.kind());
            }
        }
        self.move_denial(call, [(&from, needed_in_source), (&to, needed_in_target)])
    }

    /// Checks link(2).
    pub fn link(&self, call: Call<'_>, from: PathArguments, to: PathArguments) -> Option<Denial> {
        let (from, to) = (call.find(from, false)?, call.find(to, false)?);
        let (source, target) = (&from.parent, &to.parent);
        let object = from.object.as_ref().filter(|object| object.kind() != FileType::Directory)?;
        if to.object.is_some() || !call.caller.may_change_entries(target) {
            return None;
        }
        let refer = right_to_refer(source, target);
        self.move_denial(call, [(&from, refer), (&to, refer | right_to_make(object.kind()))])
    }

    /// Returns the denial if the rules do not grant the rights that a rename or a link needs in its two directories.
    fn move_denial(&self, call: Call<'_>, sides: [(&Found, BitFlags<AccessFs>); 2]) -> Option<Denial> {
        let is_missing = |(found, wanted): &(&Found, _)| {
            !self.missing_rights(call.caller, &found.directories, None, *wanted).is_empty()
        };
        let refused: Vec<&Found> = sides.into_iter().filter(is_missing).map(|(found, _)| found).collect();
        let path = refused.first()?.path()?;
        let parents: Vec<_> = refused.iter().filter_map(|found| found.parent.path()).collect();
        let mut options: Vec<_> = parents.iter().map(|parent| path_option("--write", parent)).collect();
        options.dedup();
        // The job needs all of these options, so they are one entry of the list.
        Some(Denial::new(DenialKind::Rename, call.displayed(&path), call.name, vec![options.join(" ")]))
    }

    /// Checks a change of mode, owner, times or extended attributes. Landlock does not restrict such a change; only a
    /// read-only mount refuses it.
    pub fn attributes(&self, call: Call<'_>, at: PathArguments) -> Option<Denial> {
        let found = call.find(at, true)?;
        let object = found.object.as_ref()?;
        let is_read_only = rustix::fs::fstatvfs(&object.file)
            .is_ok_and(|stat| stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
        if !is_read_only || object.stat.st_uid != call.caller.credentials.uid {
            return None;
        }
        let path = found.path()?;
        Some(Denial::new(DenialKind::Attributes, call.displayed(&path), call.name, vec![path_option("--write", &path)]))
    }
}

fn creation_denial(call: Call<'_>, found: &Found) -> Denial {
    let grants = found.parent.path().map(|parent| path_option("--write", &parent));
    let path = found.path().unwrap_or_else(|| found.name.clone());
    Denial::new(DenialKind::Create, call.displayed(&path), call.name, grants.into_iter().collect())
}

/// Returns the rights that open(2) needs to read, to write, or both.
fn rights_to_access(reads: bool, writes: bool) -> BitFlags<AccessFs> {
    let right = |needed: bool, right: AccessFs| if needed { right.into() } else { BitFlags::empty() };
    right(reads, AccessFs::ReadFile) | right(writes, AccessFs::WriteFile)
}

/// Returns the right that is needed to remove an object from its directory.
fn right_to_remove(object: &Object) -> BitFlags<AccessFs> {
    if object.kind() == FileType::Directory { AccessFs::RemoveDir.into() } else { AccessFs::RemoveFile.into() }
}

/// Returns the right that is needed to make a file of this kind in a directory.
pub fn right_to_make(kind: FileType) -> AccessFs {
    match kind {
        FileType::Directory => AccessFs::MakeDir,
        FileType::Symlink => AccessFs::MakeSym,
        FileType::Fifo => AccessFs::MakeFifo,
        FileType::Socket => AccessFs::MakeSock,
        FileType::CharacterDevice => AccessFs::MakeChar,
        FileType::BlockDevice => AccessFs::MakeBlock,
        _ => AccessFs::MakeReg,
    }
}

/// Returns the right that is needed to move or link a file from one directory to another; none if they are the same.
fn right_to_refer(source: &Object, target: &Object) -> BitFlags<AccessFs> {
    if source.identity() == target.identity() { BitFlags::empty() } else { AccessFs::Refer.into() }
}

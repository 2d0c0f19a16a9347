//! Which call on a file the Landlock rules of a policy refuse (landlock(7); security/landlock/fs.c in the kernel).

use std::path::PathBuf;

use landlock::{AccessFs, BitFlags, make_bitflags};
use rustix::fs::{Access, FileType};

use super::caller::Caller;
use super::calls::At;
use super::lookup::{Found, Identity, Object, find};
use super::text::{path_option, shown};
use crate::report::{Denial, DenialKind};

/// The rules of a policy about files.
#[derive(Debug)]
pub struct FileRules {
    /// The rights that the ruleset takes away, except where a rule grants them.
    pub handled: BitFlags<AccessFs>,
    pub grants: Vec<(Identity, BitFlags<AccessFs>)>,
    /// A file system that the job mounts, and the rights in it.
    pub mounted: Option<(PathBuf, BitFlags<AccessFs>)>,
}

/// A call on files, for the description of its refusal.
#[derive(Clone, Copy)]
pub struct FileCall<'a> {
    pub caller: &'a Caller,
    pub name: &'a str,
    pub arguments: &'a [u64; 6],
}

impl FileCall<'_> {
    pub fn find(&self, at: At, follow: bool) -> Option<Found> {
        find(self.caller, at, self.arguments, follow).ok()
    }

    /// Returns a path as text. The caller's own directory in /proc gets the name that is the same for all processes.
    fn object(&self, path: &[u8]) -> String {
        let own = || format!("/proc/{}/", self.caller.process());
        match path.starts_with(b"/proc/").then(|| path.strip_prefix(own().as_bytes())).flatten() {
            Some(rest) => format!("/proc/self/{}", shown(rest)),
            None => shown(path),
        }
    }
}

impl FileRules {
    /// Returns the rights among `wanted` that the rules do not grant. `object` is inside of `directories`.
    fn missing(
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

    /// Returns whether the rules grant these rights on what was found.
    pub fn allow(&self, caller: &Caller, found: &Found, rights: BitFlags<AccessFs>) -> bool {
        self.missing(caller, &found.directories, found.object.as_ref(), rights).is_empty()
    }

    /// open(2) with these flags.
    pub fn open(&self, call: FileCall<'_>, at: At, flags: i32) -> Option<Denial> {
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
            if !has(libc::O_CREAT) || !caller.may_change(&found.parent) {
                return None;
            }
            wanted |= AccessFs::MakeReg;
            wanted |= access(reads, writes);
            let missing = self.missing(caller, &found.directories, None, wanted);
            return (!missing.is_empty()).then(|| self.created(call, &found));
        };
        if is_exclusive {
            return None;
        }
        let makes_unnamed = has(libc::O_TMPFILE);
        match object.kind() {
            FileType::Directory if makes_unnamed => wanted |= access(reads, writes),
            FileType::Directory if writes || has(libc::O_CREAT) => return None,
            FileType::Directory => wanted |= AccessFs::ReadDir,
            FileType::Symlink | FileType::Socket => return None,
            _ if has(libc::O_DIRECTORY) => return None,
            kind => {
                wanted |= access(reads, writes);
                if has(libc::O_TRUNC) && kind == FileType::RegularFile {
                    wanted |= AccessFs::Truncate;
                }
            }
        }
        let is_allowed = match makes_unnamed {
            true => caller.may_change(object),
            false => [(reads, Access::READ_OK), (writes || wanted.contains(AccessFs::Truncate), Access::WRITE_OK)]
                .into_iter()
                .all(|(needs, access)| !needs || caller.may(object, access)),
        };
        let missing = self.missing(caller, &found.directories, Some(object), wanted);
        if !is_allowed || missing.is_empty() {
            return None;
        }
        let changes = !(missing & make_bitflags!(AccessFs::{WriteFile | Truncate})).is_empty() || makes_unnamed;
        let path = found.path()?;
        let (kind, option) = if changes { (DenialKind::Write, "--write") } else { (DenialKind::Read, "--read") };
        Some(Denial::new(kind, call.object(&path), call.name, vec![path_option(option, &path)]))
    }

    /// execve(2): the program, or the program that is needed to run it.
    pub fn execute(&self, call: FileCall<'_>, found: &Found) -> Option<Denial> {
        let object = found.object.as_ref().filter(|object| call.caller.may_execute(object))?;
        let missing = self.missing(call.caller, &found.directories, Some(object), AccessFs::Execute.into());
        if missing.is_empty() {
            return None;
        }
        let path = found.path()?;
        Some(Denial::new(DenialKind::Execute, call.object(&path), call.name, vec![path_option("--read", &path)]))
    }

    pub fn truncate(&self, call: FileCall<'_>, at: At) -> Option<Denial> {
        let found = call.find(at, true)?;
        let object = found.object.as_ref().filter(|object| object.kind() == FileType::RegularFile)?;
        let missing = self.missing(call.caller, &found.directories, Some(object), AccessFs::Truncate.into());
        if missing.is_empty() || !call.caller.may(object, Access::WRITE_OK) {
            return None;
        }
        let path = found.path()?;
        Some(Denial::new(DenialKind::Write, call.object(&path), call.name, vec![path_option("--write", &path)]))
    }

    /// Makes something new at a path.
    pub fn make(&self, call: FileCall<'_>, at: At, right: AccessFs) -> Option<Denial> {
        let found = call.find(at, false)?;
        self.make_found(call, &found, right.into())
    }

    /// The same for a path that has been looked up.
    pub fn make_found(&self, call: FileCall<'_>, found: &Found, right: BitFlags<AccessFs>) -> Option<Denial> {
        if found.object.is_some() {
            return None;
        }
        let missing = self.missing(call.caller, &found.directories, None, right);
        (!missing.is_empty() && call.caller.may_change(&found.parent)).then(|| self.created(call, found))
    }

    fn created(&self, call: FileCall<'_>, found: &Found) -> Denial {
        let grants = found.parent.path().map(|parent| path_option("--write", &parent));
        let path = found.path().unwrap_or_else(|| found.name.clone());
        Denial::new(DenialKind::Create, call.object(&path), call.name, grants.into_iter().collect())
    }

    pub fn remove(&self, call: FileCall<'_>, at: At, directory: bool) -> Option<Denial> {
        let found = call.find(at, false)?;
        let (parent, object) = (&found.parent, found.object.as_ref()?);
        if found.name.is_empty() || (object.kind() == FileType::Directory) != directory {
            return None;
        }
        let missing = self.missing(call.caller, &found.directories, None, removal(object));
        if missing.is_empty() || !call.caller.may_remove(parent, object) {
            return None;
        }
        let grant = path_option("--write", &parent.path()?);
        Some(Denial::new(DenialKind::Remove, call.object(&found.path()?), call.name, vec![grant]))
    }

    /// rename(2).
    pub fn rename(&self, call: FileCall<'_>, from: At, to: At, flags: u32) -> Option<Denial> {
        let caller = call.caller;
        let (from, to) = (call.find(from, false)?, call.find(to, false)?);
        let (source, target) = (&from.parent, &to.parent);
        let object = from.object.as_ref()?;
        let exchanges = flags & libc::RENAME_EXCHANGE != 0;
        let is_refused_anyway = match &to.object {
            Some(_) if flags & libc::RENAME_NOREPLACE != 0 => true,
            Some(replaced) => !caller.may_remove(target, replaced),
            None => exchanges || !caller.may_change(target),
        };
        if is_refused_anyway || !caller.may_remove(source, object) {
            return None;
        }
        let refer = refer(source, target);
        let (mut of_source, mut of_target) = (removal(object) | refer, creation(object) | refer);
        if let Some(replaced) = &to.object {
            of_target |= removal(replaced);
            if exchanges {
                of_source |= creation(replaced);
            }
        }
        self.moved(call, [(&from, of_source), (&to, of_target)])
    }

    pub fn link(&self, call: FileCall<'_>, from: At, to: At) -> Option<Denial> {
        let (from, to) = (call.find(from, false)?, call.find(to, false)?);
        let (source, target) = (&from.parent, &to.parent);
        let object = from.object.as_ref().filter(|object| object.kind() != FileType::Directory)?;
        if to.object.is_some() || !call.caller.may_change(target) {
            return None;
        }
        let refer = refer(source, target);
        self.moved(call, [(&from, refer), (&to, creation(object) | refer)])
    }

    /// Returns the refusal of a move between two directories.
    fn moved(&self, call: FileCall<'_>, sides: [(&Found, BitFlags<AccessFs>); 2]) -> Option<Denial> {
        let is_missing =
            |(found, wanted): &(&Found, _)| !self.missing(call.caller, &found.directories, None, *wanted).is_empty();
        let refused: Vec<&Found> = sides.into_iter().filter(is_missing).map(|(found, _)| found).collect();
        let path = refused.first()?.path()?;
        let parents: Vec<_> = refused.iter().filter_map(|found| found.parent.path()).collect();
        let mut options: Vec<_> = parents.iter().map(|parent| path_option("--write", parent)).collect();
        options.dedup();
        // Both are needed.
        Some(Denial::new(DenialKind::Rename, call.object(&path), call.name, vec![options.join(" ")]))
    }

    /// A change of mode, owner, times or extended attributes, which only read-only mounts refuse.
    pub fn attributes(&self, call: FileCall<'_>, at: At) -> Option<Denial> {
        let found = call.find(at, true)?;
        let object = found.object.as_ref()?;
        let is_read_only = rustix::fs::fstatvfs(&object.file)
            .is_ok_and(|stat| stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
        if !is_read_only || object.stat.st_uid != call.caller.credentials.uid {
            return None;
        }
        let path = found.path()?;
        Some(Denial::new(DenialKind::Attributes, call.object(&path), call.name, vec![path_option("--write", &path)]))
    }
}

fn access(reads: bool, writes: bool) -> BitFlags<AccessFs> {
    let right = |needed: bool, right: AccessFs| if needed { right.into() } else { BitFlags::empty() };
    right(reads, AccessFs::ReadFile) | right(writes, AccessFs::WriteFile)
}

/// The right to remove an object from its directory.
fn removal(object: &Object) -> BitFlags<AccessFs> {
    if object.kind() == FileType::Directory { AccessFs::RemoveDir.into() } else { AccessFs::RemoveFile.into() }
}

/// The right to make an object of this kind in a directory.
fn creation(object: &Object) -> BitFlags<AccessFs> {
    made(object.kind()).into()
}

/// Returns the right that is needed to make a file of this kind.
pub fn made(kind: FileType) -> AccessFs {
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

/// The right to move a file from one directory to another one.
fn refer(source: &Object, target: &Object) -> BitFlags<AccessFs> {
    if source.identity() == target.identity() { BitFlags::empty() } else { AccessFs::Refer.into() }
}

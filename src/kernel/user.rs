//! The user that a command runs as. pinfold looks the user up before it starts any process.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::process::{Command, Stdio};

use crate::error::{Error, Result};

/// A user and its groups, for [`Command::user`](crate::Command::user).
///
/// ```
/// let root = pinfold::User::look_up("0")?;
/// let mut command = pinfold::Command::new("id");
/// command.user(root);
/// assert!(pinfold::User::look_up("no such user").is_err());
/// # Ok::<(), pinfold::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// `HOME`, `USER`, `LOGNAME` and `SHELL`, if the user has an entry in the user database.
    pub(crate) environment: Vec<(OsString, OsString)>,
}

impl User {
    /// Makes this process run as the user, with its groups (setgroups(2), setresgid(2), setresuid(2)). The process must
    /// have one thread: each call changes the calling thread only.
    ///
    /// # Errors
    /// `EPERM` if this process is not privileged.
    #[cfg(feature = "cli")]
    #[allow(unsafe_code)]
    pub(crate) fn apply(&self) -> rustix::io::Result<()> {
        use crate::kernel::syscall::check;
        // SAFETY: `groups` is valid for its length, and the other calls take numbers.
        unsafe {
            check(libc::syscall(libc::SYS_setgroups, self.groups.len(), self.groups.as_ptr()))?;
            check(libc::syscall(libc::SYS_setresgid, self.gid, self.gid, self.gid))?;
            check(libc::syscall(libc::SYS_setresuid, self.uid, self.uid, self.uid)).map(drop)
        }
    }

    /// Looks up `NAME`, `UID`, `NAME:GID` or `UID:GID`. A user id that is in no user database has no supplementary
    /// groups, and needs a group id.
    ///
    /// This function runs getent(1), because getent reads all user databases, even if this program is linked to a C
    /// library that can't. If getent is not installed, it reads /etc/passwd and /etc/group.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the user does not exist.
    pub fn look_up(text: &str) -> Result<Self> {
        let bad = |reason: &str| Error::invalid("user", text.replace('\0', "\\0"), reason);
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let gid = group.map(|group| id(group).ok_or_else(|| bad("after the colon, give a group id (a number)")));
        let gid = gid.transpose()?;
        // The user databases contain no name with one of these characters, and getent(1) would take a name with a
        // leading hyphen for an option.
        if user.is_empty() || user.starts_with('-') || user.contains(['\0', '\n', '/']) {
            return Err(bad("there is no such user: see getent passwd"));
        }
        let Some(entry) = passwd(user) else {
            let uid = id(user).ok_or_else(|| bad("there is no such user: see getent passwd"))?;
            let gid = gid.ok_or_else(|| bad("this user id is in no user database: add a group id, as UID:GID"))?;
            return Ok(Self { uid, gid, groups: Vec::new(), environment: Vec::new() });
        };
        let gid = gid.unwrap_or(entry.gid);
        let mut groups = groups(&entry.name);
        if !groups.contains(&gid) {
            groups.insert(0, gid);
        }
        let pairs = [("HOME", &entry.home), ("USER", &entry.name), ("LOGNAME", &entry.name), ("SHELL", &entry.shell)];
        let environment = pairs
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(key, value)| (key.into(), OsString::from_vec(value.clone())))
            .collect();
        Ok(Self { uid: entry.uid, gid, groups, environment })
    }
}

/// An entry of passwd(5).
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    name: Vec<u8>,
    uid: u32,
    gid: u32,
    home: Vec<u8>,
    shell: Vec<u8>,
}

/// Parses a user or group id. The highest number is invalid, because it stands for "no change" (setresuid(2)).
fn id(text: &str) -> Option<u32> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten().filter(|&id| id != u32::MAX)
}

fn number(field: &[u8]) -> Option<u32> {
    id(std::str::from_utf8(field).ok()?)
}

/// Runs a program and returns its output; `None` if it is missing or fails.
fn printed(arguments: &[&OsStr]) -> Option<Vec<u8>> {
    let mut command = Command::new(arguments.first()?);
    let output = command.args(&arguments[1..]).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then_some(output.stdout)
}

fn passwd(user: &str) -> Option<Entry> {
    let answer = printed(&["getent".as_ref(), "passwd".as_ref(), user.as_ref()]);
    let known = answer.and_then(|answer| entry(&answer, user));
    known.or_else(|| entry(&std::fs::read("/etc/passwd").ok()?, user))
}

/// Finds a user by name or by user id.
fn entry(database: &[u8], user: &str) -> Option<Entry> {
    let entries = database.split(|&byte| byte == b'\n').filter_map(|line| {
        let fields: Vec<_> = line.split(|&byte| byte == b':').collect();
        let [name, _, uid, gid, _, home, shell] = fields[..] else { return None };
        let (uid, gid) = (number(uid)?, number(gid)?);
        Some(Entry { name: name.into(), uid, gid, home: home.into(), shell: shell.into() })
    });
    let mut found: Vec<_> =
        entries.filter(|entry| entry.name == user.as_bytes() || id(user) == Some(entry.uid)).collect();
    // A user whose name consists of digits takes precedence over the user with that id.
    let named = found.iter().position(|entry| entry.name == user.as_bytes()).unwrap_or(0);
    (!found.is_empty()).then(|| found.swap_remove(named))
}

/// Returns the supplementary groups that initgroups(3) would set.
fn groups(name: &[u8]) -> Vec<u32> {
    let words = ["getent".as_ref(), "initgroups".as_ref(), OsStr::from_bytes(name)];
    if let Some(line) = printed(&words) {
        // The line has the name, then the group ids.
        return line.split(u8::is_ascii_whitespace).skip(1).filter_map(number).collect();
    }
    members(&std::fs::read("/etc/group").unwrap_or_default(), name)
}

/// Returns the groups of group(5) that have this member.
fn members(database: &[u8], name: &[u8]) -> Vec<u32> {
    let lines = database.split(|&byte| byte == b'\n');
    lines
        .filter_map(|line| {
            let fields: Vec<_> = line.split(|&byte| byte == b':').collect();
            let [_, _, gid, list] = fields[..] else { return None };
            list.split(|&byte| byte == b',').any(|member| member == name).then(|| number(gid)).flatten()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_the_user_databases() {
        let passwd = b"root:x:0:0:root:/root:/bin/sh\n7:x:9:9::/:\nu:x:7:5::/home/u:\nbroken:x:1\n";
        assert_eq!(
            entry(passwd, "u").map(|entry| (entry.uid, entry.gid, entry.home)),
            Some((7, 5, b"/home/u".to_vec()))
        );
        assert_eq!(entry(passwd, "7").map(|entry| entry.uid), Some(9));
        assert_eq!(entry(passwd, "9").map(|entry| entry.uid), Some(9));
        assert!(entry(passwd, "broken").is_none() && entry(passwd, "x").is_none());
        assert_eq!(members(b"a:x:1:u,root\nb:x:2:uu\nc:x:3:\nd:x:4:u\n", b"u"), [1, 4]);
    }

    #[test]
    fn look_up_of_names_and_numbers() {
        let root = User::look_up("root").unwrap();
        assert_eq!((root.uid, root.gid), (0, 0));
        assert!(root.groups.contains(&0) && root.environment.contains(&("USER".into(), "root".into())));
        let number = User::look_up("0:7").unwrap();
        assert_eq!((number.uid, number.gid, number.groups.contains(&7)), (0, 7, true));
        let unknown = User::look_up("3999999999:5").unwrap();
        assert_eq!((unknown.uid, unknown.gid, unknown.groups.len()), (3_999_999_999, 5, 0));
        for text in ["", ":", "no such user", "root:", "root:x", "3999999999", "4294967295:1", "-1:1", "a\0b", ":5"] {
            assert!(User::look_up(text).is_err(), "{text}");
        }
    }
}

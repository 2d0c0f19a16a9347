//! Finds where the cgroup2 tree is mounted and which cgroup of it contains this process. Pure parsers of
//! `/proc/self/mountinfo` (proc_pid_mountinfo(5)) and `/proc/self/cgroup` (cgroups(7)). They parse bytes, because paths
//! are bytes.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

/// A mount of a cgroup2 file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The directory of the cgroup tree that forms the root of this mount, as seen from the reader's cgroup namespace.
    pub root: PathBuf,
    /// The mount point.
    pub point: PathBuf,
    /// Whether the mount or the file system is read-only.
    pub read_only: bool,
}

/// Returns the cgroup2 mounts of a mountinfo file, in the order of the file: a later mount at the same point hides an
/// earlier one. Lines that cannot be parsed are skipped.
pub fn cgroup2_mounts(mountinfo: &[u8]) -> Vec<Mount> {
    mountinfo.split(|&byte| byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    // id, parent id, major:minor
    let root = fields.nth(3)?;
    let point = fields.next()?;
    let options = fields.next()?;
    // Then come optional fields, a single hyphen, the type, the source, and the file system's own options.
    fields.find(|field| *field == b"-")?;
    if fields.next()? != b"cgroup2" {
        return None;
    }
    let super_options = fields.nth(1).unwrap_or_default();
    let is_ro = |list: &[u8]| list.split(|&byte| byte == b',').any(|option| option == b"ro");
    Some(Mount { root: unescape(root), point: unescape(point), read_only: is_ro(options) || is_ro(super_options) })
}

/// Returns the mount points of the file systems of these types, in the order of the mountinfo file.
pub fn points_of(mountinfo: &[u8], types: &[&str]) -> Vec<PathBuf> {
    let point = |line: &[u8]| {
        let mut fields = line.split(|&byte| byte == b' ');
        let point = fields.nth(4)?;
        fields.find(|field| *field == b"-")?;
        let kind = fields.next()?;
        types.iter().any(|name| name.as_bytes() == kind).then(|| unescape(point))
    };
    mountinfo.split(|&byte| byte == b'\n').filter_map(point).collect()
}

/// Decodes the kernel's escapes: it writes space, tab, newline and backslash as a backslash and three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// Returns the path of this process's cgroup in the v2 tree (the `0::` line), seen from its cgroup namespace.
/// `None` if no v2 tree is mounted anywhere.
pub fn own_path(proc_cgroup: &[u8]) -> Option<PathBuf> {
    let line = proc_cgroup.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"0::"))?;
    Some(PathBuf::from(OsString::from_vec(line.to_vec())))
}

/// Returns the directory of the cgroup `path` below `mount`, or `None` if that mount does not show the cgroup
/// (a bind mount or a namespace of another part of the tree).
pub fn directory(mount: &Mount, path: &Path) -> Option<PathBuf> {
    let below = path.strip_prefix(&mount.root).ok()?;
    if below.components().any(|part| !matches!(part, Component::Normal(_))) {
        return None;
    }
    if below.as_os_str().as_bytes().is_empty() {
        return Some(mount.point.clone());
    }
    Some(mount.point.join(below))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HYBRID: &[u8] = b"23 27 0:22 / /sys rw,relatime - sysfs sysfs rw\n\
        31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:4 master:1 - cgroup2 cgroup2 rw\n";

    #[test]
    fn hybrid_and_pure_hosts() {
        let mounts = cgroup2_mounts(HYBRID);
        assert_eq!(mounts.len(), 1);
        assert_eq!(directory(&mounts[0], Path::new("/a/b")), Some("/sys/fs/cgroup/unified/a/b".into()));
        assert_eq!(directory(&mounts[0], Path::new("/")), Some("/sys/fs/cgroup/unified".into()));
        let pure = cgroup2_mounts(b"30 23 0:26 / /sys/fs/cgroup ro,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n");
        assert!(pure[0].read_only);
        assert_eq!(points_of(HYBRID, &["cgroup", "sysfs"]), ["/sys", "/sys/fs/cgroup/memory"].map(PathBuf::from));
    }

    #[test]
    fn bind_mounts_and_namespaces() {
        let mount = |root: &str| Mount { root: root.into(), point: "/mnt".into(), read_only: false };
        assert_eq!(directory(&mount("/a/b"), Path::new("/a/b/c")), Some("/mnt/c".into()));
        assert_eq!(directory(&mount("/a/b"), Path::new("/a/bc")), None);
        assert_eq!(directory(&mount("/a/b"), Path::new("/")), None);
        // The path is outside the namespace's root: only a mount of that outside part shows it.
        assert_eq!(directory(&mount("/"), Path::new("/../x")), None);
        assert_eq!(directory(&mount("/.."), Path::new("/../x")), Some("/mnt/x".into()));
    }

    #[test]
    fn own_path_is_read_from_the_v2_line() {
        assert_eq!(own_path(b"4:memory:/m\n0::/user.slice/a:b\n"), Some("/user.slice/a:b".into()));
        assert_eq!(own_path(b"4:memory:/m\n"), None);
    }

    fn escape(path: &[u8]) -> Vec<u8> {
        path.iter()
            .flat_map(|&byte| match byte {
                b' ' | b'\t' | b'\n' | b'\\' | b'#' => format!("\\{byte:03o}").into_bytes(),
                _ => vec![byte],
            })
            .collect()
    }

    proptest! {
        #[test]
        fn any_path_survives_the_kernels_escapes(
            root in prop::collection::vec(1..=255_u8, 0..40),
            point in prop::collection::vec(1..=255_u8, 0..40),
            optional in prop::collection::vec("(shared|master|propagate_from):[0-9]{1,3}", 0..3),
            read_only: bool,
        ) {
            let root = [b"/", root.as_slice()].concat();
            let point = [b"/", point.as_slice()].concat();
            let mut line = b"41 31 0:38 ".to_vec();
            line.extend(escape(&root));
            line.push(b' ');
            line.extend(escape(&point));
            line.extend(if read_only { b" ro,relatime".as_slice() } else { b" rw,relatime" });
            for field in optional {
                line.push(b' ');
                line.extend(field.into_bytes());
            }
            line.extend(b" - cgroup2 none rw,nsdelegate\n");
            let mounts = cgroup2_mounts(&line);
            prop_assert_eq!(mounts, vec![Mount {
                root: PathBuf::from(OsString::from_vec(root)),
                point: PathBuf::from(OsString::from_vec(point)),
                read_only,
            }]);
        }

        #[test]
        fn no_input_panics(bytes: Vec<u8>) {
            for mount in cgroup2_mounts(&bytes) {
                let _ = directory(&mount, Path::new("/x"));
            }
            let _ = own_path(&bytes);
        }

        #[test]
        fn a_directory_never_leaves_its_mount(root in "(/[a-c.]{1,2}){0,3}", path in "(/[a-c.]{1,2}){0,5}") {
            let mount = Mount { root: format!("/{}", root.trim_start_matches('/')).into(), point: "/mnt".into(), read_only: false };
            if let Some(directory) = directory(&mount, Path::new(&path)) {
                prop_assert!(directory.starts_with("/mnt"));
                prop_assert!(!directory.components().any(|part| part == Component::ParentDir));
            }
        }
    }
}

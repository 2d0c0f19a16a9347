//! Resource limits, which apply to each process (getrlimit(2)).
//!
//! The calls go through libc, because rustix's `getrlimit` does not expect the call to fail, and a seccomp profile can
//! refuse it.

#![allow(unsafe_code)]

use crate::error::{Error, Result};
use crate::kernel::size::Size;

/// A resource limit, which applies to each process (getrlimit(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rlimit {
    /// The kernel's number for the resource.
    pub(crate) resource: u32,
    /// The soft limit; `u64::MAX` for no limit.
    pub soft: u64,
    /// The hard limit.
    pub hard: u64,
}

/// The number of the limit on open files. Defined here because the C libraries disagree on its type.
pub(crate) const NOFILE: u32 = 7;

/// The names of the resources, each at the index that is its number. Only architectures that pinfold does not support
/// number them differently.
const RESOURCES: [&str; 16] = [
    "cpu",
    "fsize",
    "data",
    "stack",
    "core",
    "rss",
    "nproc",
    "nofile",
    "memlock",
    "as",
    "locks",
    "sigpending",
    "msgqueue",
    "nice",
    "rtprio",
    "rttime",
];

impl std::str::FromStr for Rlimit {
    type Err = Error;

    /// Reads `nofile=1024`, `nofile=1024:4096`, `core=0`, `stack=unlimited`, with the names of prlimit(1). Values are
    /// in the kernel's units (bytes, seconds, counts); K, M, G or T may follow a value.
    fn from_str(text: &str) -> Result<Self> {
        let bad = |advice: String| Error::invalid("resource limit", text, advice);
        let usage = || bad("write NAME=SOFT[:HARD], each a number or 'unlimited'".into());
        let (name, values) = text.split_once('=').ok_or_else(usage)?;
        let resource = RESOURCES
            .iter()
            .position(|known| name.eq_ignore_ascii_case(known))
            .ok_or_else(|| bad(format!("the name must be one of {}", RESOURCES.join(", "))))?;
        let value = |text: &str| match (text, text.parse::<Size>()) {
            ("unlimited", _) | (_, Ok(Size::Max)) => Ok(u64::MAX),
            (_, Ok(Size::Bytes(value))) => Ok(value),
            _ => Err(usage()),
        };
        let (soft, hard) = match values.split_once(':') {
            Some((soft, hard)) => (value(soft)?, value(hard)?),
            None => (value(values)?, value(values)?),
        };
        if soft > hard {
            return Err(bad("the soft limit is above the hard one".into()));
        }
        Ok(Self { resource: resource as u32, soft, hard })
    }
}

/// Lowers the limits of this process to these values. A limit that is lower already stays as it is.
///
/// # Errors
/// The errno of prlimit(2).
#[cfg(feature = "cli")]
pub(crate) fn lower(resource: u32, soft: u64, hard: u64) -> rustix::io::Result<()> {
    use crate::kernel::syscall::checked;

    let (_, own) = limit(resource).unwrap_or((u64::MAX, u64::MAX));
    let limit = libc::rlimit64 { rlim_cur: soft.min(own), rlim_max: hard.min(own) };
    // SAFETY: the structure outlives the call; the number 0 names this process.
    unsafe { checked(libc::SYS_prlimit64, [0, resource as usize, &raw const limit as usize, 0]) }
        .map(drop)
        .map_err(rustix::io::Errno::from_raw_os_error)
}

/// Returns the soft and the hard limit on `resource` (`RLIMIT_…`, getrlimit(2)); `None` if a seccomp profile refuses
/// the call.
pub(crate) fn limit(resource: impl Into<i64>) -> Option<(u64, u64)> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure outlives the call.
    let done = unsafe { libc::getrlimit64(resource.into() as _, &mut limit) };
    (done == 0).then_some((limit.rlim_cur, limit.rlim_max))
}

/// Raises the soft limit on `resource` to `wanted` if it is lower. If the hard limit is lower too, this raises both
/// limits if this process may do that (CAP_SYS_RESOURCE), and otherwise raises the soft limit up to the hard one.
pub(crate) fn raise_limit(resource: impl Into<i64>, wanted: u64) {
    let resource = resource.into();
    let Some((soft, hard)) = limit(resource) else { return };
    let set = |soft, hard| {
        let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
        // SAFETY: the structure outlives the call. If the call is refused, the limit stays as it was.
        unsafe { libc::setrlimit64(resource as _, &limit) == 0 }
    };
    if soft < wanted && (hard >= wanted || !set(wanted, wanted)) {
        set(hard.min(wanted), hard);
    }
}

/// Raises the limit on open files. This limit also bounds the numbers of descriptors, and jobs may use numbers above
/// the limit that this process inherited.
pub(crate) fn raise_open_files_limit() {
    // The usual value of fs.nr_open, beyond which no process may raise the limit (proc_sys_fs(5)).
    const NR_OPEN: u64 = 1 << 20;
    let hard = limit(libc::RLIMIT_NOFILE).map_or(0, |(_, hard)| hard);
    raise_limit(libc::RLIMIT_NOFILE, hard.max(NR_OPEN));
}

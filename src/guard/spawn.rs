//! A spawn request, prepared for the child. [`super::child`] is what the child runs, [`super::launch`] starts it,
//! [`super::clone`] makes the process.

#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::{CStr, c_char};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr::null;

use rustix::fs::{Access, Mode, OFlags, access, openat};
use rustix::io::{Errno, fcntl_dupfd_cloexec};

use super::child::Plan;
use super::identity::Variable;
use super::protocol::Spec;
use crate::error::SpawnStage;
use crate::kernel::oom_score;

/// A main process that has not been reaped, or whose job is being swept.
pub(super) struct Job {
    pub pid: i32,
    pub reaped: bool,
    /// Clock ticks since boot at its start, as in `/proc/PID/stat`.
    pub started_ticks: u64,
    /// The name of its leaf; `None` if the base itself is the leaf.
    pub leaf: Option<String>,
    /// The job has no leaf: the guard itself holds it.
    pub has_no_leaf: bool,
    /// The signal that the job receives when the supervisor is gone.
    pub death_signal: Option<i32>,
}

/// Why a main process could not be started.
#[derive(Debug, Clone, Copy)]
pub struct Failure {
    pub stage: SpawnStage,
    pub errno: Errno,
}

impl Failure {
    pub fn new(stage: SpawnStage, errno: Errno) -> Self {
        Self { stage, errno }
    }
}

/// A spawn request that the guard has received. Its plan points into this structure. The descriptors stay open until
/// the child has its copies.
pub struct SpawnRequest {
    /// The encoded specification.
    bytes: Vec<u8>,
    /// The leaf's path from the base on: `/BASE/LEAF`, or `/BASE` if the base is the leaf. `None` if the child is made
    /// in the guard's cgroup.
    leaf_tail: Option<String>,
    /// The descriptors of the request. The first one is the leaf, if the job has a leaf.
    descriptors: Vec<OwnedFd>,
    /// The child joins the leaf itself, instead of being cloned into it.
    pub join: bool,
    /// `cgroup.procs` of the leaf, for a child that joins it.
    procs: Option<OwnedFd>,
    copies: Vec<OwnedFd>,
    /// The job's `oom_score_adj`, if it differs from the value that the guard has recorded.
    oom_score: Option<i32>,
    /// The signal that the job receives when the supervisor is gone. Set when the plan is made.
    pub death_signal: Option<i32>,
}

impl SpawnRequest {
    /// Creates a request with the specification in `spec`, or in the descriptor that follows the leaf.
    pub fn new(
        leaf_tail: Option<String>,
        join: bool,
        spec: Option<Vec<u8>>,
        oom_score: Option<i32>,
        mut descriptors: Vec<OwnedFd>,
    ) -> Result<Self, Failure> {
        let failed = |errno| Failure::new(SpawnStage::Specification, errno);
        let leaves = usize::from(leaf_tail.is_some());
        let bytes = match spec {
            Some(bytes) => bytes,
            None if descriptors.len() > leaves => read_all(&descriptors.remove(leaves)).map_err(failed)?,
            None => return Err(failed(Errno::INVAL)),
        };
        if descriptors.len() < leaves {
            return Err(failed(Errno::INVAL));
        }
        Ok(Self { bytes, leaf_tail, descriptors, join, procs: None, copies: Vec::new(), oom_score, death_signal: None })
    }

    fn spec(&self) -> Result<Spec<'_>, Failure> {
        postcard::from_bytes(&self.bytes).map_err(|_| Failure::new(SpawnStage::Specification, Errno::INVAL))
    }

    /// Returns the name of the leaf, which is the second part of "/BASE/LEAF". Returns `None` for "/BASE": then the
    /// base is the leaf.
    pub fn leaf_name(&self) -> Option<String> {
        self.leaf_tail.as_ref().and_then(|tail| tail.split('/').nth(2)).map(str::to_owned)
    }

    pub fn has_leaf(&self) -> bool {
        self.leaf_tail.is_some()
    }

    /// Returns the leaf's directory, for a clone into it.
    pub fn leaf(&self) -> Option<RawFd> {
        self.directory().map(|leaf| leaf.as_raw_fd())
    }

    fn directory(&self) -> Option<BorrowedFd<'_>> {
        self.leaf_tail.as_ref().and_then(|_| self.descriptors.first()).map(AsFd::as_fd)
    }

    /// Makes the plan. Its pointers are valid as long as this structure lives, even if it moves: they point to its heap
    /// memory.
    pub fn plan(&mut self) -> Result<Plan, Failure> {
        if self.join
            && let Some(leaf) = self.directory()
        {
            let file = openat(leaf, c"cgroup.procs", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
            self.procs = Some(file.map_err(|errno| Failure::new(SpawnStage::JoinCgroup, errno))?);
        }
        let leaf = match (self.directory(), &self.leaf_tail) {
            (Some(leaf), Some(tail)) => {
                let id = rustix::fs::fstat(leaf).map_err(|errno| Failure::new(SpawnStage::CgroupCheck, errno))?.st_ino;
                Some((id, std::ptr::from_ref(tail.as_bytes())))
            }
            _ => None,
        };
        let spec = self.spec()?;
        let descriptors = &self.descriptors[usize::from(leaf.is_some())..];
        let (cwd_descriptor, descriptors) = match descriptors {
            [cwd, rest @ ..] if spec.has_cwd_descriptor => (cwd.as_raw_fd(), rest),
            all => (-1, all),
        };
        let (ruleset, descriptors) = match descriptors {
            [ruleset, rest @ ..] if spec.has_ruleset => (Some(ruleset), rest),
            all => (None, all),
        };
        let (listener, descriptors) = match descriptors {
            [listener, rest @ ..] if spec.has_listener => (Some(listener), rest),
            all => (None, all),
        };
        let (tmp_socket, descriptors) = match descriptors {
            [socket, rest @ ..] if spec.has_tmp_socket => (Some(socket), rest),
            all => (None, all),
        };
        let relative = spec.cwd.is_none_or(|path| !path.starts_with(b"/"));
        if !spec.has_cwd_descriptor && relative && access(c".", Access::EXEC_OK).is_ok() {
            // The supervisor has no permission to enter its own working directory, and the guard is no longer in that
            // directory: at its start, the guard had the permission and left it. So the child cannot enter the
            // directory.
            return Err(Failure::new(SpawnStage::WorkingDirectory, Errno::ACCESS));
        }
        let (mut copies, moves) = moves(&spec.targets, descriptors)?;
        let own_number = |descriptor: Option<&OwnedFd>| match descriptor {
            Some(descriptor) => number_outside_of(&spec.targets, descriptor.as_raw_fd(), &mut copies)
                .map_err(|errno| Failure::new(SpawnStage::Descriptors, errno)),
            None => Ok(-1),
        };
        let [ruleset, listener, tmp_socket] = [ruleset, listener, tmp_socket].map(own_number);
        let (ruleset, listener, tmp_socket) = (ruleset?, listener?, tmp_socket?);
        let death_signal = spec.death_signal;

        let mut argv = vec![null()];
        argv.extend(pointers(&spec.argv)?);
        argv.push(null());
        let mut env = pointers(&spec.env)?;
        env.push(null());
        let mut identities = Vec::with_capacity(spec.identities.len());
        for &(place, identity) in &spec.identities {
            let (Some(entry), Some(pointer)) = (spec.env.get(place), env.get_mut(place)) else {
                return Err(Failure::new(SpawnStage::Specification, Errno::INVAL));
            };
            let mut variable = Variable::new(entry, identity);
            *pointer = variable.as_ptr();
            identities.push(variable);
        }
        let plan = Plan {
            guard: rustix::process::getpid().as_raw_nonzero().get(),
            cgroup_procs: self.procs.as_ref().map_or(-1, AsRawFd::as_raw_fd),
            process_group: spec.process_group,
            leaf,
            cwd_descriptor,
            sandbox: spec.sandbox,
            ruleset,
            listener,
            tmp_socket,
            cwd: match spec.cwd {
                Some(path) => pointers(&[path])?[0],
                None => null(),
            },
            descriptors: moves,
            closed: (0..3).filter(|number| !spec.targets.contains(number)).collect(),
            blocked: spec.blocked,
            ignored: spec.ignored,
            candidates: pointers(&spec.candidates)?,
            argv,
            env,
            identities,
            outcome: null(),
            rlimits: spec.rlimits,
            nice: spec.nice,
            oom_score: self.oom_score.or_else(oom_score::of_jobs).map(|value| value.to_string()),
            host: spec.host,
            user: spec.user,
        };
        (self.copies, self.death_signal) = (copies, death_signal);
        Ok(plan)
    }
}

/// Reaps a child of the guard that has ended or has reported that it is about to.
pub fn reap(pid: i32) {
    // SAFETY: waits for our own child; the status is not requested.
    while unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL) } == -1
        && Errno::from_io_error(&std::io::Error::last_os_error()) == Some(Errno::INTR)
    {}
}

/// Reads the content of a memfd.
fn read_all(file: &OwnedFd) -> rustix::io::Result<Vec<u8>> {
    let size = rustix::fs::fstat(file)?.st_size as usize;
    let mut bytes = vec![0; size];
    let mut read = 0;
    while read < size {
        match rustix::io::pread(file, &mut bytes[read..], read as u64)? {
            0 => return Err(Errno::INVAL),
            more => read += more,
        }
    }
    Ok(bytes)
}

/// Returns pointers to strings that live as long as the specification. Checks that each string ends with its only NUL.
fn pointers(strings: &[&serde_bytes::Bytes]) -> Result<Vec<*const c_char>, Failure> {
    strings
        .iter()
        .map(|bytes| {
            CStr::from_bytes_with_nul(bytes)
                .map(CStr::as_ptr)
                .map_err(|_| Failure::new(SpawnStage::Specification, Errno::INVAL))
        })
        .collect()
}

/// Pairs of (number in the guard, number in the job).
type Move = (RawFd, RawFd);

/// Returns the moves that bring each descriptor to its target number, and the copies that they need: one for each
/// cycle. In this order, no move overwrites a descriptor that has not been moved yet.
fn moves(targets: &[RawFd], descriptors: &[OwnedFd]) -> Result<(Vec<OwnedFd>, Vec<Move>), Failure> {
    if targets.len() != descriptors.len() {
        return Err(Failure::new(SpawnStage::Specification, Errno::INVAL));
    }
    let sources: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let mut copies = Vec::new();
    let moves = ordered_moves(&sources, targets, |number| number_outside_of(targets, number, &mut copies));
    moves.map(|moves| (copies, moves)).map_err(|errno| Failure::new(SpawnStage::Descriptors, errno))
}

/// Returns a number for the descriptor that is not among the targets: its own number, or the number of a copy.
fn number_outside_of(targets: &[RawFd], mut number: RawFd, copies: &mut Vec<OwnedFd>) -> rustix::io::Result<RawFd> {
    let mut at_least = 0;
    while targets.contains(&number) {
        // SAFETY: one of the descriptors or of the copies, which are open.
        let copy = fcntl_dupfd_cloexec(unsafe { BorrowedFd::borrow_raw(number) }, at_least)?;
        number = copy.as_raw_fd();
        copies.push(copy);
        at_least = number + 1;
    }
    Ok(number)
}

/// Computes the moves from distinct sources to distinct targets. `copy` duplicates a source to a number that is neither
/// a source nor a target.
fn ordered_moves(
    sources: &[RawFd],
    targets: &[RawFd],
    mut copy: impl FnMut(RawFd) -> rustix::io::Result<RawFd>,
) -> rustix::io::Result<Vec<Move>> {
    if sources.iter().min() > targets.iter().max() {
        // The usual case: no target is the number of a source.
        return Ok(sources.iter().copied().zip(targets.iter().copied()).collect());
    }
    let mut to: HashMap<RawFd, RawFd> = sources.iter().copied().zip(targets.iter().copied()).collect();
    let mut from: HashMap<RawFd, RawFd> = targets.iter().copied().zip(sources.iter().copied()).collect();
    let mut free: Vec<RawFd> = targets.iter().copied().filter(|target| !to.contains_key(target)).collect();
    let mut moves = Vec::with_capacity(sources.len());
    let mut cycles = targets.iter().copied();
    loop {
        while let Some(target) = free.pop() {
            let Some(source) = from.remove(&target) else { continue };
            moves.push((source, target));
            to.remove(&source);
            // The descriptor has been moved, so another one can get its number now.
            free.push(source);
        }
        // The remaining moves form cycles.
        let Some(target) = cycles.next() else { return Ok(moves) };
        match to.get(&target).copied() {
            Some(same) if same == target => {
                moves.push((target, target));
                from.remove(&target);
                to.remove(&target);
            }
            Some(next) => {
                let copied = copy(target)?;
                to.remove(&target);
                to.insert(copied, next);
                from.insert(next, copied);
                free.push(target);
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_descriptor_reaches_its_target(
            sources in prop::collection::hash_set(3..40_i32, 0..30),
            targets in Just((0..40_i32).collect::<Vec<_>>()).prop_shuffle(),
        ) {
            let sources: Vec<RawFd> = sources.into_iter().collect();
            let targets = &targets[..sources.len()];
            // At first, each number holds its own descriptor.
            let mut table: HashMap<RawFd, RawFd> = sources.iter().map(|&number| (number, number)).collect();
            let mut copies = Vec::new();
            let moves = ordered_moves(&sources, targets, |number| {
                copies.push((1000 + number, number));
                Ok(1000 + number)
            });
            table.extend(copies.iter().copied());
            for (source, target) in moves.unwrap() {
                let what = *table.get(&source).unwrap();
                table.insert(target, what);
            }
            for (source, target) in sources.iter().zip(targets) {
                prop_assert_eq!(table.get(target), Some(source));
            }
            prop_assert!(copies.len() <= sources.len() / 2);
        }
    }

    #[test]
    fn a_shift_takes_no_copy() {
        let sources: Vec<RawFd> = (5..1005).collect();
        let targets: Vec<RawFd> = (20..1020).collect();
        let moves = ordered_moves(&sources, &targets, |number| panic!("a copy of {number}")).unwrap();
        assert_eq!((moves.len(), moves.contains(&(5, 20))), (1000, true));
    }
}

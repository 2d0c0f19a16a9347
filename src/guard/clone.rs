//! The clone call: clone3(2) makes a process directly in the leaf; the older clone(2) makes a child that joins its leaf
//! by itself. The calls are in inline assembly, because the new process must not return on the stack of the process
//! that made it.

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicI32, AtomicU32};

use rustix::io::Errno;

use super::child::{Plan, child};
pub(crate) use crate::kernel::fork::{CLONE_INTO_CGROUP, CloneArgs};

/// A stack for one process that shares the guard's memory.
pub struct Stack {
    lowest: *mut libc::c_void,
}

const STACK_SIZE: usize = 64 * 1024;
const STACK_GUARD: usize = 64 * 1024;

impl Stack {
    pub fn new() -> rustix::io::Result<Self> {
        // SAFETY: the kernel chooses the place of the mapping, so it replaces no other. `usable` and the size that
        // becomes accessible are within it, and nothing refers to it yet. Its lowest pages stay inaccessible: an
        // overflow of the stack ends the process instead of changing other memory.
        unsafe {
            let lowest = libc::mmap(
                std::ptr::null_mut(),
                STACK_GUARD + STACK_SIZE,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK,
                -1,
                0,
            );
            if lowest == libc::MAP_FAILED {
                return Err(Errno::NOMEM);
            }
            let usable = lowest.byte_add(STACK_GUARD);
            if libc::mprotect(usable, STACK_SIZE, libc::PROT_READ | libc::PROT_WRITE) != 0 {
                return Err(Errno::NOMEM);
            }
            Ok(Self { lowest: usable })
        }
    }

    fn top(&self) -> usize {
        self.lowest as usize + STACK_SIZE
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `new` with this size, and only this value refers to it. While a process runs
        // on it, the `Launch` of that process keeps this value.
        unsafe { libc::munmap(self.lowest.byte_sub(STACK_GUARD), STACK_GUARD + STACK_SIZE) };
    }
}

const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const VFORK: u64 = (libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD) as u64;

/// The cgroup and the parent of a new main process.
#[derive(Clone, Copy)]
pub struct CloneTarget {
    /// The leaf's directory; clone3 makes the process in it.
    pub leaf: Option<i32>,
    /// The older clone makes the process, and the process joins its leaf by itself.
    pub join: bool,
    /// The process becomes a child of the caller's parent (CLONE_PARENT).
    pub as_sibling: bool,
}

/// Makes a main process. The caller is suspended until the process executes the command or ends (CLONE_VFORK). Returns
/// the kernel's result.
///
/// # Safety
/// The same as for [`child`] applies to `plan`. Nothing else runs on `stack` until then.
pub unsafe fn clone_main(target: CloneTarget, pidfd: &AtomicI32, stack: &Stack, plan: *mut Plan) -> isize {
    let parent = if target.as_sibling { libc::CLONE_PARENT as u64 } else { 0 };
    // SAFETY: the child runs on `stack`, which nothing else uses, and never returns from `CHILD`. The caller's
    // obligation covers the plan. Until the child executes the command or ends, this process is suspended
    // (CLONE_VFORK), so the arguments outlive the call, and the kernel writes the descriptor into an atomic that both
    // may access.
    unsafe {
        if target.join {
            // Linux 5.2 for CLONE_PIDFD. The guard has no signal handlers that would have to be cleared.
            let flags = VFORK | parent | libc::SIGCHLD as u64;
            return raw(libc::SYS_clone, [flags as usize, stack.top(), pidfd.as_ptr() as usize, 0], plan.cast(), CHILD);
        }
        let mut args = CloneArgs {
            flags: VFORK | parent | CLONE_CLEAR_SIGHAND | target.leaf.map_or(0, |_| CLONE_INTO_CGROUP),
            pidfd: pidfd.as_ptr() as u64,
            // With CLONE_PARENT the caller's own exit signal applies, and none may be given (clone(2)).
            exit_signal: if target.as_sibling { 0 } else { libc::SIGCHLD as u64 },
            stack: stack.lowest as u64,
            stack_size: STACK_SIZE as u64,
            cgroup: target.leaf.map_or(0, |leaf| leaf as u64),
            ..CloneArgs::default()
        };
        raw(libc::SYS_clone3, [&raw mut args as usize, size_of::<CloneArgs>(), 0, 0], plan.cast(), CHILD)
    }
}

/// The first function that a new process runs.
pub type Entry = unsafe extern "C" fn(*mut libc::c_void) -> !;

/// Runs [`child`]. The argument is a `*mut Plan`.
const CHILD: Entry = {
    unsafe extern "C" fn entry(plan: *mut libc::c_void) -> ! {
        // SAFETY: only `clone_main` passes this function on, with the plan for which its caller has the obligation.
        unsafe { child(plan.cast()) }
    }
    entry
};

/// Makes a process that shares the guard's memory and descriptors. The guard is not suspended meanwhile. When the
/// process has ended, the kernel sets `running` to 0 and wakes one waiter on it (CLONE_CHILD_CLEARTID).
///
/// # Safety
/// `entry` must be sound with `argument` and make only system calls, and nothing else may use `stack`. All three must
/// live until the process has ended.
pub unsafe fn clone_beside(
    running: &AtomicU32,
    stack: &Stack,
    entry: Entry,
    argument: *mut libc::c_void,
) -> Result<i32, Errno> {
    const SHARED: i32 = libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_FS | libc::CLONE_SIGHAND;
    let flags = SHARED | libc::CLONE_CHILD_CLEARTID | libc::SIGCHLD;
    // SAFETY: the new process gets `stack` for itself. `entry` is sound with `argument`, and stack, argument and
    // `running`, to which the kernel writes, live until the process has ended: the caller's obligation. Descriptors,
    // directory and signal actions are shared, and `entry` makes only system calls, which need no lock of this process.
    let result =
        unsafe { raw(libc::SYS_clone, [flags as usize, stack.top(), 0, running.as_ptr() as usize], argument, entry) };
    if result < 0 { Err(Errno::from_raw_os_error(-result as i32)) } else { Ok(result as i32) }
}

/// Makes the system call, and in the new process calls `entry`: the new process must not run on the caller's stack.
/// `arguments` are the first three arguments of clone(2), and its `child_tid`.
///
/// # Safety
/// The arguments must give the new process a stack of its own.
#[cfg(target_arch = "x86_64")]
unsafe fn raw(number: libc::c_long, arguments: [usize; 4], argument: *mut libc::c_void, entry: Entry) -> isize {
    let result: isize;
    // SAFETY: the kernel preserves all registers except rax, rcx and r11. r8 (tls of clone) is not read without
    // CLONE_SETTLS. The new process never leaves `entry`.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r8",
            "call r9",
            "ud2",
            "2:",
            inlateout("rax") number as isize => result,
            in("rdi") arguments[0],
            in("rsi") arguments[1],
            in("rdx") arguments[2],
            in("r10") arguments[3],
            in("r8") argument,
            in("r9") entry,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// Does the same as the function for x86-64.
///
/// # Safety
/// The arguments must give the new process a stack of its own.
#[cfg(target_arch = "aarch64")]
unsafe fn raw(number: libc::c_long, arguments: [usize; 4], argument: *mut libc::c_void, entry: Entry) -> isize {
    let result: isize;
    // SAFETY: the kernel preserves all registers except x0. x3 (tls of clone) is not read without CLONE_SETTLS. The new
    // process never leaves `entry`.
    unsafe {
        std::arch::asm!(
            "svc #0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x30, xzr",
            "mov x0, x5",
            "blr x6",
            "brk #1",
            "2:",
            in("x8") number,
            inlateout("x0") arguments[0] as isize => result,
            in("x1") arguments[1],
            in("x2") arguments[2],
            in("x3") 0_usize,
            in("x4") arguments[3],
            in("x5") argument,
            in("x6") entry,
        );
    }
    result
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("pinfold's spawn path is written for x86-64 and aarch64");

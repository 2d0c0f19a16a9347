//! The clone itself: straight into the leaf with clone3(2), or the older clone(2) for a child that joins it; in inline
//! assembly, since the child must not come back on the guard's stack.

#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use super::child::{Plan, child};
use super::spawn::Destination;

/// The stack that children run on until they execute: one at a time, since the guard stands still meanwhile.
pub struct Stack {
    lowest: *mut libc::c_void,
}

const STACK_SIZE: usize = 64 * 1024;
const STACK_GUARD: usize = 64 * 1024;

impl Stack {
    pub fn new() -> rustix::io::Result<Self> {
        // SAFETY: a fresh private mapping; its lowest pages stay inaccessible.
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
}

/// `struct clone_args` of clone3(2), with the cgroup field of Linux 5.7.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const VFORK: u64 = (libc::CLONE_VM | libc::CLONE_VFORK) as u64;

/// clone3, straight into the leaf where there is one, or the older clone for a child that joins it.
pub fn clone_into(destination: Destination<'_>, stack: &Stack, plan: &mut Plan) -> Result<(i32, OwnedFd), Errno> {
    let mut pidfd = -1_i32;
    let result = if destination.join {
        clone_plain(&mut pidfd, stack, plan)
    } else {
        clone3(destination.leaf.map(|(leaf, _)| leaf), &mut pidfd, stack, plan)
    };
    if result < 0 {
        return Err(Errno::from_raw_os_error(-result as i32));
    }
    // SAFETY: the kernel has just made it for us (CLONE_PIDFD).
    Ok((result as i32, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

fn clone3(leaf: Option<BorrowedFd<'_>>, pidfd: &mut i32, stack: &Stack, plan: &mut Plan) -> isize {
    let mut args = CloneArgs {
        flags: VFORK | libc::CLONE_PIDFD as u64 | CLONE_CLEAR_SIGHAND | leaf.map_or(0, |_| CLONE_INTO_CGROUP),
        pidfd: std::ptr::from_mut(pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        stack: stack.lowest as u64,
        stack_size: STACK_SIZE as u64,
        cgroup: leaf.map_or(0, |leaf| leaf.as_raw_fd() as u64),
        ..CloneArgs::default()
    };
    // SAFETY: the child runs `child` on its own stack and never comes back here; the guard stands still
    // until then (CLONE_VFORK), so `plan`, `args` and the stack outlive its use of them.
    unsafe { raw(libc::SYS_clone3, &raw mut args as usize, size_of::<CloneArgs>(), 0, plan) }
}

/// clone(2), Linux 5.2 for CLONE_PIDFD. The guard has no signal handlers that would have to be cleared.
fn clone_plain(pidfd: &mut i32, stack: &Stack, plan: &mut Plan) -> isize {
    let flags = VFORK | libc::CLONE_PIDFD as u64 | libc::SIGCHLD as u64;
    // SAFETY: as in clone3; the stack pointer is the stack's upper end.
    unsafe {
        let top = stack.lowest.byte_add(STACK_SIZE);
        raw(libc::SYS_clone, flags as usize, top as usize, std::ptr::from_mut(pidfd) as usize, plan)
    }
}

/// The system call, and in the child a call of [`child`]: nothing may run on the guard's stack in between.
///
/// # Safety
/// The arguments must give the child a stack of its own and suspend the caller (CLONE_VM | CLONE_VFORK).
#[cfg(target_arch = "x86_64")]
unsafe fn raw(number: libc::c_long, first: usize, second: usize, third: usize, plan: *mut Plan) -> isize {
    let result: isize;
    // SAFETY: the kernel keeps all registers but rax, rcx and r11; r8 (tls of clone without CLONE_SETTLS) is
    // not read; the child never leaves `child`.
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
            in("rdi") first,
            in("rsi") second,
            in("rdx") third,
            in("r10") 0_usize,
            in("r8") plan,
            in("r9") child as unsafe extern "C" fn(*mut Plan) -> !,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// As above.
///
/// # Safety
/// As above.
#[cfg(target_arch = "aarch64")]
unsafe fn raw(number: libc::c_long, first: usize, second: usize, third: usize, plan: *mut Plan) -> isize {
    let result: isize;
    // SAFETY: the kernel keeps all registers but x0; x3 and x4 (tls and child_tid of clone) are not read without
    // their flags; the child never leaves `child`.
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
            inlateout("x0") first as isize => result,
            in("x1") second,
            in("x2") third,
            in("x3") 0_usize,
            in("x4") 0_usize,
            in("x5") plan,
            in("x6") child as unsafe extern "C" fn(*mut Plan) -> !,
        );
    }
    result
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("pinfold's spawn path is written for x86-64 and aarch64");

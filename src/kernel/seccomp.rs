//! Seccomp filters (seccomp(2), `Documentation/userspace-api/seccomp_filter.rst`): a program as bytes, the kernel's
//! checks of a program, and the call that installs one.

#![allow(unsafe_code)]

use rustix::io::{Errno, Result};
use serde::{Deserialize, Serialize};

use super::syscall::{checked, last_errno};

/// `struct sock_filter` has 8 bytes: the operation (2), two jump distances (1 each), and a constant (4).
const INSTRUCTION: usize = 8;

/// `BPF_MAXINSNS` (include/uapi/linux/bpf_common.h).
const MAX_INSTRUCTIONS: usize = 4096;

/// The size of `struct seccomp_data`, which a program reads.
const DATA: u32 = 64;

/// `BPF_MEMWORDS`: the number of memory words that a program has.
const MEMORY: u32 = 16;

const SET_MODE_FILTER: usize = 1;
const GET_ACTION_AVAIL: usize = 2;

/// `SECCOMP_RET_KILL_PROCESS` (Linux 4.14).
pub const KILL_PROCESS: u32 = 0x8000_0000;
/// `SECCOMP_RET_ERRNO`; the low 16 bits are the errno.
pub const ERRNO: u32 = 0x0005_0000;
/// `SECCOMP_RET_ALLOW`.
pub const ALLOW: u32 = 0x7fff_0000;

/// A classic BPF program: instructions in the machine's byte order, as libseccomp's `seccomp_export_bpf(3)` writes them
/// and bubblewrap's `--seccomp` reads them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program(#[serde(with = "serde_bytes")] Vec<u8>);

/// One instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    pub code: u16,
    pub if_true: u8,
    pub if_false: u8,
    pub constant: u32,
}

impl Instruction {
    /// An instruction that does not jump.
    pub const fn plain(code: u32, constant: u32) -> Self {
        Self { code: code as u16, if_true: 0, if_false: 0, constant }
    }

    pub const fn jump(code: u32, constant: u32, if_true: u8, if_false: u8) -> Self {
        Self { code: code as u16, if_true, if_false, constant }
    }

    fn bytes(self) -> [u8; INSTRUCTION] {
        let [a, b] = self.code.to_ne_bytes();
        let [c, d, e, f] = self.constant.to_ne_bytes();
        [a, b, self.if_true, self.if_false, c, d, e, f]
    }

    pub fn read(bytes: &[u8; INSTRUCTION]) -> Self {
        let [a, b, if_true, if_false, c, d, e, f] = *bytes;
        Self { code: u16::from_ne_bytes([a, b]), if_true, if_false, constant: u32::from_ne_bytes([c, d, e, f]) }
    }
}

impl FromIterator<Instruction> for Program {
    fn from_iter<I: IntoIterator<Item = Instruction>>(instructions: I) -> Self {
        Self(instructions.into_iter().flat_map(Instruction::bytes).collect())
    }
}

impl Program {
    /// Reads a program, and checks what the kernel would check when it loads the program (`bpf_check_classic` in
    /// net/core/filter.c and `seccomp_check_filter` in kernel/seccomp.c), except for the use of memory words that were
    /// not written.
    ///
    /// # Errors
    /// A description of what is wrong with the program.
    pub fn from_bytes(bytes: &[u8]) -> std::result::Result<Self, String> {
        let (instructions, rest) = bytes.as_chunks::<INSTRUCTION>();
        if !rest.is_empty() {
            return Err(format!("its size, {} bytes, is not a multiple of {INSTRUCTION}", bytes.len()));
        }
        let count = instructions.len();
        if count == 0 || count > MAX_INSTRUCTIONS {
            return Err(format!("it has {count} instructions, and must have 1 to {MAX_INSTRUCTIONS}"));
        }
        for (index, bytes) in instructions.iter().enumerate() {
            check(Instruction::read(bytes), count - index - 1)
                .map_err(|reason| format!("instruction {} of {count}: {reason}", index + 1))?;
        }
        Ok(Self(bytes.to_vec()))
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn instructions(&self) -> usize {
        self.0.len() / INSTRUCTION
    }

    /// Returns the instructions one after the other.
    pub fn iter(&self) -> impl Iterator<Item = Instruction> {
        self.0.as_chunks::<INSTRUCTION>().0.iter().map(Instruction::read)
    }

    /// Installs the program permanently as a filter of the calling thread. May be called between clone and exec,
    /// because it only makes one system call.
    ///
    /// # Errors
    /// The errno.
    ///
    /// # Safety
    /// The filter cannot be removed again, so it must suit everything that the thread still does. The thread must have
    /// `no_new_privs`, or CAP_SYS_ADMIN.
    pub unsafe fn install(&self) -> std::result::Result<(), i32> {
        // SAFETY: the caller's obligation.
        unsafe { self.install_with(0) }.map(drop)
    }

    /// Does the same with flags of seccomp(2). Returns the descriptor of the listener, if a flag requests one.
    ///
    /// # Errors
    /// The errno.
    ///
    /// # Safety
    /// The same as for [`install`](Self::install).
    pub unsafe fn install_with(&self, flags: usize) -> std::result::Result<usize, i32> {
        let program = SockFprog { length: self.instructions() as u16, instructions: self.0.as_ptr() };
        // SAFETY: the structure has the kernel's layout, and it and the program outlive the call. The kernel copies the
        // program, so its alignment does not matter.
        unsafe { checked(libc::SYS_seccomp, [SET_MODE_FILTER, flags, &raw const program as usize]) }
    }
}

/// `struct sock_fprog`.
#[repr(C)]
struct SockFprog {
    length: u16,
    instructions: *const u8,
}

/// Checks one instruction, which `after` instructions follow.
fn check(
    Instruction { code, if_true, if_false, constant }: Instruction,
    after: usize,
) -> std::result::Result<(), String> {
    use libc::{
        BPF_A, BPF_ABS, BPF_ADD, BPF_ALU, BPF_AND, BPF_DIV, BPF_IMM, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JGT, BPF_JMP,
        BPF_JSET, BPF_K, BPF_LD, BPF_LDX, BPF_LEN, BPF_LSH, BPF_MEM, BPF_MISC, BPF_MUL, BPF_NEG, BPF_OR, BPF_RET,
        BPF_RSH, BPF_ST, BPF_STX, BPF_SUB, BPF_TAX, BPF_TXA, BPF_W, BPF_X, BPF_XOR,
    };
    let code = u32::from(code);
    let (class, operation) = (code & 0x07, code & 0xf0);
    let source = code & 0x08;
    let is_known = match class {
        BPF_LD => [BPF_W | BPF_ABS, BPF_W | BPF_LEN, BPF_IMM, BPF_MEM].contains(&(code & !0x07)),
        BPF_LDX => [BPF_W | BPF_LEN, BPF_IMM, BPF_MEM].contains(&(code & !0x07)),
        BPF_ST | BPF_STX => code == class,
        BPF_ALU => {
            let plain = [BPF_ADD, BPF_SUB, BPF_MUL, BPF_DIV, BPF_AND, BPF_OR, BPF_XOR, BPF_LSH, BPF_RSH];
            code < 0x100 && plain.contains(&operation) || code == BPF_ALU | BPF_NEG
        }
        BPF_JMP => {
            code < 0x100 && [BPF_JEQ, BPF_JGE, BPF_JGT, BPF_JSET].contains(&operation) || code == BPF_JMP | BPF_JA
        }
        BPF_RET => code == BPF_RET | BPF_K || code == BPF_RET | BPF_A,
        BPF_MISC => code == BPF_MISC | BPF_TAX || code == BPF_MISC | BPF_TXA,
        _ => false,
    };
    if !is_known {
        return Err(format!("{code:#x} is no operation of a seccomp filter"));
    }
    debug_assert_eq!(BPF_X, 0x08);
    let is_jump = class == BPF_JMP;
    let distance = match (is_jump, operation) {
        (false, _) => None,
        (true, BPF_JA) => Some(constant as usize),
        (true, _) => Some(usize::from(if_true.max(if_false))),
    };
    match (class, operation) {
        (BPF_LD, _) if code == BPF_LD | BPF_W | BPF_ABS && (constant >= DATA || constant % 4 != 0) => {
            Err(format!("there is nothing to load at offset {constant}"))
        }
        (BPF_LD | BPF_LDX, _) if code & 0xe0 == BPF_MEM && constant >= MEMORY => Err("no such memory word".into()),
        (BPF_ST | BPF_STX, _) if constant >= MEMORY => Err("no such memory word".into()),
        (BPF_ALU, BPF_DIV) if source == BPF_K && constant == 0 => Err("it divides by zero".into()),
        (BPF_ALU, BPF_LSH | BPF_RSH) if source == BPF_K && constant >= 32 => Err("it shifts by 32 bits or more".into()),
        _ if distance.is_some_and(|distance| distance >= after) => Err("it jumps past the end".into()),
        _ if after == 0 && class != BPF_RET => Err("the last instruction must return".into()),
        _ => Ok(()),
    }
}

/// Checks that the kernel supports seccomp filters with these actions (SECCOMP_GET_ACTION_AVAIL, Linux 4.14).
///
/// # Errors
/// `ENOSYS` or `EINVAL` if the kernel lacks seccomp filters; `EOPNOTSUPP` if it lacks one of the actions. If this
/// process itself runs under a filter that refuses the call: the errno of that filter.
pub fn probe(actions: &[u32]) -> Result<()> {
    for action in actions {
        // SAFETY: the call only reads the number.
        match unsafe { libc::syscall(libc::SYS_seccomp, GET_ACTION_AVAIL, 0_usize, std::ptr::from_ref(action)) } {
            0 => {}
            _ => return Err(last_errno()),
        }
    }
    Ok(())
}

/// Returns a message for an errno of [`probe`].
pub fn reason(errno: Errno) -> String {
    match errno {
        Errno::NOSYS | Errno::INVAL => "the kernel has no seccomp filters (CONFIG_SECCOMP_FILTER)".into(),
        errno => format!("seccomp filters can't be installed here: {errno}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETURN: Instruction = Instruction::plain(libc::BPF_RET | libc::BPF_K, ALLOW);

    fn refused(instructions: &[Instruction]) -> String {
        let program: Program = instructions.iter().copied().collect();
        Program::from_bytes(program.bytes()).unwrap_err()
    }

    #[test]
    fn a_program_is_read_back() {
        let load = Instruction::plain(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 4);
        let jump = Instruction::jump(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 5, 0, 1);
        let program: Program = [load, jump, RETURN, RETURN].into_iter().collect();
        assert_eq!(Program::from_bytes(program.bytes()).unwrap(), program);
        assert_eq!(program.instructions(), 4);
    }

    #[test]
    fn an_invalid_program_is_refused_with_the_reason() {
        assert!(Program::from_bytes(b"").unwrap_err().contains("0 instructions"));
        assert!(Program::from_bytes(b"#!/bin/sh\n").unwrap_err().contains("multiple of 8"));
        assert!(Program::from_bytes(b"{\"main\": {\"a\": 1}}      ").unwrap_err().contains("no operation"));
        assert!(Program::from_bytes(&[0; 8 * 4097]).unwrap_err().contains("4097"));
        let load = Instruction::plain(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 64);
        assert!(refused(&[load, RETURN]).contains("nothing to load"));
        assert!(refused(&[Instruction { constant: 2, ..load }, RETURN]).contains("nothing to load"));
        assert!(refused(&[Instruction { constant: 4, ..load }]).contains("last instruction"));
        let jump = Instruction::jump(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 5, 0, 1);
        assert!(refused(&[jump, RETURN]).contains("past the end"));
        assert!(refused(&[Instruction::plain(libc::BPF_JMP | libc::BPF_JA, u32::MAX), RETURN]).contains("past"));
        // A load of 16 bits, which packet filters may use, and seccomp filters may not.
        assert!(
            refused(&[Instruction::plain(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 12), RETURN]).contains("0x28")
        );
        assert!(refused(&[Instruction::plain(libc::BPF_ST, 16), RETURN]).contains("memory"));
    }

    #[test]
    fn the_probe_succeeds_or_gives_a_reason() {
        match probe(&[KILL_PROCESS, ERRNO]) {
            Ok(()) => assert!(probe(&[0x1234_0000]).is_err()),
            Err(errno) => assert!(!reason(errno).is_empty()),
        }
    }
}

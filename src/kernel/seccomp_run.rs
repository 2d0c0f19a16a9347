//! Runs a seccomp filter in this process, to find out what the kernel would do with a system call.

use super::seccomp::{Instruction, KILL_PROCESS, Program};

/// The data about a system call that a filter can read: `struct seccomp_data` (include/uapi/linux/seccomp.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Data {
    pub number: i32,
    pub architecture: u32,
    pub instruction_pointer: u64,
    pub arguments: [u64; 6],
}

impl Data {
    /// Returns the 32 bits at an offset, as the instruction `BPF_LD | BPF_W | BPF_ABS` loads them.
    fn word(&self, offset: u32) -> u32 {
        let half = |value: u64, offset: u32| {
            let first = offset.is_multiple_of(8);
            let low = first == cfg!(target_endian = "little");
            if low { value as u32 } else { (value >> 32) as u32 }
        };
        match offset {
            0 => self.number.cast_unsigned(),
            4 => self.architecture,
            8 | 12 => half(self.instruction_pointer, offset),
            _ => half(self.arguments.get((offset as usize - 16) / 8).copied().unwrap_or_default(), offset),
        }
    }
}

/// Returns the strictest result of several filters, as the kernel chooses it (`seccomp_run_filters` in
/// kernel/seccomp.c).
pub fn strictest(programs: &[Program], data: &Data) -> u32 {
    const ACTION: u32 = 0xffff_0000;
    let results = programs.iter().map(|program| program.run(data));
    results.min_by_key(|result| (result & ACTION).cast_signed()).unwrap_or(KILL_PROCESS)
}

impl Program {
    /// Returns the action for a system call (`bpf_prog_run` in kernel/bpf/core.c, after the kernel has translated the
    /// classic program). A program that no kernel accepts returns [`KILL_PROCESS`].
    pub fn run(&self, data: &Data) -> u32 {
        let program: Vec<Instruction> = self.iter().collect();
        run(&program, data).unwrap_or(KILL_PROCESS)
    }
}

/// Returns `None` for an invalid program, and for a division by zero (then the kernel returns 0, which kills too).
fn run(program: &[Instruction], data: &Data) -> Option<u32> {
    use libc::{
        BPF_A, BPF_ABS, BPF_ADD, BPF_ALU, BPF_AND, BPF_DIV, BPF_IMM, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JGT, BPF_JMP,
        BPF_JSET, BPF_LD, BPF_LDX, BPF_LEN, BPF_LSH, BPF_MEM, BPF_MISC, BPF_MUL, BPF_NEG, BPF_OR, BPF_RET, BPF_RSH,
        BPF_ST, BPF_STX, BPF_SUB, BPF_TXA, BPF_X, BPF_XOR,
    };
    const MODE: u32 = 0xe0;
    let (mut a, mut x, mut memory) = (0_u32, 0_u32, [0_u32; 16]);
    let mut at = 0_usize;
    loop {
        let Instruction { code, if_true, if_false, constant } = *program.get(at)?;
        let code = u32::from(code);
        let operand = if code & BPF_X == 0 { constant } else { x };
        at += 1;
        match code & 0x07 {
            class @ (BPF_LD | BPF_LDX) => {
                let value = match code & MODE {
                    BPF_ABS => data.word(constant),
                    BPF_IMM => constant,
                    BPF_MEM => *memory.get(constant as usize)?,
                    BPF_LEN => size_of::<Data>() as u32,
                    _ => return None,
                };
                *(if class == BPF_LD { &mut a } else { &mut x }) = value;
            }
            BPF_ST => *memory.get_mut(constant as usize)? = a,
            BPF_STX => *memory.get_mut(constant as usize)? = x,
            BPF_ALU => {
                a = match code & 0xf0 {
                    BPF_ADD => a.wrapping_add(operand),
                    BPF_SUB => a.wrapping_sub(operand),
                    BPF_MUL => a.wrapping_mul(operand),
                    BPF_DIV => a.checked_div(operand)?,
                    BPF_AND => a & operand,
                    BPF_OR => a | operand,
                    BPF_XOR => a ^ operand,
                    BPF_LSH => a.wrapping_shl(operand),
                    BPF_RSH => a.wrapping_shr(operand),
                    BPF_NEG => a.wrapping_neg(),
                    _ => return None,
                };
            }
            BPF_JMP => {
                let is_true = match code & 0xf0 {
                    BPF_JA => {
                        at = at.checked_add(constant as usize)?;
                        continue;
                    }
                    BPF_JEQ => a == operand,
                    BPF_JGT => a > operand,
                    BPF_JGE => a >= operand,
                    BPF_JSET => a & operand != 0,
                    _ => return None,
                };
                at += usize::from(if is_true { if_true } else { if_false });
            }
            BPF_RET => return Some(if code & 0x18 == BPF_A { a } else { constant }),
            BPF_MISC if code & 0xf8 == BPF_TXA => a = x,
            BPF_MISC => x = a,
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::seccomp::{ALLOW, ERRNO};

    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

    fn result(instructions: &[Instruction], data: &Data) -> u32 {
        let program: Program = instructions.iter().copied().collect();
        program.run(data)
    }

    #[test]
    fn each_word_of_a_call_is_loaded() {
        let arguments = [1, 2, 3, 4, 5, 6].map(|number: u64| number << 32 | (number + 100));
        let data = Data { number: 7, architecture: 8, instruction_pointer: 9 << 32 | 10, arguments };
        // The whole structure, as the kernel lays it out.
        // SAFETY: `Data` consists of integers without padding.
        #[allow(unsafe_code)]
        let words: [u32; 16] = unsafe { std::mem::transmute(data) };
        for (index, word) in words.into_iter().enumerate() {
            let load = Instruction::plain(LOAD, 4 * index as u32);
            assert_eq!(result(&[load, Instruction::plain(libc::BPF_RET | libc::BPF_A, 0)], &data), word, "{index}");
        }
    }

    #[test]
    fn jumps_and_arithmetic_work_as_in_the_kernel() {
        let data = Data { arguments: [0x29, 0, 0, 0, 0, 0], ..Data::default() };
        let and = Instruction::plain(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0x0f);
        let is_nine = Instruction::jump(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 9, 1, 0);
        let over = Instruction::plain(libc::BPF_JMP | libc::BPF_JA, 1);
        let [refuse, allow] = [ERRNO | 1, ALLOW].map(|action| Instruction::plain(RETURN, action));
        let program = [Instruction::plain(LOAD, 16), and, is_nine, refuse, over, refuse, allow];
        assert_eq!(result(&program, &data), ALLOW);
        assert_eq!(result(&program, &Data::default()), ERRNO | 1);
        assert_eq!(result(&[], &data), KILL_PROCESS);
        let divide = Instruction::plain(libc::BPF_ALU | libc::BPF_DIV | libc::BPF_X, 0);
        assert_eq!(result(&[divide, allow], &data), KILL_PROCESS);
    }

    #[test]
    fn the_strictest_result_wins() {
        let one = |action: u32| [Instruction::plain(RETURN, action)].into_iter().collect::<Program>();
        let all = [one(ALLOW), one(ERRNO | 38), one(ERRNO | 1)];
        assert_eq!(strictest(&all, &Data::default()), ERRNO | 38);
        assert_eq!(strictest(&[one(ALLOW), one(KILL_PROCESS)], &Data::default()), KILL_PROCESS);
        assert_eq!(strictest(&[], &Data::default()), KILL_PROCESS);
    }
}

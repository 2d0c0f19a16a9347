//! Compiles the rules of a filter to one BPF program.
//!
//! The time that the kernel needs to install a program depends on the number of programs and on their lengths: it
//! checks and compiles each one, and runs it once for each number of a system call (`seccomp_cache_prepare` in
//! kernel/seccomp.c). So there is one program, which finds a system call by binary search. The crate `seccompiler` is
//! not suitable: it ignores the x32 numbers of x86-64, has only one action for each program, compares the numbers one
//! after another, and its programs are about three times as long. A test compares the results with those of that crate.

use std::collections::BTreeMap;

use crate::kernel::seccomp::{ALLOW, ERRNO, Instruction, KILL_PROCESS, Program};

/// `AUDIT_ARCH_X86_64` (include/uapi/linux/audit.h).
#[cfg(target_arch = "x86_64")]
pub const ARCHITECTURE: u32 = 0xc000_003e;
/// `AUDIT_ARCH_AARCH64`.
#[cfg(target_arch = "aarch64")]
pub const ARCHITECTURE: u32 = 0xc000_00b7;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
/// The low 32 bits of the first argument, on machines with the low byte first. Each argument has 64 bits.
const ARGUMENTS: u32 = 16;

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const MASK: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
const JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;
const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const GREATER: u32 = libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K;
const AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const ANY_BIT: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;

const ALLOWED: Instruction = Instruction::plain(RETURN, ALLOW);

/// A test of the low 32 bits of an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    Is(u32),
    IsNot(u32),
    /// One of these bits is set.
    AnyBit(u32),
    /// The bits of the mask have this value.
    Masked {
        mask: u32,
        value: u32,
    },
}

/// For each system call, the conditions under which it is forbidden: all tests of one of the lists hold. Each test has
/// the number of its argument, from 0 on. A call with no lists is always forbidden.
pub type Rules = BTreeMap<i64, Vec<Vec<(u8, Test)>>>;

/// Compiles the rules. A process that makes a call of another architecture (`int 0x80` on x86-64) is killed. x32 calls
/// and calls above `highest` return ENOSYS, and so does `unknown`: callers use an older call instead. Forbidden calls
/// return EPERM.
pub fn compile(rules: &Rules, unknown: i64, highest: u32) -> Program {
    let mut calls: Vec<(u32, Instruction)> = vec![(unknown as u32, refuse(libc::ENOSYS))];
    for (call, lists) in rules {
        // The number of the call stands for the place of its tests, which is not known yet.
        let next = if lists.is_empty() { refuse(libc::EPERM) } else { Instruction::plain(JUMP, *call as u32) };
        calls.push((*call as u32, next));
    }
    calls.sort_unstable_by_key(|(call, _)| *call);
    let mut program = vec![
        Instruction::plain(LOAD, ARCH),
        Instruction::jump(EQUAL, ARCHITECTURE, 1, 0),
        Instruction::plain(RETURN, KILL_PROCESS),
        Instruction::plain(LOAD, NUMBER),
        // x32 numbers have bit 30 set.
        Instruction::jump(GREATER, highest, 0, 1),
        refuse(libc::ENOSYS),
    ];
    search(&calls, &mut program);
    let searched = program.len();
    let mut places = BTreeMap::new();
    for (call, lists) in rules.iter().filter(|(_, lists)| !lists.is_empty()) {
        places.insert(*call as u32, program.len());
        push_tests(lists, &mut program);
    }
    for (index, instruction) in program[..searched].iter_mut().enumerate() {
        if u32::from(instruction.code) == JUMP {
            // The distance is from the next instruction on.
            instruction.constant = (places[&instruction.constant] - index - 1) as u32;
        }
    }
    program.into_iter().collect()
}

fn refuse(errno: i32) -> Instruction {
    Instruction::plain(RETURN, ERRNO | errno as u32)
}

/// Appends a binary search for the number of a system call. `calls` is a sorted list of numbers, each with the
/// instruction that runs for this number.
fn search(calls: &[(u32, Instruction)], program: &mut Vec<Instruction>) {
    const CHAIN: usize = 3;
    if calls.len() <= CHAIN {
        for (call, next) in calls {
            program.push(Instruction::jump(EQUAL, *call, 0, 1));
            program.push(*next);
        }
        program.push(ALLOWED);
        return;
    }
    let (lower, upper) = calls.split_at(calls.len() / 2);
    let jump = program.len();
    program.push(Instruction::jump(AT_LEAST, upper[0].0, 0, 0));
    search(lower, program);
    let distance = program.len() - jump - 1;
    program[jump].if_true = u8::try_from(distance).expect("the rules have fewer than 200 calls");
    search(upper, program);
}

/// Appends the tests of one call.
fn push_tests(lists: &[Vec<(u8, Test)>], program: &mut Vec<Instruction>) {
    /// Marks a jump to the next list.
    const NEXT_LIST: u8 = u8::MAX;
    for list in lists {
        let begin = program.len();
        for (argument, test) in list {
            program.push(Instruction::plain(LOAD, ARGUMENTS + 8 * u32::from(*argument)));
            if let Test::Masked { mask, .. } = *test {
                program.push(Instruction::plain(MASK, mask));
            }
            program.push(match *test {
                Test::Is(value) | Test::Masked { value, .. } => Instruction::jump(EQUAL, value, 0, NEXT_LIST),
                Test::IsNot(value) => Instruction::jump(EQUAL, value, NEXT_LIST, 0),
                Test::AnyBit(bits) => Instruction::jump(ANY_BIT, bits, 0, NEXT_LIST),
            });
        }
        program.push(refuse(libc::EPERM));
        let end = program.len();
        for (index, instruction) in program.iter_mut().enumerate().skip(begin) {
            for distance in [&mut instruction.if_true, &mut instruction.if_false] {
                if *distance == NEXT_LIST {
                    *distance = u8::try_from(end - index - 1).expect("a list has fewer than 80 tests");
                }
            }
        }
    }
    program.push(ALLOWED);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use seccompiler::SeccompCmpArgLen::Dword;
    use seccompiler::SeccompCmpOp::{Eq, MaskedEq, Ne};
    use seccompiler::{SeccompAction, SeccompCondition, SeccompFilter, SeccompRule};

    use super::*;

    /// Runs a program.
    fn run(program: &[Instruction], arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let mut data = [number, arch, 0, 0].to_vec();
        data.extend(arguments.into_iter().flat_map(|argument| [argument as u32, (argument >> 32) as u32]));
        let (mut at, mut value) = (0, 0);
        loop {
            let Instruction { code, if_true, if_false, constant } = program[at];
            at += 1;
            let jump = |is_true: bool| usize::from(if is_true { if_true } else { if_false });
            match u32::from(code) {
                RETURN => return constant,
                LOAD => value = data[constant as usize / 4],
                MASK => value &= constant,
                JUMP => at += constant as usize,
                EQUAL => at += jump(value == constant),
                GREATER => at += jump(value > constant),
                AT_LEAST => at += jump(value >= constant),
                ANY_BIT => at += jump(value & constant != 0),
                code => panic!("{code:#x}"),
            }
        }
    }

    fn instructions(program: &Program) -> Vec<Instruction> {
        let (instructions, _) = program.bytes().as_chunks::<8>();
        instructions.iter().map(Instruction::read).collect()
    }

    /// Compiles the same rules with the crate `seccompiler`, which supports neither a highest number nor ENOSYS.
    fn independent(rules: &Rules) -> Vec<Instruction> {
        let condition =
            |argument, operation, value: u32| SeccompCondition::new(argument, Dword, operation, value.into()).unwrap();
        let rules = rules.iter().map(|(call, lists)| {
            let lists = lists.iter().flat_map(|list| {
                // That crate has no test for "any of these bits". So such a test becomes several lists, one for each
                // bit.
                list.iter().fold(vec![Vec::new()], |lists, (argument, test)| {
                    let tests: Vec<_> = match *test {
                        Test::Is(value) => vec![condition(*argument, Eq, value)],
                        Test::IsNot(value) => vec![condition(*argument, Ne, value)],
                        Test::Masked { mask, value } => vec![condition(*argument, MaskedEq(mask.into()), value)],
                        Test::AnyBit(bits) => (0..32)
                            .map(|bit| 1 << bit)
                            .filter(|bit| bits & bit != 0)
                            .map(|bit: u32| condition(*argument, MaskedEq(bit.into()), bit))
                            .collect(),
                    };
                    let with = |list: &Vec<_>| {
                        tests.iter().map(|test| [&list[..], std::slice::from_ref(test)].concat()).collect::<Vec<_>>()
                    };
                    lists.iter().flat_map(with).collect()
                })
            });
            (*call, lists.map(|list| SeccompRule::new(list).unwrap()).collect())
        });
        let arch = std::env::consts::ARCH.try_into().unwrap();
        let refuse = SeccompAction::Errno(libc::EPERM as u32);
        let filter = SeccompFilter::new(rules.collect(), SeccompAction::Allow, refuse, arch).unwrap();
        let program: seccompiler::BpfProgram = filter.try_into().unwrap();
        let same = |one: seccompiler::sock_filter| Instruction {
            code: one.code,
            if_true: one.jt,
            if_false: one.jf,
            constant: one.k,
        };
        program.into_iter().map(same).collect()
    }

    fn test() -> impl Strategy<Value = Test> {
        prop_oneof![
            (0..4_u32).prop_map(Test::Is),
            (0..4_u32).prop_map(Test::IsNot),
            (1..8_u32).prop_map(Test::AnyBit),
            (1..8_u32, 0..8_u32).prop_map(|(mask, value)| Test::Masked { mask, value: value & mask }),
        ]
    }

    proptest! {
        #[test]
        fn the_program_has_the_results_of_an_independent_compiler(
            rules in prop::collection::btree_map(
                0..90_i64,
                prop::collection::vec(prop::collection::vec((0..6_u8, test()), 1..4), 0..5),
                0..60,
            ),
            arguments in prop::collection::vec(prop::array::uniform6(prop_oneof![0..8_u64, any::<u64>()]), 30),
        ) {
            let (ours, theirs) = (compile(&rules, 95, 99), independent(&rules));
            prop_assert_eq!(&Program::from_bytes(ours.bytes()).unwrap(), &ours);
            let ours = instructions(&ours);
            for number in 0..95 {
                for arguments in &arguments {
                    let [one, two] = [&ours, &theirs].map(|program| run(program, ARCHITECTURE, number, *arguments));
                    prop_assert_eq!(one, two, "{} with {:?}", number, arguments);
                }
            }
        }
    }

    #[test]
    fn the_edges() {
        let program = instructions(&compile(&Rules::from([(7, Vec::new())]), 5, 99));
        let of = |arch, number| run(&program, arch, number, [0; 6]);
        let refused = |errno: i32| ERRNO | errno as u32;
        assert_eq!(of(ARCHITECTURE, 7), refused(libc::EPERM));
        assert_eq!([0, 4, 6, 8, 99].map(|number| of(ARCHITECTURE, number)), [ALLOW; 5]);
        assert_eq!([5, 100, 0x4000_0000, u32::MAX].map(|number| of(ARCHITECTURE, number)), [refused(libc::ENOSYS); 4]);
        assert_eq!(of(0x4000_0003, 1), KILL_PROCESS);
    }
}

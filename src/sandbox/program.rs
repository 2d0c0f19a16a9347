//! Compiles the rules of a filter to one BPF program.
//!
//! The time that the kernel needs to install a program depends on the number of programs and on their lengths: it
//! checks and compiles each one, and runs it once for each number of a system call (`seccomp_cache_prepare` in
//! kernel/seccomp.c). So there is one short program: it finds a system call by binary search, treats calls with
//! neighbouring numbers and the same result as one, and has each result and each list of tests only once. The crate
//! `seccompiler` is not suitable: it ignores the x32 numbers of x86-64, has only one action for each program, compares the
//! numbers one after another, and its programs are several times as long. A test compares the results with those of that
//! crate.

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

/// For each system call, lists of tests. The call is forbidden if all tests of at least one list hold. Each test has
/// the number of its argument, from 0 on. A call with no lists is always forbidden.
pub type Rules = BTreeMap<i64, Lists>;

type Lists = Vec<Vec<(u8, Test)>>;

/// Compiles the rules. A process that makes a call of another architecture (`int 0x80` on x86-64) is killed. x32 calls,
/// calls above `highest`, and the call `unknown` return ENOSYS, so that programs use an older call instead. Forbidden
/// calls return EPERM.
pub fn compile(rules: &Rules, unknown: i64, highest: u32) -> Program {
    let mut program = Reversed::default();
    let mut compiled: Vec<(&Lists, Target)> = Vec::new();
    let mut calls = BTreeMap::from([(unknown as u32, ENOSYS)]);
    for (call, lists) in rules {
        let target = match compiled.iter().find(|(others, _)| *others == lists) {
            Some((_, target)) => *target,
            None if lists.is_empty() => EPERM,
            None => program.tests(lists),
        };
        compiled.push((lists, target));
        calls.insert(*call as u32, target);
    }
    let mut ranges: Vec<Range> = Vec::new();
    for (call, target) in calls {
        match ranges.last_mut() {
            Some(range) if range.target == target && range.last + 1 == call => range.last = call,
            _ => ranges.push(Range { first: call, last: call, target }),
        }
    }
    let known = program.search(&ranges, 0, highest);
    // x32 numbers have bit 30 set.
    program.jump(GREATER, highest, ENOSYS, known);
    let same_architecture = program.push(Instruction::plain(LOAD, NUMBER));
    program.jump(EQUAL, ARCHITECTURE, same_architecture, Target::Result(KILL_PROCESS));
    program.push(Instruction::plain(LOAD, ARCH));
    program.0.into_iter().rev().collect()
}

/// Where a jump leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    /// The end of the program, with this result.
    Result(u32),
    /// An instruction of [`Reversed`].
    At(usize),
}

const ALLOWED: Target = Target::Result(ALLOW);
const EPERM: Target = Target::Result(ERRNO | libc::EPERM as u32);
const ENOSYS: Target = Target::Result(ERRNO | libc::ENOSYS as u32);

/// Calls with neighbouring numbers and the same target.
#[derive(Clone, Copy)]
struct Range {
    first: u32,
    last: u32,
    target: Target,
}

/// A program that is written from its end: jumps lead only forward, so each target is known when the jump is written.
/// An instruction that does not jump continues with the one that was written before it.
#[derive(Default)]
struct Reversed(Vec<Instruction>);

impl Reversed {
    fn push(&mut self, instruction: Instruction) -> Target {
        self.0.push(instruction);
        Target::At(self.0.len() - 1)
    }

    /// Writes a jump, and before it the instructions that it needs to reach distant targets.
    fn jump(&mut self, code: u32, constant: u32, if_true: Target, if_false: Target) -> Target {
        // The second target can add an instruction between the jump and the first target.
        let (if_true, if_false) = (self.near(if_true, 1), self.near(if_false, 0));
        let distance = |place: usize| (self.0.len() - place - 1) as u8;
        self.push(Instruction::jump(code, constant, distance(if_true), distance(if_false)))
    }

    /// Returns an instruction that leads to the target and that a jump can reach, if at most `more` instructions are
    /// written before the jump.
    fn near(&mut self, target: Target, more: usize) -> usize {
        let farthest = (self.0.len() + more).saturating_sub(usize::from(u8::MAX) + 1);
        match target {
            Target::Result(result) => {
                let wanted = Instruction::plain(RETURN, result);
                let known = self.0.iter().rposition(|instruction| *instruction == wanted);
                known.filter(|place| *place >= farthest).unwrap_or_else(|| {
                    self.push(wanted);
                    self.0.len() - 1
                })
            }
            Target::At(place) if place >= farthest => place,
            Target::At(place) => {
                self.push(Instruction::plain(JUMP, (self.0.len() - place - 1) as u32));
                self.0.len() - 1
            }
        }
    }

    /// Writes a search for a system call's number in the sorted ranges. The number is from `least` to `most`. The kernel
    /// runs the search once for each number, so each comparison halves the set of numbers, and not the set of ranges.
    fn search(&mut self, ranges: &[Range], least: u32, most: u32) -> Target {
        /// Up to this number of ranges, one comparison after another is shorter.
        const CHAIN: usize = 4;
        if ranges.len() > CHAIN {
            let middle = least.midpoint(most);
            let half = (1..ranges.len()).min_by_key(|half| ranges[*half].first.abs_diff(middle)).unwrap_or(1);
            let (lower, upper) = ranges.split_at(half);
            let first = upper[0].first;
            let above = self.search(upper, first, most);
            let below = self.search(lower, least, first - 1);
            return self.jump(AT_LEAST, first, above, below);
        }
        ranges.iter().enumerate().rfold(ALLOWED, |next, (index, range)| {
            if range.first == range.last {
                return self.jump(EQUAL, range.first, range.target, next);
            }
            let not_below = self.jump(GREATER, range.last, next, range.target);
            if index == 0 && range.first <= least {
                return not_below;
            }
            self.jump(AT_LEAST, range.first, not_below, ALLOWED)
        })
    }

    /// Writes the tests of one call.
    fn tests(&mut self, lists: &[Vec<(u8, Test)>]) -> Target {
        let mut next_list = Entry::of(ALLOWED);
        for (index, list) in lists.iter().enumerate().rev() {
            let mut next_test = Entry::of(EPERM);
            for (place, (argument, test)) in list.iter().enumerate().rev() {
                let value = Value::of(*argument, *test);
                let (holds, fails) = (next_test.after(value), next_list.after(value));
                let loaded = match *test {
                    Test::Is(value) | Test::Masked { value, .. } => self.jump(EQUAL, value, holds, fails),
                    Test::IsNot(value) => self.jump(EQUAL, value, fails, holds),
                    Test::AnyBit(bits) => self.jump(ANY_BIT, bits, holds, fails),
                };
                let before = match place.checked_sub(1) {
                    Some(place) => std::slice::from_ref(&list[place]),
                    None => index.checked_sub(1).map_or(&[][..], |index| &lists[index][..]),
                };
                let is_loaded = |(argument, test): &(u8, Test)| Value::of(*argument, *test) == value;
                let is_loaded = !before.is_empty() && before.iter().all(is_loaded);
                let unloaded = if is_loaded { loaded } else { self.load(value) };
                next_test = Entry { unloaded, loaded: Some((value, loaded)) };
            }
            next_list = next_test;
        }
        next_list.unloaded
    }

    fn load(&mut self, value: Value) -> Target {
        if let Some(mask) = value.mask {
            self.push(Instruction::plain(MASK, mask));
        }
        self.push(Instruction::plain(LOAD, ARGUMENTS + 8 * u32::from(value.argument)))
    }
}

/// What a test compares.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Value {
    argument: u8,
    mask: Option<u32>,
}

impl Value {
    fn of(argument: u8, test: Test) -> Self {
        let mask = if let Test::Masked { mask, .. } = test { Some(mask) } else { None };
        Self { argument, mask }
    }
}

/// Where some tests begin.
#[derive(Clone, Copy)]
struct Entry {
    unloaded: Target,
    /// Where to begin if this value is already in the accumulator.
    loaded: Option<(Value, Target)>,
}

impl Entry {
    fn of(target: Target) -> Self {
        Self { unloaded: target, loaded: None }
    }

    /// Returns where to begin after a test of this value.
    fn after(self, value: Value) -> Target {
        self.loaded.filter(|(loaded, _)| *loaded == value).map_or(self.unloaded, |(_, target)| target)
    }
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

    /// Compiles the same rules with the crate `seccompiler`. The crate knows neither the highest number nor ENOSYS.
    fn independent(rules: &Rules) -> Vec<Instruction> {
        let condition =
            |argument, operation, value: u32| SeccompCondition::new(argument, Dword, operation, value.into()).unwrap();
        let rules = rules.iter().map(|(call, lists)| {
            let lists = lists.iter().flat_map(|list| {
                // Adds the test to each list so far. A test for any of several bits makes one list for each bit.
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
        fn the_program_does_what_an_independent_compiler_makes_of_the_rules(
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

//! The seccomp filter of a sandbox that explains its denials. It notifies the listener, which is a thread of pinfold.
//!
//! If one filter returns an errno for a call and another one asks for a notification, the kernel does not notify the
//! listener (`SECCOMP_RET_ERRNO` has a higher precedence than `SECCOMP_RET_USER_NOTIF`, seccomp(2)). So the job does
//! not get pinfold's original filters, but one program in place of them:
//!
//! - For the calls in [`super::calls`], and for each call for which the original filters return EPERM, the program
//!   notifies the listener.
//! - For every other call, the program returns what the original filters return.
//!
//! The listener runs the original filters and answers with their result: it lets the kernel continue the call, or makes
//! the call fail with their errno. If pinfold is gone, each call with a notification fails with ENOSYS. So the job can
//! never do more than with the original filters.
//!
//! The caller can't change the number and the arguments between check and use: the kernel has copied them from the
//! caller's registers, the listener checks this copy, and the kernel continues the call with the same values.

use crate::kernel::seccomp::{ALLOW, ERRNO, Instruction, Program};
use crate::kernel::seccomp_notify::{Answer, USER_NOTIF};
use crate::kernel::seccomp_run::{Data, strictest};

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;

const EPERM: u32 = ERRNO | libc::EPERM as u32;

/// Compiles the program. `watched` are the numbers of the calls that always cause a notification: at most 200, so that
/// the distance of each jump fits into a byte.
pub fn compile(architecture: u32, watched: &[u32], filters: &[Program]) -> Program {
    let count = watched.len() as u8;
    let mut program = vec![
        Instruction::plain(LOAD, ARCH),
        // The original filters decide about calls of other architectures.
        Instruction::jump(EQUAL, architecture, 0, count + 3),
        Instruction::plain(LOAD, NUMBER),
    ];
    program.extend(watched.iter().zip(0..).map(|(call, index)| Instruction::jump(EQUAL, *call, count - index, 0)));
    program.push(Instruction::plain(JUMP, 1));
    program.push(Instruction::plain(RETURN, USER_NOTIF));
    for (index, filter) in filters.iter().enumerate() {
        let (is_last, length) = (index + 1 == filters.len(), filter.instructions());
        program.extend(filter.iter().zip(1..).map(|(instruction, next)| {
            match (u32::from(instruction.code), instruction.constant) {
                (RETURN, EPERM) => Instruction::plain(RETURN, USER_NOTIF),
                // A call that this filter allows continues with the next filter.
                (RETURN, ALLOW) if !is_last => Instruction::plain(JUMP, (length - next) as u32),
                _ => instruction,
            }
        }));
    }
    program.into_iter().collect()
}

/// Returns the listener's answer to a notification: the result of the original filters.
pub fn answer(filters: &[Program], data: &Data) -> Answer {
    match strictest(filters, data) {
        ALLOW => Answer::Continue,
        result if result & !0xffff == ERRNO => Answer::Fail((result & 0xffff) as i32),
        // The program does not notify the listener of calls with any other result.
        _ => Answer::Fail(libc::EPERM),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::super::filter::{self, ARCHITECTURE};
    use super::super::super::policy::{Network, Sandbox, Unix};
    use super::*;

    fn policies() -> Vec<Vec<Program>> {
        let mut policies = [(); 4].map(|()| Sandbox::new());
        let [_, ports, host, own] = &mut policies;
        ports.connect_tcp(443);
        host.network(Network::Host);
        own.listen_tcp(80).unix(Unix::Own);
        policies.iter().map(|policy| vec![filter::program(policy)]).collect()
    }

    fn watched() -> Vec<u32> {
        super::super::calls::watched(true).map(|(number, ..)| number as u32).collect()
    }

    /// Values of arguments: those that the filters compare with, and random ones.
    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![0..70_u64, any::<u64>(), (0..64_u32).prop_map(|bit| 1 << bit), Just(0x5412), Just(0x541c)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn program_and_listener_have_the_result_of_the_original_filters(
            number in prop_oneof![9 => 0..480_i32, 1 => any::<i32>()],
            foreign in prop::bool::weighted(0.05),
            arguments in prop::array::uniform6(number()),
            policy in 0..4_usize,
        ) {
            static POLICIES: std::sync::OnceLock<Vec<Vec<Program>>> = std::sync::OnceLock::new();
            let filters = &POLICIES.get_or_init(policies)[policy];
            let architecture = if foreign { 0x4000_0003 } else { ARCHITECTURE };
            let data = Data { number, architecture, instruction_pointer: 0, arguments };
            let expected = strictest(filters, &data);
            let combined = compile(ARCHITECTURE, &watched(), filters);
            let (result, is_notified) = match combined.run(&data) {
                USER_NOTIF => match answer(filters, &data) {
                    Answer::Continue => (ALLOW, true),
                    Answer::Fail(errno) => (ERRNO | errno as u32, true),
                },
                result => (result, false),
            };
            prop_assert_eq!(result, expected);
            let is_watched = !foreign && watched().contains(&number.cast_unsigned());
            prop_assert_eq!(is_notified, is_watched || expected == EPERM);
        }
    }

    #[test]
    fn the_kernel_accepts_the_program() {
        for filters in policies() {
            let program = compile(ARCHITECTURE, &watched(), &filters);
            assert_eq!(Program::from_bytes(program.bytes()).unwrap(), program);
        }
    }
}

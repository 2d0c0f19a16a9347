//! A job with a terminal of its own types input into it (TIOCSTI, ioctl_tty(2)): only without a sandbox.

use crate::support::{Run, program};

const ATTEMPTS: [&str; 2] = ["type_here", "type_here_high_bit"];

#[test]
#[requires(other_users, sandbox)]
fn a_sandbox_prevents_input_by_ioctl_on_a_real_terminal() {
    // Since Linux 6.2 the kernel can refuse the call for all programs (CONFIG_LEGACY_TIOCSTI).
    let setting = std::fs::read_to_string("/proc/sys/dev/tty/legacy_tiocsti").unwrap_or_else(|_| "1".into());
    let program = program("sandbox/kernel");
    let program = program.to_str().unwrap();
    let run = |sandbox: &[&str], attempt| {
        let options = [&["--pty", "--user", "65534:65534"], sandbox].concat();
        Run::new([&options[..], &["--", program, attempt]].concat()).run().assert_code(0)
    };
    for attempt in ATTEMPTS {
        let denied = run(&["--sandbox", "--read", program], attempt);
        assert_eq!(denied.stdout.trim_end(), "denied EPERM", "{attempt} {denied:#?}");
        let without = run(&[], attempt);
        match setting.trim() {
            "1" => assert_eq!(without.stdout.trim_end(), "allowed", "{attempt} {without:#?}"),
            _ => assert_eq!(without.stdout.trim_end(), "denied EIO", "{attempt} {without:#?}"),
        }
    }
}

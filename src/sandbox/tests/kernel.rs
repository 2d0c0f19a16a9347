//! Attempts to use calls that bypass the sandbox, and to gain privileges.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use super::super::policy::Sandbox;
use super::harness::Outside::{NotTried, Works};
use super::harness::{Nothing, Run, Scratch, Table, is_root, program, users};

const EPERM: &str = "denied EPERM";
const ENOSYS: &str = "denied ENOSYS";
const ALLOWED: &str = "allowed";

fn differences(program: &str, rows: &[(&str, &str, super::harness::Outside)]) -> Vec<String> {
    let table = Table { program, sandbox: Sandbox::new(), rows };
    table.differences(|| (Vec::new(), Box::new(Nothing)))
}

#[test]
fn calls_that_open_a_way_around_are_refused() {
    let rows = [
        ("clone3", ENOSYS, Works),
        ("clone3_into_cgroup", ENOSYS, NotTried),
        ("clone_user", EPERM, NotTried),
        ("clone_mounts", EPERM, NotTried),
        ("clone_pids", EPERM, NotTried),
        ("unshare_user", EPERM, NotTried),
        ("unshare_network", EPERM, NotTried),
        ("unshare_cgroup", EPERM, NotTried),
        ("unshare_time", EPERM, NotTried),
        ("join_namespace", EPERM, NotTried),
        ("mount_tmpfs", EPERM, NotTried),
        ("unmount", EPERM, NotTried),
        ("change_root", EPERM, NotTried),
        ("pivot", EPERM, NotTried),
        ("new_mount", EPERM, NotTried),
        ("clone_tree", EPERM, NotTried),
        ("set_mount", EPERM, NotTried),
        ("by_handle", EPERM, NotTried),
        ("bpf", EPERM, NotTried),
        ("perf", EPERM, NotTried),
        ("user_fault", EPERM, NotTried),
        ("ring", EPERM, NotTried),
        ("key_add", EPERM, NotTried),
        ("key_request", EPERM, NotTried),
        ("key_control", EPERM, NotTried),
        ("shared_memory", EPERM, Works),
        ("semaphores", EPERM, Works),
        ("messages", EPERM, Works),
        ("message_queue", EPERM, NotTried),
        ("kernel_log", EPERM, NotTried),
        ("module", EPERM, NotTried),
        ("kexec", EPERM, NotTried),
        ("swap", EPERM, NotTried),
        ("host_name", EPERM, NotTried),
        ("set_time", EPERM, NotTried),
        ("type_input", EPERM, Works),
        ("type_input_high_bit", EPERM, Works),
        ("console", EPERM, Works),
        ("newer_call", ENOSYS, NotTried),
    ];
    let differences = differences("kernel", &rows);
    assert!(differences.is_empty(), "{differences:#?}");
}

#[test]
#[cfg(target_arch = "x86_64")]
fn other_architectures_are_no_way_around() {
    let rows = [("x32", ENOSYS, NotTried), ("old_interrupt", "signal 31", NotTried)];
    let differences = differences("kernel", &rows);
    assert!(differences.is_empty(), "{differences:#?}");
}

#[test]
fn ordinary_calls_work() {
    let rows = ["self_thread", "self_fork", "self_files", "self_unshare"].map(|name| (name, ALLOWED, Works));
    let differences = differences("kernel", &rows);
    assert!(differences.is_empty(), "{differences:#?}");
}

#[test]
fn no_privileges_are_gained() {
    let rows = [
        ("become", EPERM, NotTried),
        ("become_root", EPERM, NotTried),
        ("change_groups", EPERM, NotTried),
        ("raise_ambient", EPERM, NotTried),
        ("allow_new_privileges", "denied EINVAL", NotTried),
        ("has_new_privileges", EPERM, Works),
        ("raise_limit", EPERM, NotTried),
        ("dump_core", EPERM, NotTried),
    ];
    let differences = differences("privileges", &rows);
    assert!(differences.is_empty(), "{differences:#?}");
}

#[test]
fn set_user_id_and_file_capabilities_do_nothing() {
    if !is_root() {
        eprintln!("SKIPPED: needs root: only root makes a program with these");
        return;
    }
    let scratch = Scratch::new();
    let [with_bit, with_capabilities] = ["with-bit", "with-capabilities"].map(|name| {
        let path = scratch.at(name);
        std::fs::copy(program("privileges"), &path).unwrap();
        path
    });
    std::fs::set_permissions(&with_bit, std::fs::Permissions::from_mode(0o4755)).unwrap();
    std::fs::set_permissions(&with_capabilities, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut programs = vec![with_bit];
    if Command::new("setcap").args(["cap_sys_admin+ep", &with_capabilities]).status().is_ok_and(|done| done.success()) {
        programs.push(with_capabilities);
    }
    for program in &programs {
        assert_eq!(Run::new([program, "become"]).run().line(), ALLOWED, "{program} without a sandbox");
        for user in users() {
            let mut sandbox = Sandbox::new();
            sandbox.read(program);
            let line = Run::new([program, "become"]).within(&sandbox, user).run().line();
            // With an empty bounding set, the kernel does not even execute a program with file capabilities.
            assert!(line == EPERM || line.starts_with("not started"), "{program} as {user:?}: {line}");
        }
    }
}

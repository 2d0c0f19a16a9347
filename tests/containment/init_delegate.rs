//! `pinfold init --delegate` as PID 1 of a container: limits work in each shell of the container.

use std::process::Command;

use crate::resources::{DELEGATED, delegated};
use crate::support::PINFOLD;
use crate::support::own_cgroup::OwnCgroup;

/// Runs a script as a container does: in a PID, mount and cgroup namespace, whose root is a cgroup of the test. In the
/// script, `"$0"` is pinfold.
fn contained(cgroup: &OwnCgroup, script: &str) -> std::process::Output {
    let mount = "mount -t cgroup2 none /mnt && mount --bind /mnt /sys/fs/cgroup && umount /mnt";
    let inner = format!("{mount} && exec \"$0\" init --delegate -- sh -c \"$1\" \"$0\"");
    // The first process of the PID namespace enters the cgroup, so that no process of another namespace is in it.
    let outer =
        format!("echo 0 >{}/cgroup.procs && exec unshare --cgroup sh -c \"$2\" \"$0\" \"$1\"", cgroup.path.display());
    Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "--mount-proc", "sh", "-c", &outer, PINFOLD, script, &inner])
        .env_remove("PINFOLD_CGROUP")
        .env_remove("PINFOLD_CONTAINMENT")
        .output()
        .unwrap()
}

#[test]
#[requires(root, delegated, program("unshare"))]
fn limits_work_in_each_shell_of_the_container() {
    let above = std::env::var_os(DELEGATED).unwrap();
    let cgroup = OwnCgroup::below(above.as_ref()).unwrap().littered();
    let limit = "cat /sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)/memory.max";
    let script = format!(
        "\"$0\" run --memory 64M -- sh -c '{limit}'; sh -c '\"$0\" run --memory 32M -- sh -c \"$1\"' \"$0\" '{limit}'; \
         sed -n s/^0:://p /proc/self/cgroup"
    );
    let output = contained(&cgroup, &script);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!((&*stdout, output.status.code()), ("67108864\n33554432\n/pinfold-init\n", Some(0)), "{output:?}");
}

#[test]
#[requires(root, cgroup, program("unshare"))]
fn a_process_that_is_not_pid_1_moves_nothing() {
    let refused = Command::new(PINFOLD).args(["init", "--delegate", "--", "true"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(125), "{refused:?}");
    // Without a controller it does no harm.
    let output = contained(&OwnCgroup::new().littered(), "sed -n s/^0:://p /proc/self/cgroup");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "/pinfold-init\n", "{output:?}");
}

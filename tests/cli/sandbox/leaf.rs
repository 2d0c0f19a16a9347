//! Attempts of a job to leave its cgroup or to change its limits. An ordinary user owns the files of its leaf, so that
//! only the sandbox protects them.

use std::path::Path;

use super::{USER, Way};
use crate::support::own_cgroup::OwnCgroup;
use crate::support::{Ran, own_cgroup, program};

/// Runs a script in a job, as root for another user and as an ordinary user. `$leaf`, `$base` and `$parent` are the
/// directories of the job's cgroup and those above it, `$sibling` is a cgroup of the job's user beside the base.
fn run_in_leaf(script: &str, options: &[&str], as_root: bool) -> Ran {
    let cgroup = OwnCgroup::of(USER).littered();
    let sibling = cgroup.path.join("sibling");
    std::fs::create_dir(&sibling).unwrap();
    for path in [&sibling, &sibling.join("cgroup.procs"), &sibling.join("cgroup.threads")] {
        std::os::unix::fs::chown(path, Some(USER), Some(USER)).unwrap();
    }
    let script = format!(
        "leaf={}$(sed -n s/^0:://p /proc/self/cgroup); base=${{leaf%/*}}; parent=${{base%/*}}; sibling={}; {script}",
        mount().display(),
        sibling.display()
    );
    let way = Way { as_root, containment: "cgroup" };
    let ran = way.prepare(&cgroup, &[], options, ":", &["sh", "-c", &script]).run().assert_code(0);
    assert_eq!(cgroup.directories(), 1, "only the sibling is left: {ran:#?}");
    ran
}

/// Returns where cgroup v2 is mounted.
pub fn mount() -> &'static Path {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|fields| fields[2] == "cgroup2");
    Path::new(Box::leak(mount.unwrap()[1].to_owned().into_boxed_str()))
}

/// The test only opens the files for writing, and changes nothing: the kernel checks the permission when a file is
/// opened.
#[test]
#[requires(other_users, sandbox)]
fn no_file_of_a_cgroup_can_be_written() {
    let script = "tried=0
        for name in cgroup.procs cgroup.threads cgroup.kill cgroup.freeze cgroup.subtree_control \
            cgroup.max.descendants memory.max memory.high pids.max cpu.max cpu.weight; do
            for place in leaf base parent sibling; do
                eval file=\\$$place/$name
                [ -e $file ] || continue
                tried=$((tried + 1))
                (: >>$file) 2>/dev/null && echo $place/$name
            done
        done
        mkdir $leaf/below 2>/dev/null && rmdir $leaf/below && echo made
        echo $tried";
    let mount = mount().display().to_string();
    let granted = ["--sandbox", "--read", "/proc", "--read", &mount];
    let without = run_in_leaf(script, &[], false);
    let tried = without.stdout.lines().last().unwrap().parse::<usize>().unwrap();
    for expected in ["leaf/cgroup.procs", "base/cgroup.procs", "sibling/cgroup.procs", "leaf/cgroup.threads", "made"] {
        assert!(without.stdout.lines().any(|line| line == expected), "{expected}: {without:#?}");
    }
    // Some of these files exist only if a controller of the leaf is enabled, or only on newer kernels.
    for name in ["cgroup.kill", "cgroup.freeze", "memory.max", "pids.max", "cpu.max"] {
        let exists = own_cgroup().join(name).exists() && name.starts_with("cgroup.");
        assert!(!exists || without.stdout.contains(&format!("leaf/{name}\n")), "{name}: {without:#?}");
    }
    for as_root in [true, false] {
        let ran = run_in_leaf(script, &granted, as_root);
        assert_eq!(ran.stdout, format!("{tried}\n"), "as root: {as_root} {ran:#?}");
    }
}

/// Landlock does not check opens with O_PATH, and does not check the cgroup in the arguments of clone3.
#[test]
#[requires(other_users, sandbox)]
fn no_process_starts_in_another_cgroup() {
    let attack = program("sandbox/kernel");
    let attack = attack.to_str().unwrap();
    let script = format!(
        "for place in $leaf $base $parent $sibling; do {attack} clone3_into_cgroup $place; done; setsid sleep 1000 & exit 0"
    );
    let mount = mount().display().to_string();
    let without = run_in_leaf(&script, &[], false);
    let answers: Vec<_> = without.stdout.lines().collect();
    assert_eq!((answers[0], answers[3]), ("allowed", "allowed"), "{without:#?}");
    for as_root in [true, false] {
        let granted = ["--sandbox", "--read", "/proc", "--read", attack, "--read", &mount];
        let ran = run_in_leaf(&script, &granted, as_root);
        assert_eq!(ran.stdout, "denied ENOSYS\n".repeat(4), "as root: {as_root} {ran:#?}");
        assert!(ran.stderr.contains("left 1 process"), "{ran:#?}");
    }
}

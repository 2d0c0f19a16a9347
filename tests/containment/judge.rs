//! An independent judge: the crate cgroups-rs reads the limits and the usage of running jobs, and they are those that
//! were requested and reported. These tests need a pure cgroup v2 host with controllers, because cgroups-rs looks only
//! at /sys/fs/cgroup: `scripts/vm-test` runs them in virtual machines.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use cgroups_rs::fs::blkio::BlkIoController;
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::cpuset::CpuSetController;
use cgroups_rs::fs::hierarchies::{UNIFIED_MOUNTPOINT, V2};
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;
use cgroups_rs::fs::{Cgroup, MaxValue};
use pinfold::{Command, Controller};

use crate::live::with_controllers;
use crate::resources::controller;
use crate::support::needs::need;
use crate::support::{Ran, Run, Scratch, has, program};

/// Returns the cgroup in this directory, as cgroups-rs sees it.
fn seen(directory: &Path) -> Cgroup {
    Cgroup::load(Box::new(V2::new()), directory.strip_prefix(UNIFIED_MOUNTPOINT).unwrap())
}

/// Runs a job that does `work`, a part of a shell script, and then waits until the judge has looked at its cgroup.
fn judged(options: &[&str], work: &str, judge: impl FnOnce(&Cgroup)) -> Ran {
    // Only builtins of the shell: a process that is ending still counts in pids.current.
    let script = format!("{work} read -r own </proc/self/cgroup; echo ${{own#0::}}; read -r seen");
    let mut run = Run::new(options.iter().copied().chain(["--require", "cgroup", "--", "sh", "-c", &script]));
    run.command().stdin(Stdio::piped());
    let mut running = run.start();
    judge(&seen(Path::new(&format!("{UNIFIED_MOUNTPOINT}{}", running.line()))));
    running.child.stdin.take().unwrap().write_all(b"seen\n").unwrap();
    running.finish().assert_code(0)
}

#[test]
fn limits_are_those_that_were_requested() {
    const MIB: i64 = 1 << 20;
    if has(controller("memory")) {
        judged(&["--memory", "64M", "--memory-high", "48M"], "", |cgroup| {
            let memory: &MemController = cgroup.controller_of().unwrap();
            let limits = memory.get_mem().unwrap();
            assert_eq!((limits.max, limits.high), (Some(MaxValue::Value(64 * MIB)), Some(MaxValue::Value(48 * MIB))));
            assert_eq!(memory.memory_stat().limit_in_bytes, 64 * MIB);
        });
        judged(&["--memory", "max"], "", |cgroup| {
            let limits = cgroup.controller_of::<MemController>().unwrap().get_mem().unwrap();
            assert_eq!((limits.max, limits.high), (Some(MaxValue::Max), Some(MaxValue::Max)));
        });
    }
    if has(controller("pids")) {
        judged(&["--pids", "50"], "", |cgroup| {
            let pids: &PidController = cgroup.controller_of().unwrap();
            assert_eq!(pids.get_pid_max().unwrap(), MaxValue::Value(50));
            assert_eq!(pids.get_pid_current().unwrap(), cgroup.procs().len() as u64);
        });
    }
    if has(controller("cpu")) {
        judged(&["--cpus", "0.5", "--cpu-weight", "50"], "", |cgroup| {
            let cpu: &CpuController = cgroup.controller_of().unwrap();
            let (quota, period) = (cpu.cfs_quota().unwrap() as u64, cpu.cfs_period().unwrap());
            assert_eq!((quota * 2, cpu.shares().unwrap()), (period, 50));
        });
    }
    if has(controller("cpuset")) {
        judged(&["--cpuset", "0"], "", |cgroup| {
            assert_eq!(cgroup.controller_of::<CpuSetController>().unwrap().cpuset().cpus, [(0, 0)]);
        });
    }
}

/// The figures of CPU time and the peak only grow: the one that pinfold reports lies between what the judge has read
/// before and after, without any tolerance. (`user_usec` and `system_usec` are estimates, which the kernel keeps from
/// shrinking: `cputime_adjust` in kernel/sched/cputime.c.)
#[test]
fn usage_lies_between_two_readings() {
    with_controllers(&[Controller::Memory, Controller::Pids, Controller::Cpu], async |supervisor| {
        let file = Scratch::new("judged");
        let mut command = Command::new(program("use"));
        command.args(["count", file.path().to_str().unwrap()]);
        let mut job = supervisor.spawn(&command).await.unwrap();
        let cgroup = seen(job.cgroup().unwrap());
        let memory: &MemController = cgroup.controller_of().unwrap();
        let pids: &PidController = cgroup.controller_of().unwrap();
        let read = || {
            let stat = cgroup.controller_of::<CpuController>().unwrap().cpu().stat;
            let time = |key: &str| stat.lines().find_map(|line| line.strip_prefix(key)?.parse::<u64>().ok()).unwrap();
            [time("user_usec "), time("system_usec "), memory.memory_stat().max_usage_in_bytes]
        };
        let before = read();
        let usage = job.usage().await.unwrap();
        let after = read();
        for (at, figure) in
            [&usage.cpu_user_microseconds, &usage.cpu_system_microseconds, &usage.memory_peak_bytes].iter().enumerate()
        {
            // Before Linux 5.19 there is no memory.peak, and pinfold reports the highest figure that it has read.
            if matches!(figure.source.as_str(), "cpu.stat" | "memory.peak") {
                let value = figure.value.unwrap();
                assert!((before[at]..=after[at]).contains(&value), "{figure:?}: {before:?}, {after:?}");
            }
        }
        assert_eq!(usage.processes_current.value, Some(pids.get_pid_current().unwrap()));

        // A frozen job uses no more memory. But the figure includes what each CPU has charged in advance, and that may
        // be returned at any moment: 64 pages a CPU (`MEMCG_CHARGE_BATCH`, include/linux/memcontrol.h).
        job.freeze().await.unwrap();
        let current = job.usage().await.unwrap().memory_current_bytes.value.unwrap();
        let judged = memory.memory_stat().usage_in_bytes;
        let cpus = std::thread::available_parallelism().unwrap().get();
        let advance = 64 * rustix::param::page_size() * cpus;
        assert!(judged.abs_diff(current) <= advance as u64, "{current} bytes, and {judged}");
        job.start_kill().unwrap();
        assert!(job.wait().await.unwrap().is_gone() && !job.cgroup().unwrap().exists());
    });
}

/// The judge reads the written bytes while the job still runs, and the report has the same sum.
#[test]
fn written_bytes_are_the_same() {
    let file = Scratch::new("judged-io");
    let path = file.path().display().to_string();
    std::fs::write(file.path(), "").unwrap();
    let limit = format!("{path}:wbps=1G");
    let on_disk = Run::new(["--io-max", &limit, "--", "true"]).run();
    if !has(need("io", on_disk.code == 0, &on_disk.stderr)) {
        return;
    }
    let mut written = 0;
    let work = format!("{} write {path} 4194304 >&2;", program("use").display());
    let ran = judged(&["--io-max", &limit], &work, |cgroup| {
        let devices = cgroup.controller_of::<BlkIoController>().unwrap().blkio().io_stat;
        written = devices.iter().map(|device| device.wbytes).sum();
    });
    assert!(written >= 4_194_304, "{written}");
    assert_eq!(ran.report["usage"]["io_written_bytes"]["value"], written, "{ran:#?}");
}

/// Runs examples/cgroups_rs.rs. Tests that run at the same time enable and disable other controllers of the same cgroup,
/// so this one looks only at hugetlb, which only the example uses.
#[test]
fn a_controller_that_pinfold_does_not_have() {
    let example = std::env::current_exe().unwrap().parent().unwrap().with_file_name("examples").join("cgroups_rs");
    let cgroup = std::env::var_os("PINFOLD_CGROUP").map(std::path::PathBuf::from).unwrap_or_default();
    let lists_hugetlb = |file: &str| {
        let controllers = std::fs::read_to_string(cgroup.join(file)).unwrap_or_default();
        controllers.split_whitespace().any(|controller| controller == "hugetlb")
    };
    let available = lists_hugetlb("cgroup.controllers") && example.exists();
    let reason = "PINFOLD_CGROUP has no hugetlb controller, or the example was not built";
    if !has(need("hugetlb", available, reason)) {
        return;
    }
    let given_before = lists_hugetlb("cgroup.subtree_control");
    let script = "cat /sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)/hugetlb.2MB.max";
    let words = [example.as_os_str(), cgroup.as_os_str()].into_iter();
    let words = words.chain(["2MB", "4194304", "sh", "-c", script].map(std::ffi::OsStr::new));
    let ran = Run::bare(words).run().assert_code(0);
    assert_eq!(ran.stdout.lines().last(), Some("4194304"), "{ran:#?}");
    assert_eq!(lists_hugetlb("cgroup.subtree_control"), given_before, "{ran:#?}");
}

//! Limits are enforced, usage is measured correctly, and out of memory is reported correctly. Most of these tests need
//! controllers, which hybrid hosts do not have: `scripts/vm-test` runs them in virtual machines, and requires the
//! controllers there.

use std::path::PathBuf;

use crate::support::needs::{Need, need};
use crate::support::{Canary, PINFOLD, Ran, Run, Scratch, has, program};

/// Returns whether pinfold can use this controller for its jobs. It tries the one option that needs nothing else.
pub(super) fn controller(name: &str) -> Need {
    let option = match name {
        "memory" => ["--memory", "max"],
        "pids" => ["--pids", "1000"],
        "cpu" => ["--cpu-weight", "100"],
        "cpuset" => ["--cpuset", "0"],
        _ => ["--io-max", "/:rbps=1T"],
    };
    let output = std::process::Command::new(PINFOLD).arg("run").args(option).args(["--", "true"]).output().unwrap();
    need(name, output.status.success(), String::from_utf8_lossy(&output.stderr).trim())
}

/// Returns an empty cgroup with controllers, in which others can be made: scripts/vm-test names one.
pub(super) fn delegated() -> Need {
    let reason = "PINFOLD_TEST_CGROUP names no cgroup that gives controllers, as scripts/vm-test sets it up";
    need("delegated", std::env::var_os(DELEGATED).is_some(), reason)
}

pub(super) const DELEGATED: &str = "PINFOLD_TEST_CGROUP";

fn used(mode: &[&str]) -> Vec<String> {
    let program = program("use").display().to_string();
    std::iter::once(program).chain(mode.iter().map(ToString::to_string)).collect()
}

fn run(options: &[&str], mode: &[&str]) -> Ran {
    Run::new(options.iter().map(ToString::to_string).chain(["--".into()]).chain(used(mode))).run()
}

fn figure(ran: &Ran, name: &str) -> u64 {
    let figure = &ran.report["usage"][name];
    figure["value"].as_u64().unwrap_or_else(|| panic!("no {name}: {figure}"))
}

fn cpu_seconds(ran: &Ran) -> f64 {
    (figure(ran, "cpu_user_microseconds") + figure(ran, "cpu_system_microseconds")) as f64 / 1e6
}

const MIB: u64 = 1 << 20;

#[test]
#[requires(controller("memory"))]
fn a_job_that_runs_out_of_memory() {
    let canary = Canary::new();
    let ran = run(&["--memory", "64M", "--timeout", "1m"], &["hog", "1000000000"]).assert_code(137);
    assert_eq!(ran.report["reason"], "oom", "{ran:#?}");
    assert!(ran.report["oom"]["kills"].as_u64().unwrap() >= 1, "{ran:#?}");
    let peak = figure(&ran, "memory_peak_bytes");
    assert!((60 * MIB..=64 * MIB).contains(&peak), "{peak} in {ran:#?}");
    crate::support::measured(&format!("ended after {:.1} s, at {} KiB", ran.elapsed.as_secs_f64(), peak / 1024));
    if ran.report["oom"]["source"] == "/dev/kmsg" {
        assert_eq!(ran.report["oom"]["victims"][0]["name"], "use", "{ran:#?}");
    }
    canary.assert_alive();
}

#[test]
#[requires(controller("memory"), program("python3"))]
fn python_that_runs_out_of_memory() {
    let words = ["--memory", "64M", "--", "python3", "-c", "x=bytearray(10**9)"];
    let ran = Run::new(words).run().assert_code(137);
    assert_eq!(ran.report["reason"], "oom", "{ran:#?}");
    assert!((60 * MIB..=64 * MIB).contains(&figure(&ran, "memory_peak_bytes")), "{ran:#?}");
    assert!(ran.elapsed.as_secs_f64() < 2.0 * crate::support::slowness(), "{ran:#?}");
    crate::support::measured(&format!("ended after {:.1} s", ran.elapsed.as_secs_f64()));
}

fn swap() -> Need {
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    need("swap", swaps.lines().count() > 1, "this machine has no swap")
}

/// There is swap, and the job gets none of it unless it is requested.
#[test]
#[requires(controller("memory"), swap)]
fn swap_does_not_defeat_the_limit() {
    let ran = run(&["--memory", "32M", "--timeout", "1m"], &["hog", "50000000"]).assert_code(137);
    assert_eq!(ran.report["reason"], "oom", "{ran:#?}");
    let ran = run(&["--memory", "32M", "--swap", "max", "--timeout", "3s"], &["hog", "50000000"]).assert_code(124);
    assert_eq!(ran.stdout, "holds\n", "{ran:#?}");
    assert!(figure(&ran, "memory_peak_bytes") <= 32 * MIB, "{ran:#?}");
}

#[test]
#[requires(cgroup)]
fn what_looks_like_out_of_memory() {
    let limit: &[&str] = if has(controller("memory")) { &["--memory", "64M"] } else { &[] };
    for (script, main) in [("exit 137", "exited"), ("kill -9 $$", "signalled")] {
        let options = limit.iter().copied().chain(["--", "sh", "-c", script]);
        let ran = Run::new(options).run().assert_code(137);
        assert_eq!(ran.report["reason"], "exited", "{ran:#?}");
        assert!(ran.report["main"].get(main).is_some() && ran.report["oom"].is_null(), "{ran:#?}");
        assert!(!ran.stderr.contains("memory"), "{ran:#?}");
    }
}

/// The OOM killer killed a child, and then the main process killed itself.
#[test]
#[requires(controller("memory"))]
fn somebody_else_ran_out_of_memory() {
    let ran = run(&["--memory", "64M", "--timeout", "1m"], &["orphan-oom", "1000000000"]).assert_code(137);
    assert_eq!(ran.report["oom"]["kills"], 1, "{ran:#?}");
    // Without the kernel's log, pinfold cannot distinguish the two where one follows the other at once.
    if ran.report["oom"]["source"] == "/dev/kmsg" {
        assert_eq!(ran.report["reason"], "exited", "{ran:#?}");
    }
    // With a pause between the two, pinfold can distinguish them.
    let script = r#""$0" hog 1000000000 & wait $!; sleep 0.5; kill -9 $$"#;
    let words = ["--memory", "64M", "--timeout", "1m", "--", "bash", "-c", script].map(Into::into).into_iter();
    let ran = Run::new(words.chain([program("use").into_os_string()])).run().assert_code(137);
    assert_eq!(
        (ran.report["reason"].as_str(), ran.report["oom"]["kills"].as_u64()),
        (Some("exited"), Some(1)),
        "{ran:#?}"
    );

    // Except where the OOM killer is to kill the whole group.
    let ran =
        run(&["--memory", "64M", "--oom-group", "--timeout", "1m"], &["orphan-oom", "1000000000"]).assert_code(137);
    assert_eq!(ran.report["reason"], "oom", "{ran:#?}");
}

#[test]
#[requires(controller("pids"))]
fn a_fork_storm_is_held() {
    let canary = Canary::new();
    let ran = run(&["--pids", "50", "--timeout", "2s", "--grace", "1s"], &["storm"]).assert_code(124);
    assert!(figure(&ran, "forks_refused") > 0, "{ran:#?}");
    if let Some(peak) = ran.report["usage"]["processes_peak"]["value"].as_u64() {
        assert_eq!(peak, 50, "{ran:#?}");
    }
    // The last fork may just be in progress.
    assert!((40..=50).contains(&ran.report["stopped"]["count"].as_u64().unwrap()), "{ran:#?}");
    canary.assert_alive();
}

#[test]
#[requires(controller("cpu"))]
fn half_a_cpu() {
    // An emulated CPU is charged for time in which the machine did something else. An excess is deducted later.
    let seconds = if crate::support::slowness() > 1.0 { "12" } else { "4" };
    let ran = run(&["--cpus", "0.5"], &["burn", seconds]).assert_code(0);
    let phase = |name: &str| ran.report["phases"][name].as_f64().unwrap();
    let (used, time) = (cpu_seconds(&ran), phase("main_exited") - phase("spawned"));
    crate::support::measured(&format!("{used:.2} s of CPU time in {time:.2} s"));
    // If other load takes the CPU away, the job gets less.
    assert!((0.45 / crate::support::slowness()..=0.55).contains(&(used / time)), "{used} s of CPU time in {ran:#?}");
}

#[test]
#[requires(controller("cpuset"))]
fn one_cpu_of_several() {
    let ran = Run::new(["--cpuset", "0", "--", "grep", "Cpus_allowed_list", "/proc/self/status"]).run().assert_code(0);
    assert_eq!(ran.stdout.split_whitespace().last(), Some("0"), "{ran:#?}");
    let ran = Run::new(["--cpuset", "0,4000", "--", "true"]).run().assert_code(125);
    ran.assert_names("4000");
}

/// Usage covers the whole job, and not only the children for which the main process has waited.
#[test]
#[requires(controller("memory"))]
fn usage_against_the_truth() {
    let ran = run(&["--memory", "1G"], &["grandchild", "104857600", "1"]).assert_code(0);
    let peak = figure(&ran, "memory_peak_bytes") as f64 / MIB as f64;
    if ran.report["usage"]["memory_peak_bytes"]["source"] == "memory.peak" {
        assert!((100.0..=105.0).contains(&peak), "{peak} MiB in {ran:#?}");
    }
    let (used, truth) = (cpu_seconds(&ran), ran.stdout.trim().parse::<f64>().unwrap());
    crate::support::measured(&format!("{peak:.1} MiB for 100, {used:.3} s of CPU time for {truth:.3}"));
    assert!(truth > 1.0 && (0.95..=1.05).contains(&(used / truth)), "{used} s, and in truth {truth} s");
}

#[test]
#[requires(cgroup)]
fn stats_are_for_people() {
    let ran = Run::new(["--stats", "--", "true"]).run().assert_code(0);
    assert!(ran.stderr.contains("true: 0.") && ran.stderr.contains("s user, "), "{ran:#?}");
}

#[test]
fn slowed_down_io() {
    let scratch = Scratch::new("io");
    let file = scratch.path().display().to_string();
    let limit = format!("{file}:wbps=4M");
    std::fs::write(&file, "").unwrap();
    let on_disk = Run::new(["--io-max", &limit, "--", "true"]).run();
    if !has(need("io", on_disk.code == 0, &on_disk.stderr)) {
        return;
    }
    let ran = run(&["--io-max", &limit], &["write", &file, "16777216"]).assert_code(0);
    assert!(figure(&ran, "io_written_bytes") >= 16 * MIB, "{ran:#?}");
    assert!(ran.elapsed.as_secs_f64() > 2.0, "{ran:#?}");
}

#[test]
#[requires(controller("memory"))]
fn a_job_in_a_job() {
    let inner = Scratch::new("inner");
    let path = inner.path().display().to_string();
    let words = [PINFOLD, "run", "--memory", "32M", "--report", &path, "--"].map(String::from);
    let options = ["--memory", "128M", "--timeout", "1m", "--"].map(String::from);
    let mut outer = Run::new(options.into_iter().chain(words).chain(used(&["hog", "1000000000"])));
    // The inner pinfold must use its own cgroup, which is that of the outer job.
    outer.command().env_remove("PINFOLD_TEST_CGROUP");
    let cgroup = std::env::var_os("PINFOLD_CGROUP");
    if let Some(cgroup) = cgroup {
        outer.command().env_remove("PINFOLD_CGROUP");
        outer = Run::new(
            ["--cgroup".into(), cgroup.into_string().unwrap()]
                .into_iter()
                .chain(["--memory", "128M", "--timeout", "1m", "--", "env", "-u", "PINFOLD_CGROUP"].map(String::from))
                .chain([PINFOLD, "run", "--memory", "32M", "--report", &path, "--"].map(String::from))
                .chain(used(&["hog", "1000000000"])),
        );
    }
    let ran = outer.run().assert_code(137);
    let inner: serde_json::Value = serde_json::from_str(&inner.text()).unwrap();
    assert_eq!(inner["reason"], "oom", "{inner:#?}");
    let peak = inner["usage"]["memory_peak_bytes"]["value"].as_u64().unwrap();
    assert!(peak <= 32 * MIB, "{inner:#?}");
    assert_eq!(ran.report["reason"], "exited", "{ran:#?}");
    assert_eq!(ran.report["oom"]["kills"], 1, "{ran:#?}");
}

/// Runs in a cgroup that contains only pinfold, as in a service or a container: pinfold moves itself out of the way,
/// and restores everything afterwards.
#[test]
#[requires(delegated)]
fn its_own_cgroup_twice_in_a_row() {
    let delegated = PathBuf::from(std::env::var_os(DELEGATED).unwrap());
    let own = delegated.join(format!("own-{}", std::process::id()));
    std::fs::create_dir(&own).unwrap();
    let script = r#"echo $$ >"$OWN/cgroup.procs" && unset PINFOLD_CGROUP && exec "$@""#;
    for how in ["--stats", "--memory=64M", "--memory=64M", "killed", "--memory=32M"] {
        if how == "killed" {
            // Runs without the warden, which would kill the guard before it has undone what its supervisor could not
            // undo.
            let words = ["-c", script, "bash", PINFOLD, "run", "--memory=64M", "--", "sh", "-c"];
            let mut command = std::process::Command::new("bash");
            command.args(words).arg("echo in place; exec sleep 999").env("OWN", &own);
            let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
            let mut printed = [0; 9];
            std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut printed).unwrap();
            assert_eq!(&printed, b"in place\n");
            child.kill().unwrap();
            child.wait().unwrap();
            crate::support::wait_for(|| empty(&own).then_some(()));
            continue;
        }
        let mut run = Run::in_shell(script, [how, "--", "true"]);
        run.command().env("OWN", &own);
        let ran = run.run().assert_code(0);
        let leaf = ran.report["containment"]["cgroup"].as_str().unwrap();
        assert!(leaf.starts_with(own.to_str().unwrap()), "{ran:#?}");
        assert!(empty(&own), "{how}");
    }
    std::fs::remove_dir(&own).unwrap();
}

/// Returns whether the cgroup has no child cgroup, no process, and no enabled controller.
fn empty(cgroup: &std::path::Path) -> bool {
    let read = |file: &str| std::fs::read_to_string(cgroup.join(file)).unwrap();
    let below = std::fs::read_dir(cgroup).unwrap().any(|entry| entry.unwrap().file_type().unwrap().is_dir());
    !below && read("cgroup.procs").is_empty() && read("cgroup.subtree_control").trim().is_empty()
}

fn no_memory_controller() -> Need {
    need("no memory controller", controller("memory").is_err(), "this machine has one, and the other tests use it")
}

#[test]
#[requires(no_memory_controller)]
fn what_cannot_be_enforced_is_refused() {
    let mark = Scratch::new("mark");
    let words = ["--memory", "64M", "--", "touch"].map(Into::into).into_iter().chain([mark.path().into()]);
    let ran = Run::new(words.collect::<Vec<std::ffi::OsString>>()).run().assert_code(125);
    ran.assert_names("memory");
    assert!(!mark.path().exists(), "{ran:#?}");
}

#[test]
fn invalid_limits() {
    let mark = Scratch::new("mark");
    for options in [
        ["--memory", "10"],
        ["--memory", "5Q"],
        ["--memory", "-1"],
        ["--memory", ""],
        ["--memory", "101%"],
        ["--memory-high", "x"],
        ["--swap", "1..5G"],
        ["--pids", "0"],
        ["--pids", "-1"],
        ["--pids", "many"],
        ["--cpus", "-1"],
        ["--cpus", "0"],
        ["--cpus", "NaN"],
        ["--cpu-weight", "0"],
        ["--cpuset", "a-b"],
        ["--io-weight", "10001"],
        ["--io-max", "/dev/no-such-device:rbps=1M"],
        ["--io-max", "/dev/null:rbps=1M"],
        ["--io-max", "4095:1:rbps=1M"],
        ["--io-max", "/dev/sda"],
        ["--rlimit", "files=1"],
        ["--rlimit", "nofile=9:1"],
        ["--nice", "20"],
        ["--user", "no-such-user"],
        ["--user", "3999999999"],
    ] {
        let words = options.map(String::from).into_iter();
        let words = words.chain(["--".into(), "touch".into(), mark.path().display().to_string()]);
        let mut run = Run::new(words);
        run.command().env("RUST_BACKTRACE", "1");
        let ran = run.run().assert_code(125);
        // A device is named without what is limited.
        ran.assert_names(format!("'{}'", options[1].split(":rbps").next().unwrap()));
        assert!(!ran.stderr.contains("panicked") && !mark.path().exists(), "{ran:#?}");
    }
}

#[test]
#[requires(cgroup)]
fn resource_limits_and_niceness() {
    let script = "ulimit -Sn; ulimit -Hn; ulimit -c; ulimit -t; nice";
    let options = ["--rlimit=nofile=100:200", "--rlimit=core=0", "--rlimit=cpu=1K:unlimited", "--nice=7", "--"];
    let ran = Run::new(options.iter().chain(&["sh", "-c", script])).run();
    // An unprivileged caller cannot raise limits above its own hard limits.
    if ran.code == 0 {
        assert_eq!(ran.stdout, "100\n200\n0\n1024\n7\n", "{ran:#?}");
    } else {
        ran.assert_code(125).assert_names("nofile");
    }
}

#[test]
#[requires(cgroup, root)]
fn as_another_user() {
    // PDEATHSIG is set as usual, although a change of credentials clears it.
    for (user, said) in
        [("nobody", "9 65534:65534 65534\n"), ("4242:4243", "9 4242:4243\n"), ("nobody:7", "9 65534:7 7\n")]
    {
        assert_eq!(run(&["--user", user], &["death-signal"]).assert_code(0).stdout, said);
    }
    let words = ["--user", "nobody", "--", "sh", "-c", "echo $USER $LOGNAME $HOME; cat /proc/self/cgroup"];
    let ran = Run::new(words).run().assert_code(0);
    assert!(ran.stdout.starts_with("nobody nobody /nonexistent\n") && ran.stdout.contains("/pinfold-"), "{ran:#?}");
    // The leftover belongs to another user, and pinfold ends it.
    let words = ["--user", "nobody", "--", "sh", "-c", "setsid sleep 999 & exit 0"];
    assert_eq!(Run::new(words).run().assert_code(0).report["leftovers"]["count"], 1);
}

#[test]
#[requires(root, program("setpriv"), cgroup)]
fn only_root_becomes_another_user() {
    let ran = Run::new(["--user", "nobody", "--", PINFOLD, "run", "--user", "root", "--", "true"]).run();
    assert_eq!(ran.code, 125, "{ran:#?}");
}

/// A value that the caller has set applies to the job.
#[test]
fn the_oom_score_of_a_job() {
    let job_of = |callers: i32| {
        let script = format!("echo {callers} >/proc/self/oom_score_adj; exec \"$@\"");
        let job = ["--", "sh", "-c", "cat /proc/self/oom_score_adj /proc/$PPID/oom_score_adj"];
        let ran = Run::in_shell(&script, job).run().assert_code(0);
        let printed: Vec<i32> = ran.stdout.lines().map(|line| line.parse().unwrap()).collect();
        (printed[0], printed[1])
    };
    for callers in [200, 500, 1000] {
        let (jobs, guards) = job_of(callers);
        let lowered = guards < callers;
        let expected = if lowered { callers } else { (callers + 300).min(1000) };
        assert_eq!((jobs, guards), (expected, if lowered { -999 } else { callers }));
    }
}

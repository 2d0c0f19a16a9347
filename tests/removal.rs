//! Jobs that leave thousands of empty cgroups: they are removed in linear time, and deadlines, signals and other jobs have their turn
//! meanwhile.

mod support;

use std::cell::RefCell;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::host::{shell, with_supervisor};
use support::own_cgroup::OwnCgroup;
use support::{PINFOLD, Run, Scratch, has_cgroup, has_root};

const MANY: usize = 5000;

/// The script of a job that makes so many cgroups in its own.
fn litter(shape: &str) -> String {
    let own = r#"leaf=$MOUNT$(sed -n 's/^0:://p' /proc/self/cgroup); cd "$leaf" || exit 9"#;
    let mount = support::own_cgroup();
    let below = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let below = below.lines().find_map(|line| line.strip_prefix("0::")).unwrap().trim_start_matches('/').to_owned();
    let mount = mount.to_str().unwrap().strip_suffix(&below).unwrap().trim_end_matches('/').to_owned();
    format!("MOUNT={mount}; {own}; {shape}")
}

/// Side by side; in directories of their own, 50 in each; a chain within a chain.
fn shapes() -> [(&'static str, String); 3] {
    [
        ("flat", format!("seq {MANY} | xargs mkdir")),
        ("nested", format!("seq {} | xargs -I {{}} sh -c 'mkdir {{}}; cd {{}}; seq 50 | xargs mkdir'", MANY / 50)),
        ("deep", "for i in $(seq 30); do seq 160 | xargs mkdir; cd 1; done".into()),
    ]
}

/// How long it takes to remove as many by rmdir(2) alone.
fn by_rmdir() -> f64 {
    let own = OwnCgroup::new();
    let all: Vec<_> = (0..MANY).map(|number| own.path.join(number.to_string())).collect();
    all.iter().for_each(|path| std::fs::create_dir(path).unwrap());
    let begun = Instant::now();
    all.iter().for_each(|path| std::fs::remove_dir(path).unwrap());
    begun.elapsed().as_secs_f64()
}

/// How long ago that was: seconds since 1970, as date(1) prints them.
fn since(date: &str) -> f64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64() - date.trim().parse::<f64>().unwrap()
}

#[test]
fn it_takes_not_much_longer_than_rmdir_alone() {
    if !has_cgroup() || !has_root() {
        return;
    }
    for (name, shape) in shapes() {
        let ran = Run::new(["--", "sh", "-c", &litter(&format!("{shape}; date +%s.%N"))]).run().assert_code(0);
        let (took, alone) = (since(&ran.stdout), by_rmdir());
        support::measured(&format!("{MANY} cgroups, {name}: {took:.3} s, rmdir alone {alone:.3} s"));
        // The square of their number took forty times as long.
        assert!(took < 6.0 * alone + 0.5, "{name}: {took} s, rmdir alone {alone} s: {ran:#?}");
        assert_eq!(ran.report["not_removed"], serde_json::json!([]), "{name}");
    }
}

#[test]
fn other_jobs_and_timers_have_their_turn_meanwhile() {
    if !has_cgroup() || !has_root() {
        return;
    }
    with_supervisor(async |supervisor| {
        let ticks = RefCell::new(Vec::new());
        let ticking = async {
            loop {
                tokio::time::sleep(Duration::from_millis(1)).await;
                ticks.borrow_mut().push(Instant::now());
            }
        };
        let ended = Scratch::new("ended");
        let script = litter(&format!("{}; date +%s.%N >{}", shapes()[0].1, ended.path().display()));
        let job = async {
            let job = supervisor.spawn(&shell(&script)).await.unwrap();
            job.wait().await.unwrap()
        };
        let report = tokio::select! {
            report = job => report,
            () = ticking => unreachable!(),
        };
        assert!(report.is_gone() && report.exit_code == 0, "{report:#?}");
        let removing = since(&ended.text());
        let begun = Instant::now() - Duration::from_secs_f64(removing);
        let during = ticks.borrow().iter().filter(|&&tick| tick > begun).count();
        support::measured(&format!("{during} ticks in the {removing:.3} s of the removal"));
        assert!(removing > 0.02, "it was too quick to tell: {removing} s");
        assert!(during >= 5, "{during} ticks in {removing} s");
    });
}

#[test]
fn a_deadline_does_not_wait_for_the_sweep_at_the_start() {
    if !has_cgroup() || !has_root() {
        return;
    }
    let place = OwnCgroup::new();
    let base = place.path.join("pinfold-1-0123456789abcdef");
    let abandon = || {
        std::fs::create_dir(&base).unwrap();
        (0..MANY).for_each(|number| std::fs::create_dir(base.join(number.to_string())).unwrap());
    };
    abandon();
    let report = Scratch::new("report");
    let mut run = Run::bare([PINFOLD, "run", "--cgroup"]);
    run.command().arg(&place.path).arg("--report").arg(report.path());
    run.command().args(["--timeout", "30ms", "--grace", "0", "--", "sleep", "998"]);
    run.run().assert_code(124);
    let told: serde_json::Value = serde_json::from_str(&report.text()).unwrap();
    let stopping = told["phases"]["stopping"].as_f64().unwrap();
    let alone = by_rmdir();
    support::measured(&format!("a deadline of 0.03 s came at {stopping:.3} s; rmdir alone takes {alone:.3} s"));
    assert!(!Path::new(&base).exists(), "the sweep did not remove it");
    assert!(stopping < 0.03 + alone / 2.0, "the deadline of 0.03 s came at {stopping} s, rmdir alone takes {alone} s");
}

#[test]
fn processes_are_ended_before_the_cgroups_of_a_killed_supervisor_are_removed() {
    if !has_cgroup() || !has_root() {
        return;
    }
    let job = litter(&format!("{}; trap '' TERM; sleep 997 & echo ready; wait", shapes()[0].1));
    // Without the warden, which would end the guard.
    let mut pinfold = Command::new(PINFOLD);
    let mut pinfold = pinfold.args(["run", "--", "sh", "-c", &job]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(pinfold.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let prefix = format!("pinfold-{}-", pinfold.id());
    let base = std::fs::read_dir(support::own_cgroup()).unwrap().flatten();
    let base = base.map(|entry| entry.path()).find(|path| path.to_string_lossy().contains(&prefix)).unwrap();
    pinfold.kill().unwrap();
    let begun = Instant::now();
    support::wait_for(|| {
        let events = std::fs::read_to_string(base.join("cgroup.events"));
        events.map_or(true, |text| text.contains("populated 0")).then_some(())
    });
    let ended = begun.elapsed().as_secs_f64();
    support::wait_for(|| (!base.exists()).then_some(()));
    support::measured(&format!(
        "processes ended after {ended:.3} s, {MANY} cgroups removed after {:?}",
        begun.elapsed()
    ));
    assert!(ended < support::slowness(), "the processes ended after {ended} s");
    pinfold.wait().unwrap();
}

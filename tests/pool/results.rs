//! The results of `pinfold pool`: each job has its report, whichever process is killed.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::events::wait_in;
use crate::support::pool::{lines, pool, start, text};
use crate::support::{PINFOLD, Scratch};

/// `PINFOLD_JOBS` sets how many; 10,000 take a while in an unoptimised build.
#[test]
#[requires(cgroup)]
fn many_jobs_have_all_their_reports_in_order() {
    let count: usize = std::env::var("PINFOLD_JOBS").map_or(1000, |count| count.parse().unwrap());
    let results = Scratch::new("results");
    let jobs: String = (1..=count).map(|number| format!("{number}\n")).collect();
    let args = ["-j", "8", "--keep-order", "--results", text(results.path()), "--", "echo"];
    let mut running = start(&args, &jobs);
    let pid = running.pinfold_pid();
    // The test measures halfway and near the end: memory and descriptors must not grow with the number of finished
    // jobs.
    let (mut seen, mut out) = (String::new(), running.child.stdout.take().unwrap());
    let mut measured = Vec::new();
    let mut piece = [0; 4096];
    while let length @ 1.. = out.read(&mut piece).unwrap() {
        seen.push_str(std::str::from_utf8(&piece[..length]).unwrap());
        let done = seen.lines().count();
        if measured.len() < 2 && done >= count * (2 * measured.len() + 1) / 4 {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
            let resident: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
            let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
            measured.push((resident, descriptors));
        }
    }
    let ran = running.finish().assert_code(0);
    assert_eq!(seen, jobs);
    ran.assert_counts(count, 0);
    let [(first, first_open), (last, last_open)] = measured[..] else { panic!("{measured:?}") };
    assert!(last < first + 2048, "resident KiB: {measured:?}");
    // The number that wait to be printed varies, but one descriptor for each job would exceed this bound.
    assert!(first_open.max(last_open) < 320, "open descriptors: {measured:?}");
    let mut reported: Vec<_> = lines(results.path()).iter().map(|line| line["line"].as_u64().unwrap()).collect();
    reported.sort_unstable();
    assert!(reported.into_iter().eq(1..=count as u64));
}

/// pinfold is killed in the middle: nothing is left, and a resumed run does exactly the jobs that had no report.
#[test]
#[requires(cgroup)]
fn a_killed_pool_is_resumed() {
    let rounds: usize = std::env::var("PINFOLD_KILLS").map_or(3, |rounds| rounds.parse().unwrap());
    let directory = Scratch::directory("resume");
    let results = directory.path().join("results");
    let count = 100 + 30 * rounds;
    // Each job appends a line of its own, with one write. So the test knows which jobs ran without relying on pinfold's
    // results.
    let ran_log = directory.path().join("ran");
    let script = format!("sleep 0.0$(({{}} % 4)); echo {{}} >> {}", text(&ran_log));
    let jobs: String = (1..=count).map(|number| format!("{number}\n")).collect();
    let mut seen = lines_so_far(&results);
    let (mut longest, mut kills) = (Duration::ZERO, 0);
    for round in 0..rounds {
        let mut args = vec!["-j", "4", "-q", "--results", text(&results), "--resume", "--", "sh", "-c", &script];
        if round == 0 {
            args.retain(|arg| *arg != "--resume");
        }
        let ran_before = ran(&ran_log);
        // Runs without a warden, because the warden would end the remaining processes.
        let mut pinfold = std::process::Command::new(PINFOLD);
        pinfold.arg("pool").args(&args).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut pinfold = pinfold.spawn().unwrap();
        pinfold.stdin.take().unwrap().write_all(jobs.as_bytes()).unwrap();
        // Each round gets further than the one before.
        let enough = seen.len() + ((count - seen.len()) / (rounds - round + 2)).max(1);
        let written = || std::fs::read(&results).unwrap_or_default().iter().filter(|&&byte| byte == b'\n').count();
        wait_in(directory.path(), || (written() >= enough).then_some(()));
        pinfold.kill().unwrap();
        let killed = Instant::now();
        wait_until_base_is_removed(&pinfold);
        longest = longest.max(killed.elapsed());
        pinfold.wait().unwrap();
        let now = lines_so_far(&results);
        assert_no_second_run(&ran_before, &ran(&ran_log), &seen);
        kills += u32::from(now.len() < count);
        seen = now;
    }
    // One second is promised, on a machine that is not overloaded (promise 2 has its own tests).
    eprintln!("{kills} kills in the middle, all gone after {longest:?} at most");
    assert!(kills > 0, "every run ended before it was killed");
    let before = ran(&ran_log);
    let last = pool(&["-j", "4", "--results", text(&results), "--resume", "--", "sh", "-c", &script], &jobs);
    let last = last.assert_code(0);
    let left = count - seen.len();
    last.assert_counts(left, 0);
    last.assert_names(format!(", {} ", seen.len()));
    assert_no_second_run(&before, &ran(&ran_log), &seen);
    assert_eq!(lines(&results).len(), count);
    let lines_reported: std::collections::BTreeSet<_> =
        lines(&results).iter().map(|line| line["line"].as_u64().unwrap()).collect();
    assert_eq!(lines_reported.len(), count, "each has one report");
    assert_eq!(ran(&ran_log).len(), count, "none is lost");
}

/// Returns the numbers of the complete lines.
fn lines_so_far(results: &Path) -> Vec<u64> {
    let text = std::fs::read_to_string(results).unwrap_or_default();
    let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    whole.map(|line| serde_json::from_str::<Value>(line).unwrap()["line"].as_u64().unwrap()).collect()
}

/// Returns how often each job ran.
fn ran(log: &Path) -> BTreeMap<u64, usize> {
    let mut ran = BTreeMap::new();
    for line in std::fs::read_to_string(log).unwrap_or_default().lines() {
        *ran.entry(line.parse().unwrap()).or_default() += 1;
    }
    ran
}

fn assert_no_second_run(before: &BTreeMap<u64, usize>, after: &BTreeMap<u64, usize>, reported: &[u64]) {
    for number in reported {
        assert_eq!(before.get(number), after.get(number), "job {number} had a report and ran again");
    }
}

#[test]
#[requires(cgroup)]
fn a_torn_last_line_is_repaired() {
    let results = Scratch::new("torn");
    let args = ["-j", "1", "--results", text(results.path()), "--", "echo"];
    pool(&args, "a\nb\nc\n").assert_code(0);
    let refused = pool(&args, "a\n").assert_code(125);
    refused.assert_names("--resume");
    let whole = results.text();
    let file = std::fs::OpenOptions::new().write(true).open(results.path()).unwrap();
    file.set_len(whole.len() as u64 - 10).unwrap();
    let mut resume = args.to_vec();
    resume.insert(0, "--resume");
    let ran = pool(&resume, "a\nb\nc\nd\n").assert_code(0);
    assert_eq!(ran.stdout, "c\nd\n");
    ran.assert_counts(2, 0);
    ran.assert_names(text(results.path()));
    assert_eq!(lines(results.path()).len(), 4);
    // The same job twice counts as two jobs.
    let ran = pool(&resume, "a\na\nb\n").assert_code(0);
    assert_eq!(ran.stdout, "a\n");
    // A file of another kind is not accepted as results.
    file.write_all_at(b"no", 0).unwrap();
    let ran = pool(&resume, "a\n").assert_code(125);
    ran.assert_names("line 1");
}

/// A file without a newline at its end is not necessarily a results file that may be truncated.
#[test]
#[requires(cgroup)]
fn another_file_is_left_as_it_is() {
    let results = Scratch::new("notes");
    let (mark, args) = (Scratch::new("mark"), ["--resume", "--results", text(results.path()), "--", "touch"]);
    let ours = {
        let own = Scratch::new("own");
        pool(&["--results", text(own.path()), "--", "true"], "x\n").assert_code(0);
        own.text()
    };
    for other in ["precious notes", "{\"lines\": 3}", "\0\0\0", &format!("{ours}precious notes")] {
        std::fs::write(results.path(), other).unwrap();
        let ran = pool(&args, text(mark.path())).assert_code(125);
        ran.assert_names(text(results.path()));
        assert_eq!(results.text(), other);
        assert!(!mark.path().exists());
    }
    // The shortest possible part of a line.
    std::fs::write(results.path(), &ours[..1]).unwrap();
    let ran = pool(&args, text(mark.path())).assert_code(0);
    ran.assert_names(text(results.path()));
    assert!(mark.path().exists() && lines(results.path()).len() == 1);
}

/// Starts `pinfold pool ARGS` without a warden, because the warden would end the remaining processes.
fn start_bare(args: &[&str], jobs: &str) -> std::process::Child {
    let mut pinfold = std::process::Command::new(PINFOLD);
    pinfold.arg("pool").args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut pinfold = pinfold.spawn().unwrap();
    pinfold.stdin.take().unwrap().write_all(jobs.as_bytes()).unwrap();
    pinfold
}

/// Sends SIGKILL, and waits until the directory of its jobs is removed.
fn kill_and_wait_until_empty(pinfold: &mut std::process::Child) {
    pinfold.kill().unwrap();
    wait_until_base_is_removed(pinfold);
    pinfold.wait().unwrap();
}

/// A directory can only be removed when no process runs in it, so this proves that no job runs any more.
fn wait_until_base_is_removed(pinfold: &std::process::Child) {
    let base = format!("pinfold-{}-", pinfold.id());
    let is_base =
        |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().to_string_lossy().starts_with(&base);
    let own = crate::support::own_cgroup();
    wait_in(&own, || (!std::fs::read_dir(&own).unwrap().any(is_base)).then_some(()));
}

/// The reader does not read while jobs end; then pinfold is killed. Each job that the results file records as done was
/// printed.
#[test]
#[requires(cgroup)]
fn a_job_is_recorded_when_its_output_was_written() {
    const COUNT: u64 = 40;
    // 14 of these are more than a pipe holds (pipe(7)).
    const FILL: usize = 5000;
    // Returns the jobs whose output is complete.
    let printed = |text: &str| -> std::collections::BTreeSet<u64> {
        let whole = |line: &str| line.strip_prefix(&"x".repeat(FILL)).and_then(|number| number.parse().ok());
        text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n').and_then(whole)).collect()
    };
    let jobs: String = (1..=COUNT).map(|number| format!("{number}\n")).collect();
    for mode in [["--output=group", "--keep-order"].as_slice(), &["--output=group"], &["--output=stream"]] {
        let directory = Scratch::directory("recorded");
        let (results, log) = (directory.path().join("results"), directory.path().join("log"));
        let script = format!("head -c {FILL} /dev/zero | tr '\\0' x; echo {{}}; echo {{}} >>{}", text(&log));
        let mut args = vec!["-j", "2", "-q", "--results", text(&results)];
        args.extend(mode);
        args.extend(["--", "sh", "-c", &script]);
        let mut pinfold = start_bare(&args, &jobs);
        wait_in(directory.path(), || (ran(&log).len() >= 18).then_some(()));
        kill_and_wait_until_empty(&mut pinfold);
        let before = printed(&std::io::read_to_string(pinfold.stdout.take().unwrap()).unwrap());
        let recorded: std::collections::BTreeSet<u64> = lines_so_far(&results).into_iter().collect();
        assert!(recorded.is_subset(&before), "{mode:?}: recorded, not printed: {:?}", &recorded - &before);
        args.insert(0, "--resume");
        let after = printed(&pool(&args, &jobs).assert_code(0).stdout);
        assert_eq!((&before | &after).len() as u64, COUNT, "{mode:?}");
        assert!(after.is_disjoint(&recorded), "{mode:?}: ran again: {:?}", &after & &recorded);
    }
}

/// With `--keep-order`, the first job delays the output of the others, which have ended. A kill loses none of this
/// output.
#[test]
#[requires(cgroup)]
fn output_that_waits_for_an_earlier_job_is_not_recorded_as_printed() {
    let directory = Scratch::directory("waits");
    let [results, log, gate] = ["results", "log", "gate"].map(|name| directory.path().join(name));
    let script = format!(
        "[ {{}} != 1 ] || [ -e {gate} ] || sleep 1000; echo out {{}}; echo {{}} >>{log}",
        gate = text(&gate),
        log = text(&log)
    );
    let args = ["-j", "4", "-q", "--keep-order", "--results", text(&results), "--", "sh", "-c", &script];
    let jobs: String = (1..=300).map(|number| format!("{number}\n")).collect();
    let mut pinfold = start_bare(&args, &jobs);
    wait_in(directory.path(), || (ran(&log).len() >= 100).then_some(()));
    kill_and_wait_until_empty(&mut pinfold);
    assert_eq!(std::io::read_to_string(pinfold.stdout.take().unwrap()).unwrap(), "");
    std::fs::write(&gate, "").unwrap();
    let resumed = [&["--resume"], args.as_slice()].concat();
    let all: String = (1..=300).map(|number| format!("out {number}\n")).collect();
    assert_eq!(pool(&resumed, &jobs).assert_code(0).stdout, all);
    assert_eq!(pool(&resumed, &jobs).assert_code(0).stdout, "");
}

/// A failed job still counts when `--resume` skips it, however it failed. `--retry-failed` runs it again.
#[test]
#[requires(cgroup)]
fn a_resumed_pool_with_failed_jobs_is_not_green() {
    for fails in ["exit 3", "kill -SEGV $$", "sleep 1000", "exec /no/such/program"] {
        let directory = Scratch::directory("red");
        let [results, fixed] = ["results", "fixed"].map(|name| directory.path().join(name));
        let script = format!("echo {{}}; [ {{}} = good ] || [ -e {} ] || {fails}", text(&fixed));
        let command = ["--results", text(&results), "-t", "2s", "--stderr", "separate", "--", "sh", "-c", &script];
        let run = |more: &[&str]| pool(&[more, command.as_slice()].concat(), "good\nbad\n");
        let first = run(&["-j", "1"]).assert_code(1);
        assert_eq!(first.stdout, "good\nbad\n", "{fails}");
        let resumed = run(&["--resume"]).assert_code(1);
        assert_eq!(resumed.stdout, "", "{fails}");
        let still = run(&["--retry-failed"]).assert_code(1);
        assert_eq!(still.stdout, "bad\n", "{fails}");
        std::fs::write(&fixed, "").unwrap();
        let mended = run(&["--retry-failed"]).assert_code(0);
        assert_eq!(mended.stdout, "bad\n", "{fails}");
        assert_eq!(run(&["--resume"]).assert_code(0).stdout, "", "{fails}");
    }
    // A missing program is a failure of the job, as with a shell.
    let results = Scratch::new("not-found");
    let args = ["--results", text(results.path()), "--", "/no/such/program"];
    pool(&args, "x\n").assert_code(1);
    pool(&[&["--resume"], args.as_slice()].concat(), "x\n").assert_code(1);
}

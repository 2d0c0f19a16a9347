//! `pinfold pool`: every job has its report, whatever it prints and whoever is killed.

mod support;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{PINFOLD, Ran, Run, Running, Scratch, has_cgroup, program, wait_for};

/// `pinfold pool ARGS` under the warden, with these jobs.
fn start(args: &[&str], jobs: &str) -> Running {
    let mut run = Run::bare([PINFOLD, "pool"].iter().chain(args));
    run.command().stdin(Stdio::piped());
    let mut running = run.start();
    let mut stdin = running.child.stdin.take().unwrap();
    // One that has refused its options reads nothing.
    let _ = stdin.write_all(jobs.as_bytes());
    running
}

fn pool(args: &[&str], jobs: &str) -> Ran {
    start(args, jobs).finish()
}

fn lines(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn three_kinds_of_jobs() {
    if !has_cgroup() {
        return;
    }
    let ran = pool(&["-j", "1", "--", "echo", "<{}>", "{}{}"], "a b\n\n*\n").assert_code(0);
    assert_eq!(ran.stdout, "<a b> a ba b\n<*> **\n");
    assert!(ran.stderr.contains("2 succeeded, 0 failed"), "{}", ran.stderr);
    let ran = pool(&["-j", "1", "-q", "-0", "--", "echo"], "a\nb\0c").assert_code(0);
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("a\nb\nc\n", ""));
    let ran = pool(&["-j", "1", "--shell"], "echo one; echo two >&2\nexit 3\n").assert_code(1);
    assert_eq!(ran.stdout, "one\n");
    assert!(ran.stderr.contains("two\n") && ran.stderr.contains("line 2, exit 3: exit code 3"), "{}", ran.stderr);
    let jobs = concat!(
        r#"{"command": ["sh", "-c", "pwd; echo $A-$PATH_; cat"], "cwd": "/", "env": {"A": "b", "PATH_": null}, "stdin": "given"}"#,
        "\n",
        r#"{"command": ["sleep", "100"], "timeout": 0.2, "name": "sleeper"}"#,
        "\n",
        r#"{"command": ["/no/such"], "retries": 3}"#,
        "\n",
    );
    let ran = pool(&["-j", "1"], jobs).assert_code(1);
    assert_eq!(ran.stdout, "/\nb-\ngiven");
    assert!(ran.stderr.contains("line 2, sleeper: its deadline was reached"), "{}", ran.stderr);
    assert!(ran.stderr.contains("line 3, such: cannot execute '/no/such'"), "{}", ran.stderr);
    assert!(ran.stderr.contains("1 succeeded, 2 failed"), "{}", ran.stderr);
}

#[test]
fn bad_lines_are_all_found_before_anything_starts() {
    if !has_cgroup() {
        return;
    }
    let scratch = Scratch::new("never");
    let good = format!(r#"{{"command": ["touch", "{}"]}}"#, text(scratch.path()));
    let bad = [
        "{}",
        "nonsense",
        r#"{"command": []}"#,
        r#"{"command": [""]}"#,
        r#"{"command": ["a"], "comand": 1}"#,
        r#"{"command": ["a\u0000b"]}"#,
        r#"{"command": ["a"], "env": {"A=B": "c"}}"#,
        r#"{"command": ["a"], "timeout": "soon"}"#,
        r#"{"command": ["a"], "timeout": -1}"#,
        r#"["a"]"#,
    ];
    let mut jobs = format!("{good}\n");
    for line in bad {
        // Good ones and empty ones in between: the numbers count all.
        let _ = writeln!(jobs, "{line}\n\n{good}");
    }
    let ran = pool(&[], &jobs).assert_code(125);
    for (number, line) in bad.iter().enumerate() {
        let place = format!("\n  line {}: ", 2 + 3 * number);
        assert!(ran.stderr.contains(&place), "line of {line}: {}", ran.stderr);
    }
    assert_eq!(ran.stderr.matches("\n  line ").count(), bad.len(), "{}", ran.stderr);
    assert!(!scratch.path().exists());
    for (args, said) in [
        (["-j", "0"].as_slice(), "from 1 on"),
        (&["--output", "files="], "files=DIR"),
        (&["--keep-order", "--output", "stream"], "--keep-order"),
        (&["--tag"], "--tag"),
        (&["--resume"], "--results"),
        (&["--jobs", "/no/such"], "/no/such"),
        (&["--results", "/no/such/file"], "/no/such/file"),
    ] {
        let ran = pool(args, "{\"command\": [\"true\"]}\n").assert_code(125);
        assert!(ran.stderr.contains(said), "{args:?}: {}", ran.stderr);
    }
}

/// `PINFOLD_JOBS` says how many; 10,000 take a while where nothing is optimised.
#[test]
fn many_jobs_have_all_their_reports_in_order() {
    if !has_cgroup() {
        return;
    }
    let count: usize = std::env::var("PINFOLD_JOBS").map_or(1000, |count| count.parse().unwrap());
    let results = Scratch::new("results");
    let jobs: String = (1..=count).map(|number| format!("{number}\n")).collect();
    let args = ["-j", "8", "--keep-order", "--results", text(results.path()), "--", "echo"];
    let mut running = start(&args, &jobs);
    let pid = running.pinfold_pid();
    // Halfway and near the end: memory and descriptors do not grow with the jobs that are done.
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
    assert!(ran.stderr.contains(&format!("{count} succeeded, 0 failed")), "{}", ran.stderr);
    let [(first, first_open), (last, last_open)] = measured[..] else { panic!("{measured:?}") };
    assert!(last < first + 2048, "resident KiB: {measured:?}");
    // What waits to be printed varies; one that is kept for each job would be seen.
    assert!(first_open.max(last_open) < 320, "open descriptors: {measured:?}");
    let mut reported: Vec<_> = lines(results.path()).iter().map(|line| line["line"].as_u64().unwrap()).collect();
    reported.sort_unstable();
    assert!(reported.into_iter().eq(1..=count as u64));
}

/// Killed in the middle: nothing is left, and a resumed run does exactly what had no report.
#[test]
fn a_killed_pool_is_resumed() {
    if !has_cgroup() {
        return;
    }
    let rounds: usize = std::env::var("PINFOLD_KILLS").map_or(3, |rounds| rounds.parse().unwrap());
    let directory = Scratch::directory("resume");
    let results = directory.path().join("results");
    let count = 100 + 30 * rounds;
    // Each job leaves a line of its own, in one write, so that those that ran are known apart from what pinfold says.
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
        // Without a warden, which would end what is left.
        let mut pinfold = std::process::Command::new(PINFOLD);
        pinfold.arg("pool").args(&args).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut pinfold = pinfold.spawn().unwrap();
        pinfold.stdin.take().unwrap().write_all(jobs.as_bytes()).unwrap();
        // Some further on each time.
        let enough = seen.len() + ((count - seen.len()) / (rounds - round + 2)).max(1);
        let written = || std::fs::read(&results).unwrap_or_default().iter().filter(|&&byte| byte == b'\n').count();
        wait_for(|| (written() >= enough).then_some(()));
        pinfold.kill().unwrap();
        let killed = Instant::now();
        let base = format!("pinfold-{}-", pinfold.id());
        let is_base =
            |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().to_string_lossy().starts_with(&base);
        // A directory can only be removed when nothing runs in it.
        wait_for(|| (!std::fs::read_dir(support::own_cgroup()).unwrap().any(is_base)).then_some(()));
        longest = longest.max(killed.elapsed());
        pinfold.wait().unwrap();
        let now = lines_so_far(&results);
        assert_no_second_run(&ran_before, &ran(&ran_log), &seen);
        kills += u32::from(now.len() < count);
        seen = now;
    }
    // A second is promised, by a machine that has time for it (promise 2 has its own tests).
    eprintln!("{kills} kills in the middle, all gone after {longest:?} at most");
    assert!(kills > 0, "it was always over before it was killed");
    let before = ran(&ran_log);
    let last = pool(&["-j", "4", "--results", text(&results), "--resume", "--", "sh", "-c", &script], &jobs);
    let last = last.assert_code(0);
    let left = count - seen.len();
    let said = format!("{left} succeeded, 0 failed, {} left out", seen.len());
    assert!(last.stderr.contains(&said), "{said}: {}", last.stderr);
    assert_no_second_run(&before, &ran(&ran_log), &seen);
    assert_eq!(lines(&results).len(), count);
    let lines_reported: std::collections::BTreeSet<_> =
        lines(&results).iter().map(|line| line["line"].as_u64().unwrap()).collect();
    assert_eq!(lines_reported.len(), count, "each has one report");
    assert_eq!(ran(&ran_log).len(), count, "none is lost");
}

/// The numbers of the lines that are whole.
fn lines_so_far(results: &Path) -> Vec<u64> {
    let text = std::fs::read_to_string(results).unwrap_or_default();
    let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    whole.map(|line| serde_json::from_str::<Value>(line).unwrap()["line"].as_u64().unwrap()).collect()
}

/// How often each job ran.
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
fn a_torn_last_line_is_repaired() {
    if !has_cgroup() {
        return;
    }
    let results = Scratch::new("torn");
    let args = ["-j", "1", "--results", text(results.path()), "--", "echo"];
    pool(&args, "a\nb\nc\n").assert_code(0);
    let refused = pool(&args, "a\n").assert_code(125);
    assert!(refused.stderr.contains("--resume"), "{}", refused.stderr);
    let whole = results.text();
    let file = std::fs::OpenOptions::new().write(true).open(results.path()).unwrap();
    file.set_len(whole.len() as u64 - 10).unwrap();
    let mut resume = args.to_vec();
    resume.insert(0, "--resume");
    let ran = pool(&resume, "a\nb\nc\nd\n").assert_code(0);
    assert_eq!(ran.stdout, "c\nd\n");
    assert!(ran.stderr.contains("was torn") && ran.stderr.contains("2 left out"), "{}", ran.stderr);
    assert_eq!(lines(results.path()).len(), 4);
    // Twice the same job is two jobs.
    let ran = pool(&resume, "a\na\nb\n").assert_code(0);
    assert_eq!(ran.stdout, "a\n");
    // Another file is not taken for results.
    file.write_all_at(b"no", 0).unwrap();
    let ran = pool(&resume, "a\n").assert_code(125);
    assert!(ran.stderr.contains("line 1"), "{}", ran.stderr);
}

#[test]
fn a_deadline_fail_fast_and_interrupts() {
    if !has_cgroup() {
        return;
    }
    let sleeps = "100\n101\n102\n103\n104\n";
    let results = Scratch::new("deadline");
    let args = ["-j", "2", "--deadline", "300ms", "--results", text(results.path()), "--", "sleep"];
    let ran = pool(&args, sleeps).assert_code(124);
    assert!(ran.stderr.contains("2 ended early, 3 never started"), "{}", ran.stderr);
    // None of them is done, so all of them run again.
    assert!(lines(results.path()).iter().all(|line| line["done"] == false && line["report"]["reason"] == "deadline"));

    let ran = pool(&["-j", "2", "--fail-fast", "--shell"], "sleep 100\nexit 3\nsleep 101\nsleep 102\n").assert_code(1);
    assert!(ran.stderr.contains("1 failed, 1 ended early, 2 never started"), "{}", ran.stderr);

    // Once: they are stopped. Twice: killed.
    let polite = "setsid sleep 100 & echo ready >&2; wait\n".repeat(3);
    let mut running = start(&["-j", "2", "--shell", "--output", "stream"], &polite);
    assert_eq!((running.error_line(), running.error_line()), ("ready".into(), "ready".into()));
    running.signal(libc::SIGTERM);
    let ran = running.finish().assert_code(128 + libc::SIGTERM);
    assert!(ran.stderr.contains("SIGTERM: stopping 2 jobs"), "{}", ran.stderr);
    assert!(ran.stderr.contains("2 ended early, 1 never started"), "{}", ran.stderr);

    let deaf = "trap '' TERM INT; echo ready >&2; while :; do sleep 100; done\n";
    let mut running = start(&["-j", "2", "--shell", "--output", "stream", "--grace", "1h"], deaf);
    assert_eq!(running.error_line(), "ready");
    running.signal(libc::SIGINT);
    assert!(running.error_line().contains("SIGINT: stopping 1 jobs"));
    running.signal(libc::SIGTERM);
    let ran = running.finish().assert_code(128 + libc::SIGTERM);
    assert!(ran.stderr.contains("killed") || ran.stderr.contains("stopped"), "{}", ran.stderr);

    // By the signal itself, for the sake of loops in shells.
    let mut running = start(&["--shell", "--output", "stream"], "echo ready >&2; sleep 100\n");
    assert_eq!(running.error_line(), "ready");
    running.signal(libc::SIGINT);
    assert_eq!(running.finish().signal, Some(libc::SIGINT));
}

/// A killed guard is the end of all, and said so; what was not done is not taken for done.
#[test]
fn a_killed_guard() {
    if !has_cgroup() {
        return;
    }
    let results = Scratch::new("guard");
    let args = ["-j", "2", "--shell", "--output", "stream", "--results", text(results.path())];
    let mut running = start(&args, &"echo ready >&2; sleep 100\n".repeat(4));
    assert_eq!((running.error_line(), running.error_line()), ("ready".into(), "ready".into()));
    let pinfold = running.pinfold_pid();
    let children = std::fs::read_to_string(format!("/proc/{pinfold}/task/{pinfold}/children")).unwrap();
    let guard: i32 = children.split_whitespace().next().unwrap().parse().unwrap();
    // SAFETY: pinfold's child, which it has not reaped: it lives.
    #[allow(unsafe_code)]
    let killed = unsafe { libc::kill(guard, libc::SIGKILL) };
    assert_eq!(killed, 0);
    let ran = running.finish().assert_code(125);
    assert!(ran.stderr.contains("guard process was killed"), "{}", ran.stderr);
    assert!(lines(results.path()).iter().all(|line| line["done"] == false), "{}", results.text());
}

/// Bounded memory, nothing lost that the mode promises, no hang. `PINFOLD_MONSTER` is how many bytes the largest one prints:
/// 20 MB, or 5 GB where somebody says 5000000000.
#[test]
fn output_monsters() {
    if !has_cgroup() {
        return;
    }
    let monster: u64 = std::env::var("PINFOLD_MONSTER").map_or(20_000_000, |bytes| bytes.parse().unwrap());
    let jobs = format!(
        "yes 0123456789abcde | head -c {monster}\n\
         head -c {monster} /dev/zero\n\
         printf 'a\\377\\376b\\n\\377'\n\
         exec >&- 2>&-; sleep 0.2\n\
         echo last\n"
    );
    for mode in ["group", "stream"] {
        let mut running = start(&["-j", "5", "--shell", "--output", mode], &jobs);
        let pid = running.pinfold_pid();
        let mut out = running.child.stdout.take().unwrap();
        let (mut zeros, mut text, mut invalid) = (0_u64, 0_u64, 0);
        let mut piece = vec![0; 256 * 1024];
        let mut peak = 0;
        while let length @ 1.. = out.read(&mut piece).unwrap() {
            for &byte in &piece[..length] {
                match byte {
                    0 => zeros += 1,
                    b'0'..=b'9' => text += 1,
                    0xff => invalid += 1,
                    _ => {}
                }
            }
            peak = peak.max(resident_kib(pid).unwrap_or(peak));
        }
        let ran = running.finish().assert_code(0);
        assert_eq!(zeros, monster, "{mode}");
        // 10 of each 16 bytes are digits.
        assert!(text.abs_diff(monster / 16 * 10) <= 10, "{mode}: {text}");
        assert_eq!(invalid, 2, "{mode}");
        assert!(ran.stderr.contains("5 succeeded, 0 failed"), "{}", ran.stderr);
        assert!(peak < 48 * 1024, "{mode}: {peak} KiB resident");
        eprintln!("{mode}: {monster} bytes twice, at most {peak} KiB resident");
    }
}

fn resident_kib(pid: i32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    resident.trim().trim_end_matches(" kB").parse().ok()
}

/// 100 MB that nobody reads hold nobody up.
#[test]
fn input_that_is_not_read() {
    if !has_cgroup() {
        return;
    }
    let size: usize = 20_000_000;
    let jobs = format!("{{\"command\": [\"echo\", \"done\"], \"stdin\": \"{}\"}}\n", "x".repeat(size));
    let ran = pool(&[], &jobs).assert_code(0);
    assert_eq!(ran.stdout, "done\n");
}

#[test]
fn outputs_of_retries_files_and_tags() {
    if !has_cgroup() {
        return;
    }
    let directory = Scratch::directory("files");
    let path = directory.path().join("made/here");
    let option = format!("files={}", path.display());
    let attempts = directory.path().join("attempts");
    let script = format!(
        "echo out {{}}; echo err >&2; echo x >> {}{{}}; test $(wc -l < {}{{}}) -ge 2",
        text(&attempts),
        text(&attempts)
    );
    let args = ["--output", &option, "--retries", "2", "--backoff", "10ms", "--", "sh", "-c", &script];
    let ran = pool(&args, "a\n\nb\n").assert_code(0);
    assert_eq!(ran.stdout, "");
    let read = |name: &str| std::fs::read_to_string(path.join(name)).unwrap();
    assert_eq!((read("1.out"), read("3.out")), ("out a\nout a\n".into(), "out b\nout b\n".into()));
    assert_eq!(read("1.err"), "err\nerr\n");

    let tiny = program("tiny");
    let ran = pool(&["--output", "stream", "--tag", "--shell"], "printf 'a\\nb'\n").assert_code(0);
    assert_eq!(ran.stdout, "printf 'a\\nb'\ta\nprintf 'a\\nb'\tb\n");
    let ran = pool(&["-j", "200%", "--", tiny.to_str().unwrap()], "x\n").assert_code(0);
    assert_eq!(ran.stdout, "");
}

/// Somebody who closes the pipe, as head(1) does, is told of, and nothing hangs.
#[test]
fn a_reader_that_goes_away() {
    if !has_cgroup() {
        return;
    }
    for mode in ["group", "stream"] {
        let mut running = start(&["-j", "2", "--output", mode, "--", "seq", "100000"], &"100001\n".repeat(50));
        drop(running.child.stdout.take());
        let ran = running.finish().assert_code(125);
        assert!(ran.stderr.contains("cannot write the jobs' output: Broken pipe"), "{}", ran.stderr);
    }
}

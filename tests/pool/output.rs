//! The output of `pinfold pool`, and the input of its jobs: bounded memory, and no loss of what the mode promises.

use std::io::{Read, Write};

use serde_json::json;

use crate::support::events::wait_in;
use crate::support::pool::{pool, start, text};
use crate::support::{PINFOLD, Run, Scratch, program, wait_for};

/// Memory stays bounded, no output is lost that the mode promises, and nothing hangs. `PINFOLD_MONSTER` is how many
/// bytes the largest job prints: 20 MB by default; 5000000000 makes it 5 GB.
#[test]
#[requires(cgroup)]
fn output_monsters() {
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
        ran.assert_counts(5, 0);
        assert!(peak < 48 * 1024, "{mode}: {peak} KiB resident");
        eprintln!("{mode}: {monster} bytes twice, at most {peak} KiB resident");
    }
}

/// The same with output to files, where each job's file can be compared byte by byte.
#[test]
#[requires(cgroup)]
fn output_monsters_in_files() {
    let monster: u64 = std::env::var("PINFOLD_MONSTER").map_or(20_000_000, |bytes| bytes.parse().unwrap());
    let directory = Scratch::directory("monsters");
    let jobs = format!(
        "head -c {monster} /dev/zero; head -c 10 /dev/zero >&2\nprintf 'a\\377\\376b\\n\\377'\nexec >&- 2>&-; sleep 0.2\n"
    );
    let mut running = start(&["--shell", "--output", &format!("files={}", text(directory.path()))], &jobs);
    let pid = running.pinfold_pid();
    let mut rest = String::new();
    running.child.stdout.take().unwrap().read_to_string(&mut rest).unwrap();
    let peak = std::fs::read_to_string(format!("/proc/{pid}/status")).ok();
    running.finish().assert_code(0);
    let length = |name: &str| directory.path().join(name).metadata().unwrap().len();
    assert_eq!((rest.as_str(), length("1.out"), length("1.err")), ("", monster, 10), "{peak:?}");
    assert_eq!(std::fs::read(directory.path().join("2.out")).unwrap(), b"a\xff\xfeb\n\xff");
    assert_eq!((length("3.out"), length("3.err")), (0, 0));
}

fn resident_kib(pid: i32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    resident.trim().trim_end_matches(" kB").parse().ok()
}

/// A large input that no job reads blocks nothing, pinfold holds it only once, and jobs that read it get all of it.
/// `PINFOLD_STDIN` is its size: 20 MB by default; 100000000 makes it 100 MB.
#[test]
#[requires(cgroup)]
fn input_that_is_not_read() {
    let size: usize = std::env::var("PINFOLD_STDIN").map_or(20_000_000, |bytes| bytes.parse().unwrap());
    let text = "x".repeat(size);
    let line = |script: &str| format!("{{\"command\": [\"sh\", \"-c\", \"{script}\"], \"stdin\": \"{text}\"}}\n");
    // The first job never reads it, the second closes it at once, the third reads a part, and the last reads all.
    let jobs = ["echo done", "exec <&-; echo done", "head -c 5; echo; echo done", "wc -c"].map(line).concat();
    for mode in ["group", "stream"] {
        let mut running = start(&["-j", "1", "--output", mode], &jobs);
        let pid = running.pinfold_pid();
        let mut out = std::io::BufReader::new(running.child.stdout.take().unwrap());
        let (mut seen, mut peak) = (String::new(), 0);
        while std::io::BufRead::read_line(&mut out, &mut seen).unwrap() > 0 {
            peak = peak.max(resident_kib(pid).unwrap_or(0));
        }
        running.finish().assert_code(0);
        assert_eq!(seen, format!("done\ndone\nxxxxx\ndone\n{size}\n"), "{mode}");
        eprintln!("{mode}: {size} bytes four times, {peak} KiB resident while they run");
        assert!(peak < (4 * size as u64) / 1024 * 5 / 4 + 32 * 1024, "{mode}: {peak} KiB resident");
    }
}

#[test]
#[requires(cgroup)]
fn outputs_of_retries_files_and_tags() {
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

/// Jobs that print at the same time: each line is whole, has its tag, and comes in the order in which its job wrote it. The
/// last line of a job has no newline, and the job's reads cut the lines anywhere.
#[test]
#[requires(cgroup)]
fn streamed_lines_stay_whole_and_in_order() {
    // From 2 bytes to the longest line that is printed as one piece.
    let lengths = [1, 1, 2, 77, 4095, 1, 30_000, 64 * 1024, 3];
    let words: Vec<String> = lengths.iter().map(|length| "x".repeat(*length)).collect();
    let file = Scratch::new("lines");
    std::fs::write(file.path(), (words.join("\n") + "\n").repeat(20)).unwrap();
    let script = |letter: &str| format!("tr x {letter} <{}; seq 30000; printf end", text(file.path()));
    for tagged in [true, false] {
        let job = |name: &str| json!({"name": name, "command": ["sh", "-c", script(name)]}).to_string();
        let jobs = ["a", "b", "c"].map(job).join("\n");
        let args = ["-q", "-j", "3", "--output", "stream"];
        let tag: &[&str] = if tagged { &["--tag"] } else { &[] };
        let ran = pool(&[&args, tag].concat(), &jobs).assert_code(0);
        let expected = |name: &str| -> Vec<String> {
            let letters = (0..20).flat_map(|_| &words).map(|word| word.replace('x', name));
            letters.chain((1..=30_000).map(|number| number.to_string())).chain(["end".into()]).collect()
        };
        let mut all: Vec<&str> = ran.stdout.lines().collect();
        if tagged {
            for name in ["a", "b", "c"] {
                let own: Vec<&str> =
                    all.iter().filter_map(|line| line.strip_prefix(&format!("{name}\t")[..])).collect();
                assert!(own == expected(name), "{name}: {} lines", own.len());
            }
            assert_eq!(all.len(), 3 * expected("a").len());
        } else {
            let mut expected = ["a", "b", "c"].map(expected).concat();
            all.sort_unstable();
            expected.sort_unstable();
            assert!(all == expected, "{} lines", all.len());
        }
    }
}

/// When a reader closes the pipe, as head(1) does, the pool ends without a message, as other programs end by SIGPIPE.
#[test]
#[requires(cgroup)]
fn a_reader_that_goes_away_ends_the_pool_quietly() {
    for mode in [["--output=group"].as_slice(), &["--output=group", "--keep-order"], &["--output=stream"]] {
        let results = Scratch::new("unread");
        let args = [&["-j", "2", "--results", text(results.path())], mode, &["--", "seq", "1"]].concat();
        let mut running = start(&args, &"100001\n".repeat(50));
        drop(running.child.stdout.take());
        let ran = running.finish();
        assert_eq!((ran.code, ran.stderr.as_str()), (128 + libc::SIGPIPE, ""), "{mode:?}");
        // A job whose output was not printed is not done.
        assert_eq!(results.text().matches("\"done\":true").count(), 0, "{mode:?}");
    }
}

/// Asserts that the pool fails because output is lost, and that it has not recorded the job that lost the output.
fn assert_loss(mut run: Run, jobs: &str, said: &str) {
    run.command().stdin(std::process::Stdio::piped());
    let mut running = run.start();
    running.child.stdin.take().unwrap().write_all(jobs.as_bytes()).unwrap();
    let ran = running.finish().assert_code(125);
    assert!(ran.stderr.contains(said), "{said}: {}", ran.stderr);
}

/// Runs `pinfold pool ARGS` in a shell script, in which `"$@"` is the call.
fn pool_in_shell(script: &str, args: &[&str]) -> Run {
    Run::bare(["bash", "-c", script, "bash", PINFOLD, "pool"].iter().chain(args))
}

#[test]
#[requires(cgroup)]
fn output_that_cannot_be_written_fails_the_pool() {
    let file = Scratch::new("limited");
    let limited = format!("ulimit -f 4; exec \"$@\" >{}", text(file.path()));
    for (script, said) in [
        ("exec \"$@\" >/dev/full", "No space left on device"),
        ("exec \"$@\" >&-", "standard output is closed"),
        (&limited, "File too large"),
    ] {
        for mode in ["--output=group", "--output=stream", "--keep-order"] {
            let results = Scratch::new("lost");
            let args = [mode, "--results", text(results.path()), "--", "seq"];
            assert_loss(pool_in_shell(script, &args), "100000\n", said);
            assert_eq!(results.text(), "", "{script} {mode}");
        }
    }
    // A job that prints nothing loses nothing.
    pool_in_shell("exec \"$@\" >&- </dev/null", &["--", "true"]).run().assert_code(0);
}

/// The directory for temporary files is full, missing, or not writable: jobs that exit with 0 lose output.
#[test]
#[requires(cgroup, root, program("unshare"))]
fn output_that_finds_no_room_on_the_disk_fails_the_pool() {
    let directory = Scratch::directory("tmpdir");
    let path = text(directory.path());
    let full = format!("mount -t tmpfs -o size=64k tmpfs {path} && TMPDIR={path} exec \"$@\"");
    let none = "TMPDIR=/no/such/directory exec \"$@\"";
    let read_only = format!("mount -t tmpfs -o ro tmpfs {path} && TMPDIR={path} exec \"$@\"");
    let calls = [(full.as_str(), "No space left"), (none, "/no/such/directory"), (&read_only, "Read-only file system")];
    for (script, said) in calls {
        // One output is too large for the memory, and small outputs wait for an earlier one: the first job ends only when
        // the last one has written.
        let last = Scratch::new("last");
        rustix::fs::mkfifoat(rustix::fs::CWD, last.path(), 0o600.into()).unwrap();
        let waits = format!(
            "echo {{}}; [ {{}} != 1 ] || read -r line <{fifo}; seq 1 3000; [ {{}} != 8 ] || echo >{fifo}",
            fifo = text(last.path())
        );
        let large = "seq 1 {}00000 || true";
        for (args, jobs) in [
            (["-j", "1", "--", "sh", "-c", large].as_slice(), "1\n".to_owned()),
            (&["-j", "2", "--keep-order", "--", "sh", "-c", &waits], (1..9).map(|job| format!("{job}\n")).collect()),
        ] {
            let results = Scratch::new("lost");
            let args = [&["--results", text(results.path())], args].concat();
            let words = ["unshare", "-m", "bash", "-c", script, "bash", PINFOLD, "pool"];
            assert_loss(Run::bare(words.iter().chain(&args)), &jobs, said);
            let done = results.text().matches("\"done\":true").count();
            assert!(done < jobs.lines().count(), "{script} {args:?}: {done}");
        }
    }
}

/// After a halt only the output of finished jobs is printed, if that is requested.
#[test]
#[requires(cgroup)]
fn a_halt_prints_finished_jobs_only() {
    let ready = Scratch::directory("ready");
    let script = format!("echo begins {{}}; [ {{}} = 1 ] || {{ touch {}/{{}}; sleep 1000; }}", text(ready.path()));
    for (more, printed) in [(["--keep-order"].as_slice(), 4), (&["--finished-only"], 1)] {
        let args = [&["-j", "3"], more, &["--", "sh", "-c", &script]].concat();
        let mut running = start(&args, "1\n2\n3\n4\n");
        let mut first = String::new();
        let mut out = std::io::BufReader::new(running.child.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut out, &mut first).unwrap();
        assert_eq!(first, "begins 1\n");
        wait_in(ready.path(), || ["2", "3", "4"].iter().all(|job| ready.path().join(job).exists()).then_some(()));
        running.signal(libc::SIGTERM);
        let mut rest = String::new();
        out.read_to_string(&mut rest).unwrap();
        running.finish().assert_code(128 + libc::SIGTERM);
        assert_eq!(1 + rest.lines().count(), printed, "{more:?}: {rest}");
        ["2", "3", "4"].iter().for_each(|job| std::fs::remove_file(ready.path().join(job)).unwrap());
    }
}

/// A caller may pass a non-blocking pipe (Node, ssh, make): when it is full, pinfold waits until it has room, and no
/// job ends because of it.
#[test]
#[requires(cgroup)]
fn streams_that_do_not_block() {
    let lines: String = (0..100_000).map(|number| format!("{number}\n")).collect();
    for (mode, more) in [("group", None), ("group", Some("--keep-order")), ("stream", None)] {
        let (reader, writer) = std::io::pipe().unwrap();
        let (stdin, mut jobs) = std::io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        rustix::io::ioctl_fionbio(&stdin, true).unwrap();
        let mut run =
            Run::bare([PINFOLD, "pool", "-j", "2", "--output", mode].into_iter().chain(more).chain(["--", "seq", "0"]));
        run.command().stdin(stdin).stdout(writer);
        let running = run.start();
        // pinfold has read it, and waits for more.
        jobs.write_all(b"99999\n").unwrap();
        wait_for(|| (rustix::io::ioctl_fionread(&jobs).unwrap() == 0).then_some(()));
        jobs.write_all(b"99999\n").unwrap();
        drop(jobs);
        // The pipe is full: the next write fails with EAGAIN.
        wait_for(|| (rustix::io::ioctl_fionread(&reader).unwrap() >= 60_000).then_some(()));
        let reading = std::thread::spawn(move || std::io::read_to_string(reader).unwrap());
        let ran = running.finish().assert_code(0);
        let seen = reading.join().unwrap();
        assert_eq!(seen.len(), 2 * lines.len(), "{mode}: {}", ran.stderr);
        assert!(mode == "stream" || seen == lines.repeat(2), "{mode}");
    }
}

/// Standard output and standard error of a job are one stream, in the order in which the job wrote. This is the default
/// where the output is grouped.
#[test]
#[requires(cgroup)]
fn merged_streams_keep_their_order() {
    let script = "for i in 1 2 3 4 5; do echo out $i; echo err $i >&2; done";
    let both: String = (1..=5).map(|i| format!("out {i}\nerr {i}\n")).collect();
    let only = |stream: &str| -> String { (1..=5).map(|i| format!("{stream} {i}\n")).collect() };
    let directory = Scratch::directory("merged");
    let files = format!("--output=files={}", text(directory.path()));
    let json = format!(r#"{{"command": ["sh", "-c", "{script}"], "stderr": "merged"}}"#);
    for (args, jobs, out, error) in [
        (["--shell"].as_slice(), script, both.as_str(), ""),
        (&["--shell", "--keep-order"], script, &both, ""),
        (&["--shell", "--stderr", "separate"], script, &only("out"), &only("err")),
        (&["--shell", "--output=stream"], script, &only("out"), &only("err")),
        (&["--shell", "--output=stream", "--stderr=merged"], script, &both, ""),
        (&["--output=stream"], &json, &both, ""),
        (&["--shell", "--stderr=merged", &files], script, "", ""),
    ] {
        let ran = pool(&[&["-q"], args].concat(), jobs).assert_code(0);
        assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), (out, error), "{args:?}");
    }
    assert_eq!(std::fs::read_to_string(directory.path().join("1.out")).unwrap(), both);
    assert!(!directory.path().join("1.err").exists());
    // More output than is kept in memory.
    let large = "for i in $(seq 1 20000); do echo $i; echo $i >&2; done";
    let lines: String = (1..=20000).map(|i| format!("{i}\n{i}\n")).collect();
    assert!(pool(&["--shell"], large).assert_code(0).stdout == lines);
}

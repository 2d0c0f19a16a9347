//! The jobs that `pinfold pool` reads: it finds errors in them before any job starts, and no input line runs as code.

use std::fmt::Write as _;
use std::io::Write as _;

use crate::support::pool::{pool, text};
use crate::support::{PINFOLD, Run, Scratch};

#[test]
#[requires(cgroup)]
fn bad_lines_are_all_found_before_anything_starts() {
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
        // Valid lines and empty lines in between: the line numbers count all of them.
        let _ = writeln!(jobs, "{line}\n\n{good}");
    }
    let ran = pool(&[], &jobs).assert_code(125);
    for (number, line) in bad.iter().enumerate() {
        let place = format!("\n  line {}: ", 2 + 3 * number);
        assert!(ran.stderr.contains(&place), "line of {line}: {}", ran.stderr);
    }
    assert_eq!(ran.stderr.matches("\n  line ").count(), bad.len(), "{}", ran.stderr);
    assert!(!scratch.path().exists());
    for (args, named) in [
        (["-j", "0"].as_slice(), "--workers"),
        (&["--output", "files="], "files=DIR"),
        (&["--keep-order", "--output", "stream"], "--keep-order"),
        (&["--tag"], "--tag"),
        (&["--resume"], "--results"),
        (&["--jobs", "/no/such"], "/no/such"),
        (&["--results", "/no/such/file"], "/no/such/file"),
    ] {
        let ran = pool(args, "{\"command\": [\"true\"]}\n").assert_code(125);
        ran.assert_names(named);
    }
}

/// In a shell script, `{q}` is the line as one word, whatever it contains. `{}` is code, and pinfold warns about that.
#[test]
#[requires(cgroup)]
fn a_quoted_line_never_runs_as_code() {
    let lines = [
        "$(touch ran)",
        "`touch ran`",
        "; touch ran",
        "it's",
        "'; touch ran '",
        "a  b",
        "*",
        "\\",
        "-n x",
        "\"$HOME\"",
        "ä",
    ];
    let directory = Scratch::directory("quoted");
    let jobs = lines.join("\n") + "\n";
    for script in ["printf '%s\\n' {q}", "printf '%s%s\\n' '' {q}", "cat <<<{q}"] {
        let cd = format!("cd {}; {script}", text(directory.path()));
        let ran = pool(&["--keep-order", "--", "bash", "-c", &cd], &jobs).assert_code(0);
        assert_eq!(ran.stdout, jobs, "{script}");
        // There is no warning.
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
        assert!(!directory.path().join("ran").exists(), "{script}");
    }
    for (command, warns) in [
        (["sh", "-c", ": '{}'"].as_slice(), true),
        (&["env", "bash", "-euo", "pipefail", "-c", ": {}"], true),
        (&["sh", "-c", ": \"$1\"", "sh", "{}"], false),
        (&["true", "{}"], false),
        (&["sh", "-c", ": {q}"], false),
    ] {
        let ran = pool(&[&["--"], command].concat(), "x\n").assert_code(0);
        assert_eq!(ran.stderr.contains("{q}"), warns, "{command:?}: {}", ran.stderr);
        assert_eq!(pool(&[&["-q", "--"], command].concat(), "x\n").assert_code(0).stderr, "");
    }
}

/// Messages about a line of JSON name the error, and what to write instead.
#[test]
fn messages_about_lines_of_json_show_the_value() {
    for (line, said) in [
        (b"{\"command\": \"echo x\"}".as_slice(), r#""command": ["echo","x"]"#),
        (b"{\"command\": \"echo x | wc\"}", r#"["sh","-c","echo x | wc"]"#),
        (b"{\"command\": {}}", r#"["cc", "-c", "a.c"]"#),
        (b"{\"command\": [\"cat\", \"caf\xe9.txt\"]}", r"caf\xe9.txt"),
        (b"\xff\xfe{}", r"\xff\xfe"),
    ] {
        let mut run = Run::bare([PINFOLD, "pool"]);
        run.command().stdin(std::process::Stdio::piped());
        let mut running = run.start();
        running.child.stdin.take().unwrap().write_all(line).unwrap();
        let ran = running.finish().assert_code(125);
        assert!(ran.stderr.contains(said), "{said}: {}", ran.stderr);
    }
}

/// Endless input, with one line or with many, is refused before it fills the memory.
#[test]
fn an_endless_input_is_refused() {
    for (input, args) in [
        ("yes", "-- echo"),
        ("cat /dev/zero", "-- echo"),
        ("cat /dev/zero", "--shell"),
        ("cat /dev/zero", ""),
        ("yes", "-0 -- echo"),
        ("true", "--jobs /dev/zero"),
    ] {
        // If pinfold does not refuse it, it fails at this limit.
        let script = format!("{input} | (ulimit -v 2000000; exec {PINFOLD} pool {args})");
        // A failed allocation would abort pinfold, with another exit code.
        let ran = Run::bare(["bash", "-c", &script]).run().assert_code(125);
        assert!(ran.stderr.starts_with("pinfold: "), "{script}: {}", ran.stderr);
    }
}

//! The report: checks what `--report` writes against the committed schema.

use std::io::{BufRead, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use serde_json::{Value, json};

use crate::support::events::{Process, wait_for_file};
use crate::support::{PINFOLD, PROJECT, Ran, Run, Scratch, wait_for};

fn committed(name: &str) -> Value {
    let path = format!("{PROJECT}/docs/{name}.schema.json");
    serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap()
}

/// Closes the schema against unknown fields. Readers must accept new fields, but in this test every field must be in
/// the schema.
fn closed(mut schema: Value) -> Value {
    match &mut schema {
        Value::Object(object) => {
            for value in object.values_mut() {
                *value = closed(value.take());
            }
            if object.contains_key("properties") {
                object.insert("additionalProperties".into(), false.into());
            }
        }
        Value::Array(values) => {
            for value in values {
                *value = closed(value.take());
            }
        }
        _ => {}
    }
    schema
}

fn assert_valid(report: &Value) {
    assert_matches("report", report);
}

/// Asserts that a value matches `docs/NAME.schema.json`, and that the schema has all of its fields.
pub fn assert_matches(name: &str, value: &Value) {
    for schema in [committed(name), closed(committed(name))] {
        let validator = jsonschema::validator_for(&schema).unwrap();
        let errors: Vec<_> =
            validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect();
        assert!(errors.is_empty(), "{errors:#?} in {value:#}");
    }
}

fn valid(run: Run) -> Ran {
    let ran = run.run();
    assert_ne!(ran.report, Value::Null, "{ran:#?}");
    assert_valid(&ran.report);
    assert_eq!(ran.report["exit_code"], ran.code, "{ran:#?}");
    ran
}

/// After a change of the types: `PINFOLD_WRITE_SCHEMA=1 cargo test --all-features --test cli report::`.
#[cfg(feature = "schema")]
#[test]
fn the_committed_schema_is_the_generated_one() {
    // Generates the schema of serialised values, so that fields that are always written are required.
    let settings = schemars::generate::SchemaSettings::draft2020_12().for_serialize();
    let generated = settings.into_generator().into_root_schema_for::<pinfold::Report>();
    let generated = format!("{}\n", serde_json::to_string_pretty(&generated).unwrap());
    let path = format!("{PROJECT}/docs/report.schema.json");
    if std::env::var_os("PINFOLD_WRITE_SCHEMA").is_some() {
        std::fs::write(&path, &generated).unwrap();
    }
    assert!(
        std::fs::read_to_string(&path).is_ok_and(|committed| committed == generated),
        "{path} does not match the types: run this test with PINFOLD_WRITE_SCHEMA=1 and commit it"
    );
}

#[test]
#[requires(cgroup)]
fn the_schema_takes_new_fields_and_no_missing_or_wrong_ones() {
    let validator = jsonschema::validator_for(&committed("report")).unwrap();
    let report = valid(Run::new(["true"])).report;
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut changed = report.clone();
        change(&mut changed);
        validator.is_valid(&changed)
    };
    assert!(changed(&|report| report["new_field"] = json!(1)));
    assert!(changed(&|report| report["phases"]["new_phase"] = json!(1.5)));
    for field in report.as_object().unwrap().keys() {
        assert!(!changed(&|report| drop(report.as_object_mut().unwrap().remove(field))), "{field} can be left out");
    }
    assert!(!changed(&|report| report["reason"] = json!("boredom")));
    assert!(!changed(&|report| report["exit_code"] = json!(256)));
    assert!(!changed(&|report| report["main"] = json!({"exited": "0"})));
}

#[test]
#[requires(cgroup)]
fn success() {
    let ran = valid(Run::new(["--name", "a name", "sh", "-c", "exit 0"])).assert_code(0);
    let report = &ran.report;
    assert_eq!(report["version"], 1);
    assert_eq!(report["name"], "a name");
    assert_eq!(report["command"], json!(["sh", "-c", "exit 0"]));
    assert_eq!(report["main"], json!({"exited": 0}));
    assert_eq!((&report["reason"], &report["error"]), (&json!("exited"), &Value::Null));
    assert_eq!((&report["containment"]["kind"], &report["killed"]), (&json!("cgroup"), &json!(false)));
    let phases = &report["phases"];
    let at = |phase: &str| phases[phase].as_f64().unwrap_or_else(|| panic!("no {phase} in {phases}"));
    assert!(at("spawned") <= at("main_exited") && at("main_exited") <= at("empty") && at("empty") <= at("gone"));
    assert!(phases["stopping"].is_null() && phases["killing"].is_null());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((now - 60.0..=now).contains(&at("requested_at")));
}

#[test]
#[requires(cgroup)]
fn deadline_leftovers_and_signals() {
    let ran = valid(Run::new(["--timeout", "200ms", "sleep", "1000"])).assert_code(124);
    assert_eq!(ran.report["main"], json!({"signalled": {"signal": 15, "name": "SIGTERM", "core_dumped": false}}));
    assert_eq!(ran.report["stopped"]["processes"][0]["command_line"], "sleep 1000");
    assert_eq!(ran.report["stopped"]["processes"][0]["pid"], ran.report["pid"]);

    let ran = valid(Run::new(["sh", "-c", "sleep 1000 & exit 0"])).assert_code(0);
    assert_eq!(ran.report["leftovers"]["count"], 1);

    let ran = valid(Run::new(["sh", "-c", "kill -KILL $$"])).assert_code(137);
    assert_eq!(ran.report["main"]["signalled"]["name"], "SIGKILL");
    assert_eq!((&ran.report["reason"], &ran.report["killed"]), (&json!("exited"), &json!(false)));

    let mut running = Run::new(["sh", "-c", "echo ready; exec sleep 1000"]).start();
    assert_eq!(running.line(), "ready");
    running.signal(libc::SIGTERM);
    let ran = running.finish().assert_code(143);
    assert_valid(&ran.report);
    assert_eq!(ran.report["reason"], "stopped");
}

#[test]
#[requires(cgroup)]
fn a_command_that_could_not_be_started() {
    for (words, code, named) in [
        (vec!["no-such-command", "with", "arguments"], 127, "'no-such-command'"),
        (vec!["/"], 126, "'/'"),
        (vec!["--cwd", "/no/such", "true"], 125, "'/no/such'"),
    ] {
        let ran = valid(Run::new(&words)).assert_code(code);
        assert_eq!(ran.report["reason"], "spawn_failed");
        let error = ran.report["error"].as_str().unwrap();
        assert!(error.contains(named), "{ran:#?}");
        assert_eq!(ran.stderr, format!("pinfold: {error}\n"));
        assert_eq!((&ran.report["pid"], &ran.report["main"]), (&Value::Null, &Value::Null));
        // No containment was set up.
        assert_eq!(ran.report["containment"], json!({"kind": null, "cgroup": null, "born": null, "refused": []}));
    }
}

/// Every failure to start is in the report, once the report's file is open.
#[test]
fn a_command_that_was_not_tried_is_in_the_report() {
    let failed = |run: Run, named: &str| {
        let ran = valid(run).assert_code(125);
        assert_eq!(ran.report["reason"], "spawn_failed");
        let error = ran.report["error"].as_str().unwrap();
        assert!(error.contains(named), "{ran:#?}");
        assert_eq!(ran.stderr, format!("pinfold: {error}\n"));
        assert_eq!((&ran.report["pid"], &ran.report["containment"]["kind"]), (&Value::Null, &Value::Null));
        ran
    };
    let ran = failed(Run::new(["--cgroup", "/tmp", "true"]), "/tmp");
    let refused = ran.report["containment"]["refused"].as_array().unwrap();
    assert_eq!((refused.len(), &refused[0]["tried"]), (1, &json!("/tmp")), "{ran:#?}");
    failed(Run::new(["--env", "A=1", "--cgroup", "/no/such", "true"]), "/no/such");
}

/// Two signals that were pending before pinfold itself started: the second one kills.
#[test]
#[requires(cgroup, program("python3"))]
fn a_signal_before_the_command_was_executed() {
    let waiting = |signals: &str| {
        format!(
            r#"exec python3 -c "
import os, signal, sys
for name in '{signals}'.split():
    signal.pthread_sigmask(signal.SIG_BLOCK, [getattr(signal, name)])
    os.kill(os.getpid(), getattr(signal, name))
os.execv(sys.argv[1], sys.argv[1:])" "$@""#
        )
    };
    let mark = Scratch::new("mark");
    let job = format!("echo ran >{}; exec sleep 999", mark.path().display());
    for (signals, code, name) in [("SIGTERM SIGHUP", 143, "SIGTERM"), ("SIGINT SIGQUIT", 131, "SIGQUIT")] {
        let ran = valid(Run::in_shell(&waiting(signals), ["sh", "-c", &job])).assert_code(code);
        assert!(!mark.path().exists(), "{ran:#?}");
        assert_eq!((&ran.report["reason"], ran.stderr.as_str()), (&json!("stopped"), ""));
        assert!(ran.report["error"].as_str().unwrap().contains(name), "{ran:#?}");
    }
}

#[test]
#[requires(cgroup)]
fn every_place_takes_the_same_report() {
    let parsed = |text: &str| {
        assert!(text.ends_with('\n') && text.lines().count() == 1, "{text:?} is not one line");
        let report: Value = serde_json::from_str(text).unwrap();
        assert_valid(&report);
        assert_eq!(report["main"]["exited"], 7);
    };
    // The report follows what the job itself has written there.
    let ran = Run::bare([PINFOLD, "run", "--report", "-", "sh", "-c", "echo output; exit 7"]).run().assert_code(7);
    parsed(ran.stdout.strip_prefix("output\n").unwrap());

    let script = r#"exec 9>&1 1>&2; exec "$@""#;
    // The job does not inherit that descriptor.
    let job = "echo output; test ! -e /proc/self/fd/9 && exit 7";
    let words = ["bash", "-c", script, "bash", PINFOLD, "run", "--report", "fd:9", "sh", "-c", job];
    let ran = Run::bare(words).run().assert_code(7);
    assert_eq!(ran.stderr, "output\n");
    parsed(&ran.stdout);

    // A longer file that already exists, a link to it, and a FIFO.
    let scratch = Scratch::directory("reports");
    let (file, link) = (scratch.path().join("file"), scratch.path().join("link"));
    std::fs::File::create(&file).unwrap().write_all(&[b'x'; 100_000]).unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let mut run = Run::bare([PINFOLD, "run", "--report"]);
    run.command().arg(&link).args(["sh", "-c", "exit 7"]);
    run.run().assert_code(7);
    parsed(&std::fs::read_to_string(&file).unwrap());

    let words = ["bash", "-c", r#""$@" | cat"#, "bash", PINFOLD, "run", "--report", "/dev/stdout"];
    parsed(&Run::bare(words.iter().chain(&["sh", "-c", "exit 7"])).run().assert_code(0).stdout);
}

const OLD: &str = "{\"exit_code\":0,\"of\":\"an earlier run\"}\n";

fn reporting_to(path: &Path, script: &str) -> Run {
    Run::bare([PINFOLD, "run", "--report", path.to_str().unwrap(), "--", "sh", "-c", script])
}

/// While a job runs, the report of an earlier run is not there, so that it cannot be mistaken for the report of a run
/// that was killed.
#[test]
#[requires(cgroup)]
fn no_old_report_is_there_while_a_job_runs() {
    let scratch = Scratch::directory("old-report");
    let [file, link, twin, dangling] = ["file", "link", "twin", "dangling"].map(|name| scratch.path().join(name));
    std::os::unix::fs::symlink("file", &link).unwrap();
    std::os::unix::fs::symlink("not-there-yet", &dangling).unwrap();
    for (place, has_twin) in [(&file, false), (&link, false), (&file, true), (&dangling, false)] {
        std::fs::write(&file, OLD).unwrap();
        if has_twin {
            std::fs::hard_link(&file, &twin).unwrap();
        }
        // Runs without a warden: the warden would count the processes that the guard ends after this.
        let mut pinfold = std::process::Command::new(PINFOLD);
        pinfold.args(["run", "--report"]).arg(place).args(["--", "sh", "-c", "echo $$; exec sleep 1000"]);
        let mut pinfold = pinfold.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut pid = String::new();
        std::io::BufReader::new(pinfold.stdout.take().unwrap()).read_line(&mut pid).unwrap();
        assert_eq!(std::fs::read_to_string(place).unwrap_or_default(), "", "{}", place.display());
        let end = Process::of(pid.trim().parse().unwrap());
        pinfold.kill().unwrap();
        pinfold.wait().unwrap();
        end.wait_for_end();
        assert_eq!(std::fs::read_to_string(place).unwrap_or_default(), "", "{}", place.display());
    }
}

/// A file keeps its mode, its owner, its symbolic links and its hard links, and nothing is left beside it.
#[test]
#[requires(cgroup, root, program("unshare"))]
fn a_report_takes_the_place_of_the_old_one() {
    let scratch = Scratch::directory("new-report");
    let [file, link, twin] = ["file", "link", "twin"].map(|name| scratch.path().join(name));
    std::os::unix::fs::symlink("file", &link).unwrap();
    std::fs::write(&file, OLD.repeat(1000)).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    let owner = (64_001, 64_002);
    std::os::unix::fs::chown(&file, Some(owner.0), Some(owner.1)).unwrap();
    let mut held = std::fs::File::open(&file).unwrap();
    let parsed = |path: &Path, code: i32| {
        let report: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!(report["exit_code"], code);
    };
    reporting_to(&link, "exit 7").run().assert_code(7);
    parsed(&link, 7);
    let now = file.metadata().unwrap();
    assert_eq!((now.mode() & 0o7777, (now.uid(), now.gid())), (0o640, owner));
    assert!(link.symlink_metadata().unwrap().is_symlink());
    // A reader that had the old report open can read it to its end.
    let mut old = String::new();
    std::io::Read::read_to_string(&mut held, &mut old).unwrap();
    assert_eq!(old.len(), 1000 * OLD.len());

    std::fs::hard_link(&file, &twin).unwrap();
    reporting_to(&file, "exit 8").run().assert_code(8);
    parsed(&twin, 8);
    let mut names: Vec<_> =
        std::fs::read_dir(scratch.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["file", "link", "twin"]);

    // A file that is itself a mount point cannot be removed; a full disk leaves no partial report.
    let script = r#"exec unshare --mount sh -c 'mount --bind "$1" "$1"; shift; exec "$@"' sh"#;
    let words = ["bash", "-c", &format!(r#"{script} {} "$@""#, twin.display()), "bash", PINFOLD, "run", "--report"];
    Run::bare(words.iter().copied().chain([twin.to_str().unwrap(), "sh", "-c", "exit 9"])).run().assert_code(9);
    parsed(&file, 9);
    let script = r#"exec unshare --mount sh -c 'mount -t tmpfs -o size=4k tmpfs /mnt; echo old >/mnt/r
        "$@" 2>&1; echo code $?; ls -A /mnt; cat /mnt/r' sh "$@""#;
    let job = "head -c 4096 /dev/zero >/mnt/full; exit 0";
    let ran = Run::bare(["bash", "-c", script, "bash", PINFOLD, "run", "--report", "/mnt/r", "sh", "-c", job]).run();
    let said = ran.stdout.lines().collect::<Vec<_>>();
    assert_eq!(said[1..], ["code 125", "full", "cat: /mnt/r: No such file or directory"][..said.len() - 1], "{ran:#?}");
    assert!(said[0].contains("No space left on device"), "{ran:#?}");
}

/// `/dev/stdout` and similar paths are descriptors of the caller: earlier output there stays.
#[test]
#[requires(cgroup)]
fn a_report_to_a_descriptor_by_its_path_comes_after_the_output() {
    let scratch = Scratch::new("output");
    for (place, redirection, stream) in
        [("/dev/stdout", ">", 1), ("/proc/self/fd/1", ">", 1), ("/dev/stderr", "2>", 2), ("/dev/fd/7", "1>F 7>&1 >", 1)]
    {
        let redirection = redirection.replace('F', scratch.path().to_str().unwrap());
        let last = if place.contains('7') { "&7".into() } else { scratch.path().display().to_string() };
        let script = format!(r#"exec "$@" {redirection}{last}"#);
        let job = format!("echo output >&{stream}; exit 7");
        let words = ["bash", "-c", &script, "bash", PINFOLD, "run", "--report", place, "sh", "-c", &job];
        Run::bare(words).run().assert_code(7);
        let text = scratch.text();
        let report = text.strip_prefix("output\n").unwrap_or_else(|| panic!("{place}: {text}"));
        assert_eq!(serde_json::from_str::<Value>(report).unwrap()["exit_code"], 7);
    }
}

/// Nothing reads the report: after a deadline pinfold gives up writing it, and otherwise a signal ends the wait.
#[test]
#[requires(cgroup)]
fn a_report_into_a_full_pipe_does_not_hang() {
    let filled = Scratch::new("filled");
    // With the report, this is more than a pipe holds (pipe(7)).
    let fill = format!("head -c 65536 /dev/zero; echo > {}", filled.path().display());
    let start = |options: &[&'static str]| {
        let words = [PINFOLD, "run", "--report", "-"].iter().chain(options).copied();
        let mut running = Run::bare(words.chain(["--", "sh", "-c", &fill])).start();
        let held = running.child.stdout.take();
        wait_for_file(filled.path());
        (running, held)
    };
    let (running, held) = start(&["-t", "1s"]);
    let ran = running.finish().assert_code(125);
    assert_eq!(ran.stderr.lines().count(), 1, "{ran:#?}");
    drop(held);
    std::fs::remove_file(filled.path()).unwrap();
    let (running, held) = start(&[]);
    // The first signal may come while the job runs.
    wait_for(|| {
        running.signal(libc::SIGTERM);
        running.ends_within(std::time::Duration::from_millis(150)).then_some(())
    });
    let ran = running.finish().assert_code(125);
    ran.assert_names("SIGTERM");
    drop(held);
}

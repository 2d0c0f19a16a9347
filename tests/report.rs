//! The report: what `--report` writes, held against the schema that is committed.

mod support;

use std::io::Write;

use serde_json::{Value, json};
use support::{PINFOLD, PROJECT, Ran, Run, Scratch, has_cgroup, has_program};

fn committed() -> Value {
    let path = format!("{PROJECT}/docs/report.schema.json");
    serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap()
}

/// Readers must live with fields that are added. Here none may come that the schema does not tell of.
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
    for schema in [committed(), closed(committed())] {
        let validator = jsonschema::validator_for(&schema).unwrap();
        let errors: Vec<_> =
            validator.iter_errors(report).map(|error| format!("{}: {error}", error.instance_path())).collect();
        assert!(errors.is_empty(), "{errors:#?} in {report:#}");
    }
}

fn valid(run: Run) -> Ran {
    let ran = run.run();
    assert_ne!(ran.report, Value::Null, "{ran:#?}");
    assert_valid(&ran.report);
    assert_eq!(ran.report["exit_code"], ran.code, "{ran:#?}");
    ran
}

/// After a change of the types: `PINFOLD_WRITE_SCHEMA=1 cargo test --all-features --test report`.
#[cfg(feature = "schema")]
#[test]
fn the_committed_schema_is_the_generated_one() {
    // As it is written, so that what is always there is required.
    let settings = schemars::generate::SchemaSettings::draft2020_12().for_serialize();
    let generated = settings.into_generator().into_root_schema_for::<pinfold::Report>();
    let generated = format!("{}\n", serde_json::to_string_pretty(&generated).unwrap());
    let path = format!("{PROJECT}/docs/report.schema.json");
    if std::env::var_os("PINFOLD_WRITE_SCHEMA").is_some() {
        std::fs::write(&path, &generated).unwrap();
    }
    assert!(
        std::fs::read_to_string(&path).is_ok_and(|committed| committed == generated),
        "{path} is not what the types say: run this test with PINFOLD_WRITE_SCHEMA=1 and commit it"
    );
}

#[test]
fn the_schema_takes_new_fields_and_no_missing_or_wrong_ones() {
    if !has_cgroup() {
        return;
    }
    let validator = jsonschema::validator_for(&committed()).unwrap();
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
fn success() {
    if !has_cgroup() {
        return;
    }
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
    assert!((now - 60.0..=now).contains(&at("ordered_at")));
}

#[test]
fn deadline_leftovers_and_signals() {
    if !has_cgroup() {
        return;
    }
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
fn a_command_that_could_not_be_started() {
    if !has_cgroup() {
        return;
    }
    for (words, code, said) in [
        (vec!["no-such-command", "with", "arguments"], 127, "cannot execute 'no-such-command'"),
        (vec!["/"], 126, "cannot execute '/'"),
        (vec!["--cwd", "/no/such", "true"], 125, "cannot enter the working directory '/no/such'"),
    ] {
        let ran = valid(Run::new(&words)).assert_code(code);
        assert_eq!(ran.report["reason"], "spawn_failed");
        let error = ran.report["error"].as_str().unwrap();
        assert!(error.starts_with(said), "{ran:#?}");
        assert_eq!(ran.stderr, format!("pinfold: {error}\n"));
        assert_eq!((&ran.report["pid"], &ran.report["main"]), (&Value::Null, &Value::Null));
        // Nothing was held.
        assert_eq!(ran.report["containment"], json!({"kind": null, "cgroup": null, "born": null, "refused": []}));
    }
}

/// Wherever the start has failed, once the report has its place.
#[test]
fn what_could_not_even_be_tried() {
    let failed = |run: Run, said: &str| {
        let ran = valid(run).assert_code(125);
        assert_eq!(ran.report["reason"], "spawn_failed");
        let error = ran.report["error"].as_str().unwrap();
        assert!(error.contains(said), "{ran:#?}");
        assert_eq!(ran.stderr, format!("pinfold: {error}\n"));
        assert_eq!((&ran.report["pid"], &ran.report["containment"]["kind"]), (&Value::Null, &Value::Null));
        ran
    };
    let ran = failed(Run::new(["--cgroup", "/tmp", "true"]), "/tmp: it is not on a cgroup2 file system");
    let refused = ran.report["containment"]["refused"].as_array().unwrap();
    assert_eq!((refused.len(), &refused[0]["tried"]), (1, &json!("/tmp")), "{ran:#?}");
    failed(Run::new(["--env", "A=1", "--cgroup", "/no/such", "true"]), "/no/such: cannot open it");
}

/// Two signals that came even before pinfold itself: the second one kills.
#[test]
fn a_signal_before_the_command_was_executed() {
    if !has_cgroup() || !has_program("python3") {
        return;
    }
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
        let error = format!("sh was ended before it had been executed (a stop): {name}");
        assert_eq!(ran.report["error"], error.as_str());
    }
}

#[test]
fn every_place_takes_the_same_report() {
    if !has_cgroup() {
        return;
    }
    let parsed = |text: &str| {
        assert!(text.ends_with('\n') && text.lines().count() == 1, "{text:?} is not one line");
        let report: Value = serde_json::from_str(text).unwrap();
        assert_valid(&report);
        assert_eq!(report["main"]["exited"], 7);
    };
    // After what the job itself has written there.
    let ran = Run::bare([PINFOLD, "run", "--report", "-", "sh", "-c", "echo output; exit 7"]).run().assert_code(7);
    parsed(ran.stdout.strip_prefix("output\n").unwrap());

    let script = r#"exec 9>&1 1>&2; exec "$@""#;
    // The job does not get that descriptor.
    let job = "echo output; test ! -e /proc/self/fd/9 && exit 7";
    let words = ["bash", "-c", script, "bash", PINFOLD, "run", "--report", "fd:9", "sh", "-c", job];
    let ran = Run::bare(words).run().assert_code(7);
    assert_eq!(ran.stderr, "output\n");
    parsed(&ran.stdout);

    // A longer file that is there already, a link to it, and a pipe with a name.
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

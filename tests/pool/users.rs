//! Jobs of other users, each with its own.

use serde_json::json;

use crate::support::Scratch;
use crate::support::pool::{lines, pool, text};

#[test]
#[requires(other_users, sandbox)]
fn each_job_has_its_user() {
    let results = Scratch::new("users");
    let jobs = [
        json!({"command": ["sh", "-c", "id -u; id -g"], "user": "65534:65533", "sandbox": {}}),
        json!({"command": ["id", "-un"], "user": "root"}),
        json!({"command": ["sh", "-c", "touch /etc/x"], "user": "65534:65534", "sandbox": {}}),
        // A sandbox cannot restrict root.
        json!({"command": ["true"], "sandbox": {}}),
    ];
    let jobs = jobs.map(|job| format!("{job}\n")).concat();
    let ran = pool(&["--workers", "1", "--results", text(results.path())], &jobs).assert_code(1);
    let ended = lines(results.path());
    let of = |line: u64| ended.iter().find(|result| result["line"] == line).unwrap();
    assert_eq!(ran.stdout.lines().take(3).collect::<Vec<_>>(), ["65534", "65533", "root"], "{ran:#?}");
    assert!(ran.stdout.contains("/etc/x") && ran.stdout.contains("Permission denied"), "{ran:#?}");
    let error = of(4)["report"]["error"].as_str().unwrap();
    assert!(error.contains("root") && error.contains("user"), "{error}");
    assert_eq!(of(4)["report"]["exit_code"], 125);
}

#[test]
fn an_unknown_user_is_named_before_any_job_starts() {
    let ran = pool(&[], "{\"command\": [\"echo\", \"ran\"]}\n{\"command\": [\"true\"], \"user\": \"no-such-user\"}\n");
    let ran = ran.assert_code(125);
    assert!(ran.stderr.contains("line 2") && ran.stderr.contains("no-such-user"), "{ran:#?}");
    assert_eq!(ran.stdout, "");
}

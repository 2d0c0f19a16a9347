//! Tiny limits: with few descriptors, few processes or a small stack, either everything works, or nothing is started
//! and the message names the limit. The job's own limits stay those of the caller.

use crate::support::own_cgroup::OwnCgroup;
use crate::support::surrounding::{Surrounding, become_user, fresh_user, holds};

/// With enough descriptors everything works, and with fewer nothing is started.
#[test]
#[requires(other_users)]
fn with_few_descriptors() {
    let uid = fresh_user();
    let cgroup = OwnCgroup::of(uid);
    let close = "for fd in /proc/$$/fd/*; do fd=${fd##*/}; [ $fd -lt 3 ] || eval \"exec $fd>&-\"; done";
    let mut least = None;
    for limit in (5..28).chain([40, 64]) {
        let script = format!("{}; {close}; ulimit -n {limit}; {}", cgroup.enter(), become_user(uid));
        let job = "ulimit -Sn; ulimit -Hn; trap 'echo told; exit 0' TERM; sleep 999 & sleep 999 & wait";
        let options = ["--timeout", "300ms", "--grace", "1m"];
        let ran = Surrounding { script: &script, options: &[] }.run(&options, &["bash", "-c", job]);
        if ran.code == 125 {
            assert_eq!(least, None, "{limit}: {ran:#?}");
            assert!(ran.stdout.is_empty() && ran.stderr.contains("ulimit -Hn"), "{limit}: {ran:#?}");
            assert_eq!(ran.report["reason"], "spawn_failed", "{limit}: {ran:#?}");
            continue;
        }
        least.get_or_insert(limit);
        let ran = ran.assert_code(124);
        // The job's own limit is that of the caller, hard and soft.
        assert_eq!(ran.stdout, format!("{limit}\n{limit}\ntold\n"), "{ran:#?}");
        assert_eq!(ran.report["stopped"]["count"], 3, "{limit}: {ran:#?}");
        assert!(ran.listed("stopped").contains("sleep 999\nsleep 999"), "{limit}: {ran:#?}");
        assert_eq!(ran.report["error"], serde_json::Value::Null, "{limit}: {ran:#?}");
        // The same with leftovers in more cgroups (made by the job itself) than there are descriptors.
        let script = format!("{}; {close}; ulimit -n {limit}; {}", cgroup.enter(), become_user(uid));
        let job = r#"read -r own </proc/self/cgroup; while [ "${own#0::}" = "$own" ]; do read -r own; done </proc/self/cgroup
            cd "$0/${own##*/}" || exit 98; mkdir $(seq 50) || exit 98
            for at in 1 25 50; do bash -c "echo \$\$ >$at/cgroup.procs && echo in \$\$ && exec sleep 999" >&2 & done
            until [ "$(cat 1/cgroup.procs 25/cgroup.procs 50/cgroup.procs | wc -l)" = 3 ]; do :; done; exit 3"#;
        let words = ["bash", "-c", job, cgroup.path.to_str().unwrap()];
        let ran = Surrounding { script: &script, options: &[] }.run(&["--grace", "1m"], &words).assert_code(3);
        assert_eq!(ran.report["leftovers"]["count"], 3, "{limit}: {ran:#?}");
        assert_eq!((&ran.report["stopped"]["count"], &ran.report["killed"]), (&3.into(), &false.into()), "{ran:#?}");
        assert_eq!(ran.report["not_removed"], serde_json::json!([]), "{limit}: {ran:#?}");
    }
    println!("the least number of descriptors is {least:?}");
    assert!(least.is_some_and(|least| least <= 24), "{least:?}");
}

#[test]
#[requires(other_users)]
fn with_few_processes() {
    let uid = fresh_user();
    let cgroup = OwnCgroup::of(uid);
    for limit in 0..6 {
        let script = format!("{}; ulimit -u {limit}; {}", cgroup.enter(), become_user(uid));
        let ran = Surrounding { script: &script, options: &[] }.run(&[], &["sh", "-c", "ulimit -u 2>&1; exit 3"]);
        // The three are pinfold, its guard and the shell.
        if limit < 3 {
            let ran = ran.assert_code(125);
            assert!(ran.stderr.contains("ulimit -u") && ran.stdout.is_empty(), "{limit}: {ran:#?}");
            assert_eq!(ran.report["reason"], "spawn_failed", "{limit}: {ran:#?}");
        } else {
            assert_eq!(ran.assert_code(3).stderr, "");
        }
    }
    let script = format!("{}; ulimit -u 5; {}", cgroup.enter(), become_user(uid));
    holds(&script);
}

/// An unoptimised program needs more than the 20 KiB that the release build needs.
#[test]
#[requires(cgroup)]
fn with_a_small_stack() {
    holds(r#"ulimit -s 512; exec "$@""#);
    let script = r#"ulimit -s 512; exec "$@""#;
    let ran = Surrounding { script, options: &[] }.run(&[], &["bash", "-c", "ulimit -Ss; ulimit -Hs"]).assert_code(0);
    assert_eq!(ran.stdout, "512\n512\n");
}

/// Also without a cgroup, for more processes than there are descriptors.
#[test]
#[requires(other_users)]
fn with_few_descriptors_and_no_cgroup() {
    let close = "for fd in /proc/$$/fd/*; do fd=${fd##*/}; [ $fd -lt 3 ] || eval \"exec $fd>&-\"; done";
    for limit in [24, 26, 40] {
        let script = format!("{close}; ulimit -n {limit}; {}", become_user(fresh_user()));
        let job = "trap 'echo told; exit 0' TERM; for at in $(seq 50); do sleep 999 & done; echo ready; wait";
        let options = ["--containment", "subreaper", "--timeout", "1s", "--grace", "1m"];
        let ran = Surrounding { script: &script, options: &[] }.run(&options, &["bash", "-c", job]).assert_code(124);
        assert_eq!(ran.stdout, "ready\ntold\n", "{limit}: {ran:#?}");
        assert_eq!((&ran.report["stopped"]["count"], &ran.report["killed"]), (&51.into(), &false.into()), "{ran:#?}");
        assert_eq!((&ran.report["error"], &ran.report["unkillable"]["count"]), (&serde_json::Value::Null, &0.into()));
    }
}

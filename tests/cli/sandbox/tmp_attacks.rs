//! Attacks on the removal of a private tmp, in each [`Way`]. The other tests of the private tmp are in
//! `tests/cli/private_tmp.rs`.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{USER, Way, secret, text, ways};
use crate::support::own_cgroup::OwnCgroup;
use crate::support::{Run, measured, program};

/// Returns a run with a private tmp: a directory of the host, because this run can't make namespaces.
fn with_directory(way: Way, cgroup: &OwnCgroup, options: &[&str], script: &str) -> Run {
    let refuse = program("refuse");
    let options = [&["--sandbox", "--private-tmp"], options].concat();
    way.prepare(cgroup, &[text(&refuse), "unshare", "1"], &options, "unset TMPDIR", &["sh", "-c", script])
}

/// While pinfold removes the private tmp, a process outside of the job replaces a directory in it by a symbolic link to
/// a directory outside. pinfold removes nothing in the directory outside.
#[test]
#[requires(other_users, sandbox)]
fn the_removal_cannot_be_steered_outside() {
    const FILES: usize = 2000;
    let attack = program("sandbox/files");
    for way in ways() {
        let (directory, _) = secret();
        let victim = directory.path().join("victim");
        std::fs::create_dir(&victim).unwrap();
        for number in 1..=FILES {
            std::fs::write(victim.join(number.to_string()), "kept").unwrap();
        }
        let chown = ["-R", "65534:65534", text(&victim)];
        assert!(Command::new("chown").args(chown).status().unwrap().success());
        let script = format!(
            "cd $TMPDIR; ln -s {} link; mkdir -p files more; (cd files; seq {FILES} | xargs touch); (cd more; seq {FILES} | xargs \
             mkdir); echo $TMPDIR; exec sleep 1000",
            victim.display()
        );
        let cgroup = OwnCgroup::of(USER);
        let mut running = with_directory(way, &cgroup, &[], &script).start();
        let tmp = running.line();
        assert!(Path::new(&tmp).is_absolute(), "{way:?} {tmp}");
        let names = ["files", "link"].map(|name| format!("{tmp}/{name}"));
        let mut accomplice = Command::new(&attack);
        accomplice.arg("exchange_for_ever").args(&names).arg(&tmp).uid(USER).gid(USER).stdout(Stdio::piped());
        let mut accomplice = accomplice.spawn().unwrap();
        let mut out = BufReader::new(accomplice.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        running.signal(libc::SIGTERM);
        let ran = running.finish();
        let is_left = Path::new(&tmp).exists();
        if is_left {
            accomplice.kill().unwrap();
        }
        accomplice.wait().unwrap();
        assert_eq!(ran.code, 143, "{way:?} {ran:#?}");
        assert!(!is_left, "{way:?} {ran:#?}");
        assert_eq!(std::fs::read_dir(&victim).unwrap().count(), FILES, "{way:?}");
    }
}

/// With `PINFOLD_TEST_FILES=1000000`, the test makes a million files.
#[test]
#[requires(other_users, sandbox)]
fn any_number_of_files_is_removed() {
    let count = std::env::var("PINFOLD_TEST_FILES").map_or(4_000, |count| count.parse().unwrap());
    let make = program("sandbox/files");
    let script = format!(
        "cd $TMPDIR; echo $TMPDIR; for part in 1 2 3 4; do mkdir d$part; cd d$part; {} make_files {}; mkdir closed; touch \
         closed/file; chmod 0 closed; cd ..; done; chmod 0 d4 .; setsid sleep 1000 & exit 3",
        make.display(),
        count / 4
    );
    for way in ways() {
        let cgroup = OwnCgroup::of(USER);
        let ran = with_directory(way, &cgroup, &["--read", text(&make)], &script).run().assert_code(3);
        let (tmp, made) = ran.stdout.split_once('\n').unwrap();
        assert_eq!(made, "allowed\n".repeat(4), "{way:?} {ran:#?}");
        let tmp = Path::new(tmp);
        assert!(tmp.is_absolute() && !tmp.exists() && !tmp.parent().unwrap().exists(), "{way:?} {ran:#?}");
        measured(&format!("{count} files made and removed in {:.1} s, {way:?}", ran.elapsed.as_secs_f64()));
    }
}

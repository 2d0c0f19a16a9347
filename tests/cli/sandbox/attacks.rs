//! Attempts of a job against everything that a sandbox protects. For each [`Way`], one job makes all attempts and then
//! leaves a daemon behind. The test checks that each answer is the expected one, and that no process of the job is
//! left. It also writes docs/sandbox-attacks.md from the tables.

use std::fmt::Write as _;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::Path;

use super::attack_tables::{ALWAYS, Attack, GROUPS, PORTS, STRICT, Target, UNIX};
use super::{USER, Way, secret, text, ways};
use crate::support::{PROJECT, Scratch, program};

/// The targets of the attempts.
struct Stage {
    /// A directory that belongs to the user of the job. It contains "secret", "readable/file" and "out". The job may only
    /// write to "out".
    directory: Scratch,
    /// A port of this machine that the job may not use, and one that it may use.
    ports: [std::net::TcpListener; 2],
    _sockets: [UnixListener; 2],
    _datagrams: UnixDatagram,
    name: String,
    /// The paths of the programs that make the attempts.
    programs: Vec<String>,
}

impl Stage {
    fn new() -> Self {
        let (directory, _) = secret();
        let place = directory.path();
        for name in ["out", "readable"] {
            std::fs::create_dir(place.join(name)).unwrap();
        }
        let name = format!("pinfold-sandbox-attacks-{}", std::process::id());
        let abstract_name = SocketAddr::from_abstract_name(&name).unwrap();
        let sockets = [UnixListener::bind(place.join("docker.sock")), UnixListener::bind_addr(&abstract_name)];
        let datagrams = UnixDatagram::bind(place.join("datagrams")).unwrap();
        let copy = place.join("set-user-id");
        std::fs::copy(program("sandbox/privileges"), &copy).unwrap();
        for name in ["secret", "readable/file"] {
            std::fs::write(place.join(name), "a secret").unwrap();
        }
        for name in ["secret", "readable/file", "out", "readable", "docker.sock", "datagrams"] {
            std::fs::set_permissions(place.join(name), std::fs::Permissions::from_mode(0o777)).unwrap();
            std::os::unix::fs::chown(place.join(name), Some(USER), Some(USER)).unwrap();
        }
        std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o4755)).unwrap();
        Self {
            directory,
            ports: [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap()),
            _sockets: sockets.map(Result::unwrap),
            _datagrams: datagrams,
            name,
            programs: ["files", "kernel", "privileges", "processes", "sockets"]
                .map(|name| program(&format!("sandbox/{name}")).to_str().unwrap().to_owned())
                .to_vec(),
        }
    }

    fn at(&self, name: &str) -> String {
        text(&self.directory.path().join(name)).to_owned()
    }

    fn port(&self, index: usize) -> String {
        self.ports[index].local_addr().unwrap().port().to_string()
    }

    /// Returns a line of the job's script for each attempt.
    fn script(&self, attacks: &[Attack]) -> String {
        let out = self.at("out");
        let mut script = format!(
            "try() {{ number=$1; shift; answer=$(\"$@\" 2>&1); code=$?; [ $code -le 128 ] || answer=\"signal $((code - \
             128))\"; echo \"$number $answer\"; rm -rf {out}/*; }}\n"
        );
        for (number, attack) in attacks.iter().enumerate() {
            let program = self.programs.iter().find(|path| path.ends_with(attack.program)).unwrap();
            let mut line = |before: &str, program: &str, arguments: &str| {
                writeln!(script, "{before}try {number} {program} {} {arguments}", attack.attempt).unwrap();
            };
            match attack.target {
                Target::Nothing => line("", program, ""),
                Target::Guard => line("", program, "$PPID"),
                Target::GuardAndSupervisor => ["$PPID", "$SUPERVISOR"].iter().for_each(|pid| line("", program, pid)),
                Target::SetUserId => line("", &self.at("set-user-id"), ""),
                Target::Secret => line("", program, &format!("{} {out}/link", self.at("secret"))),
                Target::SecretAndOwn => {
                    line(&format!(": >{out}/link; "), program, &format!("{} {out}/link", self.at("secret")));
                }
                Target::SecretFromOwn => line("", program, &format!("{} {out}", self.at("secret"))),
                Target::Readable => line("", program, &format!("{} {out}/link", self.at("readable/file"))),
                Target::Outside => line("", program, &self.at("made")),
                Target::Own => line("", program, &format!("{out}/mine")),
                Target::OwnFile => line(&format!(": >{out}/mine; "), program, &format!("{out}/mine")),
                Target::Directory => line("", program, &self.at("")),
                Target::Port => line("", program, &self.port(0)),
                Target::GrantedPort => line("", program, &self.port(1)),
                Target::Socket => line("", program, &self.at("docker.sock")),
                Target::DatagramSocket => line("", program, &self.at("datagrams")),
                Target::AbstractSocket => line("", program, &self.name),
            }
        }
        script
    }

    /// Returns the attempts whose answers are different than expected.
    fn differences(&self, attacks: &[Attack], way: Way, stdout: &str) -> Vec<String> {
        let mut answered = vec![0; attacks.len()];
        let mut differences = Vec::new();
        for line in stdout.lines() {
            let (number, answer) = line.split_once(' ').unwrap_or((line, ""));
            let Some(attack) = number.parse().ok().and_then(|number: usize| attacks.get(number)) else {
                differences.push(format!("{way:?}: {line}"));
                continue;
            };
            answered[number.parse::<usize>().unwrap()] += 1;
            if !attack.expects(answer, way.as_root) {
                differences.push(format!("{} in {way:?}: {answer}, expected {}", attack.attempt, attack.answer));
            }
        }
        let missing = attacks.iter().zip(&answered).filter(|(_, count)| **count == 0);
        differences.extend(missing.map(|(attack, _)| format!("{} in {way:?}: no answer", attack.attempt)));
        differences
    }

    /// Makes the attempts in each way. Asserts that the answers are the expected ones, and that pinfold ends the daemon
    /// that the job leaves behind. [`super::Way::run`] asserts that no process and no cgroup is left.
    fn assert_answers(&self, attacks: &[Attack], options: &[&str]) {
        let script = self.script(attacks) + "setsid sleep 1000 & exit 3";
        let (out, readable) = (self.at("out"), self.at("readable"));
        let mut granted = vec!["--read", "/proc", "--read", &readable, "--write", &out];
        let copy = self.at("set-user-id");
        granted.extend(self.programs.iter().chain([&copy]).flat_map(|path| ["--read", path]));
        granted.extend(options);
        let setup = format!("exec <{}", self.at("readable/file"));
        for (way, explain) in ways().into_iter().flat_map(|way| [(way, false), (way, true)]) {
            let explained: &[&str] = if explain { &["--explain-denials"] } else { &[] };
            let ran = way.run(&setup, &[&granted[..], explained].concat(), &["sh", "-c", &script]).assert_code(3);
            let differences = self.differences(attacks, way, &ran.stdout);
            assert!(differences.is_empty(), "explained {explain}: {differences:#?} {}", ran.stderr);
            assert!(ran.stderr.contains("left 1 process"), "{way:?} {ran:#?}");
        }
        assert_eq!(std::fs::read_to_string(self.at("secret")).unwrap(), "a secret");
        assert_eq!(std::fs::read_to_string(self.at("readable/file")).unwrap(), "a secret");
    }

    /// Makes the attempts without a sandbox, as an ordinary user, and asserts that those with `works_without` succeed.
    /// If they failed there too, their failure in a sandbox would prove nothing.
    fn assert_controls(&self, attacks: &[Attack]) {
        let controls: Vec<Attack> = attacks.iter().filter(|attack| attack.works_without).copied().collect();
        let way = Way { as_root: false, containment: "subreaper" };
        let setup = format!("exec <{}", self.at("readable/file"));
        let ran = way.run_with(&[], &setup, &["sh", "-c", &self.script(&controls)]);
        let expected: String = (0..controls.len()).map(|number| format!("{number} allowed\n")).collect();
        let different: Vec<_> = ran.stdout.lines().filter(|line| !line.ends_with(" allowed")).collect();
        assert_eq!(
            ran.stdout,
            expected,
            "{different:#?} of {:#?}",
            controls.iter().map(|c| c.attempt).collect::<Vec<_>>()
        );
    }
}

#[test]
#[requires(other_users, sandbox)]
fn attempts_are_denied_and_the_job_ends() {
    let stage = Stage::new();
    stage.assert_answers(ALWAYS, &[]);
    stage.assert_controls(ALWAYS);
}

#[test]
#[requires(other_users, sandbox, tcp_ports)]
fn only_the_granted_port_is_open() {
    let stage = Stage::new();
    stage.assert_answers(PORTS, &["--connect-tcp", &stage.port(1)]);
    stage.assert_controls(PORTS);
    // An attempt that received an error has made no connection either.
    let other = &stage.ports[0];
    other.set_nonblocking(true).unwrap();
    let controls = PORTS.iter().filter(|attack| attack.works_without && attack.target == Target::Port).count();
    let accepted = std::iter::from_fn(|| other.accept().ok()).count();
    assert!(accepted <= controls, "{accepted} connections, {controls} of them without a sandbox");
}

#[test]
#[requires(other_users, sandbox, user_namespaces)]
fn a_strict_sandbox_also_protects_metadata() {
    let stage = Stage::new();
    stage.assert_answers(STRICT, &["--sandbox=strict"]);
    stage.assert_controls(STRICT);
}

#[test]
#[requires(other_users, sandbox, unix_paths)]
fn own_unix_sockets_do_not_open_others() {
    let stage = Stage::new();
    stage.assert_answers(UNIX, &["--unix", "own"]);
    stage.assert_controls(UNIX);
}

/// The kernel must have Landlock's rules for TCP ports.
pub fn tcp_ports() -> crate::support::needs::Need {
    supports("tcp-ports", &["--connect-tcp", "443"])
}

/// The kernel must have Landlock's rules for Unix sockets.
fn unix_paths() -> crate::support::needs::Need {
    supports("unix-paths", &["--unix", "own"])
}

fn supports(name: &str, options: &[&str]) -> crate::support::needs::Need {
    let words = [&["--sandbox"], options].concat();
    let way = Way { as_root: true, containment: "subreaper" };
    let ran = way.run_with(&words, ":", &["true"]);
    crate::support::needs::need(name, ran.code == 0, &ran.stderr)
}

/// `PINFOLD_WRITE_DOCS=1` writes the page.
#[test]
fn the_page_about_the_attacks_is_up_to_date() {
    let mut page = String::from(
        "# Attacks on the sandbox\n\nThe tests in `tests/cli/sandbox/` make these attempts in a job of `pinfold run --sandbox`, as an ordinary user and as root with\n\
         `--user`, in a cgroup and with the subreaper, without and with `--explain-denials`. This command writes the page:\n\
         `PINFOLD_WRITE_DOCS=1 cargo test --all-features --test cli sandbox::attacks`.\n\
         *Answer* is what the kernel returns in the sandbox. *Works without* has \"yes\" if the same attempt succeeds for an ordinary user\n\
         without a sandbox. A dash means that the attempt depends on the machine, needs privileges, or would do harm. After the attempts,\n\
         each job leaves a daemon behind, and the test checks that pinfold ends it.\n",
    );
    let all: Vec<_> = [ALWAYS, PORTS, STRICT, UNIX].concat();
    for (title, group) in GROUPS {
        let kind = if *group == "controls" { "use" } else { "attack" };
        write!(page, "\n## {title}\n\n| {kind} | attempt | answer | works without |\n| --- | --- | --- | --- |\n")
            .unwrap();
        for attack in all.iter().filter(|attack| attack.group == *group) {
            let works = if attack.works_without { "yes" } else { "–" };
            let (program, attempt) = (attack.program, attack.attempt);
            writeln!(page, "| {} | `{program} {attempt}` | {} | {works} |", attack.what, attack.answer).unwrap();
        }
    }
    page += OTHERS;
    let path = Path::new(PROJECT).join("docs/sandbox-attacks.md");
    if std::env::var_os("PINFOLD_WRITE_DOCS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap(), page, "PINFOLD_WRITE_DOCS=1 writes the page");
}

/// The part of the page about attacks that need a test of their own.
const OTHERS: &str = "
## Attacks with tests of their own

| attack | test |
| --- | --- |
| SIGCONT to every process with kill(-1) | `sandbox::tests::processes::a_victim_lives_on` |
| the same attempts on a process of the user's that is not pinfold | `sandbox::tests::processes` |
| writes to cgroup.procs, cgroup.kill, memory.max and others of the leaf, the base and a sibling | `sandbox::leaf::no_file_of_a_cgroup_can_be_written` |
| a directory of a cgroup opened with O_PATH, and clone3 with CLONE_INTO_CGROUP: leaf, base, parent, sibling | `sandbox::leaf::no_process_starts_in_another_cgroup` |
| one job of a pool against another one | `sandbox::siblings::a_job_of_a_pool_cannot_reach_another_one` |
| `systemd-run --user`, the sockets of systemd and D-Bus, memory.max and pids.max of a user's leaf | `scripts/sandbox-systemd`, in a virtual machine |
| in the private tmp, a directory that becomes a symbolic link while pinfold removes it | `sandbox::tmp_attacks::the_removal_cannot_be_steered_outside` |
| a million files and directories of mode 0 in the private tmp | `sandbox::tmp_attacks::any_number_of_files_is_removed` |
| file capabilities | `sandbox::tests::kernel::set_user_id_and_file_capabilities_do_nothing` |
";

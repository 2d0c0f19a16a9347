//! How the guard starts: in each program that contains the library, whatever its `main` does first. Where the guard
//! cannot start, the error names the true cause.

mod extension_module;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use pinfold::{Command, Error, Supervisor, SupervisorBuilder};

use crate::support::alone::{alone, case};
use crate::support::harness::{ONE, running};
use crate::support::messages::Messages;
use crate::support::needs::need;
use crate::support::{PINFOLD, Scratch, has};

/// Runs a job, and returns its exit code, the file that its guard executes, and the guard's environment.
async fn run_job(builder: SupervisorBuilder) -> pinfold::Result<(u8, PathBuf, Vec<u8>)> {
    let supervisor = builder.start().await?;
    let (release, input) = std::io::pipe().map(|(reader, writer)| (writer, reader)).unwrap();
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "read line; exit 7"]).stdin(std::os::fd::OwnedFd::from(input));
    let mut job = supervisor.spawn(&command).await?;
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", job.pid())).unwrap();
    let guard: i32 = stat.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let program = std::fs::read_link(format!("/proc/{guard}/exe")).unwrap();
    let environment = std::fs::read(format!("/proc/{guard}/environ")).unwrap();
    drop(release);
    let code = job.wait().await?.exit_code;
    supervisor.close().await;
    Ok((code, program, environment))
}

fn start(builder: SupervisorBuilder) -> pinfold::Result<(u8, PathBuf, Vec<u8>)> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run_job(builder))
}

/// Returns the message of a failed start.
fn failure(builder: SupervisorBuilder) -> String {
    match start(builder).unwrap_err() {
        Error::GuardStart(why) => why,
        other => panic!("{other}"),
    }
}

/// Makes an executable script.
fn script(text: &str) -> Scratch {
    let script = Scratch::new("guard-script");
    std::fs::write(script.path(), format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(script.path(), PermissionsExt::from_mode(0o755)).unwrap();
    script
}

#[tokio::main]
async fn as_a_new_user_writes_it() {
    let (code, program, _) = run_job(Supervisor::builder()).await.unwrap();
    assert_eq!((code, program), (7, std::env::current_exe().unwrap()));
    println!("it ran");
}

/// Nothing here calls `init`: neither libtest's `main` nor the function that `#[tokio::main]` generates from the one
/// above.
#[test]
#[requires(cgroup)]
fn the_guard_starts_without_init() {
    match case().as_deref() {
        Some("tokio") => return as_a_new_user_writes_it(),
        Some("test") => {
            let (code, program, _) = start(Supervisor::builder()).unwrap();
            assert_eq!((code, program), (7, std::env::current_exe().unwrap()));
            return println!("it ran");
        }
        Some(_) => {
            pinfold::init();
            assert_eq!(start(Supervisor::builder()).unwrap().0, 7);
            return println!("it ran");
        }
        None => {}
    }
    for case in ["tokio", "test", "init within a runtime's thread"] {
        let said = alone(case, |_| {});
        assert!(said.contains("it ran"), "{case}: {said}");
    }
}

/// The environment is empty even of the variables that the dynamic loader needs, so an engine that ends processes by a
/// variable in their environment finds nothing there.
#[test]
#[requires(cgroup)]
fn the_guards_environment_is_empty() {
    if case().is_some() {
        let (code, _, environment) = start(Supervisor::builder()).unwrap();
        assert_eq!(code, 7);
        assert!(environment.iter().all(|&byte| byte == 0), "{:?}", String::from_utf8_lossy(&environment));
        return println!("it is empty");
    }
    for path in ["", "/usr/lib:/no/such"] {
        let said = alone("1", |command| {
            command.env("LD_LIBRARY_PATH", path).env("BUILD_TAG", "engine");
        });
        assert!(said.contains("it is empty"), "{said}");
    }
    // The guard that the command forks.
    let script = "read line < /proc/$PPID/comm; echo $line; tr -d '\\0' < /proc/$PPID/environ | wc -c";
    let output = std::process::Command::new(PINFOLD).args(["run", "--", "sh", "-c", script]).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said, "pinfold-guard\n0\n");
}

/// It works also through scripts that forward their arguments, under another name.
#[test]
#[requires(cgroup)]
fn the_own_program_as_guard_program() {
    let own = std::env::current_exe().unwrap();
    let quoted = own.display();
    let passing = script(&format!("exec '{quoted}' \"$@\""));
    for program in [own.as_path(), passing.path(), Path::new(PINFOLD)] {
        let (code, executed, _) = start(Supervisor::builder().guard_program(program)).unwrap();
        assert_eq!(code, 7);
        assert_eq!(executed == Path::new(PINFOLD), program == Path::new(PINFOLD), "{}", executed.display());
    }
}

/// Otherwise such a program would start itself again and again.
#[test]
fn a_guard_program_that_starts_the_program_again_is_refused() {
    if case().is_some() {
        let program = std::env::var_os("PINFOLD_GUARD").unwrap();
        let why = failure(Supervisor::builder().guard_program(program));
        println!("refused: {why}");
        // The outermost process does not exit with this code.
        std::process::exit(42);
    }
    let own = std::env::current_exe().unwrap();
    let count = Scratch::new("starts");
    let again = script(&format!(
        "echo >> '{}'; export PINFOLD_TEST_CASE=again PINFOLD_GUARD=\"$0\"; exec '{}' {ONE} {}",
        count.path().display(),
        own.display(),
        running()
    ));
    let said = alone("outermost", |command| {
        command.env("PINFOLD_GUARD", again.path());
    });
    assert!(said.contains("refused: ") && said.contains("exit code 42"), "{said}");
    assert_eq!(count.text().lines().count(), 1, "the program was started once in the place of the guard");
}

#[test]
fn each_failure_has_its_true_cause() {
    let mut messages = Messages::default();
    let mut of =
        |cause: &str, program: &Path| messages.add(cause, &failure(Supervisor::builder().guard_program(program)));
    of("missing", Path::new("/no/such/guard"));
    of("a directory", Path::new("/"));
    of("another version", script(&format!("exec '{PINFOLD}' --pinfold-guard=999")).path());
    for text in ["exit 0", "exit 2", "kill -KILL $$", "kill -SYS $$", "exec /no/such/program", "exec <&-; read line"] {
        of(text, script(text).path());
    }
    let interpreter = Scratch::new("guard-script");
    std::fs::write(interpreter.path(), "#!/no/such/interpreter\n").unwrap();
    for (cause, mode) in [("an interpreter that does not exist", 0o755), ("a file that is not executable", 0o644)] {
        std::fs::set_permissions(interpreter.path(), PermissionsExt::from_mode(mode)).unwrap();
        of(cause, interpreter.path());
    }
    // The version of the protocol changes more often than the message.
    let text = messages.to_string();
    let mut parts = text.split("speaks version ");
    let first = parts.next().unwrap_or_default().to_owned();
    let text = parts.fold(first, |text, part| text + "speaks version N" + part.trim_start_matches(char::is_numeric));
    insta::assert_snapshot!(text);
    let children = std::fs::read_to_string("/proc/thread-self/children").unwrap();
    assert_eq!(children, "", "each process that was started has been reaped");
}

#[test]
#[requires(root)]
fn a_root_directory_without_proc_or_without_the_loader() {
    if let Some(case) = case() {
        let root = std::path::PathBuf::from(std::env::var_os("NEW_ROOT").unwrap());
        if case == "with /proc" {
            let target = std::ffi::CString::new(root.join("proc").to_str().unwrap()).unwrap();
            // SAFETY: enters a mount namespace that belongs to this thread only, so that no other process sees the
            // changes.
            unsafe {
                assert_eq!(libc::unshare(libc::CLONE_NEWNS), 0);
                let (none, slash) = (std::ptr::null(), c"/".as_ptr());
                assert_eq!(libc::mount(none, slash, none, libc::MS_REC | libc::MS_PRIVATE, none.cast()), 0);
                assert_eq!(libc::mount(c"/proc".as_ptr(), target.as_ptr(), none, libc::MS_BIND, none.cast()), 0);
            }
        }
        std::os::unix::fs::chroot(&root).unwrap();
        println!("failed: {}", failure(Supervisor::builder()));
        return;
    }
    // After the chroot, the process could not remove it.
    let root = Scratch::directory("root");
    std::fs::create_dir(root.path().join("proc")).unwrap();
    let mut messages = Messages::default();
    for case in ["without /proc", "with /proc"] {
        let said = alone(case, |command| _ = command.env("NEW_ROOT", root.path()));
        let said = said.split_once("failed: ").unwrap_or_else(|| panic!("{case}: {said}")).1;
        messages.add(case, &said.replace(std::env::current_exe().unwrap().to_str().unwrap(), "OWN"));
    }
    insta::assert_snapshot!(messages);
}

/// The caller of such a program chooses the environment, and must not choose the program that runs with its rights.
#[test]
#[requires(root, cgroup)]
fn a_set_user_id_program_does_not_use_the_environment() {
    if case().is_some() {
        let (code, program, _) = start(Supervisor::builder()).unwrap();
        return println!("exit code {code}, guard {}", program.display());
    }
    let used = Scratch::new("used");
    let marker = script(&format!("echo used > '{}'; exec '{PINFOLD}' \"$@\"", used.path().display()));
    let said = alone("1", |command| {
        command.env("PINFOLD_GUARD", marker.path());
    });
    assert!(said.contains("exit code 7") && used.text() == "used\n", "without other rights it is used: {said}");
    std::fs::remove_file(used.path()).unwrap();

    let copy = PathBuf::from(format!("/tmp/pinfold-suid-{}", std::process::id()));
    std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o4755)).unwrap();
    let said = alone("1", |command| {
        let quoted = copy.display().to_string();
        *command = std::process::Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", &quoted, ONE, running()]);
        command.env("PINFOLD_TEST_CASE", "1").env("PINFOLD_GUARD", marker.path());
    });
    std::fs::remove_file(&copy).unwrap();
    if !has(need(
        "setuid",
        said.contains("exit code") || said.contains("panicked"),
        "set-user-ID programs can't be run here",
    )) {
        return;
    }
    assert!(said.contains(&format!("exit code 7, guard {}", copy.display())), "{said}");
    assert_eq!(used.text(), "", "{said}");
}

/// The same holds for root's own command.
#[test]
fn the_command_is_its_own_guard_program() {
    let used = Scratch::new("used");
    let marker = script(&format!("echo used > '{}'; exec '{PINFOLD}' \"$@\"", used.path().display()));
    // Without a cgroup each job has its own guard, which is executed.
    let mut command = std::process::Command::new(PINFOLD);
    command.args(["pool", "--workers", "2", "--", "echo"]).env("PINFOLD_GUARD", marker.path());
    command.env("PINFOLD_CONTAINMENT", "subreaper").stdin(std::process::Stdio::piped());
    command.stdout(std::process::Stdio::piped());
    let mut pool = command.spawn().unwrap();
    std::io::Write::write_all(&mut pool.stdin.take().unwrap(), b"1\n2\n3\n").unwrap();
    let output = pool.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!((output.stdout.len(), used.text().as_str()), (6, ""));
}

#[test]
#[requires(cgroup)]
fn a_guard_program_in_memory() {
    let bytes: &'static [u8] = std::fs::read(PINFOLD).unwrap().leak();
    let (code, program, environment) = start(Supervisor::builder().guard_program_bytes(bytes)).unwrap();
    assert_eq!(
        (code, program.to_str().unwrap().starts_with("/memfd:pinfold-guard")),
        (7, true),
        "{}",
        program.display()
    );
    assert!(environment.iter().all(|&byte| byte == 0));
    let without_cgroup = || {
        let kind = pinfold::report::ContainmentKind::Subreaper;
        Supervisor::builder().containment(kind).guard_program_bytes(bytes)
    };
    assert_eq!(start(without_cgroup()).unwrap().0, 7);
    assert!(matches!(start(Supervisor::builder().guard_program_bytes(b"no program")), Err(Error::GuardStart(_))));
}

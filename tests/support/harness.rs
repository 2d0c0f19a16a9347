//! The `main` of the test binaries. It runs the functions that `#[test]` (`tests/macros`) has registered, and accepts
//! the options of libtest.
//!
//! - A test that needs something that this machine lacks is reported as ignored, with the reason. If `PINFOLD_REQUIRE`
//!   (names separated by commas) says that the machine has it, the test fails instead.
//! - Each test runs in a process of its own, in this executable started again: it may change its process, and its
//!   output is captured, also the output of the processes that it starts. The output is printed if the test fails.
//!   `--nocapture` prints all output.
//! - `--exact NAME --nocapture` with the name of one test runs it in this process, as cargo-nextest and
//!   [`super::alone`] do.

use std::io::{Read, Seek};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, ExitStatus};
use std::sync::{Mutex, OnceLock};

use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// A registered test.
pub struct Test {
    /// The path of the function, with the name of the binary.
    pub path: &'static str,
    pub function: fn(),
    /// The reason of `#[ignore]`.
    pub ignored: Option<&'static str>,
    /// Checks what `#[requires]` lists.
    pub needs: fn() -> Result<(), Lack>,
}

inventory::collect!(Test);

/// Something that a test needs and this machine does not have.
#[derive(Clone, Debug)]
pub struct Lack {
    /// The name in `PINFOLD_REQUIRE`.
    pub name: String,
    /// Why it is missing. Only a failure prints all lines; an ignored test prints the first one.
    pub reason: String,
}

/// The first argument of the process that runs one test, whose name follows.
pub const ONE: &str = "--run-one-test";

/// The beginning of the last line of a test, if a part of the test cannot run here.
const SKIPPED: &str = "SKIPPED ";

/// The exit code of that test, as in GNU automake.
const SKIPPED_CODE: i32 = 77;

/// The tests of this binary run at the same time, as many as there are CPUs.
pub fn main() -> ExitCode {
    run(None)
}

/// The tests of this binary run one after the other.
pub fn one_at_a_time() -> ExitCode {
    run(Some(1))
}

/// Gives the tests the signals of a shell's foreground. Shells ignore SIGINT and SIGQUIT for a background command, nohup
/// ignores SIGHUP, and the commands under test would inherit that.
#[allow(unsafe_code)]
fn handle_signals_by_default() {
    for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP] {
        // SAFETY: SIG_DFL runs no code of this process.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

fn run(threads: Option<usize>) -> ExitCode {
    handle_signals_by_default();
    let words: Vec<String> = std::env::args().collect();
    if let [_, first, name] = &words[..]
        && first == ONE
    {
        let test = all().into_iter().find(|test| test.name() == name).expect("a test with this name");
        return match test.call() {
            Ok(Completion::Completed) => ExitCode::SUCCESS,
            Ok(Completion::Ignored { reason }) => {
                eprintln!("{SKIPPED}{}", reason.unwrap_or_default());
                ExitCode::from(SKIPPED_CODE as u8)
            }
            Err(_) => ExitCode::from(101),
        };
    }
    let (mut arguments, filters) = parse(words);
    let wanted = |name: &str| {
        filters.is_empty()
            || filters
                .iter()
                .any(|filter| if arguments.exact { name == filter } else { name.contains(filter.as_str()) })
    };
    let mut tests = all();
    let in_this_process =
        arguments.exact && arguments.nocapture && tests.iter().filter(|test| wanted(test.name())).count() == 1;
    tests.retain(|test| wanted(test.name()));
    tests.sort_by_key(|test| test.name());
    let from_environment = || std::env::var("RUST_TEST_THREADS").ok()?.parse().ok();
    let threads = if in_this_process { Some(1) } else { threads };
    arguments.test_threads = threads.or(arguments.test_threads).or_else(from_environment);
    let (list, nocapture) = (arguments.list, arguments.nocapture);
    let trials = tests.into_iter().map(|test| {
        // A test runner asks for this list, and does not run the tests that are ignored in it.
        let ignored =
            test.ignored.is_some() || list && arguments.ignored && test.missing().is_ok_and(|lack| lack.is_some());
        let trial = Trial::ignorable_test(test.name(), move || match test.missing()? {
            Some(lack) => Ok(Completion::ignored_with(lack)),
            None if in_this_process => test.call(),
            None => test.call_in_a_process_of_its_own(nocapture),
        });
        trial.with_ignored_flag(ignored)
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

fn all() -> Vec<&'static Test> {
    inventory::iter::<Test>().collect()
}

/// Separates the filters from the options: libtest accepts several filters, [`Arguments`] only one.
fn parse(words: Vec<String>) -> (Arguments, Vec<String>) {
    let (mut options, mut filters) = (Vec::new(), Vec::new());
    let mut words = words.into_iter();
    options.extend(words.next());
    while let Some(word) = words.next() {
        let takes_value =
            ["--test-threads", "--logfile", "--skip", "--color", "--format", "-Z"].contains(&word.as_str());
        match word.strip_prefix("--no-capture") {
            Some(_) => options.push("--nocapture".to_owned()),
            None if word.starts_with('-') => options.push(word),
            None => filters.push(word),
        }
        if takes_value {
            options.extend(words.next());
        }
    }
    (Arguments::from_iter(options), filters)
}

impl Test {
    /// The name by which the test is selected: its path in this binary.
    fn name(&self) -> &'static str {
        self.path.split_once("::").unwrap().1
    }

    /// Returns the first thing that is missing here; an error if this machine must have it.
    fn missing(&self) -> Result<Option<Lack>, Failed> {
        match (self.needs)() {
            Ok(()) => Ok(None),
            Err(lack) if lack.must_be_here() => Err(lack.broken_promise().into()),
            Err(lack) => Ok(Some(lack)),
        }
    }

    /// Runs the function, in the main thread: /proc lists orphans that a process adopts as children of that thread.
    fn call(&self) -> Result<Completion, Failed> {
        RUNNING.set(self.name()).expect("the first test in this process");
        // The message of a panic has been printed.
        std::panic::catch_unwind(self.function).map_err(|_| Failed::without_message())?;
        let lack = SKIPPED_PART.lock().unwrap().take();
        Ok(lack.map_or(Completion::Completed, |lack| Completion::ignored_with(format!("in part: {lack}"))))
    }

    fn call_in_a_process_of_its_own(&self, nocapture: bool) -> Result<Completion, Failed> {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([ONE, self.name()]);
        // A file, and not a pipe: a process that the test leaves behind could keep a pipe open.
        let mut captured =
            std::fs::File::from(rustix::fs::memfd_create("output of a test", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        if !nocapture {
            command.stdout(captured.try_clone().unwrap()).stderr(captured.try_clone().unwrap());
        }
        let status = command.status().unwrap();
        let mut output = Vec::new();
        captured.rewind().unwrap();
        captured.read_to_end(&mut output).unwrap();
        let output = String::from_utf8_lossy(&output);
        for line in output.lines().filter(|line| line.starts_with("MEASURED ")) {
            super::print_line(line);
        }
        match status.code() {
            Some(0) => Ok(Completion::Completed),
            Some(SKIPPED_CODE) => {
                let reason = output.lines().rev().find_map(|line| line.strip_prefix(SKIPPED));
                Ok(Completion::ignored_with(reason.unwrap_or("see above")))
            }
            _ => Err(format!("{output}{}", ending(status)).into()),
        }
    }
}

/// Returns what to print below the output of a failed test: nothing after a panic, which has a message of its own.
fn ending(status: ExitStatus) -> String {
    match status.signal() {
        Some(signal) => format!("the process of the test was ended by signal {signal}"),
        None if status.code() == Some(101) => String::new(),
        None => format!("the process of the test ended with {status}"),
    }
}

impl std::fmt::Display for Lack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "needs {}: {}", self.name, self.reason.lines().next().unwrap_or_default().trim_end_matches(':'))
    }
}

impl Lack {
    fn must_be_here(&self) -> bool {
        let required = std::env::var("PINFOLD_REQUIRE").unwrap_or_default();
        required.split(',').any(|name| name == self.name)
    }

    fn broken_promise(&self) -> String {
        format!("PINFOLD_REQUIRE names {}, but: {}", self.name, self.reason)
    }
}

static RUNNING: OnceLock<&str> = OnceLock::new();

/// Returns the name of the test that runs in this process.
pub fn running() -> &'static str {
    RUNNING.get().copied().unwrap_or_default()
}

/// The first thing that a part of the running test needed and that this machine lacks.
static SKIPPED_PART: Mutex<Option<Lack>> = Mutex::new(None);

/// Returns whether a part of the running test can run here. If not, the whole test is reported as ignored at its end,
/// unless it fails.
pub fn has(present: Result<(), Lack>) -> bool {
    let Err(lack) = present else { return true };
    assert!(!lack.must_be_here(), "{}", lack.broken_promise());
    SKIPPED_PART.lock().unwrap().get_or_insert(lack);
    false
}

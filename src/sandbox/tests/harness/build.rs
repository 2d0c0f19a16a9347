//! The programs that make the attempts.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// The environment variable that says that the programs are already built.
pub const BUILT: &str = "PINFOLD_TEST_PROGRAMS_ARE_BUILT";

/// Builds `tests/programs/sandbox/NAME.c`, if this run of the tests has not built it yet.
pub fn program(name: &str) -> PathBuf {
    static BUILDING: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let mut built = BUILDING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let source = format!("{}/tests/programs/sandbox/{name}.c", env!("CARGO_MANIFEST_DIR"));
    let directory = std::env::current_exe().unwrap().ancestors().nth(3).unwrap().join("tmp");
    let target = directory.join(format!("sandbox-{name}"));
    if !built.iter().any(|built| built == name) && std::env::var_os(BUILT).is_none() {
        std::fs::create_dir_all(&directory).unwrap();
        let fresh = directory.join(format!("sandbox-{name}.{}", std::process::id()));
        let done = Command::new("cc")
            .args(["-O1", "-Wall", "-Wextra", "-static", "-pthread", "-o"])
            .args([&fresh, Path::new(&source)])
            .status()
            .expect("cc is needed, as it is for cargo itself");
        assert!(done.success(), "{source} does not compile");
        std::fs::rename(&fresh, &target).unwrap();
        built.push(name.to_owned());
    }
    target
}

//! What README.md shows is what pinfold really prints.

use std::process::Command;

const README: &str = include_str!("../../README.md");
const CRATE: &str = include_str!("../../src/lib.rs");

#[test]
fn it_begins_with_two_commands() {
    let commands: Vec<&str> = block(README, "sh").lines().collect();
    let [run, test] = commands.as_slice() else { panic!("{commands:#?}") };
    assert!(run.starts_with("cargo run --release --features full -- run "), "{run}");
    // `.ci/run` looks for this word too.
    assert!(test.starts_with("cargo test "), "{test}");
}

#[test]
fn its_options_are_the_commands_own() {
    let help = Command::new(env!("CARGO_BIN_EXE_pinfold")).args(["run", "-h"]).output().unwrap();
    assert!(help.status.success());
    let help = String::from_utf8(help.stdout).unwrap();
    let shown = block(README, "text").trim_end();
    assert_eq!(shown, help.trim_end(), "README.md differs from the output of `pinfold run -h`");
}

#[test]
fn its_example_is_the_one_that_is_tested() {
    let documentation: String = CRATE
        .lines()
        .map_while(|line| line.strip_prefix("//!"))
        .map(|line| format!("{}\n", line.strip_prefix(' ').unwrap_or(line)))
        .collect();
    assert_eq!(block(README, "rust"), block(&documentation, "rust,standalone_crate"));
}

/// Returns the first block of a kind.
fn block<'a>(text: &'a str, kind: &str) -> &'a str {
    let (_, from) = text.split_once(&format!("\n```{kind}\n")).unwrap_or_else(|| panic!("no block of {kind}"));
    &from[..from.find("```").unwrap()]
}

//! A command under pinfold does the same as without it. These tests generate shell scripts from a seed and run each
//! with and without pinfold. They compare all bytes of the output and their order, the exit code, and the files that
//! were written.
//!
//! `PINFOLD_DIFFERENTIAL_SEED` repeats a run, `PINFOLD_DIFFERENTIAL_SCRIPTS` is the number of scripts (300), and
//! `PINFOLD_DIFFERENTIAL_ONLY` runs one script by its number.

mod observe;
mod scripts;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use observe::{Observed, Place};
use scripts::Script;

use crate::support::random::{Random, setting};

/// How often a script that behaved differently runs again without pinfold, to see whether it always does the same.
const CONTROLS: usize = 6;

/// How often a shortened script runs before it counts as one that shows no difference.
const TRIES: usize = 3;

/// The ways to call pinfold that are compared.
const FORMS: &[&[&str]] = &[
    &["run", "-q", "--"],
    &["run", "-q", "--containment", "subreaper", "--"],
    &["run", "-q", "--timeout", "10m", "--"],
    &["timeout", "10m"],
];

/// The ways for a script that receives a signal. Without pinfold only the main process receives the signal; by default
/// pinfold sends it to all processes, which docs/differences.md lists.
const FORMS_WITH_A_SIGNAL: &[&[&str]] = &[
    &["run", "-q", "--signal-to", "main", "--"],
    &["run", "-q", "--signal-to", "main", "--containment", "subreaper", "--"],
];

/// Returns a description of the difference, for a human reader, or nothing where both runs did the same.
fn compare(place: &Place, script: &Script, form: &[&str], number: u64) -> Option<String> {
    let alone = place.run(script, &[]);
    let with = place.run(script, form);
    if alone.hangs() {
        return Some(format!("script {number} hangs alone:\n{}", script.text()));
    }
    if alone == with {
        return None;
    }
    if let Some(again) = (0..CONTROLS).map(|_| place.run(script, &[])).find(|again| *again != alone) {
        let text = script.text() + &alone.differences(&again);
        return Some(format!("script {number} is not the same each time that it runs alone:\n{text}"));
    }
    let (script, alone, with) = minimise(place, script.clone(), form, (alone, with));
    let Script { signal, merged, .. } = &script;
    let with = alone.differences(&with);
    Some(format!("script {number}, {form:?}, signal {signal:?}, merged {merged}:\n{}{with}", script.text()))
}

/// Removes the parts of the script that the difference does not need.
fn minimise(place: &Place, script: Script, form: &[&str], seen: (Observed, Observed)) -> (Script, Observed, Observed) {
    let mut best = (script, seen.0, seen.1);
    let mut index = 0;
    while index <= best.0.pieces.len() {
        let mut shorter = best.0.clone();
        // The opening is tried last.
        if index < shorter.pieces.len() {
            shorter.pieces.remove(index);
        } else {
            shorter.opening = "";
        }
        let differs = (0..TRIES).find_map(|_| {
            let (alone, with) = (place.run(&shorter, &[]), place.run(&shorter, form));
            (alone != with).then_some((alone, with))
        });
        match differs {
            Some((alone, with)) if index < best.0.pieces.len() => best = (shorter, alone, with),
            Some((alone, with)) => return (shorter, alone, with),
            None => index += 1,
        }
    }
    best
}

#[test]
#[requires(cgroup)]
fn a_script_does_the_same_with_and_without_pinfold() {
    let (_, seed) = Random::new("differential", "PINFOLD_DIFFERENTIAL_SEED");
    let count = setting("PINFOLD_DIFFERENTIAL_SCRIPTS", 300);
    let only = setting("PINFOLD_DIFFERENTIAL_ONLY", u64::MAX);
    let numbers = if only == u64::MAX { 0..count } else { only..only + 1 };
    let next = AtomicU64::new(numbers.start);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                let place = Place::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= numbers.end {
                        break;
                    }
                    let script = Script::generate(seed.wrapping_mul(1_000_003).wrapping_add(number));
                    let forms = if script.signal.is_some() {
                        FORMS_WITH_A_SIGNAL
                    } else if script.signals_its_group() {
                        // `timeout` is a member of that group, coreutils' timeout too, and forwards the signal: the
                        // script receives it twice.
                        &FORMS[..FORMS.len() - 1]
                    } else {
                        FORMS
                    };
                    let form = forms[number as usize % forms.len()];
                    if let Some(failure) = compare(&place, &script, form, number) {
                        eprintln!("{failure}");
                        failures.lock().unwrap().push(number);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "PINFOLD_DIFFERENTIAL_SEED={seed}: {} of {count}: {failures:?}", failures.len());
}

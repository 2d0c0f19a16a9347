//! Tests that run one at a time: they measure times and wake-ups, and one is the subreaper of all orphans.

#[path = "../support/mod.rs"]
mod support;

mod faults;
mod idle;
mod races;
mod r#return;

/// The tests take turns. Without turns, one test's load would count in the measurements of another; and a guard that one
/// of them starts holds a copy of every pipe of another test until the guard is executed.
fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

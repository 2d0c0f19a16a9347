//! The layers of `src/`: a lower room never imports an upper one, so that the imports form no cycle. The lower rooms do
//! not use the runtime.
//!
//! `cargo test --test layers -- --nocapture` prints the graph.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// From the bottom to the top. A room may import the rooms before it.
const LAYERS: [&str; 13] = [
    "report",
    "error",
    "kernel",
    "cgroup",
    "subreaper",
    "sandbox",
    "guard",
    "supervisor",
    "job",
    "pool",
    "doctor",
    "blocking",
    "cli",
];

/// Rooms whose processes have no runtime: the guard has one thread, and the child of a clone can use almost nothing.
const WITHOUT_TOKIO: [&str; 7] = ["report", "error", "kernel", "cgroup", "subreaper", "sandbox", "guard"];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Returns every Rust file below `src/`, with its room.
fn files() -> Vec<(PathBuf, String)> {
    let mut open = vec![source()];
    let mut files = Vec::new();
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let first = path.strip_prefix(source()).unwrap().components().next().unwrap();
                let room = first.as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned();
                files.push((path, room));
            }
        }
    }
    files
}

/// Returns the text of the file without its comments and tests.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\n").next().unwrap().to_owned();
    text.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n")
}

/// Returns the rooms that `text` names as `crate::ROOM`, also in the braces of `crate::{…}`.
fn imported(text: &str) -> BTreeSet<String> {
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut rooms = BTreeSet::new();
    for (at, found) in text.match_indices("crate::") {
        let rest = &text[at + found.len()..];
        match rest.strip_prefix('{') {
            None => _ = rooms.insert(name(rest)),
            Some(list) => {
                let mut depth = 0;
                let mut is_start = true;
                for (at, c) in list.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' => is_start |= depth == 0,
                        c if c.is_whitespace() => {}
                        _ if is_start && depth == 0 => {
                            rooms.insert(name(&list[at..]));
                            is_start = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    rooms
}

fn layer(room: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| *layer == room)
}

#[test]
fn no_room_imports_one_above_it() {
    let mut arrows: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (path, room) in files() {
        // The crate's root names every room. The command is the top room, and imports most names from that root.
        let Some(from) = layer(&room).filter(|_| room != "cli") else { continue };
        for to in imported(&code(&path)) {
            match layer(&to) {
                Some(to) if to == from => {}
                Some(to) if to < from => *arrows.entry((from, to)).or_default() += 1,
                // A name imported from the crate's root hides the room that it is in.
                _ => wrong.push(format!("{} imports crate::{to}", path.display())),
            }
        }
    }
    for ((from, to), count) in &arrows {
        println!("{} -> {} ({count} files)", LAYERS[*from], LAYERS[*to]);
    }
    println!("{} imports between rooms, 0 upward, 0 cycles", arrows.len());
    assert!(arrows.len() > 10, "{arrows:?}");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_root_shows_these_rooms_only() {
    let rooms: BTreeSet<String> = files().into_iter().map(|(_, room)| room).collect();
    let known: BTreeSet<String> = LAYERS.iter().chain(&["lib", "main"]).map(|room| (*room).to_owned()).collect();
    assert_eq!(rooms, known);
}

#[test]
fn the_lower_rooms_do_without_a_runtime() {
    let with: Vec<_> = files()
        .into_iter()
        .filter(|(path, room)| WITHOUT_TOKIO.contains(&room.as_str()) && code(path).contains("tokio::"))
        .map(|(path, _)| path)
        .collect();
    assert!(with.is_empty(), "{with:#?}");
}

/// `super::super::…` may not reach the crate's root: from there a file could import any room, and these tests would not
/// notice it.
#[test]
fn no_relative_path_leaves_its_room() {
    for (path, _) in files().into_iter().filter(|(_, room)| layer(room).is_some() && room != "cli") {
        let module = path.strip_prefix(source()).unwrap().with_extension("");
        let names: Vec<_> = module.components().filter(|part| part.as_os_str() != "mod").collect();
        let to_the_root = "super::".repeat(names.len());
        assert!(!code(&path).contains(&to_the_root), "{}", path.display());
    }
}

#[test]
fn imports_are_found() {
    let text = "use crate::kernel::{a, b};\nuse crate::{job::{x, y}, report, self_made};\nlet a = crate::guard::run();";
    let expected = ["guard", "job", "kernel", "report", "self_made"].map(str::to_owned);
    assert_eq!(imported(text), expected.into());
}

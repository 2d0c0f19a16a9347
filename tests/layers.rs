//! The layers of `src/`: a lower room never imports an upper one, and the files of different rooms import each other in
//! no circle. The lower rooms do not use the runtime. docs/dependencies.md names each dependency.
//!
//! `cargo test --test layers -- --nocapture` prints the graph and its figures.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// From the bottom to the top. A room may import the rooms before it.
const LAYERS: [&str; 14] = [
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
    "services",
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

/// Returns the paths that `text` names, as lists of words: those that begin with `crate`, `super` or `self`, also those
/// in the braces of `crate::{…}`.
fn paths(text: &str) -> Vec<Vec<String>> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut all = Vec::new();
    for start in ["crate", "super", "self"] {
        for (at, _) in text.match_indices(&format!("{start}::")) {
            // `$crate`, `other::self`, or the second word of `super::super`.
            if !text[..at].ends_with(|c| is_word(c) || c == ':' || c == '$') {
                tree(&mut text[at..].chars().peekable(), &[], &mut all);
            }
        }
    }
    all
}

/// Reads one tree of paths (`a::b`, `a::{b, c::d}`), whose names begin with `before`.
fn tree(text: &mut std::iter::Peekable<std::str::Chars<'_>>, before: &[String], all: &mut Vec<Vec<String>>) {
    let space =
        |text: &mut std::iter::Peekable<std::str::Chars<'_>>| while text.next_if(|c| c.is_whitespace()).is_some() {};
    let mut path = before.to_vec();
    loop {
        space(text);
        if text.next_if_eq(&'{').is_some() {
            loop {
                tree(text, &path, all);
                // `as name`, or a pattern that is no path.
                while text.next_if(|&c| c != ',' && c != '}').is_some() {}
                if text.next() != Some(',') {
                    return;
                }
                space(text);
                if text.next_if_eq(&'}').is_some() {
                    return;
                }
            }
        }
        let mut word = String::new();
        while let Some(c) = text.next_if(|&c| c.is_alphanumeric() || c == '_') {
            word.push(c);
        }
        path.push(word);
        if text.next_if_eq(&':').is_none() || text.next_if_eq(&':').is_none() {
            return all.push(path);
        }
    }
}

/// Returns the rooms that `text` names as `crate::ROOM`.
fn imported(text: &str) -> BTreeSet<String> {
    let of_the_crate = paths(text).into_iter().filter(|path| path[0] == "crate");
    of_the_crate.filter_map(|path| path.into_iter().nth(1)).collect()
}

/// Returns the module of a file: `job::stop` for `src/job/stop.rs`, and `job` for `src/job/mod.rs`.
fn module(path: &Path) -> Vec<String> {
    let path = path.strip_prefix(source()).unwrap().with_extension("");
    path.iter().map(|part| part.to_str().unwrap().to_owned()).filter(|part| part != "mod").collect()
}

/// Returns which file imports which other one. Only the roots of the two crates import nothing here: they name each
/// room.
fn imports() -> BTreeMap<Vec<String>, BTreeSet<Vec<String>>> {
    let files: BTreeMap<_, _> = files().into_iter().map(|(path, _)| (module(&path), path)).collect();
    let mut graph = BTreeMap::new();
    for (own, path) in &files {
        let mut to = BTreeSet::new();
        for mut named in paths(&code(path)) {
            let up = named.iter().take_while(|word| *word == "super").count();
            let base = match named[0].as_str() {
                "crate" => Vec::new(),
                _ => own[..own.len().saturating_sub(up)].to_vec(),
            };
            named.drain(..up.max(1));
            let full = [base, named].concat();
            // The longest part of the path that is a file. The rest are names in it.
            to.extend(
                (1..=full.len()).rev().map(|length| full[..length].to_vec()).find(|part| files.contains_key(part)),
            );
        }
        to.remove(own);
        if !matches!(own.first().map(String::as_str), Some("lib" | "main")) {
            graph.insert(own.clone(), to);
        }
    }
    graph
}

/// Returns the sets of modules in which each one can be reached from each other one, with more than one member.
fn circles<T: Ord + Clone>(graph: &BTreeMap<T, BTreeSet<T>>) -> BTreeSet<BTreeSet<T>> {
    let reached = |from: &T| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from.clone()]);
        while let Some(next) = open.pop() {
            let new = graph.get(&next).into_iter().flatten().filter(|to| seen.insert((*to).clone()));
            open.extend(new.cloned().collect::<Vec<_>>());
        }
        seen
    };
    let reached: BTreeMap<_, _> = graph.keys().map(|from| (from.clone(), reached(from))).collect();
    let circle = |from: &T| {
        let both = reached[from].iter().filter(|to| reached.get(to).is_some_and(|back| back.contains(from)));
        both.cloned().collect::<BTreeSet<_>>()
    };
    reached.keys().map(circle).filter(|circle| circle.len() > 1).collect()
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
        println!("{} -> {} (files: {count})", LAYERS[*from], LAYERS[*to]);
    }
    let rooms =
        files().iter().map(|(_, room)| room.clone()).filter(|room| layer(room).is_some()).collect::<BTreeSet<_>>();
    println!("{} rooms, {} arrows between them, {} of them upward", rooms.len(), arrows.len(), wrong.len());
    assert!(arrows.len() > 10, "{arrows:?}");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn files_of_different_rooms_form_no_circle() {
    let files = imports();
    let mut rooms: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (from, to) in &files {
        let others = to.iter().map(|to| to[0].clone()).filter(|room| *room != from[0]);
        rooms.entry(from[0].clone()).or_default().extend(others);
    }
    let between_rooms = circles(&rooms);
    let between_files: Vec<_> = circles(&files)
        .into_iter()
        .filter(|circle| circle.iter().map(|file| &file[0]).collect::<BTreeSet<_>>().len() > 1)
        .collect();
    println!(
        "{} files, {} imports between them, {} circles of rooms, {} circles of files of different rooms",
        files.len(),
        files.values().map(BTreeSet::len).sum::<usize>(),
        between_rooms.len(),
        between_files.len()
    );
    assert!(between_rooms.is_empty() && between_files.is_empty(), "{between_rooms:#?} {between_files:#?}");
}

#[test]
fn the_root_shows_these_rooms_only() {
    let rooms: BTreeSet<String> = files().into_iter().map(|(_, room)| room).collect();
    let known: BTreeSet<String> = LAYERS.iter().chain(&["lib", "main"]).map(|room| (*room).to_owned()).collect();
    assert_eq!(rooms, known);
}

/// A file is one concept. One that needs more lines has two.
#[test]
fn no_file_has_more_than_400_lines() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut open: Vec<_> = ["src", "tests", "examples", "benches"].map(|name| root.join(name)).into();
    let mut long = Vec::new();
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let lines = std::fs::read_to_string(&path).unwrap().lines().count();
                if lines > 400 {
                    long.push((path, lines));
                }
            }
        }
    }
    assert!(long.is_empty(), "{long:#?}");
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

/// Returns the names in the sections of Cargo.toml whose header contains `dependencies`.
fn dependencies() -> BTreeSet<String> {
    let manifest = std::fs::read_to_string(source().with_file_name("Cargo.toml")).unwrap();
    let mut is_inside = false;
    let names = manifest.lines().filter_map(|line| {
        if line.starts_with('[') {
            is_inside = line.ends_with("dependencies]");
            return None;
        }
        // The tests depend on this crate itself, with its features.
        line.split_once(" = ").filter(|(name, _)| is_inside && *name != "pinfold").map(|(name, _)| name.to_owned())
    });
    names.collect()
}

#[test]
fn each_dependency_is_explained() {
    let page = std::fs::read_to_string(source().with_file_name("docs").join("dependencies.md")).unwrap();
    let (used, _) = page.split_once("\n## Not used").unwrap();
    let explained: BTreeSet<_> =
        used.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned())).collect();
    assert_eq!(explained, dependencies());
}

#[test]
fn imports_are_found() {
    let text =
        "use crate::kernel::{a, b};\nuse crate::{job::{x, y as z}, report, self_made};\nlet a = crate::guard::run();";
    let expected = ["guard", "job", "kernel", "report", "self_made"].map(str::to_owned);
    assert_eq!(imported(text), expected.into());
    let named: Vec<_> = paths("use super::super::a::{self, b};").into_iter().map(|path| path.join("::")).collect();
    assert_eq!(named, ["super::super::a::self", "super::super::a::b"]);
}

#[test]
fn circles_are_found() {
    let graph = [(1, vec![2]), (2, vec![3]), (3, vec![2, 4]), (4, vec![])];
    let graph = graph.into_iter().map(|(from, to)| (from, to.into_iter().collect())).collect();
    assert_eq!(circles(&graph), [[2, 3].into()].into());
}

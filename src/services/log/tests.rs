//! Tests of a log: a service that writes fast, a reader that follows, and a full disk.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use super::tail::tail;
use super::*;

/// A directory of its own for a log. It is removed at the end.
struct Place(LogFile);

impl Place {
    fn new(name: &str, max_size: u64, keep: u32) -> Self {
        let directory = std::env::temp_dir().join(format!("pinfold-log-{name}-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        Self(LogFile { path: directory.join("service.log"), max_size, keep, with_time: false })
    }

    fn directory(&self) -> PathBuf {
        self.0.path.parent().unwrap().to_owned()
    }

    /// The contents of all files, the oldest first.
    fn texts(&self) -> Vec<Vec<u8>> {
        let numbers = (0..=self.0.keep).rev();
        numbers.filter_map(|number| std::fs::read(self.0.older(number)).ok()).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.directory());
    }
}

/// Numbered lines of different lengths.
fn numbered(lines: std::ops::Range<usize>) -> Vec<u8> {
    lines.flat_map(|number| format!("{number} {}\n", "x".repeat(number * 7 % 200)).into_bytes()).collect()
}

/// Pieces of different lengths, as they arrive from a pipe.
fn pieces(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = text;
    (1_usize..).map_while(move |at| {
        let (piece, later) = rest.split_at(rest.len().min(at * 7919 % 16384 + 1));
        rest = later;
        (!piece.is_empty()).then_some(piece)
    })
}

#[test]
fn no_line_is_lost_or_cut() {
    let place = Place::new("whole", 100_000, 1000);
    let text = numbered(0..50_000);
    let log = Log::open(place.0.clone()).unwrap();
    let mut source = log.source();
    for piece in pieces(&text) {
        assert_eq!(source.push(piece), None);
    }
    assert_eq!(source.push(b"no newline"), None);
    assert_eq!(source.end(), None);
    let texts = place.texts();
    assert!(texts.len() > 40);
    for file in &texts {
        assert!(file.len() <= 100_000 && file.ends_with(b"\n"), "a file of {} bytes", file.len());
    }
    assert!(texts.concat() == [&text[..], b"no newline\n"].concat());
}

#[test]
fn only_the_newest_files_are_kept() {
    let place = Place::new("kept", 1000, 2);
    let text = numbered(0..1000);
    let log = Log::open(place.0.clone()).unwrap();
    let mut source = log.source();
    pieces(&text).for_each(|piece| drop(source.push(piece)));
    assert_eq!(std::fs::read_dir(place.directory()).unwrap().count(), 3);
    assert!(text.ends_with(&place.texts().concat()));
    // A line that is longer than a file is alone in its file, and whole.
    let long = [vec![b'y'; 5000], vec![b'\n']].concat();
    source.push(&long);
    source.push(b"next\n");
    let texts = place.texts();
    assert!(texts[1] == long && texts[2] == b"next\n");
}

#[test]
fn the_last_lines_may_begin_in_an_older_file() {
    let place = Place::new("tail", 10_000, 100);
    assert_eq!(tail(&place.0, 10).unwrap(), b"");
    let log = Log::open(place.0.clone()).unwrap();
    let mut source = log.source();
    let text = numbered(0..3000);
    pieces(&text).for_each(|piece| drop(source.push(piece)));
    for count in [0, 1, 2, 50, 777, 2999, 3000, 4000] {
        let expected = numbered(3000 - count.min(3000)..3000);
        assert!(tail(&place.0, count).unwrap() == expected, "the last {count} lines");
    }
}

#[test]
fn two_sources_mix_whole_lines_only() {
    let place = Place::new("mixed", 1_000_000, 1);
    let log = Log::open(place.0.clone()).unwrap();
    let (mut one, mut other) = (log.source(), log.source());
    one.push(b"begin ");
    other.push(b"other\n");
    one.push(b"end\nnext");
    one.end();
    assert_eq!(place.texts(), [b"other\nbegin end\nnext\n"]);
}

#[test]
fn each_line_has_its_time() {
    let mut place = Place::new("time", 1_000_000, 1);
    place.0.with_time = true;
    let mut source = Log::open(place.0.clone()).unwrap().source();
    source.push(b"one\ntwo\nthr");
    source.push(b"ee\n");
    let text = String::from_utf8(place.texts().concat()).unwrap();
    let lines: Vec<_> = text.lines().map(|line| line.split_once(' ').unwrap()).collect();
    assert_eq!(lines.iter().map(|(_, line)| *line).collect::<Vec<_>>(), ["one", "two", "three"]);
    assert!(lines.iter().all(|(time, _)| humantime::parse_rfc3339(time).is_ok()), "{text}");
}

#[test]
fn another_pinfold_is_refused_and_a_cut_line_is_ended() {
    let place = Place::new("open", 1_000_000, 1);
    std::fs::write(&place.0.path, "cut").unwrap();
    let log = Log::open(place.0.clone()).unwrap();
    let error = Log::open(place.0.clone()).unwrap_err().to_string();
    assert!(error.contains("another pinfold writes to it"), "{error}");
    log.source().push(b"line\n");
    assert_eq!(place.texts(), [b"cut\nline\n"]);
    let nowhere = LogFile { path: place.directory().join("none/a.log"), ..place.0.clone() };
    assert!(Log::open(nowhere).unwrap_err().to_string().contains("directory must exist"));
}

/// A file that has no space after `size` bytes: writes fail with EPERM (F_SEAL_GROW, fcntl(2)).
fn full_after(size: u64) -> File {
    let file = File::from(memfd_create("full", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap());
    file.set_len(size).unwrap();
    io::Seek::seek(&mut &file, io::SeekFrom::End(0)).unwrap();
    fcntl_add_seals(&file, SealFlags::GROW).unwrap();
    file
}

#[test]
fn a_full_disk_is_reported_once_and_leaves_a_note() {
    let place = Place::new("full", 1_000_000, 1);
    let log = Log::open(place.0.clone()).unwrap();
    let mut source = log.source();
    source.push(b"before\n");
    let real = {
        let mut state = log.0.lock().unwrap();
        std::mem::replace(&mut state.current.file, full_after(7))
    };
    match source.push(b"lost\n") {
        Some(LogEvent::Failed(why)) => assert!(why.contains("service.log") && why.contains("os error"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(source.push(b"lost too\n"), None);
    log.0.lock().unwrap().current.file = real;
    assert_eq!(source.push(b"after\n"), Some(LogEvent::Recovered(14)));
    let note = "pinfold: 14 bytes of output are missing here, because they could not be written\n";
    assert_eq!(place.texts(), [format!("before\n{note}after\n").into_bytes()]);
}

/// A write that fails in its middle leaves no part of a line.
#[test]
fn a_line_is_written_completely_or_not_at_all() {
    let file = File::from(memfd_create("part", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap());
    file.write_all_at(b"line\n", 0).unwrap();
    let mut current = Current { file, size: 5 };
    io::Seek::seek(&mut &current.file, io::SeekFrom::End(0)).unwrap();
    fcntl_add_seals(&current.file, SealFlags::GROW).unwrap();
    assert!(current.write(b"more\n").is_err());
    assert_eq!((current.size, current.file.metadata().unwrap().len()), (5, 5));
}

/// The service writes as fast as it can, and a reader follows into each new file.
#[test]
fn a_follower_gets_every_line() {
    let place = Place::new("follow", 200_000, 10_000);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        // The follower begins before the log exists.
        let mut follower = LogFollower::new(place.0.clone()).unwrap();
        let text = numbered(0..40_000);
        let (files, written) = (place.0.clone(), text.clone());
        let writer = std::thread::spawn(move || {
            let mut source = Log::open(files).unwrap().source();
            pieces(&written).for_each(|piece| drop(source.push(piece)));
        });
        let mut read = Vec::new();
        while read.len() < text.len() {
            match follower.next().await.unwrap() {
                FollowedLog::Lines(lines) => {
                    assert!(lines.ends_with(b"\n"));
                    read.extend(lines);
                }
                FollowedLog::Gap => panic!("lines are missing after {} bytes", read.len()),
            }
        }
        writer.join().unwrap();
        assert!(read == text);
    });
}

#[test]
fn a_follower_begins_at_the_end_and_reports_a_gap() {
    let place = Place::new("gap", 1000, 1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut source = Log::open(place.0.clone()).unwrap().source();
        source.push(b"before\n");
        let mut follower = LogFollower::new(place.0.clone()).unwrap();
        source.push(b"first\n");
        assert_eq!(follower.next().await.unwrap(), FollowedLog::Lines(b"first\n".to_vec()));
        // The follower does not read while pinfold begins several new files.
        pieces(&numbered(0..60)).for_each(|piece| drop(source.push(piece)));
        let mut seen = Vec::new();
        while !seen.ends_with(&numbered(59..60)) {
            match follower.next().await.unwrap() {
                FollowedLog::Gap => seen = b"gap\n".to_vec(),
                FollowedLog::Lines(lines) => seen.extend(lines),
            }
        }
        assert!(seen.starts_with(b"gap\n"));
        let kept = place.texts().concat();
        assert!(seen[4..] == kept);
    });
}

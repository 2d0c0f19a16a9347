//! Runs a script and records everything that it does: output, exit code, files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use super::scripts::Script;
use crate::support::{PINFOLD, Scratch};

/// Longer than any script takes on a busy machine.
const BOUND: Duration = Duration::from_secs(60);

/// A descriptor number that no script uses.
const HELD: i32 = 60;

/// The recorded results of a script.
#[derive(Debug, PartialEq)]
pub struct Observed {
    /// The exit code, or 128 plus the signal number, as a shell reports it.
    code: Option<i32>,
    /// The bytes of standard output, of standard error (unless both are the same stream), and of the descriptor that
    /// all processes hold, which must stay empty.
    streams: [Vec<u8>; 3],
    /// Each file by its name: its mode and content.
    files: BTreeMap<String, (u32, Vec<u8>)>,
}

impl Observed {
    pub fn hangs(&self) -> bool {
        self.code.is_none()
    }

    /// Describes the differences of the run with pinfold.
    pub fn differences(&self, with: &Self) -> String {
        let mut text = String::new();
        let mut compare = |what: &str, alone: String, with: String| {
            if alone != with {
                text.push_str(&format!("  {what} alone: {alone}\n  {what} under pinfold: {with}\n"));
            }
        };
        compare("exit code", format!("{:?}", self.code), format!("{:?}", with.code));
        for (stream, name) in ["standard output", "standard error", "descriptor 60"].iter().enumerate() {
            let show = |observed: &Self| observed.streams[stream].escape_ascii().to_string();
            compare(name, show(self), show(with));
        }
        for name in self.files.keys().chain(with.files.keys()).collect::<std::collections::BTreeSet<_>>() {
            let show = |observed: &Self| match observed.files.get(name) {
                Some((mode, bytes)) => format!("{mode:o} {}", bytes.escape_ascii()),
                None => "missing".into(),
            };
            compare(name, show(self), show(with));
        }
        text
    }
}

/// A directory in which the scripts run. It always has the same name.
pub struct Place(Scratch);

enum Event {
    Piece(usize, Vec<u8>),
    End,
}

impl Place {
    pub fn new() -> Self {
        Self(Scratch::directory("differential"))
    }

    /// Runs the script, alone or with the words of pinfold before it, until it has ended and closed its streams.
    pub fn run(&self, script: &Script, pinfold: &[&str]) -> Observed {
        let work = self.0.path().join("work");
        std::fs::create_dir(&work).unwrap();
        std::fs::write(work.join("script"), script.text()).unwrap();
        let input: String = (1..=9).map(|number| format!("line {number}\n")).collect();
        std::fs::write(work.join("input"), input).unwrap();
        let (child, readers) = start(&work, script.merged, pinfold);
        let (code, streams) = observe(child, readers, script);
        let files = files(&work);
        std::fs::remove_dir_all(&work).unwrap();
        Observed { code, streams, files }
    }
}

/// Starts it in a session of its own, with the signal settings of a fresh login.
fn start(work: &Path, merged: bool, pinfold: &[&str]) -> (Child, Vec<std::io::PipeReader>) {
    let words: Vec<_> = if pinfold.is_empty() { vec![] } else { [&[PINFOLD], pinfold].concat() };
    let words: Vec<_> = words.into_iter().chain(["bash", "script"]).collect();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).current_dir(work).env("LC_ALL", "C").stdin(File::open(work.join("input")).unwrap());
    let (out, writer) = std::io::pipe().unwrap();
    let mut readers = vec![out];
    if merged {
        command.stderr(writer.try_clone().unwrap());
    } else {
        let (err, writer) = std::io::pipe().unwrap();
        readers.push(err);
        command.stderr(Stdio::from(writer));
    }
    command.stdout(writer);
    // Every process of the script holds this descriptor, even if it changes its streams. Its end of file proves that
    // all have ended.
    let (end, held) = std::io::pipe().unwrap();
    readers.push(end);
    let number = held.as_raw_fd();
    // SAFETY: only makes system calls between fork and exec.
    unsafe {
        command.pre_exec(move || {
            for signal in 1..32 {
                libc::signal(signal, libc::SIG_DFL);
            }
            // SAFETY: sigemptyset(3) initialises the set.
            let mut none = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
            libc::setsid();
            if libc::dup2(number, HELD) == -1 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
        });
    }
    let child = command.spawn().unwrap();
    drop(held);
    (child, readers)
}

/// Reads until the streams end, and sends the script's signal when the script has printed `armed`.
fn observe(mut child: Child, readers: Vec<std::io::PipeReader>, script: &Script) -> (Option<i32>, [Vec<u8>; 3]) {
    let (sender, events) = channel();
    let mut open = readers.len();
    for (stream, reader) in readers.into_iter().enumerate() {
        let sender = sender.clone();
        std::thread::spawn(move || read(stream, reader, &sender));
    }
    let mut streams = [Vec::new(), Vec::new(), Vec::new()];
    let mut signal = script.signal;
    while open > 0 {
        match events.recv_timeout(BOUND) {
            Ok(Event::Piece(stream, bytes)) => streams[stream].extend(bytes),
            Ok(Event::End) => open -= 1,
            Err(RecvTimeoutError::Timeout) => {
                // The test made this session and all its process groups. Under pinfold the guard ends the remaining
                // processes.
                send(-(child.id() as i32), libc::SIGKILL);
                send(child.id() as i32, libc::SIGKILL);
                let _ = child.wait();
                return (None, streams);
            }
            Err(RecvTimeoutError::Disconnected) => unreachable!("a sender is kept"),
        }
        let armed = |bytes: &[u8]| bytes.windows(6).any(|window| window == b"armed\n");
        if let Some((name, micros)) = signal
            && armed(&streams[0])
        {
            signal = None;
            // This sleep does not wait for an event: it chooses a random moment.
            std::thread::sleep(Duration::from_micros(micros));
            send(child.id() as i32, name.parse::<pinfold::Signal>().unwrap().number());
        }
    }
    let status = child.wait().unwrap();
    (status.code().or_else(|| status.signal().map(|signal| 128 + signal)), streams)
}

fn read(stream: usize, mut reader: std::io::PipeReader, sender: &Sender<Event>) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(length @ 1..) = reader.read(&mut buffer) {
        let _ = sender.send(Event::Piece(stream, buffer[..length].to_vec()));
    }
    let _ = sender.send(Event::End);
}

/// Sends a signal to this process's own child, which is reaped only after this.
fn send(pid: i32, signal: i32) {
    // SAFETY: passes two numbers.
    unsafe { libc::kill(pid, signal) };
}

fn files(work: &Path) -> BTreeMap<String, (u32, Vec<u8>)> {
    let entries = std::fs::read_dir(work).unwrap().map(Result::unwrap);
    entries
        .map(|entry| {
            let (path, metadata) = (entry.path(), entry.metadata().unwrap());
            let content = if metadata.is_file() { std::fs::read(&path).unwrap() } else { Vec::new() };
            (entry.file_name().to_string_lossy().into_owned(), (metadata.permissions().mode(), content))
        })
        .collect()
}

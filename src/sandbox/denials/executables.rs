//! Finds out whether Landlock refuses execve(2). The kernel opens the file that the call names, and also the
//! interpreter of a script and the dynamic linker.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use rustix::fs::FileType;

use super::calls::PathArguments;
use super::files::{Call, FileRules};
use super::lookup::{Object, find_from};
use crate::report::Denial;

/// The maximum number of interpreters, if the interpreter of a script is a script too (`exec_binprm` in fs/exec.c).
const MAX_INTERPRETERS: u32 = 5;

/// Returns the denial of the first file that the rules do not let the caller execute.
pub fn denial(rules: &FileRules, call: Call<'_>, at: PathArguments) -> Option<Denial> {
    let mut found = call.find(at, true)?;
    for _ in 0..=MAX_INTERPRETERS {
        if let Some(denial) = rules.execute(call, &found) {
            return Some(denial);
        }
        let object = found.object.as_ref().filter(|object| call.caller.may_execute(object))?;
        found = interpreter_of(object).and_then(|path| find_from(call.caller, libc::AT_FDCWD, &path, true).ok())?;
    }
    None
}

/// Returns the path of the program with which the kernel executes a file: the interpreter after `#!` in the first line
/// of a script, or the dynamic linker. Returns `None` if the file needs no such program.
fn interpreter_of(object: &Object) -> Option<Vec<u8>> {
    if object.kind() != FileType::RegularFile {
        return None;
    }
    // The link leads to the file that was looked up, even if the job has replaced that file since.
    let path = format!("/proc/self/fd/{}", object.file.as_raw_fd());
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path).ok()?;
    let mut start = [0; 512];
    let length = file.read_at(&mut start, 0).ok()?;
    let start = &start[..length];
    match start.strip_prefix(b"#!") {
        Some(line) => {
            let line = line.split(|&byte| byte == b'\n').next()?.trim_ascii_start();
            let end = line.iter().position(|byte| b" \t".contains(byte)).unwrap_or(line.len());
            Some(line[..end].to_vec()).filter(|path| !path.is_empty())
        }
        None if start.starts_with(b"\x7fELF\x02") => dynamic_linker(&file, start),
        None => None,
    }
}

/// Returns the path in the program header `PT_INTERP` of a 64-bit file (elf(5)) in the byte order of this machine.
fn dynamic_linker(file: &File, header: &[u8]) -> Option<Vec<u8>> {
    const PT_INTERP: u32 = 3;
    let u16_at = |bytes: &[u8], at: usize| Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let u64_at = |bytes: &[u8], at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    // e_phoff, e_phentsize, e_phnum.
    let (offset, size, count) = (u64_at(header, 32)?, u16_at(header, 54)?, u16_at(header, 56)?);
    for index in 0..u64::from(count) {
        let mut entry = [0; 56];
        file.read_exact_at(&mut entry, offset.checked_add(index * u64::from(size))?).ok()?;
        if u32::from_ne_bytes(entry[..4].try_into().ok()?) != PT_INTERP {
            continue;
        }
        // p_offset, p_filesz.
        let (offset, length) = (u64_at(&entry, 8)?, u64_at(&entry, 32)?);
        let mut path = vec![0; usize::try_from(length).ok().filter(|length| *length <= 4096)?];
        file.read_exact_at(&mut path, offset).ok()?;
        path.truncate(path.iter().position(|&byte| byte == 0)?);
        return Some(path);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::caller::Caller;
    use super::super::lookup::Found;
    use super::*;

    fn found(path: &str) -> Found {
        let caller = Caller::new(std::process::id(), false, None).unwrap();
        find_from(&caller, libc::AT_FDCWD, path.as_bytes(), true).unwrap()
    }

    #[test]
    fn the_interpreter_of_a_file_is_found() {
        let linker = interpreter_of(&found("/bin/sh").object.unwrap()).unwrap();
        let linker = String::from_utf8(linker).unwrap();
        assert!(linker.contains("ld-"), "{linker}");
        let script = std::env::temp_dir().join(format!("pinfold-executables-{}", std::process::id()));
        for (text, expected) in
            [("#!/bin/sh -e\n", Some("/bin/sh")), ("#! x\n", Some("x")), ("#!\n", None), ("a", None)]
        {
            std::fs::write(&script, text).unwrap();
            let interpreter = interpreter_of(&found(script.to_str().unwrap()).object.unwrap());
            assert_eq!(interpreter.as_deref(), expected.map(str::as_bytes), "{text}");
        }
        std::fs::remove_file(script).unwrap();
    }
}

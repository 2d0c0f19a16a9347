//! Limits written to a leaf, each read back: what the kernel did not take over is an error.
//!
//! By descriptor and not with the crate cgroups-rs: its version 0.5.1 goes by path, opens with `O_CREAT` (a file that this
//! kernel lacks is then "permission denied" instead of "no such file"), writes `io.bfq.weight` where `io.weight` is meant, has
//! no `memory.oom.group`, and brings 114 crates, zbus with a second runtime among them, to a handful of writes.

use std::ffi::CStr;

use rustix::io::Errno;

use crate::cgroup::directory::Cgroup;
use crate::cgroup::leaf::Leaf;
use crate::cgroup::limits::{Controller, IoMax, Limits, cpus_of, device_of, machine_memory, machine_swap};
use crate::error::{Error, Result};
use crate::kernel::size::Size;

/// The period of `cpu.max`, in microseconds: the kernel's default.
const PERIOD: f64 = 100_000.0;

/// Writes the limits to what holds a new job. Tells the leaf once more where its memory can be watched.
pub(crate) fn apply_to(leaf: Option<&Leaf>, limits: &Limits) -> Result<Option<Cgroup>> {
    let Some(leaf) = leaf else {
        return match limits.controllers().first() {
            Some(&controller) => {
                Err(refused(controller, "without a cgroup there is none".into(), "see pinfold doctor"))
            }
            None => Ok(None),
        };
    };
    apply(limits, leaf.cgroup(), leaf.controllers())?;
    Ok(leaf.has_controller("memory").then(|| leaf.cgroup().again().ok()).flatten())
}

/// Writes the limits to `leaf`, whose controllers are `controllers`, before anything runs in it.
fn apply(limits: &Limits, leaf: &Cgroup, controllers: &str) -> Result<()> {
    for controller in limits.controllers() {
        if !controllers.split_ascii_whitespace().any(|known| known == controller.name()) {
            let reason = format!("its cgroup does not have the {controller} controller");
            return Err(refused(controller, reason, "name the controller when the supervisor is started"));
        }
    }
    let memory = |size: Size| bytes(size.bytes_of(machine_memory()));
    if let Some(size) = limits.memory {
        set(leaf, Controller::Memory, c"memory.max", &memory(size))?;
    }
    match limits.swap.or(limits.memory.map(|_| Size::Bytes(0))) {
        // A kernel that does not count swap, on a machine that has none to give.
        Some(_) if machine_swap() == 0 && leaf.read(c"memory.swap.max") == Err(Errno::NOENT) => {}
        Some(size) => set(leaf, Controller::Memory, c"memory.swap.max", &bytes(size.bytes_of(machine_swap())))?,
        None => {}
    }
    if let Some(size) = limits.memory_high {
        set(leaf, Controller::Memory, c"memory.high", &memory(size))?;
    }
    if limits.oom_group {
        set(leaf, Controller::Memory, c"memory.oom.group", "1")?;
    }
    if let Some(pids) = limits.pids {
        set(leaf, Controller::Pids, c"pids.max", &pids.to_string())?;
    }
    if let Some(cpus) = limits.cpus {
        set(leaf, Controller::Cpu, c"cpu.max", &format!("{} {PERIOD}", (cpus * PERIOD).round() as u64))?;
    }
    if let Some(weight) = limits.cpu_weight {
        set(leaf, Controller::Cpu, c"cpu.weight", &weight.to_string())?;
    }
    if let Some(weight) = limits.io_weight {
        set_io_weight(leaf, weight)?;
    }
    for limit in &limits.io_max {
        set_io_max(leaf, limit)?;
    }
    match &limits.cpuset {
        Some(list) => set_cpus(leaf, list),
        None => Ok(()),
    }
}

fn bytes(bytes: Option<u64>) -> String {
    // The kernel keeps whole pages, rounded down.
    let page = rustix::param::page_size() as u64;
    bytes.map_or_else(|| "max".into(), |bytes| (bytes / page * page).to_string())
}

fn refused(controller: Controller, reason: String, advice: &str) -> Error {
    let limit = match controller {
        Controller::Cpu => "CPU limit",
        Controller::Cpuset => "list of CPUs",
        Controller::Io => "I/O limit",
        Controller::Memory => "memory limit",
        Controller::Pids => "limit on processes",
    };
    Error::Limit { limit, reason, advice: advice.into() }
}

fn write(leaf: &Cgroup, controller: Controller, file: &CStr, value: &str) -> Result<()> {
    leaf.write(file, value.as_bytes()).map_err(|errno| {
        let file = file.to_string_lossy();
        let advice = match (errno, &*file) {
            (Errno::NOENT, "memory.swap.max") => {
                "this kernel does not count swap: boot with swapaccount=1, switch swap off, or give --swap max"
            }
            (Errno::NOENT, _) => "this kernel does not have it",
            (Errno::NODEV, _) => "the device does not take such limits",
            _ => "",
        };
        refused(controller, format!("cannot write '{value}' to {file}: {errno}"), advice)
    })
}

/// Writes a value and reads the same back.
fn set(leaf: &Cgroup, controller: Controller, file: &CStr, value: &str) -> Result<()> {
    write(leaf, controller, file, value)?;
    read_back(leaf, controller, file, value, |text| text.trim() == value)
}

fn read_back(
    leaf: &Cgroup,
    controller: Controller,
    file: &CStr,
    value: &str,
    is_set: impl Fn(&str) -> bool,
) -> Result<()> {
    let reason = match leaf.read(file) {
        Ok(text) if is_set(&text) => return Ok(()),
        Ok(text) => format!("says '{}' after '{value}' was written", text.trim()),
        Err(errno) => format!("can't be read back after '{value}' was written: {errno}"),
    };
    Err(refused(controller, format!("{} {reason}", file.to_string_lossy()), ""))
}

/// `io.weight` is the file of the iocost policy; a BFQ scheduler has one of its own, with weights up to 1000.
fn set_io_weight(leaf: &Cgroup, weight: u64) -> Result<()> {
    let file = match leaf.read(c"io.weight") {
        Err(Errno::NOENT) if leaf.read(c"io.bfq.weight").is_ok() => c"io.bfq.weight",
        _ => c"io.weight",
    };
    let value = format!("default {weight}");
    write(leaf, Controller::Io, file, &value)?;
    read_back(leaf, Controller::Io, file, &value, |text| text.lines().any(|line| line.trim() == value))
}

fn set_io_max(leaf: &Cgroup, limit: &IoMax) -> Result<()> {
    let device = device_of(&limit.device)?;
    let pairs: Vec<String> =
        [("rbps", limit.rbps), ("wbps", limit.wbps), ("riops", limit.riops), ("wiops", limit.wiops)]
            .into_iter()
            .filter_map(|(key, value)| value.map(|value| format!("{key}={value}")))
            .collect();
    let value = format!("{device} {}", pairs.join(" "));
    write(leaf, Controller::Io, c"io.max", &value)?;
    read_back(leaf, Controller::Io, c"io.max", &value, |text| {
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        lines.any(|(name, set)| name == device && pairs.iter().all(|pair| set.split(' ').any(|known| known == pair)))
    })
}

/// CPUs that the cgroup above does not have are taken and then not used: what is effective has to be what was asked for.
fn set_cpus(leaf: &Cgroup, list: &str) -> Result<()> {
    write(leaf, Controller::Cpuset, c"cpuset.cpus", list)?;
    let reason = match leaf.read(c"cpuset.cpus.effective") {
        Ok(effective) if cpus_of(list).is_some() && cpus_of(list) == cpus_of(&effective) => return Ok(()),
        Ok(effective) => format!("of the CPUs {list} this cgroup may use {}", effective.trim()),
        Err(errno) => format!("cpuset.cpus.effective can't be read: {errno}"),
    };
    Err(refused(Controller::Cpuset, reason, "name only those"))
}

//! Writes limits to a leaf and reads each one back: a limit that the kernel did not accept is an error.
//!
//! pinfold opens the files through the leaf's descriptor. docs/dependencies.md gives the reasons why it does not use
//! the crate cgroups-rs for this.

use std::ffi::CStr;

use rustix::io::Errno;

use crate::cgroup::directory::Cgroup;
use crate::cgroup::leaf::Leaf;
use crate::cgroup::limits::{Controller, IoMax, Limits, cpus_of, device_of, machine_memory, machine_swap};
use crate::error::{Error, Result};
use crate::kernel::size::Size;

/// The period of `cpu.max`, in microseconds: the kernel's default.
const PERIOD: f64 = 100_000.0;

/// Writes the limits to the leaf of a new job. If the leaf has the memory controller, returns the leaf, opened again,
/// so that pinfold can watch the job's memory.
pub(crate) fn apply_to(leaf: Option<&Leaf>, limits: &Limits) -> Result<Option<Cgroup>> {
    let Some(leaf) = leaf else {
        return match limits.controllers().first() {
            Some(&controller) => {
                Err(refused(controller, "this limit is not available without a cgroup".into(), "see pinfold doctor"))
            }
            None => Ok(None),
        };
    };
    apply(limits, leaf.cgroup(), leaf.controllers())?;
    Ok(leaf.has_controller("memory").then(|| leaf.cgroup().reopen().ok()).flatten())
}

/// Writes the limits to `leaf`, whose controllers are `controllers`, before anything runs in it.
fn apply(limits: &Limits, leaf: &Cgroup, controllers: &str) -> Result<()> {
    for controller in limits.controllers() {
        if !controllers.split_ascii_whitespace().any(|known| known == controller.name()) {
            let reason = format!("the job's cgroup does not have the {controller} controller");
            return Err(refused(controller, reason, "request the controller when the supervisor is started"));
        }
    }
    let memory = |size: Size| bytes(size.bytes_of(machine_memory()));
    if let Some(size) = limits.memory {
        set(leaf, Controller::Memory, c"memory.max", &memory(size))?;
    }
    match limits.swap.or(limits.memory.map(|_| Size::Bytes(0))) {
        // The kernel does not count swap; the machine has no swap, so the limit holds anyway.
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
                "this kernel does not count swap: boot with swapaccount=1, switch swap off, or use --swap max"
            }
            (Errno::NOENT, _) => "this kernel does not have this file",
            (Errno::NODEV, _) => "the device does not support such limits",
            _ => "",
        };
        refused(controller, format!("cannot write '{value}' to {file}: {errno}"), advice)
    })
}

/// Writes a value, reads it back, and checks that it is the same.
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
        Ok(text) => format!("contains '{}' after '{value}' was written", text.trim()),
        Err(errno) => format!("cannot be read back after '{value}' was written: {errno}"),
    };
    Err(refused(controller, format!("{} {reason}", file.to_string_lossy()), ""))
}

/// Sets the I/O weight. `io.weight` is the file of the iocost policy; the BFQ scheduler has its own file, with weights
/// up to 1000.
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

/// Sets the CPUs. The kernel accepts CPUs that the parent cgroup does not have, and then does not use them. Therefore
/// this function checks that the effective CPUs are the requested ones.
fn set_cpus(leaf: &Cgroup, list: &str) -> Result<()> {
    write(leaf, Controller::Cpuset, c"cpuset.cpus", list)?;
    let reason = match leaf.read(c"cpuset.cpus.effective") {
        Ok(effective) if cpus_of(list).is_some() && cpus_of(list) == cpus_of(&effective) => return Ok(()),
        Ok(effective) => format!("of the CPUs {list}, this cgroup may use only {}", effective.trim()),
        Err(errno) => format!("cpuset.cpus.effective cannot be read: {errno}"),
    };
    Err(refused(Controller::Cpuset, reason, "list only CPUs that this cgroup may use"))
}

//! The findings about cgroups.

use super::facts::{Cgroup, Facts, Mount, Tried};
use super::{Finding, Section, verdict, words};
use crate::cgroup::{NO_CGROUP2, NO_PROC, NOT_DELEGATED, READ_ONLY};

const SECTION: Section = Section::Cgroup;

pub(super) fn add_findings(facts: &Facts, findings: &mut Vec<Finding>) {
    findings.push(mounts(facts));
    if let Some(mount) = read_only(facts) {
        let text = format!("the cgroup2 file system at {} is mounted read-only", mount.point);
        findings.push(Finding::bad("read_only", SECTION, text).advise(READ_ONLY));
    }
    match facts.mounts.namespaced {
        Some(true) => findings.push(Finding::note("namespace", SECTION, "in a cgroup namespace of its own")),
        Some(false) => findings.push(Finding::note("namespace", SECTION, "in the machine's own cgroup namespace")),
        None => {}
    }
    let Some(cgroup) = &facts.cgroup else {
        if facts.mounts.v2.is_empty() {
            return;
        }
        let refused = facts.place.refused.first();
        let why = refused.map_or("it can't be seen", |refused| &refused.reason);
        let mut finding = Finding::bad("own", SECTION, format!("no cgroup v2 of this process: {why}"));
        finding.advice = refused.map(|refused| refused.advice.clone());
        findings.push(finding);
        return;
    };
    own(cgroup, facts, findings);
    for base in &facts.locked {
        let text = format!("a base is locked and has no guard: {base}");
        findings.push(
            Finding::bad("locked", SECTION, text).advise("end the process that holds the lock, then run pinfold sweep"),
        );
    }
    scratch(facts, findings);
    controllers(cgroup, facts, findings);
}

fn mounts(facts: &Facts) -> Finding {
    let mounts = &facts.mounts;
    if let Some(reason) = &mounts.unknown {
        return Finding::bad("mounts", SECTION, format!("the mounts are not known: {reason}")).advise(NO_PROC);
    }
    let points: Vec<_> = mounts.v2.iter().map(|mount| mount.point.as_str()).collect();
    let (v2, v1) = (points.join(", "), mounts.v1.join(", "));
    match (mounts.v2.is_empty(), mounts.v1.is_empty()) {
        (false, true) => Finding::good("mounts", SECTION, format!("cgroup v2 at {v2}, no v1")),
        (false, false) => Finding::good("mounts", SECTION, format!("hybrid: cgroup v2 at {v2}, v1 for {v1}")),
        (true, false) => Finding::bad("mounts", SECTION, format!("only cgroup v1 is mounted, for {v1}"))
            .advise(format!("{NO_CGROUP2} (systemd: systemd.unified_cgroup_hierarchy=1 on the kernel command line)")),
        (true, true) => Finding::bad("mounts", SECTION, "no cgroup file system is mounted here").advise(NO_CGROUP2),
    }
}

/// Returns the mount through which pinfold would use this process's cgroup, if that mount is read-only.
fn read_only(facts: &Facts) -> Option<&Mount> {
    let directory = facts.cgroup.as_ref().map(|cgroup| cgroup.directory.as_str());
    // The last mount at a mount point hides the earlier ones. A path goes through the mount with the longest mount
    // point.
    let mounts = facts.mounts.v2.iter().rev();
    let through =
        |mount: &&Mount| directory.is_none_or(|directory| std::path::Path::new(directory).starts_with(&mount.point));
    mounts.filter(through).max_by_key(|mount| mount.point.len()).filter(|mount| mount.read_only)
}

fn own(cgroup: &Cgroup, facts: &Facts, findings: &mut Vec<Finding>) {
    let whose = if facts.place.requested { "the requested cgroup" } else { "own cgroup" };
    let text = format!("{whose}: {}, of user {}, mode {:03o}", cgroup.directory, cgroup.owner, cgroup.mode);
    findings.push(if cgroup.writable {
        Finding::good("own", SECTION, text)
    } else {
        let finding = Finding::bad("own", SECTION, format!("{text}: no cgroup can be made in it"));
        // The finding about the read-only mount already contains the advice.
        if read_only(facts).is_some() { finding } else { finding.advise(NOT_DELEGATED) }
    });
    if let Some(kind) = cgroup.kind.as_deref().filter(|kind| *kind != "domain" && *kind != "domain threaded") {
        findings.push(
            Finding::bad("type", SECTION, format!("its cgroup.type is {kind}"))
                .advise("the cgroup is threaded; use --cgroup with a domain cgroup"),
        );
    }
    if read_only(facts).is_none() {
        findings.push(delegated(cgroup));
    }
    for (file, limit) in &cgroup.limits {
        let id = if file == "pids.max" { "pids_max" } else { "max" };
        let text = format!("{file} is {limit}, here or above");
        findings.push(if *limit == 0 && id == "max" {
            Finding::bad(id, SECTION, text).advise("raise it: no cgroup can be made in this one")
        } else {
            Finding::note(id, SECTION, text)
        });
    }
}

/// Reports whether processes can be moved into the cgroup.
fn delegated(cgroup: &Cgroup) -> Finding {
    let marked = if cgroup.marked_delegated { ", marked as delegated by systemd" } else { "" };
    let ancestor = cgroup.ancestor.as_ref().filter(|ancestor| !ancestor.procs_writable);
    match (cgroup.procs_writable, ancestor) {
        (true, None) => Finding::good(
            "delegated",
            SECTION,
            format!("processes can be moved into and out of it: its cgroup.procs is writable{marked}"),
        ),
        (true, Some(ancestor)) => {
            let text = format!(
                "processes can't be moved into it from here: {}/cgroup.procs can't be written",
                ancestor.directory
            );
            Finding::bad("delegated", SECTION, text).advise(
                "this user must also be able to write cgroup.procs of the directory above (the common ancestor)",
            )
        }
        (false, _) => {
            let text = format!("processes can't be moved into or out of it: its cgroup.procs can't be written{marked}");
            Finding::bad("delegated", SECTION, text).advise(NOT_DELEGATED)
        }
    }
}

/// Reports the results of the tests in a cgroup that was made for them.
fn scratch(facts: &Facts, findings: &mut Vec<Finding>) {
    let Some(scratch) = &facts.scratch else { return };
    let finding = match verdict::refusal(facts.place.directory.as_deref().unwrap_or_default(), scratch) {
        Some((refused, _)) => {
            let finding = Finding::bad("scratch", SECTION, format!("tested there: {}", refused.reason));
            if refused.advice.is_empty() { finding } else { finding.advise(&refused.advice) }
        }
        None => {
            let how = if scratch.cloned == Tried::Works { "a process was born in it" } else { "a process joined it" };
            Finding::good("scratch", SECTION, format!("tested there: a cgroup was made, {how}"))
        }
    };
    findings.push(finding);
    if let Tried::Refused(errno) = scratch.removed {
        let text = format!("the cgroup of this test could not be removed: {}", words(errno));
        findings.push(Finding::bad("removed", SECTION, text).advise("pinfold sweep"));
    }
}

/// The controllers that limits and reports need.
const USEFUL: [&str; 4] = ["cpu", "io", "memory", "pids"];

fn controllers(cgroup: &Cgroup, facts: &Facts, findings: &mut Vec<Finding>) {
    let unneeded = "not needed to hold jobs; reports have no peaks of memory and processes, and no I/O";
    let list = |controllers: &[String]| if controllers.is_empty() { "none".into() } else { controllers.join(" ") };
    let useful = |there: &[String]| USEFUL.iter().any(|useful| there.iter().any(|there| there == useful));
    let text = format!("controllers: {}", list(&cgroup.controllers));
    if useful(&cgroup.controllers) {
        findings.push(Finding::good("controllers", SECTION, text));
        let enabled = format!("controllers of its children: {}", list(&cgroup.subtree_control));
        findings.push(if useful(&cgroup.subtree_control) {
            Finding::good("subtree_control", SECTION, enabled)
        } else {
            Finding::note("subtree_control", SECTION, format!("{enabled} (cgroup.subtree_control)")).advise(unneeded)
        });
    } else {
        let v1: Vec<_> = facts
            .mounts
            .v1
            .iter()
            .map(String::as_str)
            .filter(|name| *name == "blkio" || USEFUL.contains(name))
            .collect();
        let why = if v1.is_empty() { String::new() } else { format!("; cgroup v1 holds {}", v1.join(", ")) };
        findings.push(Finding::note("controllers", SECTION, text + &why).advise(unneeded));
    }
    findings.push(match cgroup.swap {
        Some(true) => Finding::good("swap", SECTION, "swap is accounted for (memory.swap.max)"),
        Some(false) => Finding::bad("swap", SECTION, "swap is not accounted for: there is no memory.swap.max")
            .advise("swapaccount=1 on the kernel command line"),
        None => Finding::note("swap", SECTION, "swap accounting: not known, there is no memory controller here"),
    });
}

//! Limits the huge pages of a job. pinfold has no such limit, so the crate cgroups-rs writes it into the job's cgroup
//! (controller hugetlb).
//!
//!     cargo run --example cgroups_rs -- DIRECTORY SIZE BYTES COMMAND [ARGUMENT...]
//!
//! COMMAND starts when the limit holds: it may use at most BYTES of huge pages of this SIZE, such as 2MB. DIRECTORY is
//! a cgroup without processes that has the controller. It must be below /sys/fs/cgroup, where cgroups-rs looks for
//! cgroup v2.

use std::error::Error;
use std::io::Write;
use std::path::Path;

use cgroups_rs::fs::Cgroup;
use cgroups_rs::fs::hierarchies::{UNIFIED_MOUNTPOINT, V2};
use cgroups_rs::fs::hugetlb::HugeTlbController;
use pinfold::{Command, Supervisor};

/// The job waits for a line on standard input before it executes the command.
const WAIT: &str = "read -r go && exec \"$@\" </dev/null";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(own), Some(size), Some(bytes)) = (arguments.next(), arguments.next(), arguments.next()) else {
        return Err("usage: cgroups_rs DIRECTORY SIZE BYTES COMMAND [ARGUMENT...]".into());
    };
    let own = Path::new(&own);
    let supervisor = Supervisor::builder().cgroup(own).start().await?;
    let (reader, mut writer) = std::io::pipe()?;
    let mut command = Command::new("sh");
    command.args(["-c", WAIT, "sh"]).args(arguments).stdin(std::os::fd::OwnedFd::from(reader));
    let mut job = supervisor.spawn(&command).await?;

    let leaf = job.cgroup().ok_or("the job has no cgroup: see pinfold doctor")?;
    // The leaf has the controller if both directories above it enable the controller for their children.
    let base = leaf.parent().ok_or("the leaf has no parent")?;
    let given =
        std::fs::read_to_string(own.join("cgroup.subtree_control"))?.split_whitespace().any(|known| known == "hugetlb");
    for directory in [own, base] {
        set(directory, "+hugetlb")?;
    }
    let cgroup = Cgroup::load(Box::new(V2::new()), leaf.strip_prefix(UNIFIED_MOUNTPOINT)?);
    let hugetlb: &HugeTlbController = cgroup.controller_of().ok_or("the controller hugetlb is not available")?;
    hugetlb.set_limit_in_bytes(&size, bytes.parse()?)?;
    println!("{}: at most {} bytes of pages of {size}", leaf.display(), hugetlb.limit_in_bytes(&size)?);

    writer.write_all(b"go\n")?;
    let report = job.wait().await?;
    // pinfold has removed the leaf. The supervisor removes the base. Only the cgroup above remains.
    supervisor.close().await;
    if !given {
        set(own, "-hugetlb")?;
    }
    std::process::exit(report.exit_code.into())
}

fn set(directory: &Path, change: &str) -> Result<(), Box<dyn Error>> {
    let file = directory.join("cgroup.subtree_control");
    // Without O_CREAT: if the directory is gone, nothing may appear in its place.
    let written =
        std::fs::OpenOptions::new().write(true).open(&file).and_then(|mut open| open.write_all(change.as_bytes()));
    Ok(written.map_err(|error| format!("cannot write {change} to {}: {error}", file.display()))?)
}

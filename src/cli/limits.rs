//! The limit options of `pinfold run`. A job in JSON has the same limits, with the same names and values
//! (`cgroup/limits_form.rs`).

use crate::{Error, IoMax, Limits, Rlimit, Size};

/// What the job may use
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Memory of the whole job: 512M, 1.5G, 50%; beyond it the OOM killer ends processes of the job
    #[arg(long, value_name = "SIZE", value_parser = parse::<Size>)]
    memory: Option<Size>,

    /// Memory beyond which the job is slowed down
    #[arg(long, value_name = "SIZE", value_parser = parse::<Size>)]
    memory_high: Option<Size>,

    /// Swap of the whole job, or max [default with --memory: 0]
    #[arg(long, value_name = "SIZE", value_parser = parse::<Size>)]
    swap: Option<Size>,

    /// When memory runs out, kill the whole job, not one process
    #[arg(long)]
    oom_group: bool,

    /// Maximum number of processes and threads
    #[arg(long, value_name = "N")]
    pids: Option<u64>,

    /// CPU time: 0.5 is half of one CPU
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    cpus: Option<f64>,

    /// Share of CPU time when jobs compete for it, 1 to 10000 (usually 100)
    #[arg(long, value_name = "N")]
    cpu_weight: Option<u64>,

    /// The CPUs to run on, such as 0-3,7
    #[arg(long, value_name = "CPUS")]
    cpuset: Option<String>,

    /// Share of I/O when jobs compete for it, 1 to 10000 (usually 100)
    #[arg(long, value_name = "N")]
    io_weight: Option<u64>,

    /// Limit the use of a disk, such as /dev/sda:rbps=10M,wiops=100 (repeatable)
    #[arg(long, value_name = "DEV:KEY=N", value_parser = parse::<IoMax>)]
    io_max: Vec<IoMax>,

    /// Resource limit of each process, such as nofile=1024:4096 (repeatable; same names as in prlimit)
    #[arg(long, value_name = "NAME=SOFT[:HARD]", value_parser = parse::<Rlimit>)]
    rlimit: Vec<Rlimit>,

    /// Niceness, -20 to 19
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    nice: Option<i32>,
}

impl LimitArgs {
    pub fn to_limits(&self) -> Limits {
        Limits {
            memory: self.memory,
            memory_high: self.memory_high,
            swap: self.swap,
            oom_group: self.oom_group,
            pids: self.pids,
            cpus: self.cpus,
            cpu_weight: self.cpu_weight,
            cpuset: self.cpuset.clone(),
            io_weight: self.io_weight,
            io_max: self.io_max.clone(),
            rlimits: self.rlimit.clone(),
            nice: self.nice,
        }
    }
}

/// Parses a value as the library does. The error message leaves out the value, because clap prints it.
fn parse<T: std::str::FromStr<Err = Error>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error| match error {
        Error::Invalid { advice, .. } => advice,
        error => error.to_string(),
    })
}

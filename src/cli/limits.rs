//! The limits of `pinfold run`.

use pinfold::{Error, IoMax, Limits, Rlimit, Size};

/// What the job may use
#[derive(clap::Args)]
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

    /// Processes and threads at once
    #[arg(long, value_name = "N")]
    pids: Option<u64>,

    /// CPU time: 0.5 is half of one CPU
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    cpus: Option<f64>,

    /// Share of CPU time where there is not enough, 1 to 10000 (100 is usual)
    #[arg(long, value_name = "N")]
    cpu_weight: Option<u64>,

    /// The CPUs to run on, as 0-3,7
    #[arg(long, value_name = "CPUS")]
    cpuset: Option<String>,

    /// Share of I/O, 1 to 10000 (100 is usual)
    #[arg(long, value_name = "N")]
    io_weight: Option<u64>,

    /// Limit a disk, as /dev/sda:rbps=10M,wiops=100 (repeatable)
    #[arg(long, value_name = "DEV:KEY=N", value_parser = parse::<IoMax>)]
    io_max: Vec<IoMax>,

    /// Resource limit of each process, as nofile=1024:4096 (repeatable; names as for prlimit)
    #[arg(long, value_name = "NAME=SOFT[:HARD]", value_parser = parse::<Rlimit>)]
    rlimit: Vec<Rlimit>,

    /// Niceness, -20 to 19
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    nice: Option<i32>,
}

impl LimitArgs {
    pub fn to_limits(&self) -> Limits {
        let mut limits = Limits::default();
        limits.memory = self.memory;
        limits.memory_high = self.memory_high;
        limits.swap = self.swap;
        limits.oom_group = self.oom_group;
        limits.pids = self.pids;
        limits.cpus = self.cpus;
        limits.cpu_weight = self.cpu_weight;
        limits.cpuset = self.cpuset.clone();
        limits.io_weight = self.io_weight;
        limits.io_max = self.io_max.clone();
        limits.rlimits = self.rlimit.clone();
        limits.nice = self.nice;
        limits
    }
}

/// Reads a value as the library does; its error without the value, which clap names.
fn parse<T: std::str::FromStr<Err = Error>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error| match error {
        Error::Invalid { advice, .. } => advice,
        error => error.to_string(),
    })
}

//! The limit options of `pinfold run`. A job in JSON has the same limits, with the same names and values.

use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};

use crate::{Error, IoMax, Limits, Rlimit, Size};

/// What the job may use
// In JSON: `{"memory": "512M", "pids": 100, "cpus": 1.5, "rlimit": ["nofile=1024"], …}`
#[derive(Debug, Default, clap::Args, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(rename = "limits"))]
#[command(next_help_heading = "Limits")]
#[serde(default, deny_unknown_fields)]
pub struct LimitArgs {
    /// Memory of the whole job: 512M, 1.5G, 50%; beyond it the OOM killer ends processes of the job
    #[arg(long, value_name = "SIZE", value_parser = parse::<Size>)]
    #[serde(deserialize_with = "size")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<Amount>"))]
    memory: Option<Size>,

    /// Memory beyond which the job is slowed down
    #[arg(long, value_name = "SIZE", value_parser = parse::<Size>)]
    #[serde(deserialize_with = "size")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<Amount>"))]
    memory_high: Option<Size>,

    /// Swap of the whole job, or max [default with --memory: 0]
    #[arg(long, value_name = "SIZE", value_parser = parse::<Size>)]
    #[serde(deserialize_with = "size")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<Amount>"))]
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
    #[serde(deserialize_with = "all")]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    io_max: Vec<IoMax>,

    /// Resource limit of each process, such as nofile=1024:4096 (repeatable; same names as in prlimit)
    #[arg(long, value_name = "NAME=SOFT[:HARD]", value_parser = parse::<Rlimit>)]
    #[serde(deserialize_with = "all")]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
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

/// A number of bytes, or a text like `512M`.
#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(rename = "amount"))]
#[serde(untagged, expecting = "an amount: bytes, or a text like \"512M\"")]
enum Amount {
    Bytes(u64),
    Text(String),
}

/// Deserializes a size: a number of bytes, or a text in the format of the option.
fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Size>, D::Error> {
    match Option::<Amount>::deserialize(deserializer)? {
        None => Ok(None),
        Some(Amount::Bytes(bytes)) => Ok(Some(Size::Bytes(bytes))),
        Some(Amount::Text(text)) => text.parse().map(Some).map_err(de::Error::custom),
    }
}

/// Deserializes a list of texts in the format of a repeatable option.
fn all<'de, D: Deserializer<'de>, T: FromStr<Err = Error>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().map(|text| text.parse().map_err(de::Error::custom)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Limits, String> {
        let limits = serde_json::from_str::<LimitArgs>(json).map_err(|error| error.to_string())?.to_limits();
        limits.check().map_err(|error| error.to_string())?;
        Ok(limits)
    }

    #[test]
    fn json_accepts_the_values_of_the_options() {
        let limits =
            read(r#"{"memory": "64M", "swap": 0, "pids": 10, "cpus": 0.5, "rlimit": ["nofile=10:20"]}"#).unwrap();
        assert_eq!((limits.memory, limits.swap), (Some(Size::Bytes(64 << 20)), Some(Size::Bytes(0))));
        assert_eq!((limits.pids, limits.cpus, limits.rlimits.len()), (Some(10), Some(0.5), 1));
        for wrong in [r#"{"memory": "much"}"#, r#"{"memroy": 1}"#, r#"{"cpus": -1}"#, r#"{"rlimit": ["x=1"]}"#, "[]x"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}

//! The limits of a job in JSON: the names and the values of the options of `pinfold run`.

use std::str::FromStr;

use pinfold::{Limits, Size};
use serde::Deserialize;

/// `{"memory": "512M", "pids": 100, "cpus": 1.5, "rlimit": ["nofile=1024"], …}`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobLimits {
    memory: Option<Amount>,
    memory_high: Option<Amount>,
    swap: Option<Amount>,
    #[serde(default)]
    oom_group: bool,
    pids: Option<u64>,
    cpus: Option<f64>,
    cpu_weight: Option<u64>,
    cpuset: Option<String>,
    io_weight: Option<u64>,
    #[serde(default)]
    io_max: Vec<String>,
    #[serde(default)]
    rlimit: Vec<String>,
    nice: Option<i32>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "an amount: bytes, or a text like \"512M\"")]
enum Amount {
    Bytes(u64),
    Text(String),
}

impl JobLimits {
    /// The limits, or what is wrong with them.
    pub fn to_limits(&self) -> Result<Limits, String> {
        let size = |amount: &Option<Amount>| match amount {
            None => Ok(None),
            Some(Amount::Bytes(bytes)) => Ok(Some(Size::Bytes(*bytes))),
            Some(Amount::Text(text)) => parse(text).map(Some),
        };
        let mut limits = Limits::default();
        limits.memory = size(&self.memory)?;
        limits.memory_high = size(&self.memory_high)?;
        limits.swap = size(&self.swap)?;
        limits.oom_group = self.oom_group;
        limits.pids = self.pids;
        limits.cpus = self.cpus;
        limits.cpu_weight = self.cpu_weight;
        limits.cpuset = self.cpuset.clone();
        limits.io_weight = self.io_weight;
        limits.io_max = all(&self.io_max)?;
        limits.rlimits = all(&self.rlimit)?;
        limits.nice = self.nice;
        limits.check().map_err(|error| error.to_string())?;
        Ok(limits)
    }
}

fn all<T: FromStr<Err = pinfold::Error>>(texts: &[String]) -> Result<Vec<T>, String> {
    texts.iter().map(|text| parse(text)).collect()
}

fn parse<T: FromStr<Err = pinfold::Error>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: pinfold::Error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Limits, String> {
        serde_json::from_str::<JobLimits>(json).map_err(|error| error.to_string())?.to_limits()
    }

    #[test]
    fn what_run_takes_a_line_takes() {
        let limits =
            read(r#"{"memory": "64M", "swap": 0, "pids": 10, "cpus": 0.5, "rlimit": ["nofile=10:20"]}"#).unwrap();
        assert_eq!((limits.memory, limits.swap), (Some(Size::Bytes(64 << 20)), Some(Size::Bytes(0))));
        assert_eq!((limits.pids, limits.cpus, limits.rlimits.len()), (Some(10), Some(0.5), 1));
        for wrong in [r#"{"memory": "much"}"#, r#"{"memroy": 1}"#, r#"{"cpus": -1}"#, r#"{"rlimit": ["x=1"]}"#, "[]x"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}

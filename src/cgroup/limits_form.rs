//! Limits as data, with the names and values of the limit options of `pinfold run`: in JSON
//! `{"memory": "512M", "pids": 100, "cpus": 1.5, "rlimit": ["nofile=1024"], …}`.

use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};

use crate::cgroup::limits::{IoMax, Limits};
use crate::error::Error;
use crate::kernel::rlimit::Rlimit;
use crate::kernel::size::Size;

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Form {
    #[serde(deserialize_with = "size")]
    memory: Option<Size>,
    #[serde(deserialize_with = "size")]
    memory_high: Option<Size>,
    #[serde(deserialize_with = "size")]
    swap: Option<Size>,
    oom_group: bool,
    pids: Option<u64>,
    cpus: Option<f64>,
    cpu_weight: Option<u64>,
    cpuset: Option<String>,
    io_weight: Option<u64>,
    #[serde(deserialize_with = "all")]
    io_max: Vec<IoMax>,
    #[serde(deserialize_with = "all")]
    rlimit: Vec<Rlimit>,
    nice: Option<i32>,
}

/// The names and values are those of the limit options of `pinfold run`, with `_` instead of `-`.
impl<'de> Deserialize<'de> for Limits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let form = Form::deserialize(deserializer)?;
        Ok(Self {
            memory: form.memory,
            memory_high: form.memory_high,
            swap: form.swap,
            oom_group: form.oom_group,
            pids: form.pids,
            cpus: form.cpus,
            cpu_weight: form.cpu_weight,
            cpuset: form.cpuset,
            io_weight: form.io_weight,
            io_max: form.io_max,
            rlimits: form.rlimit,
            nice: form.nice,
        })
    }
}

/// Deserializes a size: a number of bytes, or a text in the format of the option.
fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Size>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "an amount: bytes, or a text like \"512M\"")]
    enum Amount {
        Bytes(u64),
        Text(String),
    }
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
        let limits = serde_json::from_str::<Limits>(json).map_err(|error| error.to_string())?;
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

//! The key `limits`, with the names and values of the limit options of `pinfold run`:
//! `{ memory = "512M", pids = 100, cpus = 1.5, rlimit = ["nofile=1024"] }`.

use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};

use super::fields::Field;
use crate::cgroup::limits::{IoMax, Limits};
use crate::error::{Error, Result};
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
    #[serde(deserialize_with = "parsed_list")]
    io_max: Vec<IoMax>,
    #[serde(deserialize_with = "parsed_list")]
    rlimit: Vec<Rlimit>,
    nice: Option<i32>,
}

/// Reads the limits of a service, and checks them.
pub(super) fn limits(field: Field<'_>) -> Result<Limits> {
    let place = field.place.clone();
    let form: Form = field.read()?;
    let limits = Limits {
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
    };
    limits.check().map_err(|error| place.error(error.to_string()))?;
    Ok(limits)
}

/// Deserializes a size: a number of bytes, or a text in the format of the option.
fn size<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<Size>, D::Error> {
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

/// Deserializes a list of strings, each in the format of a repeatable option.
fn parsed_list<'de, D: Deserializer<'de>, T: FromStr<Err = Error>>(
    deserializer: D,
) -> std::result::Result<Vec<T>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().map(|text| text.parse().map_err(de::Error::custom)).collect()
}

//! An amount of memory in the usual notation: `512M`, `50%`.

use crate::error::{Error, Result};

/// An amount of memory: `512M`, `1.5G`, `50%`, `max`. K, M, G and T are powers of 1024, as for systemd. A percentage
/// refers to the machine's memory ([`Limits::swap`](crate::Limits::swap): to its swap).
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Size {
    /// A number of bytes.
    Bytes(u64),
    /// A percentage of the amount that the machine has.
    Percent(f64),
    /// No limit.
    Max,
}

impl From<u64> for Size {
    fn from(bytes: u64) -> Self {
        Self::Bytes(bytes)
    }
}

impl std::str::FromStr for Size {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::invalid("size", text, "write bytes, 512M, 1.5G, 50% or max (K, M, G, T: powers of 1024)");
        if text == "max" || text == "infinity" {
            return Ok(Self::Max);
        }
        let number = |digits: &str| -> Result<f64> {
            let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
            plain.then(|| digits.parse().ok()).flatten().ok_or_else(bad)
        };
        if let Some(digits) = text.strip_suffix('%') {
            let percent = number(digits)?;
            return if percent <= 100.0 { Ok(Self::Percent(percent)) } else { Err(bad()) };
        }
        let letters = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        let factor = match letters.to_ascii_uppercase().as_str() {
            "" | "B" => 1_u64,
            "K" | "KB" | "KIB" => 1 << 10,
            "M" | "MB" | "MIB" => 1 << 20,
            "G" | "GB" | "GIB" => 1 << 30,
            "T" | "TB" | "TIB" => 1 << 40,
            _ => return Err(bad()),
        };
        let digits = &text[..text.len() - letters.len()];
        if let Ok(whole) = digits.parse::<u64>() {
            return whole.checked_mul(factor).map(Self::Bytes).ok_or_else(bad);
        }
        let bytes = number(digits)? * factor as f64;
        if bytes < u64::MAX as f64 { Ok(Self::Bytes(bytes as u64)) } else { Err(bad()) }
    }
}

impl Size {
    /// Returns the size in bytes; `None` for no limit. `whole` is the amount that the machine has.
    pub(crate) fn bytes_of(self, whole: u64) -> Option<u64> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Percent(percent) => Some((whole as f64 * percent / 100.0) as u64),
            Self::Max => None,
        }
    }
}

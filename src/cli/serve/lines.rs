//! Reads the lines of the caller, and numbers them.

use std::io::{BufRead, BufReader};

use anyhow::Result;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use tokio::sync::mpsc::Receiver;

use super::request::Request;
use crate::cli::pool::explain;
use crate::cli::stdin::{Line, MAX_LINE, StandardInput, read_line};
use crate::cli::thread;

/// The number of bytes that pinfold searches for the id, in a line that is too long.
const BEGINNING: usize = 64 * 1024;

/// An invalid request: its id, and the reason. The id is as the caller sent it, or null if pinfold cannot read it.
pub struct InvalidRequest {
    pub id: Value,
    pub message: String,
}

/// A line of the input with its number, counted from 1. Answers contain this number.
pub struct NumberedLine {
    pub number: u64,
    pub line: Vec<u8>,
    /// The line was longer than [`MAX_LINE`], and `line` is only its beginning.
    pub too_long: bool,
}

impl NumberedLine {
    /// Parses the request. Returns `None` for a blank line.
    pub fn parse(&self) -> Option<Result<Request, InvalidRequest>> {
        if self.line.trim_ascii().is_empty() && !self.too_long {
            return None;
        }
        let parsed = if self.too_long {
            Err(format!("the request is too long: a line may have at most {MAX_LINE} bytes"))
        } else {
            serde_json::from_slice(&self.line).map_err(|error| explain(&self.line, &error))
        };
        Some(parsed.map_err(|message| InvalidRequest { id: id_of(&self.line), message }))
    }
}

/// Returns the id of an invalid request, even if the line is not valid JSON. Returns null if there is no id before the
/// mistake.
fn id_of(line: &[u8]) -> Value {
    let mut id = Value::Null;
    let _ = FindId(&mut id).deserialize(&mut serde_json::Deserializer::from_slice(line));
    id
}

struct FindId<'a>(&'a mut Value);

impl<'de> DeserializeSeed<'de> for FindId<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for FindId<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        while let Some(key) = map.next_key::<String>()? {
            if key != "id" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            if let id @ (Value::String(_) | Value::Number(_)) = map.next_value()? {
                *self.0 = id;
            }
        }
        Ok(())
    }
}

/// Starts a thread that reads the requests.
pub fn requests() -> Result<Receiver<NumberedLine>> {
    let (sender, requests) = tokio::sync::mpsc::channel(16);
    thread::start("to read the requests", move || {
        let mut stdin = BufReader::new(StandardInput);
        for number in 1.. {
            let mut line = Vec::new();
            let read = read_line(&mut stdin, b'\n', MAX_LINE, &mut line);
            let too_long = match read {
                Ok(Line::Whole) => false,
                Ok(Line::TooLong) => true,
                Ok(Line::End) | Err(_) => return,
            };
            if too_long {
                // The rest is dropped: pinfold searches only the beginning for the id.
                line.truncate(BEGINNING);
                line.shrink_to_fit();
            }
            if sender.blocking_send(NumberedLine { number, line, too_long }).is_err() {
                return;
            }
            if too_long && stdin.skip_until(b'\n').is_err() {
                return;
            }
        }
    })?;
    Ok(requests)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_id_is_found_despite_a_mistake() {
        for (line, id) in [
            (r#"{"op":"dance","id":"a"}"#, json!("a")),
            (r#"{"id":"a","job":{"command":["x"],"timeout":NaN}}"#, json!("a")),
            (r#"{"op":"submit","id":"a","job":{"#, json!("a")),
            (r#"{"op":"cancel","id":7}"#, json!(7)),
            (r#"{"op":"cancel","id":["a"]}"#, json!(null)),
            (r#"{"job":{"id":"b"}}"#, json!(null)),
            (r#"{"job":NaN,"id":"a"}"#, json!(null)),
            (r#"["id","a"]"#, json!(null)),
            ("", json!(null)),
        ] {
            assert_eq!(id_of(line.as_bytes()), id, "{line}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_line_panics(line: Vec<u8>) {
            let _ = NumberedLine { number: 1, line, too_long: false }.parse();
        }
    }
}

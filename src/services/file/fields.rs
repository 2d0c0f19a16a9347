//! A TOML table whose keys are read one by one. Each error names its place in the file.

use serde::Deserialize;
use serde::de::IntoDeserializer;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Source;
use crate::error::{Error, Result};
use crate::services::config::Place;
use crate::services::graph::did_you_mean;

/// The keys of a table that have not been read yet.
pub(super) struct Fields<'a> {
    source: &'a Source<'a>,
    /// In the order of the file.
    unread: Vec<(Spanned<String>, Spanned<DeValue<'a>>)>,
}

/// A value and the place of its key.
pub(super) struct Field<'a> {
    pub source: &'a Source<'a>,
    pub key: String,
    pub place: Place,
    pub value: Spanned<DeValue<'a>>,
}

impl<'a> Fields<'a> {
    pub fn of(source: &'a Source<'a>, table: DeTable<'a>) -> Self {
        let mut unread: Vec<_> = table
            .into_iter()
            .map(|(key, value)| (Spanned::new(key.span(), key.into_inner().into_owned()), value))
            .collect();
        unread.sort_by_key(|(key, _)| key.span().start);
        Self { source, unread }
    }

    /// Returns an error for the first key that is not among `known`. The file may have `-` instead of `_` in a key.
    pub fn check(&self, known: &[&str]) -> Result<()> {
        match self.unread.iter().find(|(key, _)| !known.contains(&&*with_underscores(key.get_ref()))) {
            None => Ok(()),
            Some((key, _)) => {
                let nearest = did_you_mean(&with_underscores(key.get_ref()), known.iter().copied());
                let advice = match nearest.is_empty() {
                    true => format!(" (the known keys are {})", known.join(", ")),
                    false => nearest,
                };
                Err(self.source.at(key.span().start).error(format!("unknown key '{}'{advice}", key.get_ref())))
            }
        }
    }

    /// Takes a key out of the table.
    pub fn take(&mut self, key: &str) -> Option<Field<'a>> {
        let at = self.unread.iter().position(|(known, _)| with_underscores(known.get_ref()) == key)?;
        Some(self.field(at))
    }

    /// Takes the next key out of the table, in the order of the file.
    pub fn next(&mut self) -> Option<Field<'a>> {
        if self.unread.is_empty() { None } else { Some(self.field(0)) }
    }

    fn field(&mut self, at: usize) -> Field<'a> {
        let (key, value) = self.unread.remove(at);
        let place = self.source.at(key.span().start);
        Field { source: self.source, key: key.into_inner(), place, value }
    }

    /// Reads the value of a key, if the table has it.
    pub fn read<T: Deserialize<'a>>(&mut self, key: &str) -> Result<Option<T>> {
        self.take(key).map(Field::read).transpose()
    }

    /// Reads the value of a key with this function, if the table has the key.
    pub fn parse<T, E: std::fmt::Display>(
        &mut self,
        key: &str,
        parse: impl FnOnce(&str) -> std::result::Result<T, E>,
    ) -> Result<Option<T>> {
        let Some(field) = self.take(key) else { return Ok(None) };
        let place = field.place.clone();
        let text: String = field.read()?;
        parse(&text).map(Some).map_err(|error| place.error(format!("{key}: {error}")))
    }
}

impl<'a> Field<'a> {
    pub fn error(&self, message: impl std::fmt::Display) -> Error {
        self.place.error(format!("{}: {message}", self.key))
    }

    /// Reads the value.
    pub fn read<T: Deserialize<'a>>(self) -> Result<T> {
        let span = self.value.span();
        T::deserialize(self.value.into_deserializer()).map_err(|error| {
            let at = error.span().unwrap_or(span);
            let message = error.message().trim_end().replace('\n', ", ");
            self.source.at(at.start).error(format!("{}: {message}", self.key))
        })
    }

    /// Returns the value as a table, if it is one.
    pub fn table(self) -> std::result::Result<Fields<'a>, Self> {
        match self.value.get_ref() {
            DeValue::Table(_) => {}
            _ => return Err(self),
        }
        match self.value.into_inner() {
            DeValue::Table(table) => Ok(Fields::of(self.source, table)),
            _ => unreachable!("it is a table"),
        }
    }
}

/// Returns a key with `_` in place of `-`, as in the lists of known keys.
fn with_underscores(key: &str) -> String {
    key.replace('-', "_")
}

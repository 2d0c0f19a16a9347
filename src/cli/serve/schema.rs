//! The JSON schema of all messages, made from their types.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::event::Message;
use super::request::Request;
use crate::cli::schema;

/// Adds the definitions of `T` and of everything in it.
fn add<T: JsonSchema>(settings: SchemaSettings, definitions: &mut Map<String, Value>) {
    let mut generator: SchemaGenerator = settings.into_generator();
    generator.subschema_for::<T>();
    for (name, schema) in generator.take_definitions(true) {
        if let Some(known) = definitions.insert(name.clone(), schema.clone()) {
            assert_eq!(known, schema, "two types have the name {name}");
        }
    }
}

/// After a change of the types, run `PINFOLD_WRITE_SCHEMA=1 cargo test --all-features --lib serve::schema`.
#[test]
fn the_committed_schema_is_the_generated_one() {
    let mut definitions = Map::new();
    // A request may leave out fields; an event contains all fields.
    add::<Request>(SchemaSettings::draft2020_12().for_deserialize(), &mut definitions);
    add::<Message<'_>>(SchemaSettings::draft2020_12().for_serialize(), &mut definitions);
    let schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "The messages of pinfold serve --stdio, protocol 1",
        "anyOf": [{"$ref": "#/$defs/request"}, {"$ref": "#/$defs/event"}],
        "$defs": definitions,
    });
    schema::assert_committed("serve", &schema);
}

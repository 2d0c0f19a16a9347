//! The JSON schemas in `docs/` that describe types of this room.

use schemars::generate::SchemaSettings;
use serde_json::Value;

/// Asserts that `docs/NAME.schema.json` contains this schema. Descriptions may differ, so that a change of a comment does
/// not fail the test. After a change of the types: `PINFOLD_WRITE_SCHEMA=1 cargo test --all-features --lib schema`.
pub fn assert_committed(name: &str, schema: &Value) {
    let path = format!("{}/docs/{name}.schema.json", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("PINFOLD_WRITE_SCHEMA").is_some() {
        std::fs::write(&path, format!("{}\n", serde_json::to_string_pretty(schema).unwrap())).unwrap();
    }
    let committed = std::fs::read_to_string(&path).ok().and_then(|text| serde_json::from_str(&text).ok());
    assert!(
        committed.is_some_and(|committed| without_descriptions(committed) == without_descriptions(schema.clone())),
        "{path} does not match the types: run this test with PINFOLD_WRITE_SCHEMA=1 and commit it"
    );
}

fn without_descriptions(mut schema: Value) -> Value {
    match &mut schema {
        Value::Object(object) => {
            // A property may have this name too, but its value is no text.
            object.retain(|key, value| !(key == "description" && value.is_string()));
            object.values_mut().for_each(|value| *value = without_descriptions(value.take()));
        }
        Value::Array(values) => values.iter_mut().for_each(|value| *value = without_descriptions(value.take())),
        _ => {}
    }
    schema
}

/// The schema of `pinfold ps --json` and `pinfold stats --json`.
#[test]
fn the_committed_schema_of_ps_is_the_generated_one() {
    let generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
    let schema = generator.into_root_schema_for::<super::jobs::listing::Listing>();
    assert_committed("ps", &schema.to_value());
}

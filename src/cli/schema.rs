//! The JSON schemas in `docs/` that describe types of this room.

use schemars::generate::SchemaSettings;
use serde_json::Value;

/// Asserts that `docs/NAME.schema.json` contains this schema. After a change of the types:
/// `PINFOLD_WRITE_SCHEMA=1 cargo test --all-features --lib schema`.
pub fn assert_committed(name: &str, schema: &Value) {
    let generated = format!("{}\n", serde_json::to_string_pretty(schema).unwrap());
    let path = format!("{}/docs/{name}.schema.json", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("PINFOLD_WRITE_SCHEMA").is_some() {
        std::fs::write(&path, &generated).unwrap();
    }
    assert!(
        std::fs::read_to_string(&path).is_ok_and(|committed| committed == generated),
        "{path} does not match the types: run this test with PINFOLD_WRITE_SCHEMA=1 and commit it"
    );
}

/// The schema of `pinfold ps --json` and `pinfold stats --json`.
#[test]
fn the_committed_schema_of_ps_is_the_generated_one() {
    let generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
    let schema = generator.into_root_schema_for::<super::jobs::listing::Listing>();
    assert_committed("ps", &schema.to_value());
}

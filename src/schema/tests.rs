use std::path::Path;

use serde_json::{Value, json};

use super::{Subject, configuration, pretty, text};
use crate::audit::{Entry, What};
use crate::config::settings::SETTINGS;
use crate::morning::Morning;
use crate::status::report::Report;

/// What a value is judged to be wrong in.
fn judge(schema: &Value, value: &Value) -> Result<(), String> {
    let (mut compiler, mut schemas) = (boon::Compiler::new(), boon::Schemas::new());
    compiler.add_resource("schema.json", schema.clone()).unwrap();
    let index = compiler.compile("schema.json", &mut schemas).unwrap();
    schemas.validate(value, index).map_err(|error| error.to_string())
}

fn parse(subject: Subject) -> Value {
    serde_json::from_str(&text(subject)).unwrap()
}

/// The file that the binary holds is what the types say now: `BLESS=1 cargo test schema` writes it anew.
fn is_true(name: &str, schema: &schemars::Schema) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/schema").join(name);
    let wanted = pretty(schema.as_value());
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == wanted, "{name} is not what the types say: BLESS=1 cargo test schema");
}

#[test]
fn the_schemas_of_reports_are_those_of_their_types() {
    is_true("status.json", &schemars::schema_for!(Report));
    is_true("report.json", &schemars::schema_for!(Morning));
    // Every line says whose it is; in a stream it also names the line before it.
    let mut events = schemars::schema_for!(Entry);
    if let Some(Value::Object(properties)) = events.get_mut("properties") {
        properties.insert("box".into(), json!({ "type": "string", "description": "The box's id." }));
        properties.insert(
            "prev".into(),
            json!({ "type": "string", "pattern": "^[0-9a-f]{64}$", "description": "SHA-256 of the line before it." }),
        );
    }
    is_true("events.json", &events);
}

#[test]
fn a_report_and_an_entry_are_valid_and_damaged_ones_are_not() {
    let report = crate::status::Board::new(crate::status::report::BoxIdentity::default()).report(None);
    let mut value = serde_json::to_value(report).unwrap();
    assert_eq!(judge(&parse(Subject::Status), &value), Ok(()));
    value["phase"] = "perhaps".into();
    assert!(judge(&parse(Subject::Status), &value).is_err());
    value["phase"] = "ready".into();
    value.as_object_mut().unwrap().remove("protections");
    assert!(judge(&parse(Subject::Status), &value).is_err());
    let morning = crate::morning::tests::morning(None);
    assert_eq!(judge(&parse(Subject::Report), &serde_json::to_value(morning).unwrap()), Ok(()));
    let note = What::Note { source: "test".into(), message: "a word".into() };
    let entry = Entry { schema: 1, seq: 7, time: crate::report::now(), what: note };
    let mut value = serde_json::to_value(entry).unwrap();
    assert_eq!(judge(&parse(Subject::Events), &value), Ok(()));
    value["event"] = "rumour".into();
    assert!(judge(&parse(Subject::Events), &value).is_err());
}

#[test]
fn every_example_of_a_setting_is_valid_and_a_table_in_its_place_is_not() {
    let schema = configuration();
    for setting in SETTINGS.iter().filter(|setting| !setting.example.is_empty()) {
        let (section, line) = (setting.section(), setting.toml_line(setting.example));
        let document = match section {
            "repository" => format!("[[repository]]\n{line}\n"),
            _ => format!("[{section}]\n{line}\n"),
        };
        let value = serde_json::to_value(document.parse::<toml::Table>().unwrap()).unwrap();
        assert_eq!(judge(&schema, &value), Ok(()), "{document}");
        let wrong = json!({ section: { setting.name(): {} } });
        assert!(judge(&schema, &wrong).is_err(), "{}", setting.key);
    }
    assert!(judge(&schema, &json!({ "nework": {} })).is_err());
    assert!(judge(&schema, &json!({ "network": { "alow": [] } })).is_err());
}

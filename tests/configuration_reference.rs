//! `docs/configuration.md` is what the table of settings says. `BLESS=1` rewrites it.

use std::path::Path;

#[test]
fn the_reference_is_what_the_table_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let expected = innkeeper::config::settings::reference_markdown();
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &expected).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == expected,
        "docs/configuration.md is out of date; BLESS=1 cargo test --test configuration_reference"
    );
}

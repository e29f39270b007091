//! docs/threats.md says where each threat and fault of the network is tested: in files that have such a test.

use std::path::Path;

/// What must hold of the network, the operator's seat and the session, by the ids of the catalogue.
const MUST_HOLD: &[&str] = &[
    "T01", "T02", "T03", "T04", "T06", "T07", "T08", "T10", "T13", "T15", "T17", "T20", "T22", "T23", "T24",
    "T25", "T26", "T27", "T28", "T29", "T32", "T33", "T34", "T35", "T36", "T38", "T45", "T46", "T47", "T48",
    "T49", "T52", "T55", "T56", "T58", "T62", "T66", "T68", "T69", "T74", "T76", "T77", "T78", "T79", "T80",
    "T83", "T84", "T85", "T87", "T88", "T89", "T91", "T94", "T95", "T97", "T100", "T200", "T201", "T202",
    "T203", "T204", "T206", "F01", "F03", "F04", "F05", "F07", "F08", "F09", "F11", "F12", "F13", "F14",
    "F15", "F17", "F19", "F20", "F22", "F24", "F26", "F27", "F29", "F30", "F31",
];

fn read(path: &str) -> String {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path));
    assert!(text.is_ok(), "{path} can't be read");
    text.unwrap_or_default()
}

/// The ids with which a function's name begins: `t26_t33_the_link…` has two.
fn ids(name: &str) -> impl Iterator<Item = &str> {
    let is_id = |part: &&str| {
        let digits = part.strip_prefix(['t', 'f']);
        digits.is_some_and(|digits| {
            (2..=3).contains(&digits.len()) && digits.bytes().all(|octet| octet.is_ascii_digit())
        })
    };
    name.split('_').take_while(is_id)
}

/// Whether the file has a test that is named after this id.
fn tests_it(source: &str, id: &str) -> bool {
    let mut before = "";
    source.lines().map(str::trim).any(|line| {
        let is_test = before == "#[test]" || before.starts_with("#[tokio::test");
        before = line;
        let name =
            line.trim_start_matches("async ").strip_prefix("fn ").and_then(|rest| rest.split('(').next());
        // Those that run on every backend are listed in a macro call instead.
        let listed = |name: &str| source.contains(&format!("\n    {name},\n"));
        name.is_some_and(|name| {
            (is_test || listed(name)) && ids(name).any(|found| found.eq_ignore_ascii_case(id))
        })
    })
}

/// The rows: (id, files).
fn rows(table: &str) -> Vec<(String, Vec<String>)> {
    let row = |line: &str| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [id, _, files] = cells.as_slice() else { return None };
        let files = files.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        id.starts_with(['T', 'F']).then(|| ((*id).to_owned(), files))
    };
    table.lines().filter(|line| line.starts_with('|')).filter_map(row).collect()
}

#[test]
fn every_threat_of_the_network_has_its_tests_where_the_table_says() {
    let rows = rows(&read("docs/threats.md"));
    for id in MUST_HOLD {
        assert!(rows.iter().any(|(row, _)| row == id), "docs/threats.md has no row for {id}");
    }
    for (id, files) in &rows {
        assert!(!files.is_empty(), "docs/threats.md names no test of {id}");
        for file in files {
            assert!(tests_it(&read(file), id), "{file} has no test whose name begins with {id}");
        }
    }
}

#[test]
fn a_test_is_recognized_by_its_name() {
    let source =
        "#[test]\nfn t26_t33_the_link() {\n#[tokio::test]\nasync fn f03_slow() {\nfn t99_helper() {\n";
    assert!(["T26", "T33", "F03"].iter().all(|id| tests_it(source, id)));
    assert!(!["T99", "T2", "T333", "F33"].iter().any(|id| tests_it(source, id)));
}

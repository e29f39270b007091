use super::{Manifest, SCHEMA};
use proptest::prelude::{ProptestConfig, any, proptest};
use serde_json::{Value, json};

const ID: &str = "1111111111111111111111111111111111111111";

fn object() -> Value {
    json!({ "sha256": "ab".repeat(32), "size": 3 })
}

fn file(path: &str) -> Value {
    json!({ "path": path, "object": object(), "executable": false, "modified": 1 })
}

/// A manifest with something in every place.
fn good() -> Value {
    json!({
        "schema": SCHEMA, "saved_at": 1, "claude": object(),
        "conversation": [file(".claude/projects/-workspace/a.jsonl")],
        "repositories": [{
            "path": "repo",
            "history": {
                "object_format": "sha1", "head": {"branch": "refs/heads/main"},
                "refs": [{"name": "refs/heads/main", "id": ID}],
                "symbolic": [{"name": "refs/remotes/origin/HEAD", "target": "refs/remotes/origin/main"}],
                "stashes": [{"id": ID, "message": "WIP"}], "staged": ID, "kept": [ID], "shallow": null
            },
            "bundles": [object()], "config": [["remote.origin.url", "https://example.org/x"]],
            "exclude": null, "index": object(), "intended": ["new"], "deleted": ["gone"],
            "files": [file("a/b")], "links": [{"path": "l", "target": "/etc/passwd"}],
            "state": [file("MERGE_HEAD")]
        }]
    })
}

fn parse(value: &Value) -> Result<Manifest, String> {
    Manifest::parse(value.to_string().as_bytes()).map_err(|error| crate::report::chain(&error))
}

/// The good one with this in its place.
fn with(pointer: &str, value: Value) -> Value {
    let mut manifest = good();
    *manifest.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer}")) = value;
    manifest
}

#[test]
fn what_is_written_is_read() {
    let manifest = parse(&good()).unwrap();
    assert_eq!(manifest.objects().len(), 1, "each object once");
    let again = Manifest::parse(&serde_json::to_vec(&manifest).unwrap()).unwrap();
    assert_eq!(again, manifest);
    assert!(manifest.same_as(&Manifest { saved_at: 2, ..manifest.clone() }));
}

#[test]
fn t206_a_hostile_manifest_is_not_believed() {
    let repository = |field: &str| format!("/repositories/0/{field}");
    let many = |value: Value, count: usize| Value::Array(vec![value; count]);
    let cases: Vec<(String, Value)> = [
        ("path", json!("../repo")),
        ("path", json!("/workspace/repo")),
        ("path", json!(".git")),
        ("path", json!("a/.git/b")),
        ("path", json!("")),
        ("files", json!([file("../../home/claude/.bashrc")])),
        ("files", json!([file("/etc/passwd")])),
        ("files", json!([file(".git/hooks/post-checkout")])),
        ("files", json!([file("a/.GIT/config")])),
        ("files", json!([file("a"), file("a")])),
        ("deleted", many(json!("x"), 200_001)),
        ("links", json!([{ "path": "a/b", "target": "x" }])),
        ("links", json!([{ "path": "../x", "target": "x" }])),
        ("links", json!([{ "path": ".git/hooks", "target": "x" }])),
        ("links", json!([{ "path": "x", "target": "" }])),
        ("links", json!([{ "path": "x", "target": "a\u{0}b" }])),
        ("deleted", json!(["../../etc/passwd"])),
        ("deleted", json!([".git/config"])),
        ("intended", json!(["../x"])),
        ("state", json!([file("config")])),
        ("state", json!([file("hooks/post-checkout")])),
        ("state", json!([file("rebase-merge/../config")])),
        ("state", json!([file("MERGE_HEAD"), file("MERGE_HEAD")])),
        ("config", json!([["core.fsmonitor", "touch /tmp/x"]])),
        ("config", json!([["remote.x.url", "ext::sh -c x"]])),
        ("config", json!([["include.path", "/tmp/x"]])),
        ("bundles", many(object(), 100)),
        ("bundles", json!([{ "sha256": "../../../etc/passwd", "size": 1 }])),
        ("bundles", json!([{ "sha256": "AB".repeat(32), "size": 1 }])),
        ("bundles", json!([{ "sha256": "ab".repeat(32), "size": -1 }])),
        ("bundles", json!([{ "sha256": "ab".repeat(32), "size": 1, "kind": "fifo" }])),
        ("history/refs", json!([{ "name": "refs/heads/../../../x", "id": ID }])),
        ("history/refs", json!([{ "name": "refs/../HEAD", "id": ID }])),
        ("history/refs", json!([{ "name": "HEAD", "id": ID }])),
        ("history/refs", json!([{ "name": "--exec=sh", "id": ID }])),
        ("history/refs", json!([{ "name": "refs/heads/a\ndelete refs/heads/b", "id": ID }])),
        ("history/refs", json!([{ "name": "refs/heads/a b", "id": ID }])),
        ("history/refs", json!([{ "name": "refs/heads/x.lock", "id": ID }])),
        ("history/refs", json!([{ "name": "refs/heads/x", "id": "--all" }])),
        ("history/refs", json!([{ "name": "refs/heads/x", "id": ID }, { "name": "refs/heads/x", "id": ID }])),
        ("history/head", json!({ "branch": "refs/remotes/origin/x" })),
        ("history/head", json!({ "branch": "../../../etc/passwd" })),
        ("history/head", json!({ "detached": "HEAD" })),
        ("history/symbolic", json!([{ "name": "refs/heads/x", "target": "refs/heads/main" }])),
        ("history/symbolic", json!([{ "name": "refs/remotes/o/HEAD", "target": "refs/heads/main" }])),
        ("history/stashes", json!([{ "id": "-x", "message": "" }])),
        ("history/object_format", json!("md5")),
    ]
    .into_iter()
    .map(|(field, value)| (repository(field), value))
    .chain([
        ("/schema".to_owned(), json!(2)),
        ("/schema".to_owned(), json!(-1)),
        ("/saved_at".to_owned(), json!("now")),
        ("/conversation".to_owned(), json!([file(".claude/settings.json")])),
        ("/conversation".to_owned(), json!([file(".bashrc")])),
        ("/conversation".to_owned(), json!([file(".claude/projects/../settings.json")])),
        ("/conversation".to_owned(), json!([file(".claude/projects/a/x"), file(".claude/projects/a/x")])),
        ("/repositories".to_owned(), Value::Array(vec![good()["repositories"][0].clone(); 2])),
        ("/repositories".to_owned(), json!(null)),
    ])
    .collect();
    for (pointer, value) in cases {
        let what = value.to_string().chars().take(100).collect::<String>();
        assert!(parse(&with(&pointer, value)).is_err(), "{pointer}: {what}");
    }
    let mut more = good();
    more["surprise"] = json!(1);
    assert!(parse(&more).is_err());
    let twice = good().to_string().replacen("\"schema\":1", "\"schema\":1,\"schema\":1", 1);
    assert!(Manifest::parse(twice.as_bytes()).is_err());
    for text in ["", "{}", "null", "[]", "\0", "{\"schema\":1}"] {
        assert!(Manifest::parse(text.as_bytes()).is_err(), "{text:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn t206_a_manifest_that_was_cut_or_changed_is_read_or_refused(at in any::<usize>(), byte in any::<u8>()) {
        let mut text = good().to_string().into_bytes();
        let at = at % text.len();
        drop(Manifest::parse(&text[..at]).unwrap_err());
        text[at] = byte;
        drop(Manifest::parse(&text));
    }
}

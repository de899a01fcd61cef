use serde_json::{Value, json};

use super::*;
use crate::documents::InputError;

fn file(path: &str, content: &[u8]) -> Value {
    json!({
        "path": path,
        "sha256": ContentHash::of(content).to_string(),
        "content_base64": BASE64.encode(content),
    })
}

fn with_files(files: &[Value]) -> Value {
    json!({"name": "v1", "schemas": [], "crons": [], "files": files})
}

#[track_caller]
fn refused(json: &Value) -> DeployError {
    Deploy::from_json(&json.to_string()).expect_err(&json.to_string())
}

#[test]
fn reads_a_deploy_whole() {
    let cron = json!({
        "name": "nightly",
        "schedule": {"type": "interval", "seconds": 60},
        "mutation": {"type": "insert", "table": "runs", "fields": {}},
    });
    let deploy = json!({
        "name": "v7 ✓",
        "schemas": [{"table": "places"}, {"table": "cities"}],
        "crons": [cron],
        "files": [file("index.html", b"<h1>"), file("a/\u{e9}.bin", &[0, 255]), file("empty", b"")],
        "dry_run": true,
    });
    let deploy = Deploy::from_json(&deploy.to_string()).unwrap();
    assert_eq!((deploy.name.as_str(), deploy.dry_run), ("v7 ✓", true));
    let tables: Vec<_> = deploy
        .resources
        .schemas
        .keys()
        .map(|t| t.as_str())
        .collect();
    assert_eq!(tables, ["cities", "places"]);
    assert!(
        deploy
            .resources
            .crons
            .contains_key(&"nightly".parse().unwrap())
    );
    let paths: Vec<_> = deploy.files.keys().map(AppPath::as_str).collect();
    assert_eq!(paths, ["a/\u{e9}.bin", "empty", "index.html"]);
    assert_eq!(deploy.files["a/\u{e9}.bin"].bytes(), [0, 255]);
    assert!(deploy.weight() > 6);
}

#[test]
fn resources_read_back_from_what_a_store_keeps() {
    let deploy = json!({
        "name": "v1", "files": [],
        "schemas": [{"table": "t", "fields": [{"name": "a", "field_type": "string", "required": true}]}],
        "crons": [{"name": "c", "schedule": {"type": "cron", "expression": "30 3 * * MON", "timezone": "Europe/Berlin"},
                   "mutation": {"type": "insert", "table": "t", "fields": {"n": 1.10}}}],
    });
    let resources = Deploy::from_json(&deploy.to_string()).unwrap().resources;
    let stored = (resources.schemas_json(), resources.crons_json());
    assert_eq!(
        Resources::from_stored(&stored.0, &stored.1),
        Some(resources)
    );
    for damaged in ["", "{}", "[1]", "[{}]"] {
        assert_eq!(Resources::from_stored(damaged, "[]"), None, "{damaged}");
        assert_eq!(Resources::from_stored("[]", damaged), None, "{damaged}");
    }
}

#[test]
fn rejects_members_that_are_missing_or_do_not_belong_there() {
    let whole = json!({"name": "v1", "schemas": [], "crons": [], "files": []});
    assert!(Deploy::from_json(&whole.to_string()).is_ok());
    for member in ["name", "schemas", "crons", "files"] {
        let mut part = whole.clone();
        part.as_object_mut().unwrap().remove(member);
        assert!(
            matches!(refused(&part), DeployError::Shape { .. }),
            "{member}"
        );
        let mut null = whole.clone();
        null[member] = Value::Null;
        assert!(
            matches!(refused(&null), DeployError::Shape { .. }),
            "{member}"
        );
    }
    let mut more = whole.clone();
    more["more"] = json!(1);
    assert!(matches!(refused(&more), DeployError::Shape { .. }));
    more["files"] = json!([{"path": "a", "sha256": "", "content_base64": "", "mode": 7}]);
    assert!(matches!(refused(&more), DeployError::Shape { .. }));
    for text in [
        "[]",
        r#"{"name":"a","name":"b","schemas":[],"crons":[],"files":[]}"#,
        r#"{"name":"a","schemas":[],"crons":[],"files":[],"dry_run":null}"#,
        r#"{"name":"a","schemas":[],"crons":[],"files":{}}"#,
        r#"{"name":"a","schemas":[],"crons":[],"files":[["a","b","c"]]}"#,
        r#"{"name":"a","schemas":[],"crons":[],"files":[]"#,
    ] {
        let error = Deploy::from_json(text).expect_err(text);
        assert!(
            matches!(error, DeployError::Shape { .. }),
            "{text}: {error}"
        );
    }
}

#[test]
fn rejects_names_that_cannot_be_shown() {
    let named = |name: &str| json!({"name": name, "schemas": [], "crons": [], "files": []});
    for name in ["", "a\nb", "\u{0}", &"é".repeat(201)] {
        assert_eq!(refused(&named(name)), DeployError::Name, "{name:?}");
    }
    assert!(Deploy::from_json(&named(&"é".repeat(200)).to_string()).is_ok());
}

#[test]
fn rejects_two_files_of_one_path_in_whatever_form() {
    for (one, other, path) in [("a", "a", "a"), ("caf\u{e9}", "cafe\u{301}", "caf\u{e9}")] {
        let deploy = with_files(&[file(one, b"1"), file("b", b""), file(other, b"2")]);
        let path = path.to_owned();
        assert_eq!(refused(&deploy), DeployError::SamePath { path });
    }
    // In a URL case counts, and nothing here is written to a file system that folds it.
    let deploy = with_files(&[file("A", b"1"), file("a", b"2")]);
    assert!(Deploy::from_json(&deploy.to_string()).is_ok());
}

#[test]
fn rejects_a_file_in_the_place_of_a_directory() {
    for files in [["a", "a/b"], ["x/a/b/c", "x/a"]] {
        let deploy = with_files(&[file(files[0], b""), file("a-", b""), file(files[1], b"")]);
        assert!(
            matches!(refused(&deploy), DeployError::FileAndDirectory { .. }),
            "{files:?}"
        );
    }
    let deploy = with_files(&[file("a", b""), file("a-/b", b""), file("a.b/c", b"")]);
    assert!(Deploy::from_json(&deploy.to_string()).is_ok());
}

#[test]
fn rejects_hashes_and_contents_that_do_not_fit() {
    let good = file("a", b"abc");
    let with = |member: &str, value: &str| {
        let mut file = good.clone();
        file[member] = json!(value);
        refused(&with_files(&[file]))
    };
    let hash = good["sha256"].as_str().unwrap().to_owned();
    for bad in [
        "",
        "0",
        &hash.to_uppercase(),
        &hash[1..],
        &format!("{hash} "),
    ] {
        let path = "a".to_owned();
        assert_eq!(with("sha256", bad), DeployError::Hash { path }, "{bad}");
    }
    assert_eq!(
        with("sha256", &ContentHash::of(b"abd").to_string()),
        DeployError::Mismatch {
            path: "a".to_owned(),
            said: ContentHash::of(b"abd"),
            found: ContentHash::of(b"abc"),
        }
    );
    assert!(matches!(
        with("content_base64", "YWJj\n"),
        DeployError::Base64 { .. }
    ));
    // Not canonical: without padding, for URLs, with bits left over, with white space.
    for bad in ["YW", "YR==", "YW==YW==", "_-8=", "Y W J j", "YWJj=", "="] {
        assert!(
            matches!(with("content_base64", bad), DeployError::Base64 { .. }),
            "{bad}"
        );
    }
    // An escape in the JSON is not one in the base64.
    let slash = file("s", &[255, 255, 255]);
    let text = with_files(&[slash])
        .to_string()
        .replace("////", r"\/\/\/\u002f");
    assert!(text.contains(r"\/\/"));
    assert_eq!(Deploy::from_json(&text).unwrap().files.len(), 1);
}

#[test]
fn rejects_two_schemas_of_a_table_and_two_crons_of_a_name() {
    let table = "t".parse().unwrap();
    let deploy = json!({"name": "v1", "schemas": [{"table": "t"}, {"table": "t"}], "crons": [], "files": []});
    assert_eq!(refused(&deploy), DeployError::SameSchema { table });
    let cron = json!({"name": "c", "schedule": {"type": "interval", "seconds": 1},
                      "mutation": {"type": "insert", "table": "t", "fields": {}}});
    let deploy = json!({"name": "v1", "schemas": [], "crons": [cron, cron], "files": []});
    let name = "c".parse().unwrap();
    assert_eq!(refused(&deploy), DeployError::SameCron { name });
}

#[test]
fn names_the_schema_and_the_cron_that_is_not_right() {
    let deploy = json!({"name": "v1", "schemas": [{"table": "t"}, {"table": "_"}], "crons": [], "files": []});
    let DeployError::Schema { index: 1, source } = refused(&deploy) else {
        panic!("{}", refused(&deploy));
    };
    assert!(matches!(*source, InputError::TableName { .. }));
    let deploy = json!({"name": "v1", "schemas": [], "crons": [{}], "files": []});
    let error = refused(&deploy);
    assert!(
        matches!(error, DeployError::Cron { index: 0, .. }),
        "{error}"
    );
}

#[test]
fn the_limit_of_files_is_exact() {
    let files: Vec<_> = (0..=MAX_DEPLOY_FILES)
        .map(|n| file(&n.to_string(), b""))
        .collect();
    let most = with_files(&files[1..]).to_string();
    assert_eq!(
        Deploy::from_json(&most).unwrap().files.len(),
        MAX_DEPLOY_FILES
    );
    let DeployError::Shape { reason } = refused(&with_files(&files)) else {
        panic!("not refused for its shape");
    };
    assert!(reason.contains("a list of at most 10000"), "{reason}");
}

#[test]
fn many_files_in_deep_directories_are_checked_in_no_time_to_speak_of() {
    // Each has 500 directories of its own: five million in all.
    let deep = |n: usize| format!("{n}/{}", "d/".repeat(490));
    let files: Vec<_> = (0..MAX_DEPLOY_FILES / 10)
        .map(|n| file(&format!("{}f", deep(n)), b""))
        .collect();
    assert!(Deploy::from_json(&with_files(&files).to_string()).is_ok());
}

#[test]
fn is_given_up_between_two_schemas_once_nobody_waits_for_it() {
    let deploy = json!({
        "name": "v1",
        "schemas": [{"table": "a"}, {"table": "b"}, {"table": "not a table"}],
        "crons": [],
        "files": [],
    });
    let asked = std::cell::Cell::new(0);
    let twice = || asked.replace(asked.get() + 1) < 2;
    let found = Deploy::from_json_while(&deploy.to_string(), &twice);
    assert_eq!(found, Err(DeployError::Abandoned));
    // Who waits hears what is wrong.
    assert!(matches!(
        refused(&deploy),
        DeployError::Schema { index: 2, .. }
    ));
}

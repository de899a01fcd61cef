//! The test vectors, made by `vectors/generate.py` with no code of ours: every field of what is
//! accepted, the exact error of what is not. Unwrapping and key derivation are tested on the same
//! vectors where they are implemented, in `keyproviders`.

#![expect(
    clippy::disallowed_methods,
    reason = "a test reads and damages files by hand"
)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::path::Path;

use data_encoding::HEXLOWER;
use nimbus_manifests::{
    Field, InvalidManifest, InvalidName, MacKey, MacMismatch, Manifest, ParseError, Problem,
    ProviderKind, SealedManifest, SubjectKind, Timestamp, WrapAlgorithm, WrapContext,
};
use serde_json::{Value, json};

#[test]
fn accepts_each_vector_and_finds_every_field() {
    for case in cases("accepted.json") {
        let name = text(&case["file"]);
        let sealed = SealedManifest::parse(&bytes(&case)).unwrap();
        assert_eq!(described(sealed.claims()), without_keys(&case), "{name}");
    }
}

#[test]
fn writes_each_vector_as_it_was_read() {
    for case in cases("accepted.json") {
        let (name, bytes) = (text(&case["file"]), bytes(&case));
        let sealed = SealedManifest::parse(&bytes).unwrap();
        assert_eq!(sealed.as_bytes(), bytes, "{name}");
        // The writer makes the MAC anew, to the one that Python made.
        let again = sealed
            .claims()
            .seal(&mac_key(&case["deks"][0]["manifest_key"]));
        assert_eq!(again.as_bytes(), bytes, "{name}");
        assert!(again.as_bytes().ends_with(b"=\n"));
    }
}

#[test]
fn verifies_each_vector_under_its_first_dek_alone() {
    for case in cases("accepted.json") {
        let name = text(&case["file"]);
        let sealed = SealedManifest::parse(&bytes(&case)).unwrap();
        let deks = case["deks"].as_array().unwrap();
        let first = mac_key(&deks[0]["manifest_key"]);
        assert_eq!(sealed.verify(&first), Ok(sealed.claims()), "{name}");
        let others = [
            &deks[0]["data_key"],
            &deks[0]["archive_key"],
            &deks[0]["dek"],
        ];
        let others = others
            .into_iter()
            .chain(deks[1..].iter().map(|dek| &dek["manifest_key"]));
        for other in others {
            assert_eq!(sealed.verify(&mac_key(other)), Err(MacMismatch), "{name}");
        }
    }
}

#[test]
fn encodes_the_context_of_each_wrap() {
    for case in cases("accepted.json") {
        let sealed = SealedManifest::parse(&bytes(&case)).unwrap();
        let manifest = sealed.claims();
        for (dek, expected) in manifest.deks().iter().zip(case["deks"].as_array().unwrap()) {
            let context = WrapContext {
                subject: manifest.subject(),
                file_id: manifest.file_id(),
                cipher: manifest.cipher(),
                dek_id: dek.id,
            };
            for (wrap, expected) in dek.wraps.iter().zip(expected["wraps"].as_array().unwrap()) {
                assert_eq!(
                    HEXLOWER.encode(&context.encode(wrap.provider, &wrap.key_id)),
                    text(&expected["context"]),
                    "{}",
                    case["file"]
                );
            }
        }
    }
}

#[test]
fn rejects_each_vector_with_its_error() {
    for case in cases("refused.json") {
        let (name, bytes) = (text(&case["file"]), bytes(&case));
        let read = SealedManifest::parse(&bytes);
        match text(&case["error"]) {
            "mac-mismatch" => {
                let read = read.unwrap();
                let key = mac_key(&case["manifest_key"]);
                assert_eq!(read.verify(&key), Err(MacMismatch), "{name}");
            }
            // Only its own key tells that a wrap is not: the manifest and its MAC are right.
            "unwrap-failed" => {
                let read = read.unwrap();
                let key = mac_key(&case["manifest_key"]);
                assert_eq!(read.verify(&key), Ok(read.claims()), "{name}");
            }
            _ => assert_eq!(read.unwrap_err(), expected_error(&case), "{name}"),
        }
    }
}

#[test]
fn the_format_page_shows_the_first_vector() {
    let page = read("../../../docs/manifest-format.md");
    let page = std::str::from_utf8(&page).unwrap();
    let case = &cases("accepted.json")[0];
    let mut shown: Vec<String> = String::from_utf8(bytes(case))
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect();
    let dek = &case["deks"][0];
    let context = HEXLOWER.decode(text(&dek["wraps"][0]["context"]).as_bytes());
    shown.extend(context.unwrap().chunks(16).map(hex_dump));
    let shown: String = shown.iter().map(|line| format!("    {line}\n")).collect();
    let (manifest, context) = shown.split_at(shown.find("    6e 69").unwrap());
    assert!(page.contains(manifest), "{manifest}");
    assert!(page.contains(context), "{context}");
    for key in ["dek", "data_key", "manifest_key", "archive_key"] {
        assert!(page.contains(text(&dek[key])), "{key}");
    }
    assert!(page.contains(text(&dek["wraps"][0]["kek"])));
    assert!(page.contains(&text(&dek["wraps"][0]["blob"])[..8]));
}

fn hex_dump(bytes: &[u8]) -> String {
    let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let printable = |byte: &u8| matches!(byte, b' '..=b'~').then_some(char::from(*byte));
    let text: String = bytes
        .iter()
        .map(|byte| printable(byte).unwrap_or('.'))
        .collect();
    format!("{:47}   {text}", hex.join(" "))
}

/// What the parser found, in the form of `accepted.json`.
fn described(manifest: &Manifest) -> Value {
    let time = |time: Timestamp| json!({"text": time.to_string(), "unix": time.unix()});
    let subject = manifest.subject();
    let tenant = subject.tenant().map(|tenant| tenant.as_str());
    assert_eq!(subject.kind() == SubjectKind::Control, tenant.is_none());
    let deks: Vec<Value> = manifest
        .deks()
        .iter()
        .map(|dek| {
            let wraps: Vec<Value> = dek
                .wraps
                .iter()
                .map(|wrap| {
                    json!({
                        "provider": wrap.provider.as_str(),
                        "key_id": wrap.key_id.as_str(),
                        "algorithm": wrap.algorithm.as_str(),
                        "at": time(wrap.at),
                        "blob": HEXLOWER.encode(&wrap.blob),
                    })
                })
                .collect();
            json!({"id": dek.id.to_string(), "created": time(dek.created), "wraps": wraps})
        })
        .collect();
    json!({
        "subject": {"text": subject.as_str(), "tenant": tenant, "file_name": subject.file_name()},
        "file_id": {
            "text": manifest.file_id().to_string(),
            "bytes": HEXLOWER.encode(manifest.file_id().as_bytes()),
        },
        "cipher": manifest.cipher().as_str(),
        "state": manifest.state().as_str(),
        "revision": manifest.revision(),
        "created": time(manifest.created()),
        "deks": deks,
    })
}

/// A case of `accepted.json` without what does not stand in the manifest, and without the MAC,
/// which is verified.
fn without_keys(case: &Value) -> Value {
    let mut case = case.clone();
    let forget = |value: &mut Value, names: &[&str]| {
        value
            .as_object_mut()
            .unwrap()
            .retain(|name, _| !names.contains(&name.as_str()));
    };
    forget(&mut case, &["file", "mac"]);
    for dek in case["deks"].as_array_mut().unwrap() {
        forget(dek, &["dek", "data_key", "manifest_key", "archive_key"]);
        for wrap in dek["wraps"].as_array_mut().unwrap() {
            forget(wrap, &["context", "kek", "identity"]);
        }
    }
    case
}

fn expected_error(case: &Value) -> ParseError {
    let found = || text(&case["found"]).to_owned();
    let problem = match text(&case["error"]) {
        "too-large" => return ParseError::TooLarge,
        "unknown-version" => return ParseError::UnknownVersion(found()),
        "dek-count" => return InvalidManifest::DekCount.into(),
        "duplicate-dek" => return InvalidManifest::DuplicateDek.into(),
        "duplicate-wrap" => return InvalidManifest::DuplicateWrap.into(),
        "key-id" => return InvalidManifest::KeyId(provider(&found())).into(),
        "algorithm" => {
            let found = found();
            let (kind, algorithm) = found.split_once(' ').unwrap();
            return InvalidManifest::Algorithm(provider(kind), algorithm_of(algorithm)).into();
        }
        "cipher" => return InvalidManifest::Cipher.into(),
        "revision" => return InvalidManifest::Revision.into(),
        "missing" => Problem::Missing,
        "unexpected" => Problem::Unexpected(found()),
        "trailing" => Problem::Trailing,
        "line-too-long" => Problem::LineTooLong,
        "not-ascii" => Problem::NotAscii,
        "words" => Problem::Words,
        "name" => Problem::Name(match found().as_str() {
            "tenant" => InvalidName::Tenant,
            "file" => InvalidName::File,
            "subject" => InvalidName::Subject,
            "file-id" => InvalidName::FileId,
            "dek-id" => InvalidName::DekId,
            "key-id" => InvalidName::KeyId,
            other => panic!("{other}"),
        }),
        "number" => Problem::Number,
        "time" => Problem::Time,
        "base64" => Problem::Base64,
        "wrapped-size" => Problem::WrappedSize,
        "too-many" => Problem::TooMany,
        "unknown-cipher" => Problem::UnknownCipher(found()),
        "unknown-state" => Problem::UnknownState(found()),
        "unknown-provider" => Problem::UnknownProvider(found()),
        "unknown-algorithm" => Problem::UnknownAlgorithm(found()),
        other => panic!("{other}"),
    };
    let fields = [
        Field::Version,
        Field::Subject,
        Field::FileId,
        Field::Cipher,
        Field::State,
        Field::Revision,
        Field::Created,
        Field::Dek,
        Field::Wrap,
        Field::Mac,
    ];
    let name = text(&case["field"]);
    ParseError::Line {
        line: usize::try_from(case["line"].as_u64().unwrap()).unwrap(),
        field: fields
            .into_iter()
            .find(|field| field.as_str() == name)
            .unwrap(),
        problem,
    }
}

fn provider(word: &str) -> ProviderKind {
    let all = ProviderKind::ALL.iter().copied();
    all.into_iter().find(|kind| kind.as_str() == word).unwrap()
}

fn algorithm_of(word: &str) -> WrapAlgorithm {
    let all = WrapAlgorithm::ALL.iter().copied();
    all.into_iter().find(|one| one.as_str() == word).unwrap()
}

fn mac_key(hex: &Value) -> MacKey {
    let bytes = HEXLOWER.decode(text(hex).as_bytes()).unwrap();
    MacKey::init_with(|key| key.copy_from_slice(&bytes))
}

fn cases(index: &str) -> Vec<Value> {
    let cases: Vec<Value> = serde_json::from_slice(&read(index)).unwrap();
    assert!(cases.len() > 10, "{index}");
    cases
}

fn bytes(case: &Value) -> Vec<u8> {
    read(text(&case["file"]))
}

fn read(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/vectors")
        .join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"))
}

fn text(value: &Value) -> &str {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is not text"))
}

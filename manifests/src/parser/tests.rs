//! One test for each rule of a line. Rules that bind several fields are tested beside
//! [`crate::Manifest`].

use super::*;
use crate::error::InvalidManifest;

/// A manifest as short as they come; its lines are numbered in the tests below.
const READY: &str = "\
nimbus-enc/1
subject: db:sqlite:tenant:demo:demo.sqlite3
file-id: 0198f2c4-7d0e-7a51-9a3e-0f6f7f1f2a10
cipher: sqlcipher4
state: ready
revision: 3
created: 2026-11-22T18:04:05Z
dek: 4f1c0a9be2d35577 2026-11-22T18:04:05Z
wrap: aws-kms arn:aws:kms:x symmetric-default 2026-11-22T18:04:06Z
 AQIDBA==
mac: AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=
";
const FULL: &str = " AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n";

/// [`READY`] with its one `from` replaced.
fn edited(from: &str, to: &str) -> String {
    assert_eq!(READY.matches(from).count(), 1, "{from:?}");
    READY.replace(from, to)
}

fn refusal(text: &str) -> ParseError {
    parse(text.as_bytes()).expect_err("it was accepted")
}

/// What is said of the line that went from `from` to `to`.
fn problem(from: &str, to: &str) -> (usize, Field, Problem) {
    match refusal(&edited(from, to)) {
        ParseError::Line {
            line,
            field,
            problem,
        } => (line, field, problem),
        other => panic!("{other:?}"),
    }
}

fn blob_of(manifest: &Manifest) -> &[u8] {
    &manifest.deks()[0].wraps[0].blob
}

#[test]
fn accepts_the_one_spelling_and_reads_every_field() {
    let (manifest, mac) = parse(READY.as_bytes()).unwrap();
    assert_eq!(
        manifest.subject().as_str(),
        "db:sqlite:tenant:demo:demo.sqlite3"
    );
    assert_eq!(
        *manifest.file_id().as_bytes(),
        *b"\x01\x98\xf2\xc4\x7d\x0e\x7a\x51\x9a\x3e\x0f\x6f\x7f\x1f\x2a\x10"
    );
    assert_eq!(manifest.cipher(), Cipher::Sqlcipher4);
    assert_eq!(manifest.state(), State::Ready);
    assert_eq!(manifest.revision(), 3);
    assert_eq!(manifest.created().unix(), 1_795_370_645);
    let [dek] = manifest.deks() else {
        panic!("{manifest:?}")
    };
    assert_eq!(
        dek.id,
        DekId::from_bytes([0x4f, 0x1c, 0x0a, 0x9b, 0xe2, 0xd3, 0x55, 0x77])
    );
    assert_eq!(dek.created.unix(), 1_795_370_645);
    let [wrap] = dek.wraps.as_slice() else {
        panic!("{dek:?}")
    };
    assert_eq!(wrap.provider, ProviderKind::AwsKms);
    assert_eq!(wrap.key_id.as_str(), "arn:aws:kms:x");
    assert_eq!(wrap.algorithm, WrapAlgorithm::SymmetricDefault);
    assert_eq!(wrap.at.unix(), 1_795_370_646);
    assert_eq!(wrap.blob, [1, 2, 3, 4]);
    assert_eq!(mac, core::array::from_fn(|index| index as u8));
}

#[test]
fn writes_the_text_it_read_up_to_the_mac() {
    let (manifest, _mac) = parse(READY.as_bytes()).unwrap();
    assert_eq!(
        manifest.covered_text(),
        READY.split_once("AAEC").unwrap().0,
        "the MAC's value is what is left over"
    );
}

#[test]
fn rejects_more_than_32_kib_before_reading_any_of_it() {
    assert_eq!(
        parse(&[b'x'; 32 * 1024 + 1]).unwrap_err(),
        ParseError::TooLarge
    );
    // One byte less is read, and found to have no line end.
    assert_eq!(
        parse(&[b'x'; 32 * 1024]).unwrap_err(),
        ParseError::Line {
            line: 1,
            field: Field::Version,
            problem: Problem::Missing
        }
    );
}

#[test]
fn rejects_an_unknown_version_by_name() {
    for version in ["nimbus-enc/2", "nimbus-enc/1 ", "Nimbus-enc/1", ""] {
        assert_eq!(
            refusal(&edited("nimbus-enc/1", version)),
            ParseError::UnknownVersion(version.to_owned())
        );
    }
    // Of a long first line, just the beginning is repeated.
    let long = "v".repeat(1024);
    assert_eq!(
        refusal(&edited("nimbus-enc/1", &long)),
        ParseError::UnknownVersion("v".repeat(40))
    );
}

#[test]
fn rejects_an_unknown_version_whatever_follows() {
    assert_eq!(
        parse(b"nimbus-enc/2\n\xff\x00").unwrap_err(),
        ParseError::UnknownVersion("nimbus-enc/2".to_owned())
    );
}

#[test]
fn rejects_an_empty_text() {
    assert_eq!(
        refusal(""),
        ParseError::Line {
            line: 1,
            field: Field::Version,
            problem: Problem::Missing
        }
    );
}

#[test]
fn rejects_each_field_left_out_by_name() {
    let lines: Vec<&str> = READY.lines().collect();
    let found = [
        (2, Field::Subject, "file-id"),
        (3, Field::FileId, "cipher"),
        (4, Field::Cipher, "state"),
        (5, Field::State, "revision"),
        (6, Field::Revision, "created"),
        (7, Field::Created, "dek"),
        (8, Field::Dek, "wrap"),
        (9, Field::Wrap, " AQIDBA=="),
        (10, Field::Wrap, "mac"),
    ];
    for (line, field, instead) in found {
        let mut kept = lines.clone();
        kept.remove(line - 1);
        assert_eq!(
            refusal(&(kept.join("\n") + "\n")),
            ParseError::Line {
                line,
                field,
                problem: Problem::Unexpected(instead.to_owned())
            }
        );
    }
    assert_eq!(
        refusal(READY.split_once("mac").unwrap().0),
        ParseError::Line {
            line: 11,
            field: Field::Mac,
            problem: Problem::Missing
        }
    );
}

#[test]
fn rejects_an_unknown_field_by_name_wherever_it_stands() {
    let lines: Vec<&str> = READY.lines().collect();
    for at in 1..lines.len() {
        let mut more = lines.clone();
        more.insert(at, "policy: strict");
        let ParseError::Line { line, problem, .. } = refusal(&(more.join("\n") + "\n")) else {
            panic!("at {at}")
        };
        assert_eq!(line, at + 1);
        assert_eq!(problem, Problem::Unexpected("policy".to_owned()));
    }
}

#[test]
fn rejects_a_field_said_twice() {
    assert_eq!(
        problem("state: ready\n", "state: ready\nstate: ready\n"),
        (6, Field::Revision, Problem::Unexpected("state".to_owned()))
    );
}

#[test]
fn rejects_fields_in_another_order() {
    assert_eq!(
        problem(
            "cipher: sqlcipher4\nstate: ready\n",
            "state: ready\ncipher: sqlcipher4\n"
        ),
        (4, Field::Cipher, Problem::Unexpected("state".to_owned()))
    );
}

#[test]
fn rejects_a_separator_that_is_not_a_colon_and_one_space() {
    for spelling in [
        "state:ready",
        "state :ready",
        "state  ready",
        " state: ready",
    ] {
        let (line, field, problem) = problem("state: ready", spelling);
        assert_eq!((line, field), (5, Field::State), "{spelling:?}");
        assert!(matches!(problem, Problem::Unexpected(_)), "{problem:?}");
    }
}

#[test]
fn rejects_a_missing_final_newline() {
    assert_eq!(
        refusal(READY.strip_suffix('\n').unwrap()),
        ParseError::Line {
            line: 11,
            field: Field::Mac,
            problem: Problem::Missing
        }
    );
}

#[test]
fn rejects_text_after_the_mac() {
    for more in ["\n", " ", "x", "mac: AAAA\n", "\0"] {
        assert_eq!(
            refusal(&format!("{READY}{more}")),
            ParseError::Line {
                line: 12,
                field: Field::Mac,
                problem: Problem::Trailing
            },
            "{more:?}"
        );
    }
}

#[test]
fn rejects_bytes_that_are_not_printable_ascii() {
    for byte in ["\r", "\t", "\0", "\x1b", "\x7f", "é", "\u{2028}"] {
        assert_eq!(
            problem("state: ready", &format!("state: ready{byte}")),
            (5, Field::State, Problem::NotAscii),
            "{byte:?}"
        );
    }
    let mut not_utf8 = READY.as_bytes().to_vec();
    not_utf8[0] = 0xff;
    assert_eq!(
        parse(&not_utf8).unwrap_err(),
        ParseError::Line {
            line: 1,
            field: Field::Version,
            problem: Problem::NotAscii
        }
    );
}

#[test]
fn rejects_line_ends_of_other_systems_and_a_byte_order_mark() {
    for text in [READY.replace('\n', "\r\n"), format!("\u{feff}{READY}")] {
        assert_eq!(
            refusal(&text),
            ParseError::Line {
                line: 1,
                field: Field::Version,
                problem: Problem::NotAscii
            }
        );
    }
    assert_eq!(
        refusal(&READY.replace('\n', "\r")),
        ParseError::Line {
            line: 1,
            field: Field::Version,
            problem: Problem::Missing
        }
    );
}

#[test]
fn rejects_a_line_of_more_than_1024_bytes() {
    let line = |length: usize| format!("state: {}", "x".repeat(length - "state: ".len()));
    assert_eq!(
        problem("state: ready", &line(1025)),
        (5, Field::State, Problem::LineTooLong)
    );
    let (.., rule) = problem("state: ready", &line(1024));
    assert_eq!(rule, Problem::UnknownState("x".repeat(1017)));
}

#[test]
fn rejects_names_that_are_not_names() {
    assert_eq!(
        problem("subject: db", "subject: file"),
        (2, Field::Subject, Problem::Name(InvalidName::Subject))
    );
    assert_eq!(
        problem("tenant:demo", "tenant:Demo"),
        (2, Field::Subject, Problem::Name(InvalidName::Tenant))
    );
    assert_eq!(
        problem("demo.sqlite3", "de/mo.sqlite3"),
        (2, Field::Subject, Problem::Name(InvalidName::File))
    );
    assert_eq!(
        problem("0198f2c4", "0198F2C4"),
        (3, Field::FileId, Problem::Name(InvalidName::FileId))
    );
    assert_eq!(
        problem("4f1c0a9be2d35577", "4f1c0a9be2d3557"),
        (8, Field::Dek, Problem::Name(InvalidName::DekId))
    );
    assert_eq!(
        problem("arn:aws:kms:x", &"a".repeat(513)),
        (9, Field::Wrap, Problem::Name(InvalidName::KeyId))
    );
}

#[test]
fn rejects_unknown_words_by_name() {
    assert_eq!(
        problem("sqlcipher4", "sqlcipher5"),
        (
            4,
            Field::Cipher,
            Problem::UnknownCipher("sqlcipher5".to_owned())
        )
    );
    assert_eq!(
        problem("state: ready", "state: Ready"),
        (5, Field::State, Problem::UnknownState("Ready".to_owned()))
    );
    assert_eq!(
        problem("aws-kms", "gcp-kms"),
        (
            9,
            Field::Wrap,
            Problem::UnknownProvider("gcp-kms".to_owned())
        )
    );
    assert_eq!(
        problem("symmetric-default", "rsa-oaep"),
        (
            9,
            Field::Wrap,
            Problem::UnknownAlgorithm("rsa-oaep".to_owned())
        )
    );
}

#[test]
fn rejects_a_trailing_space() {
    assert_eq!(
        problem("sqlcipher4\n", "sqlcipher4 \n"),
        (
            4,
            Field::Cipher,
            Problem::UnknownCipher("sqlcipher4 ".to_owned())
        )
    );
    assert_eq!(
        problem("05Z\nwrap", "05Z \nwrap"),
        (8, Field::Dek, Problem::Words)
    );
}

#[test]
fn rejects_a_revision_that_is_not_a_plain_number() {
    for text in [
        "",
        "0",
        "03",
        "+3",
        "-3",
        "3.0",
        "1e3",
        "0x3",
        "3 ",
        "three",
        // One more than 64 bits hold.
        "18446744073709551616",
    ] {
        assert_eq!(
            problem("revision: 3", &format!("revision: {text}")),
            (6, Field::Revision, Problem::Number),
            "{text:?}"
        );
    }
}

#[test]
fn rejects_times_that_are_not_times_wherever_one_stands() {
    assert_eq!(
        problem("created: 2026-11-22T18", "created: 2026-11-22t18"),
        (7, Field::Created, Problem::Time)
    );
    assert_eq!(
        problem("5577 2026-11-22", "5577 2026-02-29"),
        (8, Field::Dek, Problem::Time)
    );
    assert_eq!(
        problem("05Z\nwrap", "05z\nwrap"),
        (8, Field::Dek, Problem::Time)
    );
    assert_eq!(problem("06Z", "06"), (9, Field::Wrap, Problem::Time));
}

#[test]
fn rejects_another_number_of_words() {
    for text in [
        "4f1c0a9be2d35577",
        "4f1c0a9be2d35577 ",
        "4f1c0a9be2d35577 2026-11-22T18:04:05Z x",
        "4f1c0a9be2d35577  2026-11-22T18:04:05Z",
        " 4f1c0a9be2d35577 2026-11-22T18:04:05Z",
    ] {
        let (line, field, rule) = problem("4f1c0a9be2d35577 2026-11-22T18:04:05Z", text);
        assert_eq!((line, field, rule), (8, Field::Dek, Problem::Words));
    }
    assert_eq!(problem("aws-kms ", ""), (9, Field::Wrap, Problem::Words));
    assert_eq!(
        problem("aws-kms ", "aws-kms  "),
        (9, Field::Wrap, Problem::Words)
    );
}

#[test]
fn rejects_base64_with_another_spelling_of_the_same_bytes() {
    for text in [
        "AQIDBA",       // not padded
        "AQIDBB==",     // bits after the last byte
        "AQIDBA=",      // half padded
        "AQ==AgMEBQ==", // two texts, one after the other
        "AQIDBA== ",    // a space
        "AQID BA==",
        "AQI_BA==", // the alphabet for URLs
        "====",
        "é",
        "",
    ] {
        let (line, field, rule) = problem(" AQIDBA==", &format!(" {text}"));
        assert_eq!((line, field), (10, Field::Wrap), "{text:?}");
        assert!(matches!(rule, Problem::Base64 | Problem::NotAscii));
        assert_eq!(rule == Problem::NotAscii, text == "é", "{text:?}");
    }
}

#[test]
fn rejects_a_wrapped_key_that_is_not_in_lines_of_64() {
    // 64 characters may be the last line, and then need another only if there is more.
    let with = |lines: &str| parse(edited(" AQIDBA==\n", lines).as_bytes());
    assert_eq!(blob_of(&with(FULL).unwrap().0), [0; 48]);
    let two = format!("{FULL} AQ==\n");
    assert_eq!(blob_of(&with(&two).unwrap().0).len(), 49);
    for (line, text) in [
        (10, format!(" AAAA{}", FULL.trim_start())), // 68 on a line
        (11, format!(" AAAA\n{FULL}")),              // short, then full
        (11, " AAAA\n AAAA\n".to_owned()),
        (11, format!("{FULL} \n")),
        (11, format!(" {}A==\n AAAA\n", &FULL[1..62])), // 64 with padding end the text
        (10, format!(" {FULL}")),
    ] {
        assert_eq!(
            with(&text).unwrap_err(),
            ParseError::Line {
                line,
                field: Field::Wrap,
                problem: Problem::Base64
            },
            "{text:?}"
        );
    }
}

#[test]
fn rejects_a_wrap_without_a_key() {
    assert_eq!(
        problem(" AQIDBA==\n", ""),
        (10, Field::Wrap, Problem::Unexpected("mac".to_owned()))
    );
}

#[test]
fn rejects_a_wrapped_key_of_more_than_8_kib() {
    // 170 full lines are 8160 bytes; 32 more are 44 characters.
    let most = FULL.repeat(170) + " AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n";
    let (manifest, _mac) = parse(edited(" AQIDBA==\n", &most).as_bytes()).unwrap();
    assert_eq!(blob_of(&manifest).len(), 8192);
    let more = FULL.repeat(170) + " AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n";
    assert_eq!(
        problem(" AQIDBA==\n", &more),
        (180, Field::Wrap, Problem::WrappedSize)
    );
}

#[test]
fn rejects_a_ninth_wrap_and_accepts_eight() {
    let wraps = |count: usize| -> String {
        (0..count)
            .map(|index| {
                format!("wrap: aws-kms arn:{index} symmetric-default 2026-11-22T18:04:06Z\n AQ==\n")
            })
            .collect()
    };
    let with = |count| {
        READY[..READY.find("wrap").unwrap()].to_owned()
            + &wraps(count)
            + &READY[READY.find("mac").unwrap()..]
    };
    let (manifest, _mac) = parse(with(8).as_bytes()).unwrap();
    assert_eq!(manifest.deks()[0].wraps.len(), 8);
    assert_eq!(
        refusal(&with(9)),
        ParseError::Line {
            line: 25,
            field: Field::Wrap,
            problem: Problem::TooMany
        }
    );
}

#[test]
fn rejects_a_third_dek() {
    let dek = &READY[READY.find("dek").unwrap()..READY.find("mac").unwrap()];
    let text = edited("state: ready", "state: rekeying").replace(dek, &dek.repeat(3));
    assert_eq!(
        refusal(&text),
        ParseError::Line {
            line: 14,
            field: Field::Dek,
            problem: Problem::TooMany
        }
    );
}

#[test]
fn rejects_parts_that_do_not_fit_together() {
    assert_eq!(
        refusal(&edited("state: ready", "state: rekeying")),
        ParseError::Invalid(InvalidManifest::DekCount)
    );
}

#[test]
fn rejects_a_mac_that_is_not_32_bytes_of_base64() {
    let value = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    for text in [
        "",
        "AAEC",
        "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHg==", // 31 bytes
        "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8g", // 33 bytes
        "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
        "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh9=",
        "AA==AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHw==",
    ] {
        assert_eq!(
            problem(value, text),
            (11, Field::Mac, Problem::Base64),
            "{text:?}"
        );
    }
}

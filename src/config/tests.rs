//! What is said, against what comes out.

use clap::{Args as _, Command, FromArgMatches as _};

use super::*;

fn said(arguments: &[&str]) -> Persistence {
    let command = Persistence::augment_args(Command::new("nimbus").no_binary_name(true));
    let matches = command.try_get_matches_from(arguments).unwrap();
    Persistence::from_arg_matches(&matches).unwrap()
}

fn file(json: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), json).unwrap();
    file
}

#[test]
fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
    let file = file(r#"{"persistence": {"data_dir": "/from/file", "max_open_tenants": 7}}"#);
    let settings = Settings::check(said(&["--data-dir", "/from/flag"]), Some(file.path())).unwrap();
    assert_eq!(settings.data_dir, Path::new("/from/flag"));
    assert_eq!(settings.control_data_dir, Path::new("/from/flag"));
    assert_eq!(settings.max_open_tenants, 7);
    let settings = Settings::check(said(&[]), Some(file.path())).unwrap();
    assert_eq!(settings.data_dir, Path::new("/from/file"));
    let settings = Settings::check(said(&[]), None).unwrap();
    assert_eq!(settings.data_dir, Path::new("data"));
}

#[test]
fn rejects_unknown_keys_at_every_level() {
    for json in [
        r#"{"persistance": {}}"#,
        r#"{"persistence": {"data-dir": "x"}}"#,
        r#"{"persistence": {"encryption_key_provider": "rot13"}}"#,
        "{",
    ] {
        let file = file(json);
        let error = Settings::check(said(&[]), Some(file.path())).unwrap_err();
        assert!(
            matches!(error, ConfigError::Parse { .. }),
            "{json}: {error}"
        );
    }
    let error = Settings::check(said(&[]), Some(Path::new("/no/such/file"))).unwrap_err();
    assert!(matches!(error, ConfigError::Read { .. }));
}

#[test]
fn rejects_the_settings_of_a_provider_that_is_not_selected() {
    for arguments in [
        &[
            "--encryption-key-provider",
            "none",
            "--encryption-master-key-file",
            "k",
        ][..],
        &[
            "--encryption-key-provider",
            "key-dir",
            "--encryption-key-dir",
            "d",
            "--encryption-aws-region",
            "r",
        ],
        &["--encryption-key-dir", "d"],
        &["--encryption-aws-kms-key-id", "k"],
        &[
            "--encryption-key-provider",
            "none",
            "--encryption-previous-master-key-file",
            "k",
        ],
        &[
            "--encryption-key-provider",
            "none",
            "--encryption-recovery-recipient",
            "age1x",
        ],
    ] {
        let error = Settings::check(said(arguments), None).unwrap_err();
        assert!(
            matches!(error, ConfigError::Foreign { .. }),
            "{arguments:?}: {error}"
        );
    }
}

#[test]
fn rejects_a_provider_without_its_key() {
    for provider in ["key-dir", "aws-kms"] {
        let error =
            Settings::check(said(&["--encryption-key-provider", provider]), None).unwrap_err();
        assert!(matches!(error, ConfigError::Missing { .. }), "{error}");
    }
}

#[test]
fn rejects_recipients_that_are_none_or_too_many() {
    let error =
        Settings::check(said(&["--encryption-recovery-recipient", "bob"]), None).unwrap_err();
    assert!(matches!(error, ConfigError::Recipient { .. }), "{error}");
    let secret = "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZ";
    let in_file = file(&format!(
        r#"{{"persistence": {{"encryption_recovery_recipients": "{secret}"}}}}"#
    ));
    for error in [
        Settings::check(said(&["--encryption-recovery-recipient", secret]), None),
        Settings::check(said(&[]), Some(in_file.path())),
    ] {
        let error = error.unwrap_err();
        let words = format!("{} {error:?}", crate::chain::chain(&error));
        assert!(words.contains("secret key"), "{words}");
        assert!(!words.contains("GFPYY"), "a secret key in an error");
    }
    let many = "age1x,".repeat(7) + "age1x";
    let error =
        Settings::check(said(&["--encryption-recovery-recipient", &many]), None).unwrap_err();
    assert!(
        matches!(error, ConfigError::TooManyRecipients { .. }),
        "{error}"
    );
}

#[test]
fn a_previous_kms_key_may_have_region_and_endpoint() {
    let settings = Settings::check(
        said(&[
            "--encryption-previous-aws-kms-key-id",
            "alias/old",
            "--encryption-aws-region",
            "eu-central-1",
        ]),
        None,
    )
    .unwrap();
    assert!(matches!(settings.provider, ProviderChoice::Default(_)));
    assert_eq!(
        settings.previous,
        [ProviderConfig::AwsKms {
            key_id: "alias/old".into(),
            region: Some("eu-central-1".into()),
            endpoint_url: None
        }]
    );
}

#[test]
fn accepts_every_sample_of_the_documentation() {
    let page = include_str!("../../docs/configuration.md");
    let samples: Vec<&str> = page
        .split("```json\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect();
    assert!(samples.len() >= 3);
    for sample in samples {
        let file = file(sample);
        let settings = Settings::check(said(&[]), Some(file.path())).unwrap();
        assert_ne!(settings.data_dir, Path::new("data"), "{sample}");
    }
}

#[test]
fn the_documentation_lists_every_flag_and_variable() {
    let page = include_str!("../../docs/configuration.md");
    let command = Persistence::augment_args(Command::new("nimbus"));
    for argument in command.get_arguments() {
        let flag = argument.get_long().unwrap();
        assert!(page.contains(&format!("`--{flag}`")), "{flag}");
        let variable = argument.get_env().unwrap().to_str().unwrap();
        assert!(page.contains(&format!("`{variable}`")), "{variable}");
    }
}

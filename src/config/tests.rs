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
    assert_eq!(settings.max_open_tenants, "7".parse().unwrap());
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
        let words = format!("{} {error:?}", crate::error_chain::error_chain(&error));
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
            endpoint_url: None,
            key_map: BTreeMap::new(),
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

const AWS: [&str; 4] = [
    "--encryption-key-provider",
    "aws-kms",
    "--encryption-aws-kms-key-id",
    "alias/nimbus",
];

#[test]
fn lease_and_grace_are_times_within_bounds_and_settings_of_aws_kms() {
    let check = |more: &[&str]| Settings::check(said(&[&AWS[..], more].concat()), None);
    let terms = check(&[]).unwrap().terms;
    assert_eq!((terms.lease.as_secs(), terms.grace.as_secs()), (60, 3600));
    let more = [
        "--encryption-key-lease",
        "5m",
        "--encryption-key-grace",
        "1h 30m",
    ];
    let terms = check(&more).unwrap().terms;
    assert_eq!((terms.lease.as_secs(), terms.grace.as_secs()), (300, 5400));
    for (flag, value) in [
        ("--encryption-key-lease", "999ms"),
        ("--encryption-key-lease", "61m"),
        ("--encryption-key-grace", "169h"),
    ] {
        let error = check(&[flag, value]).unwrap_err();
        assert!(matches!(error, ConfigError::OutOfBounds { setting, .. } if setting == flag));
    }
    let error = Settings::check(said(&["--encryption-key-lease", "60s"]), None).unwrap_err();
    assert!(matches!(
        error,
        ConfigError::Foreign {
            needs: "aws-kms",
            ..
        }
    ));
    // A server on its way out of KMS has leases still.
    let leaving = [
        "--encryption-previous-aws-kms-key-id",
        "k",
        "--encryption-key-lease",
        "30s",
    ];
    assert_eq!(
        Settings::check(said(&leaving), None)
            .unwrap()
            .terms
            .lease
            .as_secs(),
        30
    );
    let file = file(
        r#"{"persistence": {"encryption_key_provider": "aws-kms", "encryption_aws_kms_key_id": "k", "encryption_key_lease": "10s"}}"#,
    );
    let settings = Settings::check(said(&[]), Some(file.path())).unwrap();
    assert_eq!(settings.terms.lease.as_secs(), 10);
}

#[test]
fn tenants_keys_come_from_a_file_or_from_the_configuration_itself() {
    let map_of = |settings: Settings| match settings.provider {
        ProviderChoice::Configured(ProviderConfig::AwsKms { key_map, .. }) => key_map,
        other => panic!("{other:?}"),
    };
    let map = file(
        r#"{"acme": "alias/acme", "not-yet-there": "arn:aws:kms:eu-central-1:111122223333:key/k"}"#,
    );
    let path = map.path().to_str().unwrap();
    let arguments = [&AWS[..], &["--encryption-aws-kms-key-map", path]].concat();
    let keys = map_of(Settings::check(said(&arguments), None).unwrap());
    assert_eq!(keys[&"acme".parse().unwrap()], "alias/acme");
    assert_eq!(keys.len(), 2);
    for map in [r#"{"acme": "alias/acme"}"#, &format!("{path:?}")] {
        let file = file(&format!(
            r#"{{"persistence": {{"encryption_key_provider": "aws-kms", "encryption_aws_kms_key_id": "k", "encryption_aws_kms_key_map": {map}}}}}"#
        ));
        let settings = Settings::check(said(&[]), Some(file.path())).unwrap();
        assert_eq!(map_of(settings)[&"acme".parse().unwrap()], "alias/acme");
    }
}

#[test]
fn rejects_a_key_map_that_could_mean_something_else() {
    for (map, word) in [
        (r#"{"acme": "a", "acme": "b"}"#, "twice"),
        (r#"{"Acme": "a"}"#, "no tenant id"),
        (r#"{"../acme": "a"}"#, "no tenant id"),
        (r#"{"acme": ""}"#, "no possible key"),
        (r#"{"acme": " alias/acme"}"#, "no possible key"),
        (r#"{"acme": 7}"#, "text is expected, and this is a number"),
        (r#"["acme"]"#, "object"),
        ("{", "ends in the middle of an object"),
    ] {
        let map = file(map);
        let path = map.path().to_str().unwrap();
        let arguments = [&AWS[..], &["--encryption-aws-kms-key-map", path]].concat();
        let error = Settings::check(said(&arguments), None).unwrap_err();
        let ConfigError::KeyMap { reason, .. } = &error else {
            panic!("{error}")
        };
        assert!(reason.contains(word), "{reason}");
    }
    let arguments = [&AWS[..], &["--encryption-aws-kms-key-map", "/no/such/file"]].concat();
    let error = Settings::check(said(&arguments), None).unwrap_err();
    assert!(matches!(error, ConfigError::Read { .. }));
    let error = Settings::check(said(&["--encryption-aws-kms-key-map", "f"]), None).unwrap_err();
    assert!(matches!(error, ConfigError::Foreign { .. }));
}

#[test]
fn says_in_its_own_words_what_is_wrong_with_a_file() {
    for (text, words) in [
        (
            r#"{"persistence": {"data_dir": 5}}"#,
            r#""persistence.data_dir": text is expected, and this is a number"#,
        ),
        (
            r#"{"persistence": {"data_dri": "x"}}"#,
            r#""data_dri" is not a field here"#,
        ),
        (
            r#"{"persistence": {"max_open_tenants": -1}}"#,
            r#""persistence.max_open_tenants": a whole number from 1"#,
        ),
        (
            r#"{"persistence": {"encryption_key_provider": "aws"}}"#,
            r#""aws" is not one of the values"#,
        ),
        (
            r#"{"persistence": {"data_dir": "a", "data_dir": "b"}}"#,
            r#""data_dir" is there twice"#,
        ),
        (
            r#"{"persistence": {"encryption_aws_kms_key_map": 5}}"#,
            "a path, or an object from tenant ids to KMS keys, is expected",
        ),
        (
            r#"{"persistence": {"encryption_aws_kms_key_map": {"X!": "k"}}}"#,
            r#""X!" is no tenant id"#,
        ),
        (r#"{"persistence": ["#, "ends in the middle of a list"),
        ("[]", "it must be a JSON object"),
    ] {
        let file = file(text);
        let error = Settings::check(said(&[]), Some(file.path())).unwrap_err();
        let shown = error.to_string();
        assert!(shown.contains(words), "{text}: {shown}");
        for foreign in ["expected ", "variant", "usize", "at line", "serde"] {
            assert!(!shown.contains(foreign), "{text}: {shown}");
        }
    }
}

const POSTGRES: &[&str] = &[
    "--tenant-provider",
    "postgres",
    "--postgres-url",
    "postgres://nimbus:hunter2@db1:6432,db2/app",
];

#[test]
fn a_database_is_named_by_hosts_and_name_and_never_by_its_password() {
    let settings = Settings::check(said(POSTGRES), None).unwrap();
    let place = settings.tenants.database().unwrap();
    assert_eq!(place, "Postgres at db1:6432,db2:5432, database app");
    assert!(!format!("{settings:?} {:?}", said(POSTGRES)).contains("hunter2"));
    let url = file("\u{feff}postgres://nimbus:hunter2@db/app\n");
    let from_file = [
        "--tenant-provider",
        "postgres",
        "--postgres-url-file",
        url.path().to_str().unwrap(),
    ];
    let settings = Settings::check(said(&from_file), None).unwrap();
    assert_eq!(
        settings.tenants.database().unwrap(),
        "Postgres at db:5432, database app"
    );
    let none = Settings::check(said(&[]), None).unwrap();
    assert_eq!(none.tenants.database(), None);
}

#[test]
fn rejects_databases_and_names_that_cannot_be_used() {
    let check = |more: &[&str]| Settings::check(said(&[POSTGRES, more].concat()), None);
    for (more, setting) in [
        (
            &["--postgres-metadata-schema", "tenant_x"][..],
            "--postgres-metadata-schema",
        ),
        (
            &["--postgres-metadata-schema", "pg_x"],
            "--postgres-metadata-schema",
        ),
        (
            &["--postgres-metadata-schema", ""],
            "--postgres-metadata-schema",
        ),
        (
            &["--postgres-tenant-schema-prefix", ""],
            "--postgres-tenant-schema-prefix",
        ),
        (
            &["--postgres-tenant-schema-prefix", "pg"],
            "--postgres-tenant-schema-prefix",
        ),
        (
            &["--postgres-tenant-schema-prefix", "of-sixteen-bytes"],
            "--postgres-tenant-schema-prefix",
        ),
        (
            &["--postgres-max-connections", "3"],
            "--postgres-max-connections",
        ),
        (
            &[
                "--postgres-min-connections",
                "9",
                "--postgres-max-connections",
                "8",
            ],
            "--postgres-max-connections",
        ),
        (&["--max-tenant-bytes", "1GiB"], "--max-tenant-bytes"),
        (&["--postgres-url-file", "f"], "--postgres-url-file"),
    ] {
        let error = check(more).unwrap_err().to_string();
        assert!(error.contains(setting), "{more:?}: {error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
    let shipped = check(&["--backup-to", "/mnt/backup"]);
    assert!(matches!(shipped, Err(ConfigError::NotInFiles { .. })));
    assert!(check(&["--postgres-metadata-schema", "tenant_"]).is_ok());
    let alone = Settings::check(said(&["--tenant-provider", "postgres"]), None);
    assert!(matches!(alone, Err(ConfigError::NoDatabase { .. })));
    // Settings of Postgres without it.
    let error = Settings::check(said(&POSTGRES[2..]), None).unwrap_err();
    assert!(matches!(error, ConfigError::ForeignTenants { .. }));
    for url in ["mysql://u:hunter2@h/d", "postgres://", "u:hunter2@h"] {
        let error = Settings::check(said(&[&POSTGRES[..3], &[url]].concat()), None).unwrap_err();
        assert!(matches!(error, ConfigError::Database { .. }), "{error}");
        assert!(!format!("{error:?}").contains("hunter2"));
    }
}

const MYSQL: &[&str] = &[
    "--tenant-provider",
    "mysql",
    "--mysql-url",
    "mysql://nimbus:hunter2@db1:3307,db2",
];

#[test]
fn mysql_has_its_own_settings_and_names() {
    let check = |more: &[&str]| Settings::check(said(&[MYSQL, more].concat()), None);
    let settings = check(&[]).unwrap();
    let place = settings.tenants.database().unwrap();
    assert_eq!(place, "MySQL at db1:3307,db2:3306");
    assert!(!format!("{settings:?} {:?}", said(MYSQL)).contains("hunter2"));
    for (more, setting) in [
        (
            &["--mysql-metadata-database", "mysql"][..],
            "--mysql-metadata-database",
        ),
        (
            &["--mysql-metadata-database", "Upper"],
            "--mysql-metadata-database",
        ),
        (
            &["--mysql-metadata-database", "what?"],
            "--mysql-metadata-database",
        ),
        (
            &["--mysql-metadata-database", "tenant_x"],
            "--mysql-metadata-database",
        ),
        // A tenant could have the rest of the name.
        (
            &["--mysql-tenant-database-prefix", "my"],
            "--mysql-tenant-database-prefix",
        ),
        (
            &["--mysql-tenant-database-prefix", "in`jected"],
            "--mysql-tenant-database-prefix",
        ),
        (&["--mysql-max-connections", "3"], "--mysql-max-connections"),
        (&["--mysql-url-file", "f"], "--mysql-url-file"),
        (
            &["--postgres-max-connections", "9"],
            "--postgres-max-connections",
        ),
        (&["--max-tenant-bytes", "1GiB"], "--max-tenant-bytes"),
    ] {
        let error = check(more).unwrap_err().to_string();
        assert!(error.contains(setting), "{more:?}: {error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
    let alone = Settings::check(said(&MYSQL[..2]), None).unwrap_err();
    assert!(alone.to_string().contains("NIMBUS_MYSQL_URL"), "{alone}");
    let error = Settings::check(said(&MYSQL[2..]), None).unwrap_err();
    assert!(matches!(error, ConfigError::ForeignTenants { .. }));
}

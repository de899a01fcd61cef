//! The command line as a person reads it: each `.trycmd` file is a session whose output must be
//! exactly this.
//!
//! After a change that was meant: `TRYCMD=overwrite cargo test --features failpoints --test
//! commands`, and read the difference.

#[test]
fn says_what_the_sessions_show() {
    let home = tempfile::tempdir().expect("a home");
    let cases = trycmd::TestCases::new();
    let _cases = cases
        .insert_var("[HOME]", home.path().to_string_lossy().into_owned())
        .expect("a name for it")
        .env("HOME", home.path().to_string_lossy())
        .env("XDG_DATA_HOME", home.path().join("share").to_string_lossy())
        .env("COLUMNS", "100")
        .case("tests/commands/*.trycmd");
}

//! What SECURITY.md calls out of scope, shown. When Nimbus protects against one of these, its test
//! fails, and the page must change.

use std::fs;
use std::path::Path;

use nimbus_test_support::Machine;
use serde_json::json;

use super::{RENEW_ALPHA, as_str, deployment, encryption, identity, machine, served, status};

/// A machine with the master key of `of`.
fn with_the_key_of(of: &Machine) -> Machine {
    let machine = machine();
    let key = machine.master_key();
    fs::create_dir_all(key.parent().expect("a directory")).expect("a directory");
    let _bytes = fs::copy(of.master_key(), key).expect("its key");
    machine
}

/// Puts the tenant `alpha` of one data directory into another.
fn put_alpha(from: &Path, to: &Path) {
    for name in ["alpha.sqlite3", "alpha.sqlite3.nimbus-enc"] {
        let _bytes = fs::copy(from.join(name), to.join(name)).expect("a copy");
    }
}

#[test]
fn a_tenant_of_another_deployment_under_the_same_key_opens() {
    let machine = deployment(&["alpha"], &[]);
    let other = with_the_key_of(&machine);
    super::next_second();
    super::fill(&other, &["alpha"], &[]);
    let server = other.start(&[]);
    server.insert("alpha", "notes", &json!({"of": "another deployment"}));
    server.stop();
    // Created later, it counts as a new tenant of the name.
    put_alpha(&other.data_dir(), &machine.data_dir());
    assert_eq!(served(&machine, "alpha")[2]["of"], "another deployment");
}

#[test]
fn who_knows_a_data_key_brings_it_back_under_a_key_that_is_configured() {
    let machine = deployment(&["alpha"], &[]);
    // Somebody with a copy and its key raises the revision of the manifest beyond the deployment's
    // own.
    let copy = with_the_key_of(&machine);
    fs::create_dir(copy.data_dir()).expect("a directory");
    put_alpha(&machine.data_dir(), &copy.data_dir());
    let recipient = identity(&copy, "recovery.txt");
    let path = copy.data_dir().join("alpha.sqlite3");
    for flag in ["--add-recipient", "--drop-recipient"].repeat(3) {
        let rewrap = ["rotate-kek", "--path", as_str(&path), flag, &recipient];
        let _ = encryption(&copy, &rewrap).expect(0, &[]);
    }
    let dek = |machine: &Machine| {
        let found = status(machine, &["--verify", "open"], 0);
        let files = found["files"].as_array().expect("files").clone();
        let alpha = files.iter().find(|file| file["path"] == "alpha.sqlite3");
        alpha.expect("alpha")["dek_id"].clone()
    };
    let old = dek(&machine);
    let _ = encryption(&machine, RENEW_ALPHA).expect(0, &[]);
    assert_ne!(dek(&machine), old);
    put_alpha(&copy.data_dir(), &machine.data_dir());
    assert_eq!(dek(&machine), old);
    assert_eq!(served(&machine, "alpha")[1]["of"], "alpha");
}

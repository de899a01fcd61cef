//! A repository that refuses: one clear error each, which says what to do next, and nothing that
//! was there is lost.

use std::fs;

use nimbus_test_support::{Disk, Fault, FaultProxy, Moto, make_bucket};

use super::{add, backup, backup_with, filled, machine, restore, s3};

fn error(code: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message>{code}</Message></Error>"
    )
}

#[test]
fn each_refusal_of_an_s3_is_one_clear_error_and_what_was_saved_stays() {
    let moto = Moto::start();
    let bucket = format!("nimbus-refuses-{}", std::process::id());
    make_bucket(moto.url(), &bucket);
    let proxy = FaultProxy::in_front_of(moto.url());
    let machine = machine();
    filled(&machine, &["a"]).stop();
    let to = format!("s3://{bucket}/x");
    let environment = s3(proxy.url());
    let create = ["create", "--to", &to];
    let list = ["list", "--from", &to];
    let _ = backup_with(&machine, &create, &environment).expect(0, &["Snapshot 1"]);
    for (status, code, words) in [
        (
            403,
            "RequestTimeTooSkewed",
            "the clock of this machine is wrong; set it",
        ),
        (
            301,
            "PermanentRedirect",
            "the bucket is in another region; name it with --backup-s3-region",
        ),
        (
            400,
            "AuthorizationHeaderMalformed",
            "the bucket is in another region",
        ),
        (
            403,
            "AccessDenied",
            "the credentials do not allow it; a repository needs s3:GetObject, s3:PutObject and s3:ListBucket",
        ),
        (
            403,
            "InvalidAccessKeyId",
            "S3 does not know the access key; see the credentials",
        ),
        (
            403,
            "SignatureDoesNotMatch",
            "the secret key is not that of the access key",
        ),
        (
            404,
            "NoSuchBucket",
            "there is no such bucket; make it, or name another",
        ),
    ] {
        proxy.inject_always(Fault::Answer(status, error(code)));
        for arguments in [&create[..], &list] {
            let _ = backup_with(&machine, arguments, &environment).expect(1, &[words]);
        }
        proxy.clear();
    }
    // It can be read, and takes nothing more.
    for (status, code, words) in [
        (
            507,
            "InsufficientStorage",
            "it is full, and what is there already stays as it is",
        ),
        (403, "AccessDenied", "the credentials do not allow it"),
    ] {
        proxy.inject("PUT", Fault::Answer(status, error(code)));
        let _ = backup_with(&machine, &create, &environment).expect(1, &["cannot create", words]);
        let _ = backup_with(&machine, &list, &environment).expect(0, &["SNAPSHOT"]);
        proxy.clear();
    }
    let _ = backup_with(&machine, &["verify", "--from", &to], &environment)
        .expect(0, &["1 snapshot", "all authentic"]);
    let _ = backup_with(&machine, &create, &environment).expect(0, &["Snapshot 2"]);
}

#[test]
fn a_directory_that_is_full_or_mounted_read_only_is_told_and_what_was_saved_stays() {
    let machine = machine();
    let server = filled(&machine, &["a"]);
    let Some(disk) = Disk::mount(&machine.path("repo"), "size=2m") else {
        return;
    };
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &["Snapshot 1"]);
    let text = "x".repeat(500_000);
    for n in 0..6 {
        let _id = server.insert("a", "large", &serde_json::json!({"n": n, "text": text}));
    }
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(
        1,
        &["cannot create base/", "it is full", "nimbus backup prune"],
    );
    let _ = backup(&machine, &["verify", "--from", "repo"]).expect(0, &["1 snapshot"]);
    disk.remount("ro,size=64m");
    let _ = backup(&machine, &["create", "--to", "repo"])
        .expect(1, &["cannot create", "it is mounted read-only"]);
    let _ = backup(&machine, &["list", "--from", "repo"]).expect(0, &["SNAPSHOT"]);
    disk.remount("rw,size=64m");
    let _ = backup(&machine, &["create", "--to", "repo"]).expect(0, &["Snapshot 2"]);
    add(&server, "a", 1);
    server.stop();
    let _ = backup(&machine, &["verify", "--from", "repo"]).expect(0, &["2 snapshots"]);
    let _ = restore(&machine, "new", &[]).expect(0, &["Restored snapshot 2"]);
    assert!(fs::metadata(machine.path("repo/snapshots/0000000002")).is_ok());
}

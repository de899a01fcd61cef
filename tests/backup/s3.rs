use nimbus_test_support::{Moto, Seaweed, make_bucket, with_buckets};

use super::shipping::{begun, instant, now_ms, pass, stamp};
use super::shredded::file_id;
use super::{add, backup_with, filled, machine, notes, start_on};

/// How a bucket at `url` is reached.
pub(super) fn settings(url: &str) -> [(&str, &str); 6] {
    [
        ("NIMBUS_BACKUP_S3_ENDPOINT_URL", url),
        ("NIMBUS_BACKUP_S3_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_CONFIG_FILE", "/dev/null"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ]
}

/// A deployment through a bucket and back, and the errors of an S3 that is not as it should be.
fn through_a_bucket(url: &str, bucket: &str, checks_signatures: bool) {
    make_bucket(url, bucket);
    let machine = machine();
    let s3 = settings(url);
    let mut start = machine.nimbus(&["start", "--port", "0"]);
    let _ = start.envs(s3);
    filled(&machine, &["a", "b"]).stop();
    let server = machine.start_command(start);
    let to = format!("s3://{bucket}/some/where");
    let run = |arguments: &[&str]| backup_with(&machine, arguments, &s3);
    let _ = run(&["create", "--to", &to]).expect(0, &["Snapshot 1", "2 tenants"]);
    add(&server, "a", 20);
    let before = notes(&server, "a");
    let _ = run(&["create", "--to", &to]).expect(0, &["Snapshot 2"]);
    server.stop();
    // Answers that are lost, and a repository beside the other in the same bucket.
    let lost: Vec<_> = s3
        .into_iter()
        .chain([("FAILPOINTS", "backup::answer-lost=return")])
        .collect();
    let _ = backup_with(&machine, &["create", "--to", &to], &lost).expect(0, &["Snapshot 3"]);
    let _ = run(&["create", "--to", &format!("s3://{bucket}/some/wherelse")])
        .expect(0, &["Snapshot 1"]);
    let _ = run(&["list", "--from", &to]).expect(0, &["SNAPSHOT", "2 tenants"]);
    let _ = run(&["verify", "--from", &to, "--deep"])
        .expect(0, &["3 snapshots", "snapshot 3 was restored"]);
    let _ =
        run(&["restore", "--from", &to, "--data-dir", "new"]).expect(0, &["Restored snapshot 3"]);
    let restored = start_on(&machine, "new", &[]);
    assert_eq!(before, notes(&restored, "a"));
    restored.stop();

    let mut start = machine.nimbus(&["start", "--port", "0", "--backup-to", &to]);
    let _ = start.envs(s3);
    let server = machine.start_command(start);
    begun(&server);
    add(&server, "a", 1);
    let at = instant(&server, &["a", "b"]);
    add(&server, "b", 1);
    pass(&server, now_ms());
    server.stop();
    let _ = run(&["list", "--from", &to]).expect(0, &["Any commit from"]);
    let _ = run(&["verify", "--from", &to]).expect(0, &["4 snapshots", "pack", "all authentic"]);
    let time = stamp(at.ms);
    let _ = run(&[
        "restore",
        "--from",
        &to,
        "--data-dir",
        "then",
        "--at",
        &time,
    ])
    .expect(0, &["Restored the instant"]);
    let restored = start_on(&machine, "then", &[]);
    for tenant in ["a", "b"] {
        assert_eq!(at.notes[tenant], notes(&restored, tenant));
    }
    restored.stop();

    let _ = run(&["prune", "--from", &to, "--keep-daily", "1"])
        .expect(0, &["snapshots 1, 2, 3;", "Kept: snapshots 4."]);
    let _ = run(&["rewrap", "--from", &to]).expect(0, &["0 wrapped anew"]);
    let shred = [
        "encryption",
        "shred",
        "--yes",
        "--tenant-id",
        "b",
        "--from",
        &to,
    ];
    let mut command = machine.nimbus(&shred);
    let _ = command.envs(s3);
    let _ = super::run(command).expect(0, &["its manifests and pages are removed"]);
    let _ = run(&["create", "--to", &to]).expect(0, &["Snapshot 7", "2 tenants"]);
    let _ = run(&["verify", "--from", &to, "--deep"]).expect(
        0,
        &["shredded, and opens no more", "snapshot 7 was restored"],
    );

    let _ =
        run(&["create", "--to", "s3://no-such-bucket/x"]).expect(1, &["there is no such bucket"]);
    let nobody = &s3[..2];
    let nobody: Vec<_> = nobody
        .iter()
        .copied()
        .chain(s3[4..].iter().copied())
        .collect();
    let _ = backup_with(&machine, &["list", "--from", &to], &nobody)
        .expect(1, &["the AWS chain has no credentials"]);
    if checks_signatures {
        let wrong: Vec<_> = s3
            .into_iter()
            .chain([("AWS_SECRET_ACCESS_KEY", "wrong")])
            .collect();
        let _ = backup_with(&machine, &["list", "--from", &to], &wrong)
            .expect(1, &["the secret key is not that of the access key"]);
        let wrong: Vec<_> = s3
            .into_iter()
            .chain([("AWS_ACCESS_KEY_ID", "wrong")])
            .collect();
        let _ = backup_with(&machine, &["list", "--from", &to], &wrong)
            .expect(1, &["S3 does not know the access key"]);
    }
}

#[test]
fn a_bucket_of_moto_holds_a_repository() {
    let moto = Moto::start();
    // Shared with other runs.
    let bucket = format!("nimbus-{}", std::process::id());
    through_a_bucket(moto.url(), &bucket, false);
}

#[test]
fn a_bucket_of_seaweedfs_which_checks_signatures_and_checksums_holds_a_repository() {
    let seaweed = Seaweed::start();
    through_a_bucket(seaweed.url(), "nimbus", true);
}

#[test]
fn every_version_of_a_shredded_tenant_goes_and_what_an_object_lock_keeps_is_named_with_its_date() {
    let moto = Moto::start();
    let url = moto.url();
    let bucket = format!("nimbus-locked-{}", std::process::id());
    // Such a bucket is versioned.
    let _ = with_buckets(
        url,
        &format!("s3.create_bucket(Bucket='{bucket}', ObjectLockEnabledForBucket=True)"),
    );
    let machine = machine();
    let server = filled(&machine, &["gone", "held"]);
    server.stop();
    let s3 = settings(url);
    let to = format!("s3://{bucket}/deep/er");
    let _ = backup_with(&machine, &["create", "--to", &to], &s3).expect(0, &["2 tenants"]);
    let (gone, held) = (file_id(&machine, "gone"), file_id(&machine, "held"));
    let versions = |file_id: &str| {
        let script = format!(
            "found = s3.list_object_versions(Bucket='{bucket}')\n\
             print(sum('{file_id}' in v['Key'] for v in found.get('Versions', []) + found.get('DeleteMarkers', [])))"
        );
        with_buckets(url, &script)
            .parse::<usize>()
            .expect("a count")
    };
    // A second version of each of its objects, and a deletion that hides another.
    let _ = with_buckets(
        url,
        &format!(
            "keys = [o['Key'] for o in s3.list_objects_v2(Bucket='{bucket}')['Contents'] if '{gone}' in o['Key']]\n\
             for key in keys:\n    s3.put_object(Bucket='{bucket}', Key=key, Body=s3.get_object(Bucket='{bucket}', Key=key)['Body'].read())\n\
             s3.put_object(Bucket='{bucket}', Key='deep/er/keys/{gone}/0/hidden', Body=b'x')\n\
             s3.delete_object(Bucket='{bucket}', Key='deep/er/keys/{gone}/0/hidden')"
        ),
    );
    let _ = with_buckets(
        url,
        &format!(
            "for o in s3.list_objects_v2(Bucket='{bucket}')['Contents']:\n    \
             if 'keys/{held}' in o['Key']:\n        \
             s3.put_object_retention(Bucket='{bucket}', Key=o['Key'], Retention={{'Mode': 'COMPLIANCE', 'RetainUntilDate': datetime.datetime(2099, 1, 2)}})"
        ),
    );
    assert!(versions(&gone) >= 6 && versions(&held) >= 2);
    let shred = |tenant: &str| {
        let shred = [
            "encryption",
            "shred",
            "--yes",
            "--tenant-id",
            tenant,
            "--from",
            &to,
        ];
        let mut command = machine.nimbus(&shred);
        let _ = command.envs(s3);
        super::run(command)
    };
    let _ = shred("gone").expect(0, &["its manifests and pages are removed"]);
    assert_eq!(versions(&gone), 0);
    let _ = shred("held").expect(3, &["KEPT in", "an object lock until 2099-01-02"]);
    assert!(versions(&held) > 0);
}

//! Commands that were run in the wrong place, or told too little.

use std::fs;

use super::{deployment, encryption, machine};

#[test]
fn commands_on_a_directory_without_a_deployment_say_where_they_looked_and_make_nothing() {
    let machine = machine();
    for made in [false, true] {
        if made {
            fs::create_dir(machine.data_dir()).expect("an empty directory");
        }
        for command in [
            &["audit"][..],
            &["audit", "--verify"],
            &["lock", "--tenant-id", "alpha"],
            &["unlock", "--tenant-id", "alpha"],
            &["shred", "--tenant-id", "alpha", "--yes"],
        ] {
            let control = machine.data_dir().join("nimbus-control.db");
            let words = [super::as_str(&control), "NIMBUS_DATA_DIR"];
            let _ = encryption(&machine, command).expect(1, &words);
        }
        assert_eq!(machine.data_dir().exists(), made);
    }
    assert_eq!(super::snapshot(&machine.data_dir()), []);
}

#[test]
fn a_log_whose_control_file_is_lost_is_read_and_not_proven() {
    let machine = deployment(&["alpha"], &[]);
    for name in ["nimbus-control.db", "nimbus-control.db.nimbus-enc"] {
        fs::remove_file(machine.data_dir().join(name)).expect("it is lost");
    }
    let _ = encryption(&machine, &["audit"]).expect(0, &["db:sqlite:tenant:alpha:alpha.sqlite3"]);
    let _ = encryption(&machine, &["audit", "--verify"]).expect(1, &["nimbus-control.db"]);
}

#[test]
fn rotate_dek_tells_a_file_from_a_directory() {
    let machine = deployment(&["alpha"], &[]);
    let _ = encryption(&machine, &["rotate-dek", "--path", "data"]).expect(
        2,
        &[
            "data is a directory",
            "`nimbus encryption rotate-dek --path data --all`",
        ],
    );
    let _ = encryption(
        &machine,
        &["rotate-dek", "--all", "--path", "data/alpha.sqlite3"],
    )
    .expect(2, &["data/alpha.sqlite3 is no directory"]);
}

#[test]
fn keygen_without_arguments_shows_examples() {
    let machine = machine();
    let _ = encryption(&machine, &["keygen"]).expect(
        2,
        &["nimbus encryption keygen --master-key-file /etc/nimbus/master.key"],
    );
}

//! What the tests of shipping share: a server that ships, instants, and what was acknowledged by
//! each.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nimbus_test_support::{Machine, Server};
use serde_json::{Value, json};

use super::{Ran, backup, backup_with, notes};

/// A server that ships to `repo`, with what stands in `environment`.
pub(super) fn ships(machine: &Machine, arguments: &[&str], environment: &[(&str, &str)]) -> Server {
    let mut command = machine.nimbus(&["start", "--port", "0", "--backup-to", "repo"]);
    let _ = command.args(arguments).envs(environment.iter().copied());
    machine.start_command(command)
}

/// The time now, in milliseconds. No other call answers the same.
pub(super) fn now_ms() -> i64 {
    std::thread::sleep(Duration::from_millis(2));
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970");
    let now = i64::try_from(since.as_millis()).expect("a time");
    std::thread::sleep(Duration::from_millis(2));
    now
}

pub(super) fn stamp(ms: i64) -> String {
    let (seconds, ms) = (ms.div_euclid(1000), ms.rem_euclid(1000));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // From days since 1970 to a date, by the 400 years of the calendar.
    let day = days + 719_468;
    let era = day.div_euclid(146_097);
    let of_era = day.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let date = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{date:02}T{:02}:{:02}:{:02}.{ms:03}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

/// What `/ready` says of shipping.
pub(super) fn standing(server: &Server) -> Value {
    server.request("GET", "/ready", None).1["backup"].clone()
}

/// Writes until everything up to `ms` is shipped.
pub(super) fn pass(server: &Server, ms: i64) {
    let _exists = server.request("POST", "/api/tenants", Some(&json!({"id": "ticker"})));
    for _try in 0..600 {
        let shipped = standing(server)["shipped"].clone();
        if shipped
            .as_str()
            .is_some_and(|shipped| *shipped >= *stamp(ms))
        {
            return;
        }
        let _id = server.insert("ticker", "ticks", &json!({"n": 1}));
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("nothing is shipped: {}\n{}", standing(server), server.log());
}

/// Waits until shipping has begun.
pub(super) fn begun(server: &Server) {
    for _try in 0..600 {
        if standing(server)["ok"] == true {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!(
        "shipping does not begin: {}\n{}",
        standing(server),
        server.log()
    );
}

/// What was acknowledged at an instant.
#[derive(Debug, Clone)]
pub(super) struct Instant {
    pub(super) ms: i64,
    pub(super) notes: BTreeMap<String, Vec<Value>>,
}

/// What these tenants hold now, when everything that was sent is acknowledged.
pub(super) fn instant(server: &Server, tenants: &[&str]) -> Instant {
    let notes = tenants
        .iter()
        .map(|tenant| ((*tenant).to_owned(), notes(server, tenant)));
    let notes = notes.collect();
    Instant {
        ms: now_ms(),
        notes,
    }
}

/// `nimbus backup restore --at`, into `data`.
pub(super) fn restore_at(machine: &Machine, data: &str, ms: i64, more: &[&str]) -> Ran {
    let at = stamp(ms);
    let restore = ["restore", "--from", "repo", "--data-dir", data, "--at", &at];
    backup(machine, &[&restore[..], more].concat())
}

/// Restores an instant as it was, and asserts that all of it is there, and nothing else.
pub(super) fn check(machine: &Machine, instant: &Instant) {
    check_with(machine, instant, &[]);
}

/// The same with these in the environment.
pub(super) fn check_with(machine: &Machine, instant: &Instant, environment: &[(&str, &str)]) {
    let data = format!("at-{}", instant.ms);
    let at = stamp(instant.ms);
    let restore = [
        "restore",
        "--from",
        "repo",
        "--data-dir",
        &data,
        "--at",
        &at,
    ];
    let restore = [&restore[..], &["--as-it-was"]].concat();
    let _ = backup_with(machine, &restore, environment).expect(0, &["Restored"]);
    let mut start = machine.nimbus(&["start", "--port", "0"]);
    let _ = start
        .env("NIMBUS_DATA_DIR", machine.path(&data))
        .envs(environment.iter().copied());
    let restored = machine.start_command(start);
    for (tenant, expected) in &instant.notes {
        let found = notes(&restored, tenant);
        assert_eq!(expected, &found, "{tenant} at {}", stamp(instant.ms));
    }
    restored.stop();
    std::fs::remove_dir_all(machine.path(&data)).expect("the restored directory goes");
}

/// The ranges of instants that can be restored, each as (from, to).
pub(super) fn ranges(machine: &Machine) -> Vec<(String, String)> {
    ranges_in(machine, "repo", &[])
}

/// The same of any repository, with these in the environment.
pub(super) fn ranges_in(
    machine: &Machine,
    repository: &str,
    environment: &[(String, String)],
) -> Vec<(String, String)> {
    let mut command = machine.nimbus(&["backup", "list", "--from", repository]);
    let environment = environment.iter().map(|(name, value)| (name, value));
    let _ = command.args(["--format", "json"]).envs(environment);
    let listed = super::run(command).json();
    let text = |range: &Value, name: &str| range[name].as_str().expect("a time").to_owned();
    let ranges = listed["ranges"].as_array().expect("ranges");
    ranges
        .iter()
        .map(|range| (text(range, "from"), text(range, "to")))
        .collect()
}

pub(super) fn is_within(ranges: &[(String, String)], ms: i64) -> bool {
    let at = stamp(ms);
    ranges.iter().any(|(from, to)| *from <= at && at <= *to)
}

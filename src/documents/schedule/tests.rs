//! What is taken and what is refused, and when crons are due where clocks are changed.

use jiff::{Timestamp, tz::TimeZone};
use proptest::prelude::*;

use super::*;

const MUTATION: &str = r#"{"type":"insert","table":"t","fields":{}}"#;

fn job(json: &str) -> Result<NewJob, InputError> {
    NewJob::from_json(&json.replace("MUTATION", MUTATION))
}

fn schedule(json: &str) -> Result<Schedule, InputError> {
    Schedule::from_json(json)
}

fn cron(expression: &str, timezone: &str) -> Result<Schedule, InputError> {
    let json = serde_json::json!({"type": "cron", "expression": expression, "timezone": timezone});
    schedule(&json.to_string())
}

fn ms(time: &str) -> i64 {
    time.parse::<Timestamp>().unwrap().as_millisecond()
}

/// The next times of a schedule, in UTC.
fn times(schedule: &Schedule, after: &str, count: usize) -> Vec<String> {
    let mut at = ms(after);
    let mut times = Vec::new();
    for _ in 0..count {
        at = schedule.first_after(at).unwrap();
        let time = Timestamp::from_millisecond(at).unwrap();
        times.push(time.to_string());
    }
    times
}

#[test]
fn reads_a_job() {
    let read = job(r#"{"run_after_ms": 60000, "mutation": MUTATION}"#).unwrap();
    assert_eq!(read.delay, Duration::from_secs(60));
    assert_eq!(read.mutation, Mutation::from_json(MUTATION).unwrap());
    assert!(job(r#"{"run_after_ms": 0, "mutation": MUTATION}"#).is_ok());
    assert!(job(r#"{"run_after_ms": 315360000000, "mutation": MUTATION}"#).is_ok());
}

#[test]
fn rejects_what_is_no_job() {
    for json in [
        "[]",
        "{}",
        r#"{"mutation":MUTATION}"#,
        r#"{"run_after_ms":1}"#,
        r#"{"run_after_ms":-1,"mutation":MUTATION}"#,
        r#"{"run_after_ms":1.5,"mutation":MUTATION}"#,
        r#"{"run_after_ms":"1","mutation":MUTATION}"#,
        r#"{"run_after_ms":null,"mutation":MUTATION}"#,
        r#"{"run_after_ms":315360000001,"mutation":MUTATION}"#,
        r#"{"run_after_ms":18446744073709551616,"mutation":MUTATION}"#,
        r#"{"run_after_ms":1,"run_after_ms":2,"mutation":MUTATION}"#,
        r#"{"run_after_ms":1,"mutation":MUTATION,"more":1}"#,
    ] {
        assert!(matches!(job(json), Err(InputError::Job { .. })), "{json}");
    }
    let no_mutation = job(r#"{"run_after_ms":1,"mutation":{"type":"insert"}}"#);
    assert!(matches!(no_mutation, Err(InputError::Mutation { .. })));
}

#[test]
fn job_ids_are_those_of_documents() {
    let id = JobId::generate();
    assert_eq!(id.to_string().parse(), Ok(id));
    assert_eq!(JobId::from_bytes(*id.as_bytes()), Some(id));
    assert!(JobId::generate() > id);
    for text in ["", "x", "017F22E2-79B0-7CC3-98C4-DC0C0C07398F"] {
        assert!(
            matches!(text.parse::<JobId>(), Err(InputError::JobId { .. })),
            "{text}"
        );
    }
}

#[test]
fn reads_crons_and_writes_them_back() {
    for written in [
        r#"{"type":"interval","seconds":1}"#,
        r#"{"type":"interval","seconds":315360000}"#,
        r#"{"type":"cron","expression":"*/10 * * * *","timezone":"UTC"}"#,
        r#"{"type":"cron","expression":"30 3 * * MON","timezone":"Europe/Berlin"}"#,
        r#"{"type":"cron","expression":"15 30 3 L * ?","timezone":"America/Argentina/Buenos_Aires"}"#,
        r#"{"type":"cron","expression":"@daily","timezone":"Etc/GMT+3"}"#,
    ] {
        let json = format!(r#"{{"name":"n","schedule":{written},"mutation":{MUTATION}}}"#);
        let cron = Cron::from_json(&json).unwrap_or_else(|error| panic!("{written}: {error}"));
        assert_eq!(cron.schedule.to_json(), written);
        assert_eq!(serde_json::to_string(&cron).unwrap(), json);
        assert_eq!(Schedule::from_json(written), Ok(cron.schedule));
    }
}

#[test]
fn rejects_what_is_no_cron() {
    let read = |name: &str, schedule: &str, more: &str| {
        Cron::from_json(&format!(
            r#"{{"name":{name},"schedule":{schedule},"mutation":{MUTATION}{more}}}"#
        ))
    };
    let hourly = r#"{"type":"interval","seconds":3600}"#;
    assert!(read(r#""n""#, hourly, "").is_ok());
    for name in [
        r#""""#,
        r#""_n""#,
        r#""a b""#,
        r#""é""#,
        &format!(r#""{}""#, "n".repeat(65)),
    ] {
        assert!(
            matches!(read(name, hourly, ""), Err(InputError::CronName { .. })),
            "{name}"
        );
    }
    for (name, schedule, more) in [
        ("1", hourly, ""),
        (r#""n""#, hourly, r#","more":1"#),
        (r#""n""#, hourly, r#","name":"m""#),
        (r#""n""#, "[]", ""),
        (r#""n""#, "{}", ""),
        (r#""n""#, r#"{"type":"interval"}"#, ""),
        (r#""n""#, r#"{"type":"interval","seconds":0}"#, ""),
        (r#""n""#, r#"{"type":"interval","seconds":-1}"#, ""),
        (r#""n""#, r#"{"type":"interval","seconds":1.5}"#, ""),
        (r#""n""#, r#"{"type":"interval","seconds":315360001}"#, ""),
        (
            r#""n""#,
            r#"{"type":"interval","seconds":1,"seconds":2}"#,
            "",
        ),
        (
            r#""n""#,
            r#"{"type":"interval","seconds":1,"timezone":"UTC"}"#,
            "",
        ),
        (r#""n""#, r#"{"type":"often","seconds":1}"#, ""),
        (r#""n""#, r#"{"type":"cron","expression":"* * * * *"}"#, ""),
        (r#""n""#, r#"{"type":"cron","timezone":"UTC"}"#, ""),
        (
            r#""n""#,
            r#"{"type":"cron","expression":1,"timezone":"UTC"}"#,
            "",
        ),
    ] {
        let read = read(name, schedule, more);
        assert!(
            matches!(read, Err(InputError::Cron { .. })),
            "{name} {schedule} {more}: {read:?}"
        );
    }
}

#[test]
fn rejects_expressions_that_cannot_be_read_or_never_fire() {
    for expression in [
        "",
        " ",
        "*",
        "* * * *",
        "* * * * * * *",
        "0 0 0 1 1 ? 2030",
        "60 * * * *",
        "* 24 * * *",
        "* * 0 * *",
        "* * * 13 *",
        "* * * * 8",
        "*/0 * * * *",
        "5-1 * * * *",
        "a * * * *",
        "* * * * é",
        "@reboot",
        "@",
        "0 0 30 2 *",
        "0 0 31 2,4,6,9,11 *",
        "0 0 29 2 +MON#1",
        &format!("{} * * * *", "1,".repeat(200)),
    ] {
        let read = cron(expression, "UTC");
        let Err(InputError::CronExpression { reason, .. }) = &read else {
            panic!("{expression:?}: {read:?}");
        };
        assert!(!reason.is_empty(), "{expression:?}");
    }
    for (expression, words) in [
        ("0 0 30 2 *", "never fires"),
        ("* 24 * * *", "its hour is \"24\", and 0 to 23 is accepted"),
        ("0 * 24 * * *", "its hour is \"24\""),
        ("60 * * * * *", "its second is \"60\""),
        ("* * 0 * *", "its day of the month is \"0\""),
        (
            "* * * FOO *",
            "its month is \"FOO\", and 1 to 12 or JAN to DEC",
        ),
        ("* * * * 8", "its weekday is \"8\""),
        ("* * * *", "it has 4 fields, and 5 are accepted"),
        ("", "it has 0 fields"),
        ("@reboot", "@hourly"),
    ] {
        let error = cron(expression, "UTC").unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        assert!(!error.contains("omponent"), "{error}");
    }
}

#[test]
fn rejects_time_zones_that_there_are_not() {
    for zone in [
        "",
        "Mars/Olympus",
        "CET-1CEST,M3.5.0,M10.5.0/3",
        "../UTC",
        "/etc/localtime",
        "Europe/Berlin ",
        "Etc/Unknown",
        &"a".repeat(65),
    ] {
        let read = cron("* * * * *", zone);
        assert!(
            matches!(read, Err(InputError::TimeZone { .. })),
            "{zone:?}: {read:?}"
        );
    }
}

/// Expression, and when it fires after Friday 2027-01-15, 08:00 UTC: the examples of the
/// documentation.
const MEANINGS: &[(&str, &[&str])] = &[
    (
        "30 3 * * MON",
        &["2027-01-18T03:30:00Z", "2027-01-25T03:30:00Z"],
    ),
    ("15 30 3 * * *", &["2027-01-16T03:30:15Z"]),
    (
        "0 0 L * *",
        &["2027-01-31T00:00:00Z", "2027-02-28T00:00:00Z"],
    ),
    (
        "0 0 * * 5L",
        &["2027-01-29T00:00:00Z", "2027-02-26T00:00:00Z"],
    ),
    (
        "0 0 15W * *",
        &["2027-02-15T00:00:00Z", "2027-03-15T00:00:00Z"],
    ),
    ("0 0 16W * *", &["2027-02-16T00:00:00Z"]),
    (
        "0 0 * * 1#2",
        &["2027-02-08T00:00:00Z", "2027-03-08T00:00:00Z"],
    ),
    (
        "0 0 1 * MON",
        &[
            "2027-01-18T00:00:00Z",
            "2027-01-25T00:00:00Z",
            "2027-02-01T00:00:00Z",
        ],
    ),
    (
        "0 0 1 * +MON",
        &[
            "2027-02-01T00:00:00Z",
            "2027-03-01T00:00:00Z",
            "2027-11-01T00:00:00Z",
        ],
    ),
    ("0 0 * * 0", &["2027-01-17T00:00:00Z"]),
    ("0 0 * * 7", &["2027-01-17T00:00:00Z"]),
    (
        "0 9-17/4 * JAN,FEB *",
        &[
            "2027-01-15T09:00:00Z",
            "2027-01-15T13:00:00Z",
            "2027-01-15T17:00:00Z",
            "2027-01-16T09:00:00Z",
        ],
    ),
    ("@hourly", &["2027-01-15T09:00:00Z"]),
    ("@daily", &["2027-01-16T00:00:00Z"]),
    ("@weekly", &["2027-01-17T00:00:00Z"]),
    ("@monthly", &["2027-02-01T00:00:00Z"]),
    ("@yearly", &["2028-01-01T00:00:00Z"]),
];

#[test]
fn expressions_mean_what_the_documentation_says() {
    for (expression, expected) in MEANINGS {
        let schedule = cron(expression, "UTC").unwrap();
        let times = times(&schedule, "2027-01-15T08:00:00Z", expected.len());
        assert_eq!(times, *expected, "{expression}");
    }
}

#[test]
fn the_rarest_day_is_found() {
    let leap = cron("0 0 29 2 *", "UTC").unwrap();
    assert_eq!(
        times(&leap, "2096-03-01T00:00:00Z", 1),
        ["2104-02-29T00:00:00Z"]
    );
    let leap_monday = cron("0 0 29 2 +MON", "UTC").unwrap();
    let next = times(&leap_monday, "2024-03-01T00:00:00Z", 2);
    assert_eq!(next, ["2044-02-29T00:00:00Z", "2072-02-29T00:00:00Z"]);
}

/// Expression, zone, after, and the times that follow.
const CLOCK_CHANGES: &[(&str, &str, &str, &[&str])] = &[
    // Berlin goes forward on 2027-03-28 at 01:00 UTC, from 02:00 to 03:00: what is skipped fires
    // at the first moment after.
    (
        "30 2 * * *",
        "Europe/Berlin",
        "2027-03-27T00:00:00Z",
        &[
            "2027-03-27T01:30:00Z",
            "2027-03-28T01:00:00Z",
            "2027-03-29T00:30:00Z",
        ],
    ),
    (
        "0 2 * * *",
        "Europe/Berlin",
        "2027-03-28T00:00:00Z",
        &["2027-03-28T01:00:00Z", "2027-03-29T00:00:00Z"],
    ),
    (
        "0 3 * * *",
        "Europe/Berlin",
        "2027-03-28T00:00:00Z",
        &["2027-03-28T01:00:00Z", "2027-03-29T01:00:00Z"],
    ),
    // By the wall clock: the skipped hour has no such times.
    (
        "*/30 * * * *",
        "Europe/Berlin",
        "2027-03-28T00:15:00Z",
        &[
            "2027-03-28T00:30:00Z",
            "2027-03-28T01:00:00Z",
            "2027-03-28T01:30:00Z",
        ],
    ),
    (
        "*/30 2 * * *",
        "Europe/Berlin",
        "2027-03-28T00:00:00Z",
        &["2027-03-29T00:00:00Z", "2027-03-29T00:30:00Z"],
    ),
    // It goes back on 2027-10-31 at 01:00 UTC, from 03:00 to 02:00: what comes twice fires the
    // first time.
    (
        "30 2 * * *",
        "Europe/Berlin",
        "2027-10-30T12:00:00Z",
        &["2027-10-31T00:30:00Z", "2027-11-01T01:30:00Z"],
    ),
    (
        "30 2 * * *",
        "Europe/Berlin",
        "2027-10-31T00:45:00Z",
        &["2027-11-01T01:30:00Z"],
    ),
    (
        "0 3 * * *",
        "Europe/Berlin",
        "2027-10-31T00:00:00Z",
        &["2027-10-31T02:00:00Z"],
    ),
    // By the wall clock: both passes.
    (
        "*/30 2 * * *",
        "Europe/Berlin",
        "2027-10-30T23:00:00Z",
        &[
            "2027-10-31T00:00:00Z",
            "2027-10-31T00:30:00Z",
            "2027-10-31T01:00:00Z",
            "2027-10-31T01:30:00Z",
            "2027-11-01T01:00:00Z",
        ],
    ),
    (
        "0 * * * *",
        "Europe/Berlin",
        "2027-10-31T00:00:00Z",
        &["2027-10-31T01:00:00Z", "2027-10-31T02:00:00Z"],
    ),
    // New York, 2027-03-14 and 2027-11-07.
    (
        "15 2 * * *",
        "America/New_York",
        "2027-03-14T05:00:00Z",
        &["2027-03-14T07:00:00Z", "2027-03-15T06:15:00Z"],
    ),
    (
        "15 1 * * *",
        "America/New_York",
        "2027-11-07T04:00:00Z",
        &["2027-11-07T05:15:00Z", "2027-11-08T06:15:00Z"],
    ),
    // Half an hour, in the south.
    (
        "15 2 * * *",
        "Australia/Lord_Howe",
        "2027-10-02T14:00:00Z",
        &["2027-10-02T15:30:00Z", "2027-10-03T15:15:00Z"],
    ),
    // None at all.
    (
        "30 2 * * *",
        "UTC",
        "2027-03-27T03:00:00Z",
        &["2027-03-28T02:30:00Z"],
    ),
    (
        "30 2 * * *",
        "Asia/Kolkata",
        "2027-03-27T00:00:00Z",
        &["2027-03-27T21:00:00Z"],
    ),
];

#[test]
fn clocks_that_are_changed() {
    for (expression, zone, after, expected) in CLOCK_CHANGES {
        let schedule = cron(expression, zone).unwrap();
        let times = times(&schedule, after, expected.len());
        assert_eq!(times, *expected, "{expression} {zone} after {after}");
    }
}

#[test]
fn a_cron_that_missed_times_goes_on_with_the_next_one() {
    let daily = cron("0 3 * * *", "UTC").unwrap();
    let next = daily.next_after(ms("2027-01-01T03:00:00Z"), ms("2027-01-09T12:00:00Z"));
    assert_eq!(next, Some(ms("2027-01-10T03:00:00Z")));
    // A clock that was set back a little does not bring the same time again.
    let next = daily.next_after(ms("2027-01-01T03:00:00Z"), ms("2027-01-01T02:59:58Z"));
    assert_eq!(next, Some(ms("2027-01-02T03:00:00Z")));
}

#[test]
fn a_time_that_its_zone_always_skips_is_looked_for_and_not_for_ever() {
    // The last Sunday in March, by the wall clock between two and three.
    let skipped = cron("*/30 2 * 3 0L", "Europe/Berlin").unwrap();
    assert_eq!(skipped.first_after(ms("2027-01-01T00:00:00Z")), None);
    let there = cron("*/30 2 * 3 0L", "UTC").unwrap();
    assert_eq!(
        times(&there, "2027-01-01T00:00:00Z", 1),
        ["2027-03-28T02:00:00Z"]
    );
    // One that names its time fires after the gap.
    let fixed = cron("30 2 * 3 0L", "Europe/Berlin").unwrap();
    assert_eq!(
        times(&fixed, "2027-01-01T00:00:00Z", 1),
        ["2027-03-28T01:00:00Z"]
    );
}

#[test]
fn an_interval_keeps_its_beat() {
    let minute = schedule(r#"{"type":"interval","seconds":60}"#).unwrap();
    assert_eq!(minute.first_after(1_000_500), Some(1_060_500));
    for (now, next) in [
        (1_060_500, 1_120_500),
        (1_060_501, 1_120_500),
        (1_120_499, 1_120_500),
        (1_120_500, 1_180_500),
        (2_000_000, 2_020_500),
        (1_060_000, 1_120_500), // a clock that was set back
    ] {
        assert_eq!(minute.next_after(1_060_500, now), Some(next), "{now}");
    }
}

#[test]
fn the_end_of_time_is_none() {
    let minute = schedule(r#"{"type":"interval","seconds":60}"#).unwrap();
    assert_eq!(minute.first_after(i64::MAX - 1), None);
    let daily = cron("0 3 * * *", "UTC").unwrap();
    assert_eq!(daily.first_after(i64::MAX), None);
    assert_eq!(daily.first_after(ms("9999-12-30T22:00:00Z")), None);
}

proptest! {
    #[test]
    fn an_interval_is_due_after_now_within_one_period(
        seconds in 1u64..10_000, due in 0i64..1 << 42, late in 0i64..1 << 40,
    ) {
        let schedule = Schedule::Interval { seconds };
        let (period, now) = (seconds as i64 * 1000, due + late);
        let next = schedule.next_after(due, now).unwrap();
        prop_assert!(next > now && next <= now + period && (next - due) % period == 0);
    }

    #[test]
    fn any_text_is_read_or_refused(text in "[-0-9*/,#?LWA-Z@+ ]{0,24}") {
        if let Ok(schedule) = cron(&text, "Europe/Berlin") {
            let now = 1_800_000_000_000;
            if let Some(next) = schedule.first_after(now) {
                prop_assert!(next > now);
            }
        }
    }

    #[test]
    fn an_expression_fires_when_its_fields_say(
        minute in 0u32..60, hour in 0u32..24, day in 1u32..29, after in 1_700_000_000i64..4_000_000_000,
    ) {
        let schedule = cron(&format!("{minute} {hour} {day} * *"), "UTC").unwrap();
        let next = Timestamp::from_millisecond(schedule.first_after(after * 1000).unwrap()).unwrap();
        let next_civil = next.to_zoned(TimeZone::UTC);
        prop_assert_eq!(next_civil.minute() as u32, minute);
        prop_assert_eq!(next_civil.hour() as u32, hour);
        prop_assert_eq!(next_civil.day() as u32, day);
        prop_assert!(next.as_second() > after && next.as_second() <= after + 31 * 86_400);
    }
}

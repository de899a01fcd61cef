mod control_file;
mod repeated;

use std::fs;
use std::io::Write as _;
use std::time::Duration;

use nimbus_keyproviders::MemoryProvider;
use nimbus_manifests::Subject;

use super::*;
use crate::control::AuditHead as Head;
use crate::envelope::{Envelope, EventKind, EventOutcome, KeyRing};

/// A control file and its log, opened again and again.
struct House {
    dir: tempfile::TempDir,
    envelope: Envelope,
}

impl House {
    fn new() -> Self {
        let key = Arc::new(MemoryProvider::random().unwrap());
        Self {
            dir: tempfile::tempdir().unwrap(),
            envelope: Envelope::new(KeyRing::new(key, vec![], vec![])),
        }
    }

    async fn open(&self) -> AuditLog {
        self.open_with(FULL).await
    }

    async fn open_with(&self, full: u64) -> AuditLog {
        let control = Control::open(&self.envelope, self.dir.path())
            .await
            .unwrap();
        let dir = self.dir.path();
        AuditLog::open_with(Arc::new(control), dir, dir, full, false).unwrap()
    }

    /// A closed log with some lines in it.
    async fn filled(&self, lines: usize) {
        let log = self.open().await;
        for n in 0..lines {
            log.record(vec![event(n)]).await.unwrap();
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join(FILE_NAME)
    }

    async fn control(&self) -> Control {
        Control::open(&self.envelope, self.dir.path())
            .await
            .unwrap()
    }

    /// The control file and its manifest, as they are.
    fn control_file(&self) -> [(PathBuf, Vec<u8>); 2] {
        let path = Control::path_in(self.dir.path());
        [crate::envelope::manifest_path(&path), path].map(|path| {
            let content = fs::read(&path).unwrap();
            (path, content)
        })
    }

    fn put_back(&self, control: &[(PathBuf, Vec<u8>); 2]) {
        for (path, content) in control {
            fs::write(path, content).unwrap();
        }
    }

    fn text(&self) -> String {
        fs::read_to_string(self.path()).unwrap()
    }

    async fn problems(&self) -> Vec<String> {
        let found = self.verified().await;
        found.problems.into_iter().map(|one| one.problem).collect()
    }

    /// Looks as `audit --verify` does while no server runs: nothing is mended first.
    async fn verified(&self) -> Verified {
        let log = self.offline();
        log.verify().await.unwrap()
    }

    fn offline(&self) -> OfflineLog {
        let dir = self.dir.path().to_owned();
        OfflineLog::new(self.envelope.clone(), dir.clone(), dir)
    }

    async fn chain(&self, full: u64, accepting: bool) -> Result<Chain, LogError> {
        let dir = self.dir.path();
        Chain::open(Arc::new(self.control().await), dir, dir, full, accepting)
            .map(|(chain, _again)| chain)
    }

    async fn is_older(&self) -> bool {
        let said = self.verified().await.rolled_back;
        said.is_some_and(|said| said.contains("older than the audit log"))
    }

    fn events(&self) -> Vec<String> {
        let lines = lines(self.dir.path(), None).unwrap();
        lines.into_iter().map(|line| line.event).collect()
    }
}

fn event(n: usize) -> Event {
    let subject: Subject = format!("db:sqlite:tenant:t{n}:t{n}.sqlite3")
        .parse()
        .unwrap();
    Event::new(EventKind::Rewrap, EventOutcome::Done)
        .about(&subject)
        .saying(format!("number {n}, \"quoted\" \u{1f511}\n"))
}

#[tokio::test]
async fn a_log_that_nobody_touched_is_whole_across_restarts() {
    let house = House::new();
    house.filled(3).await;
    house.filled(2).await;
    let found = house.verified().await;
    assert_eq!((found.lines, found.sealed, found.head), (6, 6, 6));
    assert_eq!(found.problems, []);
    assert_eq!(house.events()[..2], ["log-begun", "rewrap"]);
    let mode = fs::metadata(house.path()).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&mode) & 0o777, 0o600);
}

#[tokio::test]
async fn every_change_of_any_byte_is_found() {
    let house = House::new();
    house.filled(2).await;
    let control = Control::open(&house.envelope, house.dir.path())
        .await
        .unwrap();
    let problems = || verify_log(&control, house.dir.path()).unwrap().problems;
    let text = house.text();
    for at in 0..text.len() {
        let mut bytes = text.clone().into_bytes();
        bytes[at] ^= 0x01;
        fs::write(house.path(), bytes).unwrap();
        assert_ne!(problems(), [], "byte {at}");
    }
    fs::write(house.path(), &text).unwrap();
    assert_eq!(problems(), []);
}

#[tokio::test]
async fn removal_reordering_repetition_and_truncation_are_found() {
    let house = House::new();
    house.filled(4).await;
    let text = house.text();
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    for (what, order) in [
        ("first removed", &[1, 2, 3, 4][..]),
        ("one removed", &[0, 1, 3, 4]),
        ("last removed", &[0, 1, 2, 3]),
        ("all removed", &[]),
        ("two swapped", &[0, 2, 1, 3, 4]),
        ("one twice", &[0, 1, 1, 2, 3, 4]),
        ("last twice", &[0, 1, 2, 3, 4, 4]),
    ] {
        let changed: String = order.iter().map(|&n| lines[n]).collect();
        fs::write(house.path(), changed).unwrap();
        assert_ne!(house.problems().await, Vec::<String>::new(), "{what}");
    }
    fs::remove_file(house.path()).unwrap();
    assert_ne!(house.problems().await, Vec::<String>::new(), "file removed");
}

#[tokio::test]
async fn a_line_of_another_deployment_is_found() {
    let (house, other) = (House::new(), House::new());
    house.filled(2).await;
    other.filled(3).await;
    let foreign = other.text();
    let mut file = fs::OpenOptions::new()
        .append(true)
        .open(house.path())
        .unwrap();
    let line = foreign.lines().nth(3).unwrap();
    file.write_all(format!("{line}\n").as_bytes()).unwrap();
    assert_ne!(house.problems().await, Vec::<String>::new());
}

#[tokio::test]
async fn the_half_line_of_a_crash_is_cut_off_and_no_alarm_is_raised() {
    let house = House::new();
    house.filled(2).await;
    let whole = house.text();
    fs::write(house.path(), format!("{whole}{}", &whole[..40])).unwrap();
    drop(house.open().await);
    assert_eq!(house.text(), whole);
    assert_eq!(house.problems().await, Vec::<String>::new());
}

#[tokio::test]
async fn lines_whose_head_was_not_written_are_taken_over() {
    let house = House::new();
    // The first line of all, and then some that were written together.
    for lines in [0, 3] {
        let head = match lines {
            0 => Head::START,
            _ => house.control().await.audit_head().unwrap(),
        };
        let log = house.open().await;
        if lines > 0 {
            log.record((0..lines).map(event).collect()).await.unwrap();
        }
        drop(log);
        // As if the process had died between the flush and the control file's commit.
        house.control().await.set_audit_head(head).unwrap();
        assert_eq!(house.verified().await.problems, []);
        drop(house.open().await);
        assert_eq!(house.verified().await.problems, []);
    }
    assert_eq!(house.verified().await.head, 4);
}

#[tokio::test]
async fn lines_whose_head_cannot_be_written_for_long_raise_no_alarm() {
    let house = House::new();
    house.filled(2).await;
    let control = Arc::new(house.control().await);
    let dir = house.dir.path();
    let (mut chain, _again) = Chain::open(control.clone(), dir, dir, FULL, false).unwrap();
    let head = chain.head;
    for n in 0..3 {
        chain.append(&[event(n)]).unwrap();
        // As if the commit had failed: the next lines are written all the same.
        chain.settled = head.seq;
        *control.chaining() = Some(chain.head);
        control.set_audit_head(head).unwrap();
    }
    drop((chain, control));
    drop(house.open().await);
    let found = house.verified().await;
    assert_eq!((found.head, found.problems), (6, vec![]));
}

#[tokio::test]
async fn a_log_that_was_cut_off_is_set_aside_and_the_next_line_says_so() {
    let house = House::new();
    house.filled(3).await;
    let text = house.text();
    let cut: String = text.split_inclusive('\n').take(2).collect();
    fs::write(house.path(), &cut).unwrap();
    let log = house.open().await;
    log.record(vec![event(9)]).await.unwrap();
    drop(log);
    assert_eq!(house.events(), ["log-broken", "rewrap"]);
    let aside = house.dir.path().join(format!("{FILE_NAME}.set-aside-1"));
    assert_eq!(fs::read_to_string(aside).unwrap(), cut);
    // What is missing is missing, until that is accepted.
    assert_ne!(house.problems().await, Vec::<String>::new());
    let accepted = house.offline().accept().await.unwrap().unwrap();
    assert_eq!((accepted.from, accepted.faults), (5, 1));
    let found = house.verified().await;
    assert_eq!((found.base, found.lines, found.problems), (4, 3, vec![]));
    assert_eq!(house.events(), ["log-broken", "rewrap", "log-accepted"]);
    assert_eq!(house.offline().accept().await.unwrap(), None);
    // What comes after it is as well proven as before.
    house.filled(1).await;
    let text = house.text();
    fs::write(house.path(), text.replace("number 0", "number 1")).unwrap();
    assert_ne!(house.problems().await, Vec::<String>::new());
    let beheaded: String = text.split_inclusive('\n').skip(1).collect();
    fs::write(house.path(), beheaded).unwrap();
    assert_ne!(house.problems().await, Vec::<String>::new());
}

#[tokio::test]
async fn any_fault_can_be_accepted_and_the_lines_behind_it_count() {
    for (faulty, from) in [(1, 3), (2, 4), (4, 6)] {
        let house = House::new();
        house.filled(4).await;
        let text = house.text();
        let line = text.lines().nth(faulty).unwrap();
        let changed = line.replace("number", "NUMBER");
        fs::write(house.path(), text.replace(line, &changed)).unwrap();
        assert_ne!(house.problems().await, Vec::<String>::new());
        let accepted = house.offline().accept().await.unwrap().unwrap();
        assert_eq!(accepted.from, from, "{accepted:?}");
        let found = house.verified().await;
        assert_eq!((found.base + 1, found.problems), (from, vec![]));
    }
    // A full part is missing, and some lines of another.
    let house = House::new();
    let log = house.open_with(1500).await;
    for n in 0..20 {
        log.record(vec![event(n)]).await.unwrap();
    }
    drop(log);
    let parts = files::full_parts(house.dir.path()).unwrap();
    fs::remove_file(&parts[0].1).unwrap();
    let text = fs::read_to_string(&parts[2].1).unwrap();
    fs::write(&parts[2].1, text.split_once('\n').unwrap().1).unwrap();
    let accepted = house.offline().accept().await.unwrap().unwrap();
    assert_eq!((accepted.from, accepted.faults), (parts[2].0 + 1, 2));
    assert_eq!(house.verified().await.problems, []);
}

#[tokio::test]
async fn what_does_not_lead_on_from_the_head_is_set_aside_and_what_leads_to_it_stays() {
    for full in [FULL, 1000] {
        let house = House::new();
        let log = house.open_with(full).await;
        log.record(vec![event(0)]).await.unwrap();
        drop(log);
        let control = house.control_file();
        let path = Control::path_in(house.dir.path());
        let progress: crate::runtime::Progress = Arc::new(|_, _| true);
        let rotate = crate::encryption::rotate_dek::rotate_dek;
        drop(
            rotate(&house.envelope, &path, None, None, progress)
                .await
                .unwrap(),
        );
        // Under a key that the older control file does not have: some full parts of it, too.
        let log = house.open_with(full).await;
        for n in 1..8 {
            log.record(vec![event(n)]).await.unwrap();
        }
        drop(log);
        house.put_back(&control);
        drop(house.chain(full, true).await.unwrap());
        assert_eq!(
            house.events(),
            ["log-begun", "rewrap", "log-broken", "restore"]
        );
        let found = house.verified().await;
        assert_eq!((found.lines, found.problems), (4, vec![]), "full at {full}");
        let parts = files::full_parts(house.dir.path()).unwrap();
        assert!(parts.iter().all(|(first, _)| *first < 3), "{parts:?}");
        // Nothing of it is lost.
        let aside = fs::read_dir(house.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let aside: String = aside
            .filter(|path| path.to_string_lossy().contains(".set-aside-"))
            .map(|path| fs::read_to_string(path).unwrap())
            .collect();
        for n in 1..8 {
            assert!(aside.contains(&format!("number {n}")), "{n}");
        }
        house.filled(1).await;
        assert_eq!(house.problems().await, [""; 0]);
    }
}

#[tokio::test]
async fn a_start_that_is_cut_short_while_it_sets_the_log_aside_is_told_by_the_next() {
    let house = House::new();
    house.filled(2).await;
    let control = house.control().await;
    control.note_audit_broken().unwrap();
    drop(control);
    drop(house.open().await);
    assert_eq!(house.events().last().unwrap(), "log-broken");
    drop(house.open().await);
    assert_eq!(house.events().len(), 4);
}

#[tokio::test]
async fn a_forged_line_beyond_the_head_is_not_taken_over() {
    let house = House::new();
    house.filled(1).await;
    let text = house.text();
    let last = text.lines().last().unwrap();
    let forged = last.replace("\"seq\":2", "\"seq\":3");
    fs::write(house.path(), format!("{text}{forged}\n")).unwrap();
    drop(house.open().await);
    assert_eq!(house.events(), ["log-begun", "rewrap", "log-broken"]);
    assert_eq!(house.problems().await, [""; 0]);
}

#[tokio::test]
async fn full_parts_keep_the_chain_and_a_missing_one_is_found() {
    let house = House::new();
    let log = house.open_with(1500).await;
    for n in 0..20 {
        log.record(vec![event(n)]).await.unwrap();
    }
    drop(log);
    let parts = files::full_parts(house.dir.path()).unwrap();
    assert!(parts.len() > 3, "{parts:?}");
    let found = house.verified().await;
    assert_eq!((found.lines, found.problems), (21, vec![]));
    // A crash after the renaming: the log goes on behind the last full part.
    let log = house.open_with(1).await;
    log.record(vec![event(20)]).await.unwrap();
    drop(log);
    fs::rename(
        house.path(),
        house.dir.path().join("nimbus-audit.000000000022.log"),
    )
    .unwrap();
    drop(house.open().await);
    house.filled(1).await;
    assert_eq!(house.verified().await.problems, []);
    fs::remove_file(&parts[1].1).unwrap();
    assert_ne!(house.problems().await, Vec::<String>::new());
}

#[tokio::test]
async fn where_no_line_can_be_written_nobody_is_told_that_it_was() {
    let house = House::new();
    let log = house.open_with(1).await;
    // The next part cannot be begun while something stands at its place that is no file.
    let next = house.dir.path().join("nimbus-audit.000000000001.log");
    fs::create_dir(&next).unwrap();
    assert!(log.record(vec![event(1)]).await.is_err());
    log.note(Event::new(EventKind::Open, EventOutcome::Done));
    assert!(log.record(vec![event(2)]).await.is_err());
    fs::remove_dir(&next).unwrap();
    log.record(vec![event(3)]).await.unwrap();
    drop(log);
    assert_eq!(house.events(), ["log-begun", "log-gap", "rewrap"]);
    assert_eq!(house.problems().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_whose_parts_change_while_it_is_verified_raises_no_alarm() {
    let _turn = fail::FailScenario::setup();
    let house = House::new();
    // Some lines a part.
    let log = Arc::new(house.open_with(1500).await);
    for n in 0..8 {
        log.record(vec![event(n)]).await.unwrap();
    }
    fail::cfg("audit::part-opened", "pause").unwrap();
    let looks = {
        let (log, dir) = (log.clone(), house.dir.path().to_owned());
        [
            tokio::spawn(async move { log.verify().await.unwrap().problems.len() }),
            tokio::task::spawn_blocking(move || lines(&dir, None).unwrap().len()),
        ]
    };
    let writing = {
        let log = log.clone();
        tokio::spawn(async move {
            for n in 0..20 {
                log.record(vec![event(n)]).await.unwrap();
            }
        })
    };
    tokio::time::sleep(Duration::from_millis(500)).await;
    fail::remove("audit::part-opened");
    let [problems, listed] = looks;
    assert_eq!(problems.await.unwrap(), 0);
    assert!(listed.await.unwrap() >= 9);
    writing.await.unwrap();
    assert_eq!(log.verify().await.unwrap().problems, []);
    assert_eq!(house.events().len(), 29);
}

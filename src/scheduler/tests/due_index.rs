//! The promise of the due index: no entry is later than the work.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::due_index::{DueIndex, Turn};
use super::*;
use crate::tenants::DueLog as _;

/// a due index on a control file of its own.
struct Desk {
    _dir: TempDir,
    control: Arc<Control>,
    clock: Arc<TestClock>,
    due_index: DueIndex,
}

impl Desk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let control = runtime
            .block_on(Control::open(&Envelope::plaintext(), dir.path()))
            .unwrap();
        let control = Arc::new(control);
        let clock = TestClock::new();
        let due_index = DueIndex::load(control.clone(), clock.clone()).unwrap();
        Self {
            _dir: dir,
            control,
            clock,
            due_index,
        }
    }

    fn durable(&self) -> Vec<(TenantId, i64)> {
        self.control.due().unwrap().entries
    }

    fn take(&self) -> Vec<Turn> {
        self.due_index.take(self.clock.now_ms(), 100, 100)
    }

    fn expect(&self, tenant: &str, due_ms: i64) {
        self.due_index.expect(&id(tenant), due_ms).unwrap();
    }
}

const MINUTE: i64 = 60_000;

#[test]
fn what_is_scheduled_within_a_minute_or_later_costs_one_write() {
    let desk = Desk::new();
    desk.expect("a", NOW + 10 * MINUTE + 100);
    let first = [(id("a"), NOW + 10 * MINUTE)];
    assert_eq!(desk.durable(), first);
    // Any write would note the time.
    let clock = desk.control.due().unwrap().clock_ms;
    desk.clock.set(NOW + 1);
    for due in [
        NOW + 10 * MINUTE,
        NOW + 10 * MINUTE + 50,
        NOW + 20 * MINUTE,
        NOW + DAY,
    ] {
        desk.expect("a", due);
    }
    assert_eq!(
        (desk.durable(), desk.control.due().unwrap().clock_ms),
        (first.to_vec(), clock)
    );
    assert_eq!(desk.due_index.next_look(0), Some(NOW + 10 * MINUTE));
    desk.expect("a", NOW + 10 * MINUTE - 1);
    assert_eq!(desk.durable(), [(id("a"), NOW + 9 * MINUTE)]);
}

#[test]
fn an_entry_that_is_too_early_is_set_later_after_a_while_and_one_of_a_busy_tenant_is_not() {
    let desk = Desk::new();
    for tenant in ["busy", "done", "later"] {
        desk.expect(tenant, NOW);
    }
    for turn in desk.take() {
        let next = (turn.tenant == id("later")).then_some(NOW + DAY);
        desk.due_index.looked(&turn, next);
    }
    desk.due_index.settle(false).unwrap();
    assert_eq!(desk.durable().len(), 3, "not yet");
    desk.clock.set(NOW + 9 * MINUTE);
    desk.expect("busy", NOW + 9 * MINUTE);
    desk.clock.set(NOW + 11 * MINUTE);
    desk.due_index.settle(false).unwrap();
    assert_eq!(
        desk.durable(),
        [(id("busy"), NOW), (id("later"), NOW + DAY)]
    );
    assert!(!desk.due_index.is_empty());
    for turn in desk.take() {
        desk.due_index.looked(&turn, None);
    }
    desk.due_index.settle(true).unwrap();
    assert_eq!(desk.durable(), [(id("later"), NOW + DAY)]);
}

#[test]
fn what_is_announced_during_a_look_counts_beside_what_the_look_finds() {
    let desk = Desk::new();
    desk.expect("a", NOW);
    let turn = desk.take().pop().unwrap();
    desk.expect("a", NOW + 5000);
    desk.due_index.settle(true).unwrap();
    desk.due_index.looked(&turn, None);
    assert_eq!(desk.due_index.next_look(NOW), Some(NOW + 5000));
    desk.due_index.settle(true).unwrap();
    assert_eq!(desk.durable(), [(id("a"), NOW)]);
}

#[test]
fn a_look_that_fails_is_tried_later_and_later_and_forgets_nothing() {
    let desk = Desk::new();
    desk.expect("a", NOW);
    let mut waits = Vec::new();
    for failures in 1..=12 {
        let turn = desk.take().pop().unwrap();
        assert_eq!(
            (turn.suspect, desk.due_index.failed(&turn, None)),
            (failures > 1, failures)
        );
        desk.due_index.settle(true).unwrap();
        assert_eq!(desk.durable(), [(id("a"), NOW)]);
        let now = desk.clock.now_ms();
        let next = desk.due_index.next_look(now).unwrap();
        waits.push((next - now) / 1000);
        desk.clock.set(next);
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
    let turn = desk.take().pop().unwrap();
    desk.due_index.looked(&turn, None);
    desk.expect("a", desk.clock.now_ms());
    assert!(!desk.take().pop().unwrap().suspect);
}

#[test]
fn tenants_in_trouble_leave_places_to_the_others() {
    let desk = Desk::new();
    for n in 0..20 {
        desk.expect(&format!("sick{n}"), NOW);
    }
    for turn in desk.take() {
        let _failures = desk.due_index.failed(&turn, None);
    }
    desk.clock.set(NOW + HOUR);
    for n in 0..3 {
        desk.expect(&format!("well{n}"), NOW + HOUR);
    }
    let turns = desk.due_index.take(NOW + HOUR, 8, 2);
    let suspects = turns.iter().filter(|turn| turn.suspect).count();
    assert_eq!((turns.len(), suspects), (5, 2));
}

#[test]
fn a_look_at_a_tenant_that_was_deleted_says_nothing_of_its_successor() {
    let desk = Desk::new();
    desk.expect("a", NOW);
    let old = desk.take().pop().unwrap();
    desk.due_index.forget(&id("a"));
    desk.expect("a", NOW + 1000);
    desk.due_index.looked(&old, None);
    assert_eq!(desk.due_index.next_look(NOW), Some(NOW + 1000));
    let _failures = desk.due_index.failed(&old, None);
    assert_eq!(desk.due_index.next_look(NOW), Some(NOW + 1000));
}

#[derive(Debug, Clone)]
enum Step {
    /// A job is announced, and its transaction commits.
    Schedule {
        tenant: u8,
        after: i64,
    },
    /// A job is announced, and its transaction does not.
    Abandon {
        tenant: u8,
        after: i64,
    },
    Pass {
        ms: i64,
    },
    Take,
    /// A look that is under way runs what is due, and goes on; then it ends.
    Run {
        which: usize,
    },
    End {
        which: usize,
        well: bool,
    },
    Settle {
        all: bool,
    },
    Delete {
        tenant: u8,
    },
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let tenant = 0u8..3;
    let after = -2 * MINUTE..20 * MINUTE;
    let step = prop_oneof![
        4 => (tenant.clone(), after.clone()).prop_map(|(tenant, after)| Step::Schedule { tenant, after }),
        1 => (tenant.clone(), after).prop_map(|(tenant, after)| Step::Abandon { tenant, after }),
        4 => (0..15 * MINUTE).prop_map(|ms| Step::Pass { ms }),
        4 => Just(Step::Take),
        4 => (0usize..3).prop_map(|which| Step::Run { which }),
        4 => (0usize..3, prop::bool::weighted(0.8)).prop_map(|(which, well)| Step::End { which, well }),
        2 => any::<bool>().prop_map(|all| Step::Settle { all }),
        1 => tenant.prop_map(|tenant| Step::Delete { tenant }),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..60)
}

/// What tenants' files hold: the times of their jobs.
type Truth = BTreeMap<TenantId, Vec<i64>>;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn no_entry_is_ever_later_than_the_work(steps in steps()) {
        let mut desk = Desk::new();
        let mut truth = Truth::new();
        // Looks under way, and what they found.
        let mut looks: Vec<(Turn, Option<Option<i64>>)> = Vec::new();
        let name = |tenant: u8| format!("t{tenant}");
        for step in steps {
            let now = desk.clock.now_ms();
            match step {
                Step::Schedule { tenant, after } => {
                    desk.expect(&name(tenant), now + after);
                    truth.entry(id(&name(tenant))).or_default().push(now + after);
                }
                Step::Abandon { tenant, after } => desk.expect(&name(tenant), now + after),
                Step::Pass { ms } => desk.clock.set(now + ms),
                Step::Take => looks.extend(desk.take().into_iter().map(|turn| (turn, None))),
                Step::Run { which } => {
                    if let Some((turn, found)) = looks.get_mut(which) {
                        let jobs = truth.entry(turn.tenant.clone()).or_default();
                        jobs.retain(|due| *due > now);
                        *found = Some(jobs.iter().min().copied());
                    }
                }
                Step::End { which, well } if which < looks.len() => {
                    let (turn, found) = looks.remove(which);
                    match found {
                        Some(next) if well => desk.due_index.looked(&turn, next),
                        _ => drop(desk.due_index.failed(&turn, None)),
                    }
                }
                Step::End { .. } => {}
                Step::Settle { all } => desk.due_index.settle(all).unwrap(),
                Step::Delete { tenant } => {
                    let tenant = id(&name(tenant));
                    truth.remove(&tenant);
                    // Its looks end before or after; they learn nothing of a successor.
                    for (turn, found) in &mut looks {
                        if turn.tenant == tenant {
                            *found = None;
                        }
                    }
                    desk.control.finish_delete(&tenant).unwrap();
                    desk.due_index.forget(&tenant);
                }
                Step::Restart => {
                    looks.clear();
                    desk.due_index = DueIndex::load(desk.control.clone(), desk.clock.clone()).unwrap();
                }
            }
            let durable: BTreeMap<_, _> = desk.durable().into_iter().collect();
            for (tenant, jobs) in &truth {
                if let Some(first) = jobs.iter().min() {
                    let entry = durable.get(tenant);
                    prop_assert!(entry.is_some_and(|at| at <= first), "{tenant}: {entry:?}, and {first}");
                }
            }
        }
        // Left alone, all of it is run.
        for (turn, _) in looks.drain(..) {
            let _failures = desk.due_index.failed(&turn, None);
        }
        desk.clock.set(desk.clock.now_ms() + DAY);
        for turn in desk.take() {
            truth.remove(&turn.tenant);
        }
        truth.retain(|_, jobs| !jobs.is_empty());
        prop_assert!(truth.is_empty(), "{truth:?}");
    }
}

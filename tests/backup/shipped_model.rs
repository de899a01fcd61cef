//! Random work under shipping, then random instants of it: what is restored is what was acknowledged by then.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::shipping::{Instant, begun, check, is_within, now_ms, pass, ranges, ships};
use super::{backup, machine, notes, run};

/// Numbers that look random, the same for each seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }
}

#[test]
fn random_instants_of_random_work_are_restored_exactly() {
    let number = |name: &str, usual: u64| {
        let given = std::env::var(name).ok();
        given.map_or(usual, |text| text.parse().expect("a number"))
    };
    let (steps, seed) = (
        number("NIMBUS_TEST_SHIPPING_STEPS", 60),
        number("NIMBUS_TEST_SHIPPING_SEED", 4711),
    );
    println!("NIMBUS_TEST_SHIPPING_SEED={seed}");
    let mut dice = Dice(seed);
    let machine = machine();
    let environment = [("FAILPOINTS", "ship::most-packs=return")];
    let mut server = Some(ships(&machine, &[], &environment));
    let mut instants: Vec<Instant> = Vec::new();
    let mut model: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for _step in 0..steps {
        let up = server.take().expect("a server");
        let tenant = format!("t{}", dice.roll(4));
        let exists = model.contains_key(&tenant);
        let mut next = Some(up);
        match dice.roll(20) {
            0 if exists => {
                let up = next.as_ref().expect("it runs");
                let path = format!("/api/tenants/{tenant}");
                assert_eq!(up.request("DELETE", &path, None).0, 204);
                let _before = model.remove(&tenant);
                // That it is gone counts from the end of a pack.
                pass(up, now_ms());
            }
            1 if exists => {
                let mut command = machine.nimbus(&["encryption", "rotate-dek", "--path"]);
                let _ = command.args(["data", "--all"]);
                let _ = run(command).expect(0, &[]);
            }
            2 => {
                let up = next.take().expect("it runs");
                match dice.roll(2) {
                    0 => up.kill(),
                    _ => up.stop(),
                }
                let up = ships(&machine, &[], &environment);
                begun(&up);
                next = Some(up);
            }
            3 => pass(next.as_ref().expect("it runs"), now_ms()),
            _ => {
                let up = next.as_ref().expect("it runs");
                if !exists {
                    drop(up.create("/api/tenants", &json!({"id": tenant})));
                }
                let length = 1 + dice.roll(9) * 1500;
                let text = "m".repeat(usize::try_from(length).expect("short"));
                let _id = up.insert(
                    &tenant,
                    "notes",
                    &json!({"n": dice.roll(1000), "text": text}),
                );
                let _before = model.insert(tenant.clone(), notes(up, &tenant));
            }
        }
        instants.push(Instant {
            ms: now_ms(),
            notes: model.clone(),
        });
        server = next;
    }
    let up = server.expect("a server");
    pass(&up, now_ms());
    up.stop();
    let _ = backup(&machine, &["verify", "--from", "repo", "--deep"]).expect(0, &["all authentic"]);
    let ranges = ranges(&machine);
    instants.retain(|instant| is_within(&ranges, instant.ms));
    assert!(instants.len() as u64 > steps / 3, "{ranges:?}");
    for _instant in 0..steps / 10 {
        let one = dice.roll(instants.len() as u64);
        check(&machine, &instants[usize::try_from(one).expect("a place")]);
    }
}

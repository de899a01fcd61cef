//! Random work under shipping, with everything that may come in between; then random instants of
//! it: what is restored is what was acknowledged by then, exactly.
//!
//! One client works in a few tenants, and all that it was told is the model (`world`). Two more
//! write without a pause, so that something is always under way (`noise`). In between come
//! rotations of both keys with and without a server, deletions, tenants that come again,
//! migrations, locks, snapshots, `prune`, `rewrap`, orderly ends, `SIGKILL`, and a server that is
//! stopped while the repository goes on. In the bucket the store fails as well (`store`): refusals,
//! answers that are lost, halves of uploads, delays, so that requests overtake each other, and
//! packs that arrive when another epoch has begun.
//!
//! `tests/backup/model/run --minutes 30` does it for longer. The seed is printed.

#![expect(
    clippy::print_stdout,
    reason = "what was done, and the seed, are printed for whoever repeats it"
)]

mod noise;
mod store;
mod world;

use std::time::{Duration, Instant};

use super::shipping::{now_ms, ranges_in, stamp};
use store::Place;
use world::World;

/// Numbers that look random, the same for each seed.
#[derive(Debug, Clone)]
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

    fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[usize::try_from(self.roll(all.len() as u64)).expect("a place")]
    }
}

fn number(name: &str) -> Option<u64> {
    let given = std::env::var(name).ok()?;
    Some(given.parse().expect("a number"))
}

#[test]
fn random_instants_of_random_work_are_restored_exactly() {
    random_instants(Place::directory());
}

#[test]
fn random_instants_are_restored_exactly_from_a_bucket_that_fails() {
    random_instants(Place::bucket());
}

fn random_instants(place: Place) {
    let seconds = number("NIMBUS_MODEL_SECONDS").unwrap_or(40);
    let seed = number("NIMBUS_MODEL_SEED").unwrap_or_else(|| now_ms().unsigned_abs() % 1_000_000);
    println!("NIMBUS_MODEL_SEED={seed} in {place:?}");
    let mut world = World::new(place, Dice(seed));
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(seconds) {
        world.step();
    }
    world.end();
    let _ = world.verify();
    let ranges = ranges_in(&world.machine, world.place.to(), &world.settings());
    let total = world.instants.len();
    world.keep_within(&ranges);
    let left = world.instants.len();
    println!("{left} of {total} instants are in {} ranges", ranges.len());
    assert!(left > total / 4, "{left} of {total}: {ranges:?}");
    let checks = (seconds / 6).clamp(5, 60);
    for round in 0..checks {
        if round == checks / 2 {
            // From here on the newest master key has to be enough.
            world.rewrap_all();
        }
        let which = world.dice.roll(world.instants.len() as u64);
        let instant = world.instants[usize::try_from(which).expect("a place")].clone();
        println!("checks {}", stamp(instant.ms));
        world.check(&instant, round % 3 == 0);
    }
    println!("{:?}", world.done);
}

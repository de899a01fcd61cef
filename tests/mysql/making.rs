//! The first start, which makes the provider's tables one by one.

use std::thread;

use super::{House, make_tenant, tenants};

#[test]
fn a_first_start_that_was_cut_short_is_carried_on_by_the_next() {
    for made in 0..6 {
        eprintln!("killed after {made} of the steps");
        let house = House::new();
        let mut command = house.nimbus(&["start", "--port", "0"]);
        let point = format!("tenants::relational::provider-begun={made}*off->return");
        let _ = command.env("FAILPOINTS", point);
        let ended = command.output().expect("it runs");
        assert!(!ended.status.success(), "it was killed");
        let server = house.start();
        make_tenant(&server, "acme");
        assert_eq!(tenants(&server), ["acme"]);
        server.stop();
    }
}

#[test]
fn servers_that_start_together_on_nothing_make_the_tables_once() {
    let house = House::new();
    let beside = [house.beside(), house.beside(), house.beside()];
    let servers = thread::scope(|scope| {
        let starting = beside.each_ref().map(|house| scope.spawn(|| house.start()));
        starting.map(|starting| starting.join().expect("it started"))
    });
    make_tenant(&servers[0], "acme");
    for server in servers {
        assert_eq!(tenants(&server), ["acme"]);
        server.stop();
    }
}

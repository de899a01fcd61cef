//! What tests of every engine ask a server.

use std::time::Duration;

use nimbus_test_support::Server;
use serde_json::{Value, json};

pub(crate) fn tenants(server: &Server) -> Vec<String> {
    serde_json::from_value(server.get("/api/tenants")["tenants"].take()).expect("a list of ids")
}

pub(crate) fn make_tenant(server: &Server, tenant: &str) {
    let _ = server.create("/api/tenants", &json!({"id": tenant}));
}

/// The numbers of all writes, in the journal's order.
pub(crate) fn journal(server: &Server, tenant: &str) -> Vec<i64> {
    let (mut numbers, mut after) = (Vec::new(), 0);
    loop {
        let path = format!("/api/tenants/{tenant}/journal?after={after}&limit=500");
        let page = server.get(&path);
        let records = page["records"].as_array().expect("a list").iter();
        numbers.extend(records.map(|record| record["sequence"].as_i64().expect("a number")));
        match (page["has_more"].as_bool(), numbers.last()) {
            (Some(true), Some(last)) => after = *last,
            _ => return numbers,
        }
    }
}

/// What a server answers once a second is over: so long it may go by what it knew before.
pub(crate) fn refused_at_last(server: &Server, path: &str) -> (u16, Value) {
    std::thread::sleep(Duration::from_secs(1));
    server.request("GET", path, None)
}

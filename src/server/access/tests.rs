//! Who is let in.

use super::credential::{ADMIN_TOKEN, Credential, credential};
use super::*;
use crate::server::caller::CredentialId;

fn key(tenant: &str, scope: Scope) -> Caller {
    Caller::Key {
        id: "aaaqeayeaudaocaj".parse().unwrap(),
        tenant: tenant.parse().unwrap(),
        scope,
    }
}

#[test]
fn permits_what_the_table_says_and_nothing_else() {
    let admin = Caller::Admin {
        credential: CredentialId::of_digest(&[7; 32]),
    };
    let (read, write) = (key("demo", Scope::Read), key("demo", Scope::Write));
    // (needs, tenant in the path): admin, read key of demo, write key of demo.
    for (needs, tenant, allowed) in [
        (Needs::Credential, None, [true, true, true]),
        (Needs::Reading, Some("demo"), [true, true, true]),
        (Needs::Reading, Some("other"), [true, false, false]),
        (Needs::Reading, Some("demo2"), [true, false, false]),
        (Needs::Reading, None, [true, false, false]),
        (Needs::Writing, Some("demo"), [true, false, true]),
        (Needs::Writing, Some("other"), [true, false, false]),
        (Needs::Writing, None, [true, false, false]),
        (Needs::Administration, Some("demo"), [true, false, false]),
        (Needs::Administration, None, [true, false, false]),
    ] {
        let id: Option<TenantId> = tenant.map(|id| id.parse().unwrap());
        let found = [&admin, &read, &write].map(|caller| permits(needs, caller, id.as_ref()));
        assert_eq!(found, allowed, "{needs:?} {tenant:?}");
    }
}

#[test]
fn takes_one_credential_and_no_more() {
    let (a, t) = ("authorization", ADMIN_TOKEN);
    let headers = |lines: &[(&'static str, &'static str)]| {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        match credential(&headers) {
            Ok(Credential::Bearer(text)) => Some((a, text.to_vec())),
            Ok(Credential::AdminToken(text)) => Some((t, text.to_vec())),
            Err(_) => None,
        }
    };
    assert_eq!(headers(&[(a, "Bearer x")]), Some((a, b"x".to_vec())));
    assert_eq!(headers(&[(a, "bEARER x")]), Some((a, b"x".to_vec())));
    assert_eq!(headers(&[(a, "Bearer   x")]), Some((a, b"x".to_vec())));
    assert_eq!(headers(&[(t, "x")]), Some((t, b"x".to_vec())));
    // What a proxy in front asks for is not ours.
    assert_eq!(
        headers(&[(a, "Basic x"), (t, "y")]),
        Some((t, b"y".to_vec()))
    );
    for refused in [
        &[][..],
        &[(a, "Basic x")],
        &[(a, "Bearer")],
        &[(a, "Bearer ")],
        &[(a, "Bearerx y")],
        &[(a, "Bearer\tx")],
        &[(a, "Bearer \tx")],
        &[(a, "Bearer x y")],
        &[(a, "Bearer x\t")],
        &[(a, "x")],
        &[(a, "Bearer x"), (a, "Bearer x")],
        &[(a, "Bearer x"), (a, "Basic y")],
        &[(a, "Basic y"), (a, "Bearer x")],
        &[(a, "Bearer x"), (t, "x")],
        &[(t, "x"), (t, "x")],
    ] {
        assert_eq!(headers(refused), None, "{refused:?}");
    }
}

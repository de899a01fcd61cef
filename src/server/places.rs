//! How many requests may be under way, and how many of them on one tenant.
//!
//! A tenant may hold as many places as are free: alone it gets half of all, and however many tenants flood the server at once, the
//! last part stays free for the others (*n* floods leave 1/(*n* + 1) of the places). Nobody is kept back while there is room. It is the
//! rule by which switches share their buffers (Choudhury and Hahne, "Dynamic queue length thresholds", 1998).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The places, taken and free.
#[derive(Debug)]
pub(super) struct Places {
    all: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_tenant: HashMap<Box<str>, usize>,
}

/// The right to be under way, until dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    tenant: Option<Box<str>>,
}

/// Why there was no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// All are taken.
    Full,
    /// The tenant has its share.
    Share,
}

impl Places {
    pub(super) fn new(all: usize) -> Arc<Self> {
        let taken = Mutex::default();
        Arc::new(Self { all, taken })
    }

    /// A place for a request on `tenant`, or on none.
    pub(super) fn take(self: &Arc<Self>, tenant: Option<&str>) -> Result<Place, Refused> {
        let mut taken = self.taken();
        if taken.all >= self.all {
            return Err(Refused::Full);
        }
        let free = self.all - taken.all;
        let tenant = tenant.map(Box::from);
        if let Some(tenant) = &tenant {
            // A place is free, so one that holds none is never refused, and no entry of 0 stays behind.
            let held = taken.by_tenant.entry(Box::clone(tenant)).or_default();
            if *held >= free {
                return Err(Refused::Share);
            }
            *held += 1;
        }
        taken.all += 1;
        drop(taken);
        let places = Arc::clone(self);
        Ok(Place { places, tenant })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.all -= 1;
        if let Some(tenant) = &self.tenant
            && let Some(held) = taken.by_tenant.get_mut(tenant)
        {
            *held -= 1;
            if *held == 0 {
                let _none = taken.by_tenant.remove(tenant);
            }
        }
    }
}

/// The tenant that a path names, as it is written there. A tenant's id needs no escapes: what is escaped is nobody's, and all of it shares
/// one place in the count.
pub(super) fn tenant_in(path: &str) -> Option<&str> {
    let rest = path
        .strip_prefix("/api/tenants/")
        .or_else(|| path.strip_prefix("/apps/"))?;
    let tenant = rest.split('/').next().unwrap_or_default();
    Some(if tenant.parse::<nimbus_manifests::TenantId>().is_ok() {
        tenant
    } else {
        ""
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(places: &Arc<Places>, tenant: Option<&str>) -> Vec<Place> {
        std::iter::from_fn(|| places.take(tenant).ok()).collect()
    }

    #[test]
    fn a_flood_leaves_room_for_others_and_others_for_it() {
        let places = Places::new(96);
        let first = fill(&places, Some("first"));
        assert_eq!(first.len(), 48);
        assert_eq!(places.take(Some("first")).unwrap_err(), Refused::Share);
        let second = fill(&places, Some("second"));
        assert_eq!(second.len(), 24);
        let third = places.take(Some("third")).unwrap();
        drop(first);
        assert!(!fill(&places, Some("second")).is_empty());
        drop((second, third));
        assert_eq!(fill(&places, Some("second")).len(), 48);
    }

    #[test]
    fn what_names_no_tenant_may_take_all_and_all_is_given_back() {
        let places = Places::new(8);
        let held = fill(&places, None);
        assert_eq!(held.len(), 8);
        assert_eq!(places.take(None).unwrap_err(), Refused::Full);
        assert_eq!(places.take(Some("a")).unwrap_err(), Refused::Full);
        drop(held);
        drop(fill(&places, Some("a")));
        let taken = places.taken();
        assert_eq!((taken.all, taken.by_tenant.len()), (0, 0));
    }

    #[test]
    fn finds_the_tenant_of_a_path() {
        for (path, tenant) in [
            ("/api/tenants/demo/query", Some("demo")),
            ("/api/tenants/demo", Some("demo")),
            ("/apps/demo/index.html", Some("demo")),
            ("/api/tenants/%64emo/query", Some("")),
            ("/api/tenants/", Some("")),
            ("/api/tenants", None),
            ("/health", None),
        ] {
            assert_eq!(tenant_in(path), tenant, "{path}");
        }
    }
}
